from __future__ import annotations

import time

import pytest

from harness import on_loop
from moored.kernel import records as notation
from moored.kernel.conformance.metadata import contents
from moored.kernel.errors import DataLoss
from moored.kernel.ports.metadata import Bucket
from moored.kernel.ports.snapshots import Info, Kind, Usage
from moored.plugins.snapshots.records import codec
from moored.plugins.snapshots.records.store import MAX_CHAINS, Records, Snapshot
from unit.metadata.memory import MemoryDatabase

NOW = 1_700_000_000_000_000_007


def new(id_: int, name: str, parent: str = "", kind: Kind = Kind.ACTIVE, **labels: str) -> Snapshot:
    return Snapshot(id_, Info(name=name, kind=kind, parent=parent, labels=labels, created_at=NOW, updated_at=NOW))


async def records() -> tuple[Records, MemoryDatabase]:
    db = MemoryDatabase()
    found = Records(db)
    await found.start(may_create=True)
    return found, db


@pytest.mark.parametrize(
    ("number", "data"), [(0, "00"), (1, "01"), (127, "7f"), (146, "9201"), (151, "9701"), (2**64 - 1, "ff" * 9 + "01")]
)
def test_unsigned_numbers_are_written_as_by_containerd(number: int, data: str) -> None:
    assert notation.encode_uvarint(number).hex() == data
    assert notation.decode_uvarint(bytes.fromhex(data)) == number


@pytest.mark.parametrize(
    ("number", "data"),
    [(0, "00"), (4, "08"), (9, "12"), (1000, "d00f"), (4096, "8040"), (-1, "01"), (-(2**63), "ff" * 9 + "01")],
)
def test_signed_numbers_are_written_as_by_containerd(number: int, data: str) -> None:
    assert notation.encode_zigzag(number).hex() == data
    assert notation.decode_zigzag(bytes.fromhex(data)) == number


def test_times_keep_their_nanoseconds() -> None:
    data = notation.encode_time(NOW)
    assert data.hex() == "01" + (1_700_000_000 + 62135596800).to_bytes(8).hex() + "00000007" + "ffff"
    assert notation.decode_time(data) == NOW
    assert notation.decode_time(data[:-2] + b"\0\x3c") == NOW, "the zone does not move the moment"
    assert notation.decode_time(b"\x02" + data[1:] + b"\x1e") == NOW
    assert notation.decode_time(None) == notation.ZERO_TIME
    assert notation.decode_time(notation.encode_time(notation.ZERO_TIME)) == notation.ZERO_TIME


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff" * 9 + b"\x7f"])
def test_broken_numbers_are_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        notation.decode_uvarint(data)


@pytest.mark.parametrize("data", [b"", b"\x01" * 14, b"\x02" * 15, b"\x01" * 16, b"\x03" * 15])
def test_broken_times_are_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        notation.decode_time(data)


@pytest.mark.parametrize("data", [None, b"", b"\0", b"\x04", b"\x01\x01"])
def test_broken_kinds_are_data_loss(data: bytes | None) -> None:
    with pytest.raises(DataLoss):
        codec.decode_kind(data)


async def create(store: Records, snapshot: Snapshot) -> None:
    await store.create(snapshot.id, snapshot.info, lambda _: [])


@on_loop
async def test_schema_is_that_of_containerd() -> None:
    store, db = await records()
    await create(store, new(146, "ns/1/a"))
    before = time.time_ns()
    await store.commit("ns/2/c", "ns/1/a", {"l": "v", "none": ""}, "", Usage(4096, 9))
    after = time.time_ns()
    await create(store, new(151, "ns/3/b", "ns/2/c", Kind.VIEW))
    found = contents(db)
    top = found[b"v1"][1]
    committed = top[b"snapshots"][1][b"ns/2/c"][1]
    created = committed.pop(b"createdat")
    assert before <= notation.decode_time(created) <= after
    assert committed.pop(b"updatedat") == created
    stamp = notation.encode_time(NOW)
    view = {b"id": b"\x97\x01", b"kind": b"\x01", b"parent": b"ns/2/c", b"createdat": stamp, b"updatedat": stamp}
    committed_rest = {
        b"id": b"\x92\x01",
        b"kind": b"\x03",
        b"inodes": b"\x12",
        b"size": b"\x80\x40",
        b"labels": (0, {b"l": b"v"}),
    }
    assert committed == committed_rest
    assert top[b"snapshots"] == (151, {b"ns/2/c": (0, committed_rest), b"ns/3/b": (0, view)})
    assert top[b"parents"] == (0, {bytes.fromhex("9201009701"): b"ns/3/b"})
    assert set(top) == {b"snapshots", b"parents"}


@on_loop
async def test_rename_of_a_child_is_seen_in_parents() -> None:
    store, db = await records()
    for id_, name in ((1, "p"), (3, "a")):
        await create(store, new(id_, name, "q" if name == "a" else ""))
        await store.commit({"p": "q", "a": "b"}[name], name, {}, "", Usage())
    assert contents(db)[b"v1"][1][b"parents"] == (0, {b"\x01\0\x03": b"b"})
    await store.remove("b")
    assert contents(db)[b"v1"][1][b"parents"] == (0, {})


@on_loop
async def test_ids_with_the_same_first_byte_are_told_apart() -> None:
    store, _ = await records()
    await create(store, new(1, "one"))
    await create(store, new(129, "big"))
    await store.commit("one!", "one", {}, "", Usage())
    await store.commit("big!", "big", {}, "", Usage())
    await create(store, new(200, "child", "big!"))
    assert (await store.remove("one!")).id == 1


@on_loop
async def test_sequence_never_goes_back() -> None:
    store, db = await records()
    await create(store, new(9, "late"))
    await create(store, new(7, "early"))
    await store.remove("late")
    assert await Records(db).start(may_create=False) == 9


@on_loop
async def test_missing_records_are_only_made_where_they_may_be() -> None:
    db = MemoryDatabase()
    assert await Records(db).start(may_create=False) is None
    assert contents(db) == {}
    assert await Records(db).start(may_create=True) == 0
    assert await Records(db).start(may_create=False) == 0


@on_loop
async def test_imported_record_without_times_and_usage_is_read() -> None:
    store, db = await records()

    def change(root: Bucket) -> None:
        record = root.bucket(b"v1").bucket(b"snapshots").create_bucket(b"\xff/1/k")  # type: ignore[union-attr]
        record.put(b"id", b"\x05")
        record.put(b"kind", b"\x03")

    await db.update(change)
    (found,) = store.everything()
    assert (found.id, found.info.created_at) == (5, notation.ZERO_TIME)
    assert found.info.name.encode("utf-8", "surrogateescape") == b"\xff/1/k"
    assert store.usage(found.info.name) == Usage(0, 0)


@on_loop
async def test_chain_that_bites_its_tail_is_data_loss() -> None:
    store, db = await records()
    await create(store, new(1, "x"))
    await store.commit("a", "x", {}, "", Usage())

    def change(root: Bucket) -> None:
        root.bucket(b"v1").bucket(b"snapshots").bucket(b"a").put(b"parent", b"a")  # type: ignore[union-attr]

    await db.update(change)
    with pytest.raises(DataLoss):
        store.resolve("a")


@on_loop
async def test_chain_follows_the_name_to_a_snapshot_made_anew() -> None:
    found, _ = await records()
    for id_, name, parent in ((1, "base", ""), (2, "other", ""), (3, "mid", "base")):
        await create(found, new(id_, f"{name} active", parent))
        await found.commit(name, f"{name} active", {}, "", Usage(0, 0))
    assert found.plan("top", "mid") == (3, 1)
    await found.remove("mid")
    await create(found, new(4, "mid active", "other"))
    await found.commit("mid", "mid active", {}, "", Usage(0, 0))
    assert found.plan("top", "mid") == (4, 2)


@on_loop
async def test_chain_that_was_seen_is_not_read_again() -> None:
    found, db = await records()
    for id_, name, parent in ((1, "base", ""), (2, "mid", "base"), (3, "top", "mid")):
        await create(found, new(id_, f"{name} active", parent))
        await found.commit(name, f"{name} active", {}, "", Usage(0, 0))
    assert found.plan("k", "top") == (3, 2, 1)

    def lose(root: Bucket) -> None:
        top = root.bucket(b"v1")
        assert top is not None
        snapshots = top.bucket(b"snapshots")
        assert snapshots is not None
        snapshots.delete_bucket(b"base")

    await db.update(lose)
    assert found.plan("k", "top") == (3, 2, 1)


@pytest.mark.parametrize("count", [1, MAX_CHAINS + 3])
@on_loop
async def test_chains_are_right_however_many_there_are(count: int) -> None:
    found, _ = await records()
    for id_ in range(1, count + 1):
        await create(found, new(id_, f"active {id_}"))
        await found.commit(f"{id_}", f"active {id_}", {}, "", Usage(0, 0))
    assert [found.plan("k", f"{id_}") for id_ in range(1, count + 1)] == [(id_,) for id_ in range(1, count + 1)]


@on_loop
async def test_pages_follow_each_other() -> None:
    store, _ = await records()
    names = sorted(f"k{number}" for number in range(10))
    for id_, name in enumerate(names, 1):
        await create(store, new(id_, name))
    found: list[str] = []
    while page := store.page(found[-1] if found else None, 3):
        assert len(page) <= 3
        found += [one.info.name for one in page]
    assert found == names
