"""A file that comes to be whole and durable, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from moored.kernel.errors import AlreadyExists

NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links say."""


@contextmanager
def new_file(path: Path, mode: int = 0o600) -> Generator[BinaryIO]:
    """Give a file to write for the block; it gets its name, and is on the disk, when the block ends well.

    Blocks. Raises AlreadyExists if something has the name, before and after the block, and OSError; then, and when the
    block raises, nothing is left. Only a killed process leaves `.NAME.new-` and some letters beside the place.
    """
    if os.path.lexists(path):
        raise _taken(path)
    fresh = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _name(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _name(fresh: Path, path: Path) -> None:
    """Give the file its name, unless somebody has taken it meanwhile."""
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            raise _taken(path) from None
        fresh.rename(path)


def _taken(path: Path) -> AlreadyExists:
    return AlreadyExists(f"file {str(path)!r} is there already")
