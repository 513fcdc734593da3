"""What a collection keeps and what it removes: roots, references, labels, order, events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.errors import ResourceExhausted
from moored.kernel.payloads import ImageDelete, SnapshotRemove
from moored.kernel.ports.metadata import Bucket
from moored.plugins.metadata.bolt import schema
from unit.gc.world import (
    NS,
    World,
    Write,
    blob,
    container,
    image,
    ingest,
    lease,
    record,
    sandbox,
    snapshot,
    world,
)


def at(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


PAST, FUTURE = at(hours=-1), at(hours=1)
NOW = time.time_ns()
HOUR = 3600 * 10**9

CASES: dict[str, tuple[list[Write], set[str]]] = {
    "what nothing refers to goes": ([blob("a"), snapshot("k"), ingest("r")], set()),
    "root labels, whatever they say and end in": (
        [blob("a", {"root": "x"}), blob("b", {"root.more": "y"}), snapshot("k", labels={"rootless": "z"})],
        {"content a", "content b", "snapshot o/k"},
    ),
    "images and their targets": ([image("n", "a"), blob("a"), blob("b")], {"image n", "content a"}),
    "targets that are not there": ([image("n", "a")], {"image n"}),
    "images that expire": (
        [
            image("old", "a", {"expire": PAST}),
            blob("a"),
            image("new", "b", {"expire": FUTURE}),
            blob("b"),
            image("odd", "c", {"expire": "tomorrow"}),
            blob("c"),
        ],
        {"image new", "content b", "image odd", "content c"},
    ),
    "references from content": (
        [
            blob(
                "a",
                {"root": "1", "ref.content": "b", "ref.content.m.0": "c", "ref.content/x": "d", "ref.contentx": "e"},
            ),
            *map(blob, "bcde"),
        ],
        {f"content {digest}" for digest in "abcd"},
    ),
    "references to images and snapshots": (
        [
            blob(
                "a",
                {
                    "root": "1",
                    "ref.image.x": "old",
                    "ref.snapshot.o": "k",
                    "ref.snapshot.o/name": "l",
                    "ref.snapshot.p": "m",
                },
            ),
            image("old", "b", {"expire": PAST}),
            blob("b"),
            *map(snapshot, "klm"),
        ],
        {"content a", "image old", "content b", "snapshot o/k", "snapshot o/l"},
    ),
    "containers": (
        [container("c", "k", {"ref.content.y": "a"}), snapshot("k", "p"), snapshot("p", "q"), snapshot("q"), blob("a")],
        {"snapshot o/k", "snapshot o/p", "snapshot o/q", "content a"},
    ),
    "sandboxes": ([sandbox("s", {"ref.content.y": "a", "root": "1"}), blob("a"), blob("b")], {"content a"}),
    "kept by another": (
        [
            container("c"),
            image("n", "a"),
            blob("a"),
            blob("b", {"bref.container": "c"}),
            blob("d", {"bref.content.x": "b"}),
            blob("e", {"bref.image/x": "n"}),
            snapshot("k", labels={"root": "1"}),
            blob("f", {"bref.snapshot.o/y": "k"}),
            snapshot("l", labels={"bref.container.z": "c"}),
            image("extra", "g", {"bref.image": "n", "expire": PAST}),
            blob("g"),
            blob("h", {"bref.container": "gone"}),
            blob("i", {"bref.containers": "c"}),
        ],
        {
            "image n",
            "image extra",
            "snapshot o/k",
            "snapshot o/l",
            *(f"content {digest}" for digest in "abdefg"),
        },
    ),
    "leases": (
        [
            lease("l", ["content a", "images old", "ingests r", "snapshots/o k"]),
            blob("a", {"ref.content.x": "b"}),
            blob("b"),
            image("old", "c", {"expire": PAST, "ref.content.x": "d"}),
            blob("c"),
            blob("d"),
            ingest("r", expected="e"),
            blob("e"),
            snapshot("k", "p", {"ref.content.x": "f"}),
            snapshot("p"),
            blob("f"),
        ],
        {
            "lease l",
            "image old",
            "ingest r",
            "snapshot o/k",
            "snapshot o/p",
            *(f"content {digest}" for digest in "abcdef"),
        },
    ),
    "flat leases": (
        [
            lease("l", ["content a", "images old", "ingests r", "snapshots/o k"], {"flat": "1"}),
            blob("a", {"ref.content.x": "b"}),
            blob("b"),
            blob("g", {"bref.content": "a"}),
            image("old", "c", {"expire": PAST, "ref.content.x": "d"}),
            blob("c", {"ref.content.x": "h"}),
            blob("d"),
            blob("h"),
            ingest("r", expected="e"),
            blob("e", {"ref.content.x": "i"}),
            blob("i"),
            snapshot("k", "p", {"ref.content.x": "f"}),
            snapshot("p", "q", {"ref.content.x": "f"}),
            snapshot("q"),
            blob("f"),
        ],
        {
            "lease l",
            "image old",
            "ingest r",
            "snapshot o/k",
            "snapshot o/p",
            "snapshot o/q",
            *(f"content {digest}" for digest in "acei"),
        },
    ),
    "leases that expire": (
        [
            lease("old", ["content a"], {"expire": PAST}),
            lease("new", ["content b"], {"expire": FUTURE}),
            lease("odd", ["content c"], {"expire": "2026-01-01"}),
            *map(blob, "abc"),
        ],
        {"lease new", "content b", "lease odd", "content c"},
    ),
    "ingests": (
        [
            ingest("old", expires=NOW - HOUR, expected="a"),
            ingest("new", expires=NOW + HOUR, expected="b"),
            ingest("none"),
            blob("a"),
            blob("b"),
        ],
        {"ingest new", "content b"},
    ),
    "conditions": (
        [
            blob("a", {"root": "1", "cond.snapshot.o": "usedat<2h|k", "cond.snapshot.o/1": "usedat<1m|l"}),
            blob("b", {"cond.snapshot.o": "usedat<2h|n"}),
            image(
                "i", "a", {"cond.snapshot.o.x": "usedat<2h|p", "cond.snapshot.o/y": "usedat>2h,usedat==1s,usedat>1m|m"}
            ),
            *(snapshot(key, labels={"cond.value-usedat": PAST}) for key in "klnmp"),
            blob("c", {"root": "1", "cond.snapshot.o": "usedat<2h", "cond.snapshot": "usedat<2h|q"}),
            snapshot("q", labels={"cond.value-usedat/x": PAST}),
        ],
        {"content a", "content c", "image i", "snapshot o/k", "snapshot o/m"},
    ),
}


def run(folder: Path, test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        async with world(folder) as w:
            await test(w)

    asyncio.run(body())


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept(case: str, tmp_path: Path) -> None:
    writes, kept = CASES[case]

    async def test(w: World) -> None:
        await w.write(*writes)
        before = w.left()
        done = await w.collect()
        assert w.left() == kept
        assert sum(done.removed.values()) == len(before - kept)
        assert sum((await w.collect()).removed.values()) == 0

    run(tmp_path, test)


def test_namespaces_keep_nothing_for_each_other(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        def elsewhere(root: Bucket) -> None:
            target = schema.made_object_bucket(root, "other", schema.IMAGES, "n", "target")
            target.put(b"digest", b"a")

        await w.write(blob("a"), elsewhere)
        await w.collect()
        assert w.left() == {"image n"}

    run(tmp_path, test)


def test_what_is_removed_leaves_its_parents_children(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await w.write(snapshot("p", labels={"root": "1"}), snapshot("k", "p"))
        await w.write(record("snapshot", "o", "p", "children", k=b""))
        await w.write(record("snapshot", "o", "p", labels={"root": "1"}))
        await w.collect()
        with w.database.view() as root:
            children = schema.object_bucket(root, NS, schema.SNAPSHOTS, "o", "p", "children")
            assert schema.is_empty(children)
        assert w.left() == {"snapshot o/p"}

    run(tmp_path, test)


def test_events_tell_of_images_and_snapshots_only(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []

    class Listener:
        async def publish(self, *event: Any) -> None:
            told.append(event)

    async def test(w: World) -> None:
        w.exchange = Listener()  # type: ignore[assignment]
        await w.write(image("old", "a", {"expire": PAST}), blob("a"), ingest("r"), lease("l", labels={"expire": PAST}))
        await w.write(snapshot("p"), snapshot("k", "p"), container("c"))
        await w.collect()
        removed = [(topic, event, namespace) for topic, event, namespace in told if topic == "/snapshot/remove"]
        assert removed == [("/snapshot/remove", SnapshotRemove(key=key, snapshotter="o"), NS) for key in ("k", "p")]
        assert ("/images/delete", ImageDelete(name="old"), NS) in told
        assert len(told) == 3

    run(tmp_path, test)


def test_raw_stores_are_swept_when_something_may_be_left_in_them(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        w.content.dirty = True
        await w.collect()
        await w.write(snapshot("k"), blob("a", {"root": "1"}))
        await w.collect()
        assert (w.content.sweeps, w.snapshotters["o"].sweeps) == (1, 1)
        await w.write(ingest("r"))
        await w.collect()
        await w.collect()
        assert (w.content.sweeps, w.snapshotters["o"].sweeps) == (2, 1)

    run(tmp_path, test)


def test_next_expiry_is_the_first_that_is_to_come(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        assert (await w.collect()).next_expiry is None
        await w.write(lease("l", labels={"expire": "2200-01-01T00:00:01.5Z"}), lease("old", labels={"expire": PAST}))
        await w.write(image("n", "a", {"expire": "2200-01-01T01:00:01+01:00"}))
        found = (await w.collect()).next_expiry
        assert found == int(datetime(2200, 1, 1, 0, 0, 1, tzinfo=UTC).timestamp()) * 10**9

    run(tmp_path, test)


def test_a_database_that_fails_fails_the_collection(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await w.write(blob("a"))

        async def refuse(_: object) -> None:
            raise ResourceExhausted("no room")

        w.database.update_unrecorded = refuse  # type: ignore[assignment,method-assign]
        with pytest.raises(ResourceExhausted):
            await w.collect()
        assert w.left() == {"content a"}

    run(tmp_path, test)
