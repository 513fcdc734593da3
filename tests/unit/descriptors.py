"""What this process has open."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def descriptors() -> dict[str, str]:
    """Give the open descriptors of this process and what they are."""
    found: dict[str, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:  # the one that lists
            continue
    return found


@contextmanager
def none_left_open() -> Generator[None]:
    """Fail if the block opens what it does not close, where what earlier tests have left may be closed meanwhile."""
    before = descriptors()
    yield
    assert {fd: what for fd, what in descriptors().items() if before.get(fd) != what} == {}
