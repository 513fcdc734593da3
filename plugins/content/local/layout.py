"""The folder's layout and its small files.

    blobs/ALGORITHM/HEX          a blob, mode 0444
    ingest/SHA256-OF-REF/ref     the ref, UTF-8, no line end
                        /data    the bytes so far; made last, and moved to blobs/ by the commit
                        /startedat, /updatedat    RFC 3339 with up to nine digits of a second
                        /total   decimal; only where a total is known
                        /synced  decimal: so many bytes of data are durable; only where some are
    boot                         the boot in which the folder was last in use

Folders are 0755. Everything below the root is reached through descriptors of its folder and never through a symbolic
link. An ingest is whole if `data` and a matching `ref` are there; the other files have fallbacks.
Source: semantics 2, 6.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

from moored.kernel.errors import FailedPrecondition, Unavailable
from moored.plugins.content.local.faults import about

FOLDER_MODE: Final = 0o755
BLOB_MODE: Final = 0o444
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SAFELY: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a file is opened: without following a link, or waiting for the other end of a fifo that somebody put there."""

_STAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII | re.IGNORECASE
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = 1_000_000_000


class Layout:
    """The open folders of one store; a second one on the same folder is refused, here and in other processes."""

    def __init__(self) -> None:
        self.root = self.blobs = self.ingest = -1

    def open(self, root: Path) -> None:
        """Open the folder, making what is missing; blocking. After an error the caller closes too.

        Raises Unavailable if it is in use, FailedPrecondition if something else stands where a folder belongs, and what
        `faults` makes of other errors.
        """
        with about("content folder"):
            root.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _claim(self.root)
            if not os.listdir(self.root):  # noqa: PTH208 - by descriptor
                os.fchmod(self.root, FOLDER_MODE)
            self.blobs = folder(self.root, "blobs")
            self.ingest = folder(self.root, "ingest")

    def close(self) -> None:
        """Close the folders."""
        for name in ("root", "blobs", "ingest"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


def _claim(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Unavailable("content folder is in use by another store, one may open it at a time") from None


def folder(parent: int, name: str, *, durable: bool = True) -> int:
    """Open a folder, making it 0755, and durable if so wanted, if missing; the caller closes the descriptor.

    Raises FailedPrecondition if it is a symbolic link or no folder, OSError.
    """
    try:
        return open_folder(parent, name)
    except FileNotFoundError:
        pass
    with suppress(FileExistsError):
        os.mkdir(name, FOLDER_MODE, dir_fd=parent)
    fd = open_folder(parent, name)
    try:
        os.fchmod(fd, FOLDER_MODE)  # whatever the umask is
        if durable:
            os.fsync(parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_folder(parent: int, name: str) -> int:
    """Open a folder that is there. Raises FailedPrecondition if it is a symbolic link or no folder, OSError."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except NotADirectoryError:
        raise FailedPrecondition(f"{name!r} in the content folder is no folder, a real one is wanted") from None


def open_file(parent: int, name: str, flags: int) -> int:
    """Open a regular file without following links or waiting. Raises FailedPrecondition for all else, OSError."""
    fd = os.open(name, flags | SAFELY, 0o644, dir_fd=parent)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise FailedPrecondition(f"{name!r} in the content folder is no regular file")


def read_small(parent: int, name: str, limit: int) -> bytes | None:
    """Read a small file; None if it is missing, no file, unreadable or longer than limit."""
    try:
        fd = open_file(parent, name, os.O_RDONLY)
    except (OSError, FailedPrecondition):
        return None
    try:
        data = os.read(fd, limit + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return data if len(data) <= limit else None


def read_count(parent: int, name: str) -> int:
    """Read a small file with a decimal number; 0 if there is no good one."""
    text = (read_small(parent, name, 20) or b"").decode("ascii", "replace")
    return int(text) if text.isascii() and text.isdigit() else 0


def write_small(parent: int, name: str, data: bytes) -> None:
    """Write a small file; it is whole or as before, but durable only later: all of them can be done without."""
    temporary = f"{name}.tmp"
    fd = open_file(parent, temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def new_small(parent: int, name: str, data: bytes) -> None:
    """Write a small file that is not there yet, in place: for a folder that counts for nothing until more is in it.

    Raises OSError, FileExistsError if it is there.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFELY, 0o644, dir_fd=parent)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def stamp(ns: int) -> bytes:
    """Give the text of nanoseconds since 1970: `2026-01-02T03:04:05.678Z`, no trailing zeros."""
    seconds, rest = divmod(ns, _SECOND)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{whole}{fraction}Z".encode()


def read_stamp(parent: int, name: str) -> int | None:
    """Read nanoseconds since 1970 from a file with such a text, in any time zone; None if there is no good one."""
    data = read_small(parent, name, 64)
    match = _STAMP.fullmatch(data.decode("ascii", "replace")) if data else None
    if match is None:
        return None
    clock, fraction, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        when = datetime.fromisoformat(clock).replace(tzinfo=zone) - _EPOCH
    except ValueError:
        return None
    return (when.days * 86400 + when.seconds) * _SECOND + int((fraction or "").ljust(9, "0"))
