"""Errors of the operating system as errors of the content port; texts name the object, never a path."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from moored.kernel.errors import (
    DataLoss,
    FailedPrecondition,
    MooredError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unknown,
)

_BY_ERRNO: Final[Mapping[int, type[MooredError]]] = MappingProxyType(
    {
        errno.ENOENT: NotFound,
        errno.EACCES: PermissionDenied,
        errno.EPERM: PermissionDenied,
        errno.EROFS: FailedPrecondition,
        # What stands in the folder is not what the layout wants there.
        errno.ELOOP: FailedPrecondition,
        errno.ENOTDIR: FailedPrecondition,
        errno.EISDIR: FailedPrecondition,
        errno.ENOTEMPTY: FailedPrecondition,
        errno.ENOSPC: ResourceExhausted,
        errno.EDQUOT: ResourceExhausted,
        errno.EFBIG: ResourceExhausted,
        errno.EMFILE: ResourceExhausted,
        errno.ENFILE: ResourceExhausted,
        errno.ENOMEM: ResourceExhausted,
        errno.EIO: DataLoss,
        errno.EUCLEAN: DataLoss,
        errno.EBADMSG: DataLoss,
    }
)


class Unsafe(Exception):
    """Bytes or names could not be made durable: the kernel may have dropped them, so nothing may build on them."""


def port_error(what: str, error: OSError) -> MooredError:
    """Give the port's error for an operating system's error met with `what` (`content sha256:..`)."""
    kind = _BY_ERRNO.get(error.errno or 0, Unknown)
    if kind is NotFound:
        return NotFound(what)
    return kind(f"{what}: {os.strerror(error.errno or 0).lower()}")


@contextmanager
def about(what: str) -> Generator[None]:
    """Raise what the block meets as OSError as the port's error about `what`."""
    try:
        yield
    except OSError as error:
        raise port_error(what, error) from error
