"""What a daemon has acknowledged, object by object, and what each of them may therefore be after a crash.

An object's value is what can be seen of it, None where it is absent (or not promised any more). A write that was never
answered may have happened or not; one that was answered has, unless a later one has.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fault.load_images import Image


class Key(NamedTuple):
    """One object: kind is `image`, `container`, `lease`, `blob` or `ingest`."""

    kind: str
    namespace: str
    name: str


@dataclass
class Write:
    """A change of one object; moments are those of the model's clock."""

    value: Any
    began: int
    ended: int | None = None


@dataclass
class Model:
    """The history of every object."""

    writes: defaultdict[Key, list[Write]] = field(default_factory=lambda: defaultdict(list))
    images: dict[str, Image] = field(default_factory=dict)
    """By the digest of their manifest."""
    answered: int = 0
    _clock: Iterator[int] = field(default_factory=itertools.count)

    def now(self) -> int:
        """A moment later than all before."""
        return next(self._clock)

    @contextmanager
    def writing(self, key: Key, value: Any) -> Generator[None]:
        """Note a write: it begins with the block and was answered where the block ends well."""
        write = Write(value, self.now())
        self.writes[key].append(write)
        yield
        write.ended = self.now()
        self.answered += 1

    def current(self, key: Key) -> Any:
        """The value of the last write."""
        return self.writes[key][-1].value if key in self.writes else None

    def of_kind(self, kind: str, namespace: str) -> list[str]:
        """Names of what was ever begun."""
        return [key.name for key in self.writes if (key.kind, key.namespace) == (kind, namespace)]

    def allowed(self, key: Key, since: int, until: int) -> list[Any]:
        """The values that it may have if everything up to `since` is kept, and nothing begun after `until` is there."""
        found: list[Any] = [None]
        for write in self.writes.get(key, ()):
            if write.ended is not None and write.ended <= since:
                found = []
            if write.began <= until:
                found.append(write.value)
        return found

    def settle(self, key: Key, value: Any) -> None:
        """Say what it is now; an absent one is forgotten."""
        if value is None:
            self.writes.pop(key, None)
        else:
            moment = self.now()
            self.writes[key] = [Write(value, moment, moment)]

    def forget_images(self) -> None:
        """Drop the images that no object has as its value any more."""
        used = {
            write.value[0]
            for key, writes in self.writes.items()
            if key.kind == "image"
            for write in writes
            if write.value
        }
        self.images = {digest: image for digest, image in self.images.items() if digest in used}
