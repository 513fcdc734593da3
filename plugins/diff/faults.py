"""Errors of the host while a tree is read or written, as the closed set has them; texts name no path of the host."""

from __future__ import annotations

import errno
import os

from moored.kernel.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    PermissionDenied,
    ResourceExhausted,
    Unknown,
)

_KINDS: dict[int, type[MooredError]] = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM), ResourceExhausted
    ),
    **dict.fromkeys(
        (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.E2BIG),
        InvalidArgument,
    ),
    errno.EROFS: FailedPrecondition,
    errno.EIO: DataLoss,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
}


def text_of(fault: OSError, doing: str) -> MooredError:
    """The error for a failed call."""
    number = fault.errno or 0
    return _KINDS.get(number, Unknown)(f"{doing}: {os.strerror(number).lower()}")
