"""A collection removes nothing that writers work with while it runs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from moored.kernel.ports.metadata import Bucket, Database
from moored.plugins.metadata.bolt import collect as collecting
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.graph import Graph
from moored.plugins.metadata.bolt.journal import Journal
from unit.gc.world import NS, World, Write, blob, container, gone, image, ingest, lease, snapshot, world

R = TypeVar("R")

PAST = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
REF = "ref.content.x"
COLLECTIONS = 5
STEPS = 200
"""Of all writers beside one collection."""


class Late(Journal):
    """Runs `meanwhile` after the mark, before the first slice."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def update_unrecorded(self, change: Callable[[Bucket], R]) -> R:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return await super().update_unrecorded(change)


CHAIN = [blob("a", {REF: "b"}), blob("b", {REF: "c"}), blob("c"), snapshot("k", "p"), snapshot("p"), blob("z")]
"""Garbage."""

CASES: dict[str, tuple[list[Write], set[str]]] = {
    "nothing": ([], set()),
    "an image": ([image("n", "a")], {"image n", "content a", "content b", "content c"}),
    "a root label": ([blob("b", {REF: "c", "root": "1"})], {"content b", "content c"}),
    "any label": ([blob("b", {REF: "c", "other": "1"})], {"content b", "content c"}),
    "a back reference": ([container("c"), blob("b", {REF: "c", "bref.container": "c"})], {"content b", "content c"}),
    "a lease": (
        [lease("l", ["content a", "snapshots/o k"])],
        {"lease l", "content a", "content b", "content c", "snapshot o/k", "snapshot o/p"},
    ),
    "a flat lease": (
        [lease("l", ["content a", "snapshots/o k"], {"flat": "1"})],
        {"lease l", "content a", "snapshot o/k", "snapshot o/p"},
    ),
    "more in a lease that is there": ([lease("there", ["content b"])], {"content b", "content c", "lease there"}),
    "a container": ([container("x", "k")], {"snapshot o/k", "snapshot o/p"}),
    "a child": ([snapshot("q", "p")], {"snapshot o/q", "snapshot o/p"}),
    "an ingest": ([ingest("r", expires=time.time_ns() + 10**12, expected="b")], {"ingest r", "content b", "content c"}),
    "a condition": (
        [blob("y", {"root": "1", "cond.snapshot.o": "usedat>1s|k"}), snapshot("k", "p", {"cond.value-usedat": PAST})],
        {"content y", "snapshot o/k", "snapshot o/p"},
    ),
    "one removed and made again": ([gone("content", "c"), blob("c")], {"content c"}),
    "one removed": ([gone("content", "c")], set()),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_meanwhile_is_kept_and_all_that_it_reaches(case: str, tmp_path: Path) -> None:
    writes, kept = CASES[case]

    async def run() -> None:
        async with world(tmp_path, Late) as w:
            database = w.database
            assert isinstance(database, Late)
            await w.write(*CHAIN, lease("there"))
            database.meanwhile = lambda: w.write(*writes)
            await w.collect()
            assert w.left() == kept | {"lease there"}
            assert database.meanwhile is None

    asyncio.run(run())


@pytest.mark.parametrize("number", range(1, 8))
def test_what_is_there_between_two_slices_is_whole(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "SLICE_SECONDS", -1.0)  # one object a slice

    class Slow(Journal):
        slices = 0

        async def update_unrecorded(self, change: Callable[[Bucket], R]) -> R:
            self.slices += 1
            if self.slices == number:
                await w.write(image("n", "m"))
            return await super().update_unrecorded(change)

    async def body() -> None:
        nonlocal w
        async with world(tmp_path, Slow) as w:
            await w.write(
                blob("a"), blob("b"), blob("z", {REF: "m"}), blob("m", {REF: "leaf"}), blob("leaf"), blob("y")
            )
            await w.collect()
            assert isinstance(w.database, Slow)
            assert w.database.slices >= min(number, 4)
            # What was there when the image came has all that it refers to.
            left = w.left() - {"image n"}
            assert left in (set(), {"content leaf"}, {"content m", "content leaf"})
            assert number > 1 or "content m" in left

    w: World = None  # type: ignore[assignment]
    asyncio.run(body())


def test_graphs_stay_whole_beside_many_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers name what they find in the same transaction; nothing below what is named may ever be missing."""
    monkeypatch.setattr(collecting, "SLICE_SECONDS", 0.0005)
    chance = random.Random(7)
    made = allowed = 0

    def step(root: Bucket) -> None:
        nonlocal made
        made += 1
        blobs = schema.object_bucket(root, NS, schema.CONTENT, schema.BLOB)
        found = [key.decode() for key, _ in blobs.items()] if blobs is not None else []
        for number in range(4):  # layers, then what names them, from the bottom up
            refs = {f"ref.content.{at}": chance.choice(found) for at in range(chance.randrange(3)) if found}
            name = f"b{made}-{number}"
            blob(name, refs)(root)
            found.append(name)
        image(f"n{chance.randrange(12)}", chance.choice(found))(root)
        if made % 3 == 0:
            # No flat ones: below what only these keep, something may be missing.
            lease(f"l{chance.randrange(4)}", [f"content {chance.choice(found)}"])(root)
        for kind, name in (("image", f"n{chance.randrange(12)}"), ("lease", f"l{chance.randrange(4)}")):
            holder = schema.object_bucket(root, NS, f"{kind}s")
            if made % 4 == 1 and holder is not None and holder.bucket(name.encode()) is not None:
                holder.delete_bucket(name.encode())

    async def write(w: World, ended: asyncio.Event) -> None:
        while not ended.is_set():
            if made < allowed:
                await w.write(step)
            else:
                await asyncio.sleep(0.001)

    async def body() -> None:
        nonlocal allowed
        async with world(tmp_path) as w:
            ended = asyncio.Event()
            writers = [asyncio.ensure_future(write(w, ended)) for _ in range(4)]
            removed = 0
            for _ in range(COLLECTIONS):
                # On a fast disk they would make more than any collection can keep up with.
                allowed = made + STEPS
                removed += sum((await w.collect()).removed.values())
                assert missing(w.database) == set()
            ended.set()
            await asyncio.gather(*writers)
            assert removed

    asyncio.run(body())


def missing(database: Database) -> set[str]:
    """Give the blobs that roots reach and that are not there."""
    graph = Graph(0)
    with database.view() as root:
        graph.scan(root)
    there = set(graph.removable)
    seen, grey = set(graph.roots), list(graph.roots)
    while grey:
        for target in graph.edges(grey.pop()):
            if target not in seen:
                seen.add(target)
                grey.append(target)
    plain = {node._replace(kind=node.kind.removeprefix("flat ")) for node in seen}
    return {node.key.decode() for node in plain - there if node.kind == "content"}
