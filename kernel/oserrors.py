"""Errors of the operating system as errors of moored's ports; texts name the object, never a path of the host."""

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
    PermissionDenied,
    ResourceExhausted,
    Unknown,
)

COMMON: Final[Mapping[int, type[MooredError]]] = MappingProxyType(
    {
        errno.EACCES: PermissionDenied,
        errno.EPERM: PermissionDenied,
        errno.EROFS: FailedPrecondition,
        errno.ENOSPC: ResourceExhausted,
        errno.EDQUOT: ResourceExhausted,
        errno.EFBIG: ResourceExhausted,
        errno.EMLINK: ResourceExhausted,
        errno.EMFILE: ResourceExhausted,
        errno.ENFILE: ResourceExhausted,
        errno.ENOMEM: ResourceExhausted,
        errno.EIO: DataLoss,
        errno.EUCLEAN: DataLoss,
        errno.EBADMSG: DataLoss,
    }
)
"""What means the same wherever it is met; what a missing or strange file means is each caller's to say."""


def reason(error: OSError) -> str:
    """The words for an error, in lower case and without the path."""
    return os.strerror(error.errno or 0).lower()


def port_error(what: str, error: OSError, special: Mapping[int, type[MooredError]] = COMMON) -> MooredError:
    """The port's error for what was met with `what` (`snapshot K`); `special` goes before COMMON."""
    number = error.errno or 0
    kind = special.get(number) or COMMON.get(number, Unknown)
    return kind(f"{what}: {reason(error)}")


@contextmanager
def about(what: str, special: Mapping[int, type[MooredError]] = COMMON) -> Generator[None]:
    """Raise what the block meets as OSError as the port's error about `what`."""
    try:
        yield
    except OSError as error:
        raise port_error(what, error, special) from error
