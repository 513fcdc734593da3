"""Descriptors that belong together and are closed together, each once."""

from __future__ import annotations

import os
from collections.abc import Iterable


class Descriptors:
    """A set of descriptors of this process."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: set[int] = set()

    def pipe(self) -> tuple[int, int]:
        """Make a pipe: the end to read, the end to write; neither is inherited."""
        return self.own(*os.pipe2(os.O_CLOEXEC))

    def own(self, read: int, write: int) -> tuple[int, int]:
        """Take charge of two."""
        self._open.update((read, write))
        return read, write

    def take(self, found: Iterable[int]) -> list[int]:
        """Take charge of any number, given back as a list."""
        taken = list(found)
        self._open.update(taken)
        return taken

    def close(self, found: Iterable[int]) -> None:
        """Close those of them that are still open."""
        for fd in found:
            if fd in self._open:
                self._open.remove(fd)
                os.close(fd)

    def close_all(self) -> None:
        """Close what is left."""
        self.close(tuple(self._open))
