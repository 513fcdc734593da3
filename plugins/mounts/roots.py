"""The folders below which the mount manager makes things at a client's word; nothing leads out of them."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Final

from moored.kernel.errors import InvalidArgument, Unimplemented
from moored.kernel.mountfds import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, closing, open_within

FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Roots:
    """Such folders. All of it blocks."""

    def __init__(self, folders: Sequence[Path]) -> None:
        # The longest first: one may lie in another.
        self._folders = sorted(folders, key=lambda folder: len(folder.parts), reverse=True)

    @contextmanager
    def parent_of(self, path: str, what: str) -> Generator[tuple[int, str]]:
        """Give a descriptor of the folder that a path is in, and the path's last name.

        Raises Unimplemented `no root "P" configured for WHAT` for a path elsewhere, InvalidArgument for `..` in it,
        OSError (EXDEV where a link leads out).
        """
        parts = PurePath(path)
        root = next((folder for folder in self._folders if folder in parts.parents), None)
        if root is None:
            raise Unimplemented(f'no root "{path}" configured for {what}')
        below = parts.relative_to(root)
        if ".." in below.parts:
            raise InvalidArgument(f"path {path!r} for {what} has '..' in it, wanted a plain one")
        with closing(os.open(root, FOLDER)) as top:
            resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
            with closing(open_within(top, str(below.parent), FOLDER, resolve)) as folder:
                yield folder, below.name
