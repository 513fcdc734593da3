"""The snapshots of namespaces over one raw snapshotter: names, labels, leases, events, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.conformance import fails_with
from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound, ResourceExhausted, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.payloads import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from moored.kernel.ports.leases import Resource
from moored.kernel.ports.metadata import Database
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import NO_LABELS, SNAPSHOT_REF, Info, Kind, Labels
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.leases import NamespacedLeases
from moored.plugins.metadata.bolt.snapshots import NamespacedSnapshotter
from moored.plugins.snapshots.native.layers import NativeLayers
from moored.plugins.snapshots.snapshotter import RecordedSnapshotter
from unit.snapshots.world import opened, openers


@dataclass
class World:
    database: Database
    raw: RecordedSnapshotter
    told: list[tuple[str, Any, str]] = field(default_factory=list)
    changes: list[bool] = field(default_factory=list)

    async def publish(self, topic: str, event: Any, namespace: str) -> None:
        self.told.append((topic, event, namespace))

    def face(self, backend: Any = None) -> NamespacedSnapshotter:
        return NamespacedSnapshotter(
            database=self.database,
            exchange=self,  # type: ignore[arg-type]
            name="native",
            backend=backend or self.raw,
            changed=self.changes.append,
        )

    @property
    def leases(self) -> NamespacedLeases:
        return NamespacedLeases(database=self.database, exchange=None, changed=lambda _: None)

    async def raw_names(self) -> list[str]:
        async with aclosing(self.raw.walk()) as infos:
            return [info.name async for info in infos]


@asynccontextmanager
async def world(folder: Path, kind: str) -> AsyncGenerator[World]:
    databases = openers(folder)[kind]
    async with opened(NativeLayers(folder / "raw"), databases) as raw:
        database = await databases.open(folder / "records")
        try:
            await database.update(schema.prepare)
            yield World(database, raw)
        finally:
            await database.close()


def run(folder: Path, test: Callable[[World], Coroutine[Any, Any, None]], kinds: str = "apart joined") -> None:
    """Run a test where the records of both are apart, and where they are in one file."""

    async def body(kind: str) -> None:
        (folder / kind).mkdir()
        async with world(folder / kind, kind) as w:
            with bind(namespace="ns"):
                await test(w)

    for kind in kinds.split():
        asyncio.run(body(kind))


def test_namespaces_have_keys_of_their_own(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k")
        with bind(namespace="other"):
            await fails_with(NotFound, s.stat("k"))
            await s.prepare("k")
            await s.commit("c", "k")
            assert [info.name async for info in s.walk()] == ["c"]
        assert [info.name async for info in s.walk()] == ["k"]
        assert await w.raw_names() == ["ns/1/k", "other/2/c"]

    run(tmp_path, test)


def test_raw_snapshotter_sees_its_labels_only(tmp_path: Path) -> None:
    mine = {SNAPSHOT_REF: "t", "containerd.io/snapshot/a": "1"}

    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k", labels={**mine, "containerd.io/gc.root": "x", "containerd.io/snapshots": "y", "none": ""})
        assert (await w.raw.stat("ns/1/k")).labels == mine
        assert (await s.stat("k")).labels == {**mine, "containerd.io/gc.root": "x", "containerd.io/snapshots": "y"}
        await w.raw.update("ns/1/k", {"own": "of the raw one"}, ["labels.own"])
        await s.update("k", {"containerd.io/snapshot/b": "2", "l": "3"})
        assert (await w.raw.stat("ns/1/k")).labels == {"containerd.io/snapshot/b": "2", "own": "of the raw one"}
        await s.update("k", {"containerd.io/snapshot/b": ""}, ["labels.containerd.io/snapshot/b"])
        assert (await w.raw.stat("ns/1/k")).labels == {"own": "of the raw one"}
        assert (await s.stat("k")).labels == {"l": "3", "own": "of the raw one"}
        await s.commit("c", "k", {"containerd.io/snapshot/c": "4", "m": "5"})
        assert (await w.raw.stat("ns/2/c")).labels == {"containerd.io/snapshot/c": "4"}

    run(tmp_path, test)


def test_target_that_is_there_is_leased_and_told(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await w.leases.create("l", {})
        await s.prepare("k")
        await s.commit("t", "k")
        with bind(lease="l"):
            await fails_with(AlreadyExists, s.prepare("x", labels={SNAPSHOT_REF: "t"}), 'target snapshot "t"')
        assert await w.leases.resources("l") == [Resource("snapshots/native", "t")]
        await fails_with(NotFound, s.stat("x"))

    run(tmp_path, test)


def test_lease_follows_what_is_made_found_committed_and_removed(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await w.leases.create("l", {})
        await s.prepare("before")

        async def held() -> set[str]:
            return {one.id for one in await w.leases.resources("l")}

        with bind(lease="l"):
            await s.prepare("k")
            await s.view("v")
            await fails_with(AlreadyExists, s.prepare("before"))
            assert await held() == {"k", "v", "before"}
            await s.commit("c", "k")
            await fails_with(AlreadyExists, s.commit("c", "before"))
            assert await held() == {"c", "v", "before"}
            await s.remove("v")
            assert await held() == {"c", "before"}

    run(tmp_path, test)


def test_target_that_is_collected_before_it_is_leased_is_made_again(tmp_path: Path) -> None:
    """What a lease has not got yet may go; a client told that it is there would miss it at the next layer."""

    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k")
        await s.commit("t", "k")
        await w.leases.create("l", {})
        update, between = w.database.update, ["t"]

        async def collecting(change: Callable[[Any], Any]) -> Any:
            if between:
                removed = between.pop()
                with bind(lease=""):
                    await s.remove(removed)
            return await update(change)

        w.database.update = collecting  # type: ignore[method-assign]
        with bind(lease="l"):
            assert await s.prepare("x", labels={SNAPSHOT_REF: "t"})
        assert await w.leases.resources("l") == [Resource("snapshots/native", "x")]

    run(tmp_path, test)


def test_unknown_lease_is_refused_and_nothing_is_done(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k")
        with bind(lease="nope"):
            for call in (s.prepare("x"), s.view("x"), s.prepare("k"), s.commit("c", "k"), s.commit("k", "k")):
                await fails_with(NotFound, call, "lease does not exist")
        assert await w.raw_names() == ["ns/1/k"]
        await s.commit("c", "k")

    run(tmp_path, test)


def test_events_and_changes(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k")
        await s.commit("c", "k")
        await s.view("v", "c")
        await s.update("v", {"a": "b"})
        assert True not in w.changes
        await s.remove("v")
        assert w.changes[-1] is True
        assert w.told == [
            ("/snapshot/prepare", SnapshotPrepare(key="k", parent="", snapshotter="native"), "ns"),
            ("/snapshot/commit", SnapshotCommit(key="k", name="c", snapshotter="native"), "ns"),
            ("/snapshot/remove", SnapshotRemove(key="v", snapshotter="native"), "ns"),
        ]

    run(tmp_path, test)


class Wrapped:
    """A raw snapshotter of which some calls are taken over; it records nothing beside them."""

    def __init__(self, raw: Any, **calls: Any) -> None:
        self._raw = raw
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name in {"create_with", "commit_with"}:
            raise AttributeError(name)
        return self._calls.get(name) or getattr(self._raw, name)


def test_raw_snapshotter_may_make_the_target_itself(tmp_path: Path) -> None:
    """As remote snapshotters do: AlreadyExists then means that the target is there now."""

    async def test(w: World) -> None:
        async def prepare(key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
            await w.raw.prepare("remote active")
            await w.raw.commit("remote name", "remote active", {SNAPSHOT_REF: "t", "containerd.io/snapshot/r": "1"})
            raise AlreadyExists("there")

        s = w.face(Wrapped(w.raw, prepare=prepare))
        labels = {SNAPSHOT_REF: "t", "mine": "1"}
        await fails_with(AlreadyExists, s.prepare("k", labels=labels), 'target snapshot "t" from snapshotter')
        info = await s.stat("t")
        assert (info.kind, info.labels) == (Kind.COMMITTED, {**labels, "containerd.io/snapshot/r": "1"})
        await s.sweep()
        assert await w.raw_names() == ["remote name"]

    run(tmp_path, test)


def test_names_that_a_crash_left_in_the_raw_snapshotter_are_passed_over(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        await w.raw.prepare("ns/1/k")
        await w.raw.prepare("ns/2/k")
        s = w.face()
        await s.prepare("k")
        await s.sweep()
        assert await w.raw_names() == ["ns/3/k"]

        async def prepare(*_: Any) -> list[Mount]:
            raise AlreadyExists("always")

        await fails_with(
            Unknown, w.face(Wrapped(w.raw, prepare=prepare)).prepare("x"), "unexpected error from snapshotter: always"
        )

    run(tmp_path, test)


@contextmanager
def full() -> Generator[None]:
    """Have no room for records of namespaces, where they are written."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ResourceExhausted("no room")

    with pytest.MonkeyPatch.context() as patch:
        for change in ("add", "begin_commit", "commit_at_once"):
            patch.setattr(f"moored.plugins.metadata.bolt.snapshot_records.Shelf.{change}", refuse)
        yield


def test_record_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        with full():
            await fails_with(ResourceExhausted, s.prepare("k"))
        assert await w.raw_names() == []
        await s.prepare("k")

    run(tmp_path, test)


def test_commit_that_cannot_be_noted_commits_nothing(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("k")
        with full():
            await fails_with(ResourceExhausted, s.commit("c", "k"), "no room")
        assert (await w.raw.stat("ns/1/k")).kind is Kind.ACTIVE
        await s.commit("c", "k")
        assert (await s.stat("c")).kind is Kind.COMMITTED

    run(tmp_path, test)


@pytest.mark.parametrize("after_raw", [False, True])
@pytest.mark.parametrize("rebase", [False, True])
def test_commit_that_a_crash_cut_off_is_done_or_not(after_raw: bool, rebase: bool, tmp_path: Path) -> None:
    class Crash(BaseException):
        pass

    async def test(w: World) -> None:
        async def commit(name: str, key: str, labels: Labels, parent: str) -> None:
            if after_raw:
                await w.raw.commit(name, key, labels, "")
            raise Crash

        s = w.face()
        await w.leases.create("l", {})
        await s.prepare("p active")
        await s.commit("p", "p active")
        with bind(lease="l"):
            await s.prepare("k")
            with suppress(Crash):
                raw = Wrapped(w.raw, commit=commit)
                await w.face(raw).commit("c", "k", {"kept": "1"}, "p" if rebase else "")
        s = w.face()
        if after_raw:
            info = await s.stat("c")
            assert (info.labels, info.parent) == ({"kept": "1"}, "p" if rebase else "")
            await fails_with(NotFound, s.stat("k"))
        else:
            assert (await s.stat("k")).parent == ""
            await fails_with(NotFound, s.stat("c"))
            await s.commit("c", "k")
        assert {one.id for one in await w.leases.resources("l")} == ({"c"} if after_raw else {"k"})
        if after_raw and rebase:
            await fails_with(FailedPrecondition, s.remove("p"))
            await s.remove("c")
        await s.remove("p")

    run(tmp_path, test)


def test_refused_commit_changes_nothing(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await w.leases.create("l", {})
        await s.view("v")
        with bind(lease="l"):
            await fails_with(FailedPrecondition, s.commit("c", "v"))
        assert await w.leases.resources("l") == []
        assert [info.name async for info in s.walk()] == ["v"]

    run(tmp_path, test)


def test_sweep_removes_what_no_record_names_children_first(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("a")
        await s.commit("base", "a")
        await s.prepare("kept", "base")
        parent = "ns/2/base"
        for name in ("x", "y", "z"):
            await w.raw.prepare(f"{name} active", parent)
            await w.raw.commit(name, f"{name} active")
            parent = name
        swept = await s.sweep()
        assert (swept.removed, swept.whole) == (3, True)
        assert await w.raw_names() == ["ns/2/base", "ns/3/kept"]

    run(tmp_path, test)


def test_sweeps_leave_what_is_being_made(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        s = w.face()
        await s.prepare("a")
        await s.commit("base", "a")

        async def work(worker: int) -> None:
            for number in range(6):
                await s.prepare(f"{worker}-{number}", "base")
                await s.commit(f"{worker}-{number} done", f"{worker}-{number}")
                with suppress(MooredError):
                    await s.remove(f"{worker}-{number - 1} done")

        workers = [asyncio.ensure_future(work(worker)) for worker in range(6)]
        while not all(worker.done() for worker in workers):
            await s.sweep()
        await asyncio.gather(*workers)
        infos: list[Info] = [info async for info in s.walk()]
        assert [info.name for info in infos] == [*(f"{worker}-5 done" for worker in range(6)), "base"]
        await s.sweep()
        assert len(await w.raw_names()) == 7

    run(tmp_path, test)
