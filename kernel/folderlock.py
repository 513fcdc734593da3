"""One daemon a folder: an advisory lock that dies with its process, and names its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from moored.kernel.errors import FailedPrecondition

LOCK_NAME = "moored.lock"


class FolderLock:
    """An flock on `<folder>/moored.lock`, held until `release` or the end of the process. The file is never removed."""

    def __init__(self, folder: Path) -> None:
        """Take the lock at once. Raises FailedPrecondition naming folder and holder when somebody has it."""
        path = folder / LOCK_NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise FailedPrecondition(f"folder {str(folder)!r} is in use by the daemon with pid {holder}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it. Safe to call once only."""
        os.close(self._fd)
