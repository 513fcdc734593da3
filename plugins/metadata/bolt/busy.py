"""Names in a raw store that calls are working on, so that the sweep of the raw store leaves them alone.

A call makes something in the raw store and writes its record later; in between only this tells it from a leftover.

    call    hold(name) .... make .... record durable .... release
    sweep   list what there is, note what is held, read the records, remove what is in the list and in neither

The order of the sweep's three looks is what makes it right: what was made before the listing is held until its record
can be read. A call that takes over what it only found (`claim`) gets it if the sweep has not begun to remove it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager


class Busy:
    """The names held by calls under way, and those being removed; all of it on one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._removing: set[str] = set()

    @contextmanager
    def hold(self, *names: str) -> Generator[None]:
        """Keep the sweep off these names for the block."""
        self._held.update(names)
        try:
            yield
        finally:
            for name in names:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]

    @contextmanager
    def claim(self, name: str) -> Generator[bool]:
        """Hold a name for the block and tell whether what it names stays; False if it is being removed."""
        with self.hold(name):
            yield name not in self._removing

    def held(self) -> frozenset[str]:
        """Give what is held now."""
        return frozenset(self._held)

    @contextmanager
    def removing(self, name: str) -> Generator[bool]:
        """Say that a name is removed during the block; False, and hands off, if it is held."""
        if name in self._held:
            yield False
            return
        self._removing.add(name)
        try:
            yield True
        finally:
            self._removing.discard(name)
