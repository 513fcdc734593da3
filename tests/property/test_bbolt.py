"""Any tree passes through a bbolt file unchanged, and no bytes whatever make the reader crash, hang or grow."""

from __future__ import annotations

import asyncio
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moored.kernel.errors import DataLoss, InvalidArgument, MooredError, ResourceExhausted
from moored.plugins.metadata.bbolt.copy import apply_tree
from moored.plugins.metadata.bbolt.pages import META_BODY, PAGE_ID, checksum
from moored.plugins.metadata.bbolt.read import BoltFile
from moored.plugins.metadata.bbolt.tree import LEAVE, Enter, Event, Value, walk
from moored.plugins.metadata.bbolt.write import write_file
from moored.plugins.metadata.lmdb.database import LmdbDatabase

Tree: TypeAlias = "tuple[int, dict[bytes, bytes | Tree]]"

tails = st.binary(min_size=1, max_size=6)
lengths = st.sampled_from([0, 0, 0, 0, 490, 500, 1500, 5000, 32_700])
keys = st.builds(lambda length, tail: b"k" * length + tail, lengths, tails)
values = st.one_of(st.binary(max_size=20), st.sampled_from([100, 1100, 4096, 9000]).map(bytes))
sequences = st.one_of(st.just(0), st.integers(0, 2**64 - 1))
leaves = st.tuples(sequences, st.dictionaries(keys, values, max_size=30))
trees = st.recursive(
    leaves,
    lambda below: st.tuples(sequences, st.dictionaries(keys, st.one_of(values, below), max_size=8)),
    max_leaves=12,
)
roots = st.tuples(sequences, st.dictionaries(keys, trees, max_size=6))
quick = settings(deadline=None, suppress_health_check=list(HealthCheck))


def events(tree: Tree, name: bytes = b"") -> Iterator[Event]:
    sequence, entries = tree
    yield Enter(name, sequence)
    for key, value in sorted(entries.items()):
        if isinstance(value, bytes):
            yield Value(key, value)
        else:
            yield from events(value, key)
    yield LEAVE


def crowd(count: int, step: int) -> list[Event]:
    """Give a bucket with so many entries that its branch pages have several levels."""
    entries = [Value(b"%06d" % number + b"k" * (number * step % 700), b"%d" % number) for number in range(count)]
    return [Enter(b"", 0), Enter(b"b", 1), *entries, LEAVE, LEAVE]


@quick
@given(roots, st.sampled_from([1024, 4096, 16384]), st.booleans())
def test_tree_is_read_as_it_was_written(root: Tree, page_size: int, stored: bool) -> None:
    wanted = list(events(root))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        write_file(path, wanted, page_size=page_size, stored_free_list=stored)
        with BoltFile(path) as file:
            assert list(file.events()) == wanted
            assert file.leaked == 0


@settings(quick, max_examples=30)
@given(st.integers(0, 3000), st.integers(0, 700), st.sampled_from([1024, 4096]))
def test_crowded_bucket_is_read_as_it_was_written(count: int, step: int, page_size: int) -> None:
    wanted = crowd(count, step)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        write_file(path, wanted, page_size=page_size)
        with BoltFile(path) as file:
            assert list(file.events()) == wanted


@settings(quick, max_examples=50)
@given(roots)
def test_tree_passes_through_the_store(root: Tree) -> None:
    wanted = list(events(root))

    async def steps(folder: Path) -> None:
        db = LmdbDatabase.opened(folder / "db", limit=64 << 20)
        await db.update(lambda bucket: apply_tree(bucket, wanted))
        with db.view() as bucket:
            assert list(walk(bucket)) == wanted
        await db.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(steps(Path(folder)))


def sealed(data: bytearray, page_size: int) -> bytes:
    """Make the metas' checksums right again, so that a change in them is believed."""
    for at in (16, page_size + 16):
        end = at + META_BODY.size
        data[end : end + 8] = PAGE_ID.pack(checksum(bytes(data[at:end])))
    return bytes(data)


small = st.one_of(st.integers(0, 16), st.sampled_from([0x7F, 0x80, 0xFE, 0xFF]))
# Mostly in the first bytes of a page, where the structure is.
damages = st.lists(st.tuples(st.floats(0, 1), st.one_of(st.integers(0, 120), st.integers(0, 4095)), small), max_size=6)


@settings(quick, max_examples=400)
@given(roots, damages, st.booleans(), st.booleans(), st.sampled_from([1.0, 1.0, 1.0, 0.5]))
def test_damaged_file_is_read_or_refused(
    root: Tree, damage: list[tuple[float, int, int]], seal: bool, stored: bool, kept: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        write_file(path, events(root), page_size=1024, stored_free_list=stored)
        data = bytearray(path.read_bytes())
        for where, offset, byte in damage:
            at = int(where * (len(data) // 1024 - 1)) * 1024 + offset
            if at < len(data):
                data[at] = byte
        path.write_bytes((sealed(data, 1024) if seal else bytes(data))[: int(len(data) * kept)])
        size = 0
        try:
            with BoltFile(path) as file:
                for event in file.events():
                    size += sum(len(part) for part in event if isinstance(part, bytes))
        except (InvalidArgument, DataLoss, ResourceExhausted):
            pass
        assert size <= len(data)


@settings(quick, max_examples=100)
@given(st.binary(max_size=200), st.integers(2, 40))
def test_arbitrary_pages_take_no_memory(noise: bytes, pages: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        write_file(path, [Enter(b"", 0), LEAVE], page_size=1024)
        head = bytearray(path.read_bytes()[:2048])
        for at in (0, 1024):
            head[at + 16 + 48 - 8 + 0 : at + 16 + 48] = PAGE_ID.pack(pages)
        body = (noise * (1 + 1024 * pages // max(len(noise), 1)))[: 1024 * pages]
        path.write_bytes(sealed(head, 1024) + body)
        tracemalloc.start()
        try:
            with BoltFile(path) as file:
                for _ in file.events():
                    pass
        except MooredError:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20
