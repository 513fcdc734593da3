"""Where the mount manager mounts: a folder for each activation, a place in it for each mount.

t/NUMBER/K         a mount; K counts down, so that the last one made is the first by name
t/NUMBER/K-type    its type, written first: by it the right handler unmounts it after a crash
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from moored.kernel.mounts import unmount_all

_NOTE: Final = re.compile(r"([0-9]+)-type")


class Places:
    """These folders. All of it blocks."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is made."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder

    def names(self) -> list[str]:
        """Give the names of all folders."""
        return [path.name for path in self.folder.iterdir()]

    def has(self, name: str) -> bool:
        """Tell whether a folder is there."""
        return (self.folder / name).is_dir()

    def make(self, name: str) -> None:
        """Make a folder. Raises FileExistsError."""
        (self.folder / name).mkdir(mode=0o700)

    def place(self, name: str, index: int, count: int, kind: str) -> Path:
        """Give the place of mount `index` of `count`, which is of that type; it is not there yet."""
        width = 1 if count <= 10 else 2 if count <= 100 else 3
        place = self.folder / name / f"{count - index:0{width}}"
        place.with_name(f"{place.name}-type").write_text(kind)
        return place

    def mounts(self, name: str) -> Iterator[tuple[Path, str]]:
        """Give place and type of what may be mounted in a folder, the last one made first."""
        folder = self.folder / name
        found = [match for path in folder.iterdir() if (match := _NOTE.fullmatch(path.name))]
        for match in sorted(found, key=lambda match: int(match[1])):
            yield folder / match[1], (folder / match[0]).read_text()

    def forget(self, place: Path) -> None:
        """Remove what is left of a mount that is gone: its empty folder, its type. Raises OSError."""
        try:
            if place.is_dir() and not place.is_symlink():
                place.rmdir()
            else:
                place.unlink(missing_ok=True)
        finally:
            if not place.exists():
                place.with_name(f"{place.name}-type").unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a folder with nothing in it; a missing one is fine. Raises OSError."""
        try:
            (self.folder / name).rmdir()
        except FileNotFoundError:
            return

    def discard(self, name: str) -> None:
        """Remove a folder of an earlier boot, of whose mounts nothing can be left. Raises OSError."""
        for place, _ in self.mounts(name):
            self.forget(place)
        self.remove(name)


def unmount_plainly(place: Path, *, lazy: bool) -> bool:
    """Unmount all that is on a place; False if something uses it. Raises OSError."""
    try:
        unmount_all(place, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True
