"""Errors of the operating system as errors of the snapshot port; texts name the object, never a path."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Final

from moored.kernel import oserrors
from moored.kernel.errors import DataLoss, FailedPrecondition, MooredError
from moored.kernel.oserrors import reason

__all__ = ["NO_ROOM", "about", "reason"]

NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
"""What a full disk or quota answers."""

_SPECIAL: Final = MappingProxyType[int, type[MooredError]](
    {
        # The records say that it is there, as a folder of ours.
        errno.ENOENT: DataLoss,
        errno.ELOOP: DataLoss,
        errno.ENOTDIR: DataLoss,
        errno.EXDEV: FailedPrecondition,
        errno.EBUSY: FailedPrecondition,
    }
)


def about(what: str) -> AbstractContextManager[None]:
    """Raise what the block meets as OSError as the port's error about `what` (`snapshot K`)."""
    return oserrors.about(what, _SPECIAL)
