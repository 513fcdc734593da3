"""The folder that a snapshotter keeps its snapshots in, reached by descriptors that were opened once.

<root>/              0700
├── metadata/        the records' database
└── <name>/          0700, one or more: entries of snapshots, named by their ids
    ├── 12           the snapshot with the id 12
    ├── new-13       one that is being made
    └── rm-11        one that is being removed
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from moored.kernel.errors import FailedPrecondition
from moored.kernel.workers import Stop
from moored.plugins.snapshots.tree import FOLDER, remove_tree

NEW: Final = "new-"
REMOVED: Final = "rm-"
_ENTRY: Final = re.compile(r"(?:new-|rm-)?([0-9]{1,19})")
_NOT_OURS: Final = frozenset({"lost+found"})


class Folder:
    """The open folder. An entry is `NAME/ENTRY`; all methods but `path` block."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root: Final = root
        self._names: Final = tuple(names)
        self._fds: dict[str, int] = {}

    def open(self) -> None:
        """Make what is missing and open it. Raises FailedPrecondition if something else is in its place; OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        top = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in self._names:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=top)
                self._fds[name] = self._open(name, top)
        finally:
            os.close(top)

    def _open(self, name: str, top: int) -> int:
        try:
            return os.open(name, FOLDER, dir_fd=top)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                raise
            raise FailedPrecondition(
                f"{str(self.root / name)!r} is no folder, wanted one with snapshots in it (no link to one)"
            ) from None

    def close(self) -> None:
        """Close the descriptors; again is harmless."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def fd(self, entry: str) -> int:
        """Give the descriptor of the folder that an entry is in; closed by `close` only."""
        return self._fds[entry.partition("/")[0]]

    def path(self, entry: str) -> str:
        """Give an entry's absolute path, for mount options."""
        return str(self.root / entry)

    def open_entry(self, entry: str) -> int:
        """Open an entry that is a folder. Raises OSError, ELOOP or ENOTDIR for anything else."""
        return os.open(name_of(entry), FOLDER, dir_fd=self.fd(entry))

    def entries(self) -> set[str]:
        """Give all that is there."""
        return {
            f"{name}/{entry}"
            for name, fd in self._fds.items()
            for entry in os.listdir(fd)  # noqa: PTH208 - pathlib knows no descriptors
            if entry not in _NOT_OURS
        }

    def publish(self, entry: str) -> None:
        """Give what was made as `new-ID` its final name. Raises OSError ENOTEMPTY or EEXIST if that is taken."""
        fd = self.fd(entry)
        os.rename(new_name(entry), name_of(entry), src_dir_fd=fd, dst_dir_fd=fd)

    def remove(self, entry: str, stop: Stop) -> None:
        """Remove an entry, whatever it is. Raises OSError."""
        name, fd = name_of(entry), self.fd(entry)
        if name.isdecimal():
            # So that a folder that is half gone does not look like a snapshot.
            with suppress(OSError):
                os.rename(name, REMOVED + name, src_dir_fd=fd, dst_dir_fd=fd)
                name = REMOVED + name
        remove_tree(name, fd, stop)


def name_of(entry: str) -> str:
    """Give an entry's name in its folder."""
    return entry.partition("/")[2]


def new_name(entry: str) -> str:
    """Give the name in its folder under which an entry is made."""
    return NEW + name_of(entry)


def new_entry(entry: str) -> str:
    """Give the entry as which another one is made."""
    return f"{entry.partition('/')[0]}/{new_name(entry)}"


def id_of(entry: str) -> int | None:
    """Give the id in an entry's name, None if it has none."""
    match = _ENTRY.fullmatch(name_of(entry))
    return None if match is None else int(match[1])
