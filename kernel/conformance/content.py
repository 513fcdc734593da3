"""What every `ContentStore` does; each check takes an empty store, and `checks()` lists them all.

    @pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
    def test_store(check, tmp_path):
        asyncio.run(run(check, tmp_path))       # opens a store and awaits check(store)

The plain asserts need no test tool. Errors must be of the port's classes; texts are not compared where the port states
none.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from moored.kernel.conformance import fails_with
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from moored.kernel.ports.content import MAX_CHUNK, MAX_REF_BYTES, ContentStore, Digest, Info, Status, read_blob

Check = Callable[[ContentStore], Awaitable[None]]

EMPTY = Digest(f"sha256:{hashlib.sha256().hexdigest()}")
"""The digest of no bytes."""
BAD_DIGESTS = (
    "",
    "sha256",
    "sha256:",
    ":" + "a" * 64,
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha256:" + "A" * 64,
    "sha256:" + "g" * 64,
    "sha256:" + "a" * 64 + "\n",
    "sha256:../../" + "a" * 58,
    "sha512:" + "a" * 64,
    "md5:" + "a" * 32,
    "sha256:" + "a" * 63 + "\0",
    "x" * 100_000,
)
"""Texts that are no digests of this port."""


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """Give the digest of bytes."""
    return Digest(f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}")


def pattern(size: int, seed: str = "") -> bytes:
    """Give bytes that do not repeat at any chunk's length; another seed, other bytes."""
    return hashlib.shake_128(f"{seed}:{size}".encode()).digest(size)


async def put(store: ContentStore, data: bytes, ref: str = "put") -> Digest:
    """Store bytes and give their digest."""
    async with await store.writer(ref) as writer:
        await writer.write(data)
        return (await writer.commit(len(data))).digest


async def get(store: ContentStore, digest: str) -> bytes:
    """Read a blob whole."""
    return await read_blob(store, digest, 1 << 30)


async def walked(store: ContentStore, *filters: str) -> list[Info]:
    """Give all that a walk gives."""
    return [info async for info in store.walk(*filters)]


# --- blobs ------------------------------------------------------------------------------------------------------------


async def check_new_store_is_empty(store: ContentStore) -> None:
    """There is nothing to list, and nothing to be found."""
    assert await walked(store) == []
    assert await store.list_statuses() == []
    for call in (store.info, store.delete, store.reader, store.verify):
        await fails_with(NotFound, call(EMPTY), f"content {EMPTY}")


async def check_committed_bytes_are_read_back(store: ContentStore) -> None:
    """Of any size, in any number of writes; info tells size and times."""
    for size in (1, 2, 4095, 4096, 65537, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK + 7):
        data = pattern(size)
        before = time.time_ns() - 1_000_000_000
        async with await store.writer(f"size {size}", size) as writer:
            half = size // 3
            assert await writer.write(data[:half]) == half
            assert writer.digest == digest_of(data[:half])
            assert await writer.write(memoryview(data)[half:]) == size
            info = await writer.commit(size, digest_of(data))
        assert info.digest == digest_of(data)
        assert info.size == size
        assert before <= info.created_at <= info.updated_at <= time.time_ns() + 1_000_000_000
        assert await store.info(info.digest) == info
        assert await store.verify(info.digest) == info
        assert await get(store, info.digest) == data


async def check_empty_blob(store: ContentStore) -> None:
    """No bytes at all are a blob like any other."""
    async with await store.writer("empty") as writer:
        assert writer.digest == EMPTY
        assert (await writer.commit(0, EMPTY)).size == 0
    async with await store.reader(EMPTY, 0) as reader:
        assert reader.size == 0
        assert await reader.read_at(0) == b""
        assert [part async for part in reader.chunks()] == []
    async with await store.writer("empty again") as writer:
        await fails_with(AlreadyExists, writer.commit(), f"content {EMPTY}")


async def check_other_algorithms(store: ContentStore) -> None:
    """A blob is stored under the algorithm that was asked for, at open or only at commit."""
    data = pattern(100_000)
    for algorithm in ("sha384", "sha512"):
        wanted = digest_of(data, algorithm)
        async with await store.writer(f"open {algorithm}", 0, wanted) as writer:
            await writer.write(data)
            assert writer.digest == wanted
            assert (await writer.commit()).digest == wanted
        await store.delete(wanted)
        async with await store.writer(f"commit {algorithm}") as writer:
            await writer.write(data)
            assert writer.digest == digest_of(data)
            assert (await writer.commit(len(data), wanted)).digest == wanted
        assert await get(store, wanted) == data
        assert (await store.verify(wanted)).digest == wanted
    await fails_with(NotFound, store.info(digest_of(data)))
    assert [info.digest for info in await walked(store)] == [digest_of(data, "sha384"), digest_of(data, "sha512")]


async def check_bad_digests_are_refused(store: ContentStore) -> None:
    """Before anything is looked for."""
    for text in BAD_DIGESTS:
        for call in (store.info, store.delete, store.reader, store.verify):
            await fails_with(InvalidArgument, call(text))
        if text:
            await fails_with(InvalidArgument, store.writer("ref", 0, text))
    assert await store.list_statuses() == []


async def check_delete_removes(store: ContentStore) -> None:
    """A deleted blob is gone and can be written again; an open reader of it reads on."""
    data = pattern(MAX_CHUNK + 1)
    digest = await put(store, data)
    async with await store.reader(digest) as reader:
        await store.delete(digest)
        assert await reader.read_at(MAX_CHUNK) == data[MAX_CHUNK:]
        for call in (store.info, store.delete, store.reader, store.verify):
            await fails_with(NotFound, call(digest), f"content {digest}")
    assert await walked(store) == []
    assert await put(store, data) == digest
    assert await get(store, digest) == data


async def check_walk_is_ordered_and_filtered(store: ContentStore) -> None:
    """All blobs by digest; several filters are alternatives; a field that blobs do not have is absent."""
    digests = sorted([await put(store, pattern(10, str(number))) for number in range(20)])
    assert [info.digest for info in await walked(store)] == digests
    assert [info.digest for info in await walked(store, "")] == digests
    assert [info.digest for info in await walked(store, f"digest=={digests[3]}")] == [digests[3]]
    chosen = await walked(store, f"digest=={digests[7]}", f"digest~=^{digests[2]}$")
    assert [info.digest for info in chosen] == [digests[2], digests[7]]
    assert await walked(store, "size==10") == []
    assert await walked(store, "labels.x") == []
    try:
        await walked(store, "digest=")
    except InvalidArgument:
        pass
    else:
        raise AssertionError("a filter that does not parse was taken")


async def check_walk_outlives_changes(store: ContentStore) -> None:
    """Blobs that go during a walk do not end it, and a walk may be left half-way."""
    digests = [await put(store, pattern(10, str(number))) for number in range(5)]
    async with aclosing(store.walk()) as infos:
        first = await anext(infos)
        for digest in digests:
            if digest != first.digest:
                await store.delete(digest)
        async for _ in infos:
            pass
    assert await walked(store) == [first]
    async with aclosing(store.walk()) as infos:
        await anext(infos)


async def check_update_is_done_or_refused(store: ContentStore) -> None:
    """A store keeps labels, or says that it does not."""
    digest = await put(store, b"labelled")
    try:
        info = await store.update(digest, {"a": "1", "b": ""})
    except Unimplemented:
        assert (await store.info(digest)).labels == {}
        return
    assert info.labels == {"a": "1"}
    assert (await store.update(digest, {"c": "2"}, ["labels.c"])).labels == {"a": "1", "c": "2"}
    assert (await store.update(digest, {}, ["labels.a"])).labels == {"c": "2"}
    await fails_with(InvalidArgument, store.update(digest, {}, ["size"]))
    await fails_with(NotFound, store.update(EMPTY, {}))
    assert (await store.info(digest)).labels == {"c": "2"}
    assert [found.digest for found in await walked(store, "labels.c==2")] == [digest]


# --- readers ----------------------------------------------------------------------------------------------------------


async def check_reads_at_any_offset(store: ContentStore) -> None:
    """A read gives what was asked for, at most a chunk of it, and fails beyond the end."""
    data = pattern(2 * MAX_CHUNK + 100)
    async with await store.reader(await put(store, data), len(data)) as reader:
        assert reader.size == len(data)
        assert reader.digest == digest_of(data)
        for offset, size in ((0, 1), (1, 10), (MAX_CHUNK - 5, 10), (len(data) - 3, 10), (7, MAX_CHUNK)):
            assert await reader.read_at(offset, size) == data[offset : offset + size]
        assert await reader.read_at(5, 2 * MAX_CHUNK) == data[5 : 5 + MAX_CHUNK]
        assert await reader.read_at(len(data)) == b""
        await fails_with(OutOfRange, reader.read_at(len(data) + 1), f"read past object length {len(data)} bytes")
        await fails_with(InvalidArgument, reader.read_at(-1))
        await fails_with(InvalidArgument, reader.read_at(0, -1))


async def check_chunks_are_the_bytes(store: ContentStore) -> None:
    """Pieces follow each other without gap, from any offset, and may be left half-way."""
    data = pattern(3 * MAX_CHUNK + 100)
    async with await store.reader(await put(store, data)) as reader:
        for offset, size in ((0, 0), (1, 0), (MAX_CHUNK, 0), (100, 5), (100, 2 * MAX_CHUNK), (len(data), 0)):
            parts = [part async for part in reader.chunks(offset, size)]
            assert b"".join(parts) == data[offset : offset + size if size else None]
            assert all(0 < len(part) <= MAX_CHUNK for part in parts)
        async with aclosing(reader.chunks()) as parts_left:
            assert data.startswith(await anext(parts_left))
        async with aclosing(reader.chunks(len(data) + 1)) as beyond:
            await fails_with(OutOfRange, anext(beyond))


async def check_readers_overlap(store: ContentStore) -> None:
    """Many readers, and many reads of one, see the same bytes at the same time."""
    data = pattern(2 * MAX_CHUNK)
    digest = await put(store, data)

    async def read_twice() -> None:
        async with await store.reader(digest) as reader:
            first, second = await asyncio.gather(reader.read_at(0), reader.read_at(MAX_CHUNK))
            assert first + second == data
            assert b"".join([part async for part in reader.chunks()]) == data

    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(read_twice())


async def check_closed_reader_refuses(store: ContentStore) -> None:
    """Closing twice is harmless; reading afterwards is an error."""
    reader = await store.reader(await put(store, b"data"))
    await reader.close()
    await reader.close()
    await fails_with(FailedPrecondition, reader.read_at(0))


async def check_small_blobs_are_read_whole(store: ContentStore) -> None:
    """`read_blob` is limited by the caller."""
    digest = await put(store, b"manifest")
    assert await read_blob(store, digest, 8) == b"manifest"
    error = await fails_with(ResourceExhausted, read_blob(store, digest, 7))
    assert "8 bytes" in error.text


# --- ingests ----------------------------------------------------------------------------------------------------------


async def check_status_follows_the_writes(store: ContentStore) -> None:
    """Status tells what the writer knows; it goes with the commit."""
    before = time.time_ns() - 1_000_000_000
    async with await store.writer("ref", 10) as writer:
        assert writer.ref == "ref"
        first = await store.status("ref")
        assert (first.ref, first.offset, first.total) == ("ref", 0, 10)
        assert before <= first.started_at <= first.updated_at <= time.time_ns() + 1_000_000_000
        await writer.write(b"01234")
        status = await store.status("ref")
        assert (status.offset, status.total, status.started_at) == (5, 10, first.started_at)
        assert status.updated_at >= first.updated_at
        assert (await writer.status()).offset == 5
        assert [found.ref for found in await store.list_statuses()] == ["ref"]
        await writer.write(b"56789")
        await writer.commit()
    await fails_with(NotFound, store.status("ref"))
    assert await store.list_statuses() == []


async def check_statuses_are_filtered(store: ContentStore) -> None:
    """By ref; open and closed ones alike."""
    opened = await store.writer("a/open")
    async with await store.writer("b/closed") as writer:
        await writer.write(b"x")

    async def refs(*filters: str) -> list[str]:
        return sorted([status.ref for status in await store.list_statuses(*filters)])

    assert await refs() == ["a/open", "b/closed"]
    assert await refs('ref~="^b"') == ["b/closed"]
    assert await refs('ref=="a/open"', 'ref=="b/closed"') == ["a/open", "b/closed"]
    assert await refs("ref==c") == []
    await fails_with(InvalidArgument, store.list_statuses("ref="))
    await opened.close()


async def check_closed_ingest_resumes(store: ContentStore) -> None:
    """It keeps its bytes and the time of its beginning, and goes on where it was."""
    data = pattern(MAX_CHUNK + 1000)
    async with await store.writer("ref", len(data)) as writer:
        await writer.write(data[:MAX_CHUNK])
        left = await writer.status()
    kept = await store.status("ref")
    assert (kept.offset, kept.total) == (MAX_CHUNK, len(data))
    async with await store.writer("ref") as writer:
        status = await writer.status()
        assert (status.offset, status.total) == (MAX_CHUNK, len(data))
        assert status.started_at == left.started_at
        assert status.updated_at >= left.updated_at
        assert writer.digest == digest_of(data[:MAX_CHUNK])
        await writer.write(data[MAX_CHUNK:])
        await writer.commit(len(data), digest_of(data))
    assert await get(store, digest_of(data)) == data


async def check_resume_takes_another_algorithm(store: ContentStore) -> None:
    """The bytes are hashed again as expected asks."""
    data = pattern(1000)
    async with await store.writer("ref") as writer:
        await writer.write(data[:500])
    wanted = digest_of(data, "sha512")
    async with await store.writer("ref", 0, wanted) as writer:
        assert writer.digest == digest_of(data[:500], "sha512")
        await writer.write(data[500:])
        assert (await writer.commit()).digest == wanted


async def check_other_total_begins_again(store: ContentStore) -> None:
    """A size that is known to differ, or that is passed already, makes the bytes useless."""
    for first, second in ((100, 50), (0, 5)):
        async with await store.writer("ref", first) as writer:
            await writer.write(b"0123456789")
        async with await store.writer("ref", second) as writer:
            status = await writer.status()
            assert (status.offset, status.total) == (0, second)
            assert writer.digest == EMPTY
        await store.abort("ref")


async def check_later_total_is_kept(store: ContentStore) -> None:
    """An ingest begun without a total takes the one that it is resumed with."""
    async with await store.writer("ref") as writer:
        await writer.write(b"01234")
    async with await store.writer("ref", 10) as writer:
        status = await writer.status()
        assert (status.offset, status.total) == (5, 10)
    assert (await store.status("ref")).total == 10


async def check_truncate_cuts(store: ContentStore) -> None:
    """To nothing always; to a length where the store can; never to more than is there."""
    async with await store.writer("ref") as writer:
        await writer.write(b"0123456789")
        try:
            await writer.truncate(4)
        except Unimplemented:
            assert (await writer.status()).offset == 10
        else:
            assert (await writer.status()).offset == 4
            assert writer.digest == digest_of(b"0123")
            assert await writer.write(b"X") == 5
            assert writer.digest == digest_of(b"0123X")
            await fails_with(OutOfRange, writer.truncate(6))
        await fails_with(InvalidArgument, writer.truncate(-1))
        await writer.truncate()
        assert (await writer.status()).offset == 0
        assert writer.digest == EMPTY
        await writer.write(b"new")
        assert (await writer.commit(3)).digest == digest_of(b"new")
    assert await get(store, digest_of(b"new")) == b"new"


async def check_open_ref_is_locked(store: ContentStore) -> None:
    """A second writer is told to try again, and can once the first has closed."""
    first = await store.writer("ref")
    error = await fails_with(Unavailable, store.writer("ref"))
    assert "ref locked for " in error.text
    assert " (since " in error.text
    async with await store.writer("other"):
        pass
    await first.close()
    async with await store.writer("ref") as second:
        await second.write(b"x")


async def check_refs_are_any_text(store: ContentStore) -> None:
    """No ref is a path, and no two refs meet."""
    refs = ["a", "a/b", "../a", "/etc/passwd", ".", "..", "a\0b", "a\nb", " ", "\N{SNOWMAN}", "r" * (64 << 10)]
    for number, ref in enumerate(refs):
        async with await store.writer(ref) as writer:
            await writer.write(str(number).encode())
    found = {status.ref: status.offset for status in await store.list_statuses()}
    assert found == {ref: len(str(number)) for number, ref in enumerate(refs)}
    for number, ref in enumerate(refs):
        assert (await store.status(ref)).ref == ref
        async with await store.writer(ref) as writer:
            assert writer.digest == digest_of(str(number).encode())
        await store.abort(ref)
    assert await store.list_statuses() == []
    await fails_with(InvalidArgument, store.writer(""))
    await fails_with(InvalidArgument, store.writer("r" * (MAX_REF_BYTES + 1)))


async def check_negative_numbers_are_refused(store: ContentStore) -> None:
    """A total or size below zero means nothing."""
    await fails_with(InvalidArgument, store.writer("ref", -1))
    async with await store.writer("ref") as writer:
        await fails_with(InvalidArgument, writer.commit(-1))
    await store.abort("ref")


# --- commit and abort -------------------------------------------------------------------------------------------------


async def check_failed_commit_keeps_the_ingest(store: ContentStore) -> None:
    """A wrong size or digest closes the writer; the bytes can be resumed and committed."""
    data = b"0123456789"
    other = digest_of(b"other")
    async with await store.writer("ref") as writer:
        await writer.write(data)
        await fails_with(FailedPrecondition, writer.commit(11), "unexpected commit size 10, expected 11")
        await fails_with(FailedPrecondition, writer.commit(10))
    async with await store.writer("ref") as writer:
        text = f"unexpected commit digest {digest_of(data)}, expected {other}"
        await fails_with(FailedPrecondition, writer.commit(10, other), text)
    async with await store.writer("ref") as writer:
        await fails_with(InvalidArgument, writer.commit(10, "sha256:x"))
    assert await walked(store) == []
    assert (await store.status("ref")).offset == 10
    async with await store.writer("ref") as writer:
        assert (await writer.status()).offset == 10
        assert (await writer.commit(10, digest_of(data))).size == 10
    assert await get(store, digest_of(data)) == data


async def check_existing_blob_ends_the_ingest(store: ContentStore) -> None:
    """At open nothing is begun; at commit the ingest goes; the blob stays as it is."""
    digest = await put(store, b"data")
    before = await store.info(digest)
    await fails_with(AlreadyExists, store.writer("ref", 0, digest), f"content {digest}")
    await fails_with(AlreadyExists, store.writer("ref", 4, digest), f"content {digest}")
    assert await store.list_statuses() == []
    async with await store.writer("ref") as writer:
        await writer.write(b"data")
        await fails_with(AlreadyExists, writer.commit(4, digest), f"content {digest}")
    assert await store.list_statuses() == []
    await fails_with(NotFound, store.abort("ref"))
    assert await store.info(digest) == before
    assert await get(store, digest) == b"data"


async def check_existing_blob_is_met_while_writing(store: ContentStore) -> None:
    """Of concurrent writers of one digest one wins; the others learn that it exists, and leave nothing."""
    for size in (MAX_CHUNK, *range(30)):
        data = pattern(size)
        writers = [await store.writer(f"ref {number}", 0, digest_of(data)) for number in range(8)]
        await asyncio.gather(*(writer.write(data) for writer in writers))
        results = await asyncio.gather(*(writer.commit(size) for writer in writers), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExists"] * 7 + ["Info"]
        assert await get(store, digest_of(data)) == data
        assert await store.list_statuses() == []


async def check_writers_overlap(store: ContentStore) -> None:
    """Different refs do not wait for or mix with each other."""
    blobs = [pattern(300_000 + number, str(number)) for number in range(12)]

    async def ingest(number: int, data: bytes) -> None:
        async with await store.writer(f"NS/{number}/x", len(data)) as writer:
            for start in range(0, len(data), 70_000):
                await writer.write(data[start : start + 70_000])
            await writer.commit(len(data), digest_of(data))

    async with asyncio.TaskGroup() as tasks:
        for number, data in enumerate(blobs):
            tasks.create_task(ingest(number, data))
    assert {info.digest: info.size for info in await walked(store)} == {digest_of(data): len(data) for data in blobs}
    for data in blobs:
        assert await get(store, digest_of(data)) == data


async def check_calls_of_one_writer_are_in_order(store: ContentStore) -> None:
    """Writes that overlap are carried out one after the other, as they were called."""
    parts = [bytes([number]) * 50_000 for number in range(10)]
    async with await store.writer("ref") as writer:
        offsets = await asyncio.gather(*(writer.write(part) for part in parts))
        assert offsets == [50_000 * number for number in range(1, 11)]
        assert (await writer.commit()).digest == digest_of(b"".join(parts))


async def check_closed_writer_refuses(store: ContentStore) -> None:
    """After close and after commit alike; closing again is harmless."""
    writer = await store.writer("ref")
    await writer.write(b"x")
    await writer.close()
    await writer.close()
    committed = await store.writer("other")
    await committed.commit()
    await committed.close()
    for closed in (writer, committed):
        await fails_with(FailedPrecondition, closed.write(b"y"))
        await fails_with(FailedPrecondition, closed.truncate())
        await fails_with(FailedPrecondition, closed.commit())
    assert (await store.status("ref")).offset == 1


async def check_abort_removes(store: ContentStore) -> None:
    """The bytes are gone, and the ref begins anew."""
    async with await store.writer("ref", 10) as writer:
        await writer.write(b"01234")
    await store.abort("ref")
    await fails_with(NotFound, store.status("ref"))
    await fails_with(NotFound, store.abort("ref"))
    async with await store.writer("ref") as writer:
        status = await writer.status()
        assert (status.offset, status.total) == (0, 0)


async def check_abort_reaches_open_writers(store: ContentStore) -> None:
    """The writer fails from then on, and harms neither the blobs nor who takes the ref next."""
    writer = await store.writer("ref")
    await writer.write(b"old")
    await store.abort("ref")
    await fails_with(NotFound, store.status("ref"))
    assert await store.list_statuses() == []
    await fails_with(Aborted, writer.write(b"more"))
    await fails_with(Aborted, writer.commit())
    await writer.close()
    async with await store.writer("ref") as second:
        assert (await second.status()).offset == 0
        await second.write(b"new")
        await fails_with(Aborted, writer.commit())
        await writer.close()
        await second.commit(3, digest_of(b"new"))
    assert [info.digest for info in await walked(store)] == [digest_of(b"new")]


async def check_abort_and_commit_race(store: ContentStore) -> None:
    """One of the two wins: a blob and no ingest to abort, or no blob and a commit that was aborted."""
    for number in range(20):
        writer = await store.writer("ref")
        await writer.write(str(number).encode())
        commit, abort = await asyncio.gather(writer.commit(), store.abort("ref"), return_exceptions=True)
        if isinstance(commit, Info):
            assert isinstance(abort, NotFound)
        else:
            assert isinstance(commit, Aborted)
            assert abort is None
        await writer.close()
    assert await store.list_statuses() == []


# --- cancellation -----------------------------------------------------------------------------------------------------


async def _cancelled_after(turns: int, call: Awaitable[object]) -> bool:
    """Start a call, cancel it after some turns of the event loop, and tell whether CancelledError came out of it."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def check_cancelled_write_is_whole_or_absent(store: ContentStore) -> None:
    """Whenever it is cancelled, and the writer goes on."""
    data = pattern(700_000)
    written = b""
    async with await store.writer("ref") as writer:
        for turns in range(12):
            await _cancelled_after(turns, writer.write(data))
            offset = (await writer.status()).offset
            assert offset in (len(written), len(written) + len(data))
            written += data if offset > len(written) else b""
            assert writer.digest == digest_of(written)
        await writer.write(b"end")
        assert (await writer.commit()).digest == digest_of(written + b"end")


async def check_cancelled_commit_is_whole_or_absent(store: ContentStore) -> None:
    """There is the blob or the ingest, never both or neither, and the ref is free."""
    for turns in range(12):
        data = pattern(50_000, str(turns))
        writer = await store.writer("ref")
        await writer.write(data)
        await _cancelled_after(turns, writer.commit())
        await writer.close()
        blobs = [info.digest for info in await walked(store)]
        ingests = [(status.ref, status.offset) for status in await store.list_statuses()]
        if digest_of(data) in blobs:
            assert ingests == []
        else:
            assert ingests == [("ref", len(data))]
            async with await store.writer("ref") as again:
                assert again.digest == digest_of(data)
            await store.abort("ref")


async def check_cancelled_open_frees_the_ref(store: ContentStore) -> None:
    """Cancelled before it was opened, a ref is neither locked nor begun; resuming loses nothing."""
    async with await store.writer("old") as writer:
        await writer.write(pattern(MAX_CHUNK))
    for turns in range(8):
        if await _cancelled_after(turns, store.writer("new")):
            assert [status.ref for status in await store.list_statuses()] == ["old"]
            assert (await _opened(store, "new")).offset == 0
        await store.abort("new")
        await _cancelled_after(turns, _open_and_close(store, "old"))
        assert (await _opened(store, "old")).offset == MAX_CHUNK


async def _open_and_close(store: ContentStore, ref: str) -> None:
    async with await store.writer(ref):
        pass


async def _opened(store: ContentStore, ref: str) -> Status:
    async with await store.writer(ref) as writer:
        return await writer.status()


async def check_cancelled_reads_harm_nothing(store: ContentStore) -> None:
    """The reader reads on and closes."""
    data = pattern(2 * MAX_CHUNK)
    digest = await put(store, data)
    async with await store.reader(digest) as reader:
        for turns in range(6):
            await _cancelled_after(turns, reader.read_at(0))
            await _cancelled_after(turns, store.verify(digest))
            await _cancelled_after(turns, get(store, digest))
        assert await reader.read_at(MAX_CHUNK) == data[MAX_CHUNK:]


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
