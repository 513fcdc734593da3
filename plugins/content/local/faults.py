"""Errors of the operating system as errors of the content port; texts name the object, never a path."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from moored.kernel import oserrors
from moored.kernel.errors import FailedPrecondition, MooredError, NotFound

_SPECIAL: Final = MappingProxyType[int, type[MooredError]](
    {
        # What stands in the folder is not what the layout wants there.
        errno.ELOOP: FailedPrecondition,
        errno.ENOTDIR: FailedPrecondition,
        errno.EISDIR: FailedPrecondition,
        errno.ENOTEMPTY: FailedPrecondition,
    }
)


class Unsafe(Exception):
    """Bytes or names could not be made durable: the kernel may have dropped them, so nothing may build on them."""


def port_error(what: str, error: OSError) -> MooredError:
    """Give the port's error for an operating system's error met with `what` (`content sha256:..`)."""
    if error.errno == errno.ENOENT:
        return NotFound(what)
    return oserrors.port_error(what, error, _SPECIAL)


@contextmanager
def about(what: str) -> Generator[None]:
    """Raise what the block meets as OSError as the port's error about `what`."""
    try:
        yield
    except OSError as error:
        raise port_error(what, error) from error
