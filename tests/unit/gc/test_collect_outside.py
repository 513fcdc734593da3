"""What a collection ends outside of the database: things of leases that are gone, unless a label names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import on_loop
from moored.kernel.errors import AlreadyExists, InvalidArgument, Unavailable
from moored.plugins.metadata.bolt.journal import Journal
from unit.gc.test_collect import PAST
from unit.gc.world import NS, World, Write, blob, container, gone, image, lease, mount, record, sandbox, snapshot, world
from unit.metadata.objects import opened


@dataclass
class Thing:
    """Something that a client has open."""

    name: str
    lease: str = ""
    namespace: str = NS
    ends: list[str] = field(default_factory=list)
    fails: bool = False

    async def close(self) -> None:
        if self.fails:
            raise Unavailable("it does not answer")
        self.ends.append(self.name)


async def ended(w: World, *things: Thing, kind: str = "stream") -> set[str]:
    """The names of those that one collection closes."""
    w.outside[kind] = lambda: things
    await w.collect()
    return {thing.name for thing in things if thing.ends}


CASES: dict[str, tuple[list[Write], set[str]]] = {
    "nothing else": ([], set()),
    "content": ([blob("a", {"root": "1", "ref.stream": "s"})], {"s"}),
    "content, with a name behind": ([blob("a", {"root": "1", "ref.stream.x": "s", "ref.stream/y": "t"})], {"s", "t"}),
    "content, by another label": ([blob("a", {"root": "1", "ref.streams": "s", "ref.stream-x": "t"})], set()),
    "content that goes": ([blob("a", {"ref.stream": "s"})], set()),
    "an image": ([image("n", "a", {"ref.stream": "s"})], {"s"}),
    "an image that has expired": ([image("n", "a", {"ref.stream": "s", "expire": PAST})], set()),
    "a snapshot": ([snapshot("k", labels={"root": "1", "ref.stream": "s"})], {"s"}),
    "a container": ([container("c", labels={"ref.stream": "s"})], {"s"}),
    "a sandbox": ([sandbox("b", {"ref.stream": "s"})], {"s"}),
    "its lease": ([lease("l")], {"s", "t"}),
    "its lease, flat": ([lease("l", labels={"flat": "1"})], {"s", "t"}),
    "its lease, expired": ([lease("l", labels={"expire": PAST})], set()),
    "another lease": ([lease("m", labels={"ref.stream": "s"})], set()),
}


@pytest.mark.parametrize("case", CASES)
@on_loop
async def test_leased_things_stay_while_something_keeps_them(tmp_path: Path, case: str) -> None:
    writes, kept = CASES[case]
    async with world(tmp_path) as w:
        await w.write(*writes)

        assert await ended(w, Thing("s", "l"), Thing("t", "l")) == {"s", "t"} - kept


@on_loop
async def test_things_under_no_lease_stay_also_in_namespaces_that_are_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(blob("a", {"root": "1"}))

        assert await ended(w, Thing("s"), Thing("t", namespace="new"), Thing("u", namespace="")) == set()


@on_loop
async def test_things_belong_to_their_namespace(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(lease("l"), blob("a", {"root": "1", "ref.stream": "s"}))

        assert await ended(w, Thing("s", "l", "other"), Thing("t", "l", "other")) == {"s", "t"}


@on_loop
async def test_each_kind_has_its_own_label(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(blob("a", {"root": "1", "ref.stream": "s", "ref.pipe": "p"}))
        pipes = [Thing("s", "l"), Thing("p", "l")]
        w.outside["pipe"] = lambda: pipes

        assert await ended(w, Thing("s", "l"), Thing("p", "l")) == {"p"}
        assert [bool(pipe.ends) for pipe in pipes] == [True, False]


@on_loop
async def test_what_is_ended_is_counted_and_a_failure_harms_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(blob("a"))
        bad, good = Thing("bad", "l", fails=True), Thing("good", "l")
        w.outside["stream"] = lambda: [bad, good]

        done = await w.collect()

        assert done.removed == {"stream": 2, "content": 1}
        assert good.ends == ["good"]


@pytest.mark.parametrize(
    "write", [lease("l"), blob("a", {"root": "1", "ref.stream": "s"})], ids=["its lease", "a label"]
)
@on_loop
async def test_what_is_written_while_the_mark_runs_keeps_things(tmp_path: Path, write: Write) -> None:
    class Late(Journal):
        """Lets the write happen between the mark and the first slice."""

        async def update_unrecorded(self, change: Callable[[Any], Any]) -> Any:
            await self.update(write)
            return await super().update_unrecorded(change)

    async with world(tmp_path, Late) as w:
        await w.write(blob("z"))

        assert await ended(w, Thing("s", "l")) == set()


@on_loop
async def test_things_go_once_what_kept_them_has_gone(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(lease("l"), container("c", labels={"ref.stream.io": "t"}))
        assert await ended(w, Thing("s", "l"), Thing("t", "l")) == set()
        await w.write(gone("lease", "l"))
        assert await ended(w, Thing("s", "l"), Thing("t", "l")) == {"s"}
        await w.write(gone("container", "c"))
        assert await ended(w, Thing("t", "l")) == {"t"}


@on_loop
async def test_mounts_stay_by_label_lease_and_referrer_and_while_they_are_made(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.write(
            *(mount(name) for name in ("by label", "leased", "free")),
            mount("by referrer", {"bref.container": "c"}),
            mount("of nobody", {"bref.container": "d", "root": "1"}),
            record("mount", "being made"),
            container("c", labels={"ref.mount.x": "by label"}),
            lease("l", ["mounts leased"]),
        )
        await w.collect()

        assert {one for one in w.left() if one.startswith("mount")} == {
            "mount by label",
            "mount leased",
            "mount by referrer",
            "mount being made",
        }


@on_loop
async def test_kinds_are_taken_once_and_never_those_of_the_database(tmp_path: Path) -> None:
    async with opened(tmp_path) as parts:
        end = parts.objects.collectable("stream", list)
        with pytest.raises(AlreadyExists, match="stream"):
            parts.objects.collectable("stream", list)
        for kind in ("content", "mount", "lease"):
            with pytest.raises(InvalidArgument, match=kind):
                parts.objects.collectable(kind, list)
        end()
        parts.objects.collectable("stream", list)
