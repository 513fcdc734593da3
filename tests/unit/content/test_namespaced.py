"""What the namespaced content store adds to a raw one: records, leases, sharing, repair, sweep."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.conformance import fails_with
from moored.kernel.conformance.content import EMPTY, digest_of, get, pattern, put
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
)
from moored.kernel.namespaces import bind
from moored.kernel.payloads import ContentCreate, ContentDelete
from moored.kernel.ports.leases import Resource
from moored.kernel.records import decode_time, decode_zigzag
from moored.plugins.metadata.bolt.blobs import INGEST_LIFE
from moored.plugins.metadata.bolt.content import ISOLATED, SHARED
from moored.plugins.metadata.bolt.leftovers import Swept
from unit.content.namespaced import World, world

DATA = b"some content"
DIGEST = digest_of(DATA)
MINUTE = 60 * 10**9


async def commit(parts: World, data: bytes = DATA, ref: str = "ref", **more: object) -> None:
    async with await parts.content.writer(ref) as writer:
        await writer.write(data)
        await writer.commit(len(data), **more)  # type: ignore[arg-type]


async def leased(parts: World, lease: str = "L") -> list[Resource]:
    return list(await parts.leases.resources(lease))


# --- records ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_records_are_those_of_containerd(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await commit(parts, labels={"a": "1", "none": ""})
            async with await parts.content.writer("a/ref"):
                pass

        blob = parts.record("ns", "content", "blob", DIGEST)
        assert sorted(blob) == ["createdat", "labels", "size", "updatedat"]
        assert decode_zigzag(blob["size"] or b"") == len(DATA)
        assert parts.record("ns", "content", "blob", DIGEST, "labels") == {"a": b"1"}
        ingest = parts.record("ns", "content", "ingests", "a/ref")
        assert sorted(ingest) == ["expireat", "ref"]
        assert ingest["ref"] == b"ns/1/a/ref"
        assert abs(decode_time(ingest["expireat"]) - time.time_ns() - INGEST_LIFE) < MINUTE
        assert [status.ref for status in await parts.raw.list_statuses()] == ["ns/1/a/ref"]


@on_loop
async def test_reopened_store_has_records_and_resumes(tmp_path: Path) -> None:
    with bind("ns"):
        async with world(tmp_path) as parts:
            await commit(parts, labels={"a": "1"})
            async with await parts.content.writer("open") as writer:
                await writer.write(DATA[:5])
        async with world(tmp_path) as parts:
            assert (await parts.content.info(DIGEST)).labels == {"a": "1"}
            async with await parts.content.writer("open") as writer:
                assert (await writer.status()).offset == 5


@on_loop
async def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("one"):
            await commit(parts)
            async with await parts.content.writer("ref") as writer:
                await writer.write(b"x")
        with bind("two"):
            for call in (parts.content.info, parts.content.reader, parts.content.verify, parts.content.delete):
                await fails_with(NotFound, call(DIGEST), f"content {DIGEST}")
            await fails_with(NotFound, parts.content.update(DIGEST, {}))
            await fails_with(NotFound, parts.content.abort("ref"))
            assert [info async for info in parts.content.walk()] == []
            assert await parts.content.list_statuses() == []
            async with await parts.content.writer("ref") as writer:
                assert (await writer.status()).offset == 0
        with bind("one"):
            assert (await parts.content.status("ref")).offset == 1


@on_loop
async def test_calls_without_a_namespace_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        for call in (
            parts.content.info(DIGEST),
            parts.content.delete(DIGEST),
            parts.content.writer("ref"),
            parts.content.status("ref"),
            parts.content.list_statuses(),
            parts.content.abort("ref"),
            anext(parts.content.walk()),
        ):
            await fails_with(FailedPrecondition, call, "namespace is required")


@on_loop
async def test_many_blobs_are_walked_in_order(tmp_path: Path) -> None:
    digests = sorted(digest_of(str(number).encode()) for number in range(600))
    async with world(tmp_path) as parts:
        with bind("ns"):
            await asyncio.gather(*(commit(parts, str(number).encode(), f"r{number}") for number in range(600)))

            assert [info.digest async for info in parts.content.walk()] == digests
            wanted = f"digest=={digests[-1]}"
            assert [info.digest async for info in parts.content.walk(wanted)] == digests[-1:]


@on_loop
async def test_writes_are_told(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await commit(parts)
            assert parts.changes == [False, False]
            await parts.content.delete(DIGEST)
        assert parts.changes == [False, False, True]
        assert parts.sent.events == [
            ("/content/create", ContentCreate(digest=DIGEST, size=len(DATA)), "ns"),
            ("/content/delete", ContentDelete(digest=DIGEST), "ns"),
        ]


# --- labels -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_too_long_label_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    labels = {"k": "v" * 4096}
    async with world(tmp_path) as parts:
        with bind("ns"):
            error = await fails_with(InvalidArgument, commit(parts, labels=labels))
            assert error.text.startswith("info.Labels: label key and value length (4097 bytes)")
            assert not parts.blob_file(DIGEST).exists()
            assert (await parts.content.status("ref")).offset == len(DATA)
            await commit(parts, b"other", "other")
            await fails_with(InvalidArgument, parts.content.update(digest_of(b"other"), labels))
            assert (await parts.content.info(digest_of(b"other"))).labels == {}


@on_loop
async def test_labels_of_an_existing_blob_stay(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await commit(parts, labels={"a": "1"})
            await fails_with(AlreadyExists, commit(parts, labels={"a": "2"}), f"content {DIGEST}")
            assert (await parts.content.info(DIGEST)).labels == {"a": "1"}


@on_loop
async def test_update_names_an_unknown_field(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await commit(parts)
            text = f'cannot update "size" field on content info "{DIGEST}"'
            await fails_with(InvalidArgument, parts.content.update(DIGEST, {}, ["size"]), text)
            info = await parts.content.update(DIGEST, {"x.y/z": "1", "b": "2"}, ["labels.x.y/z"])
            assert info.labels == {"x.y/z": "1"}
            assert info.created_at < info.updated_at


# --- leases -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_lease_holds_what_is_written_and_found(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await parts.leases.create("L", {})
            await parts.leases.create("M", {})
        with bind("ns", "L"):
            async with await parts.content.writer("ref") as writer:
                assert await leased(parts) == [Resource("ingests", "ref")]
                assert sorted(parts.record("ns", "content", "ingests", "ref")) == ["ref"]
                await writer.write(DATA)
                await writer.commit()
            assert await leased(parts) == [Resource("content", DIGEST)]
            async with await parts.content.writer("other"):
                pass
            await parts.content.abort("other")
            assert await leased(parts) == [Resource("content", DIGEST)]
        with bind("ns", "M"):
            await fails_with(AlreadyExists, parts.content.writer("again", 0, DIGEST))
            assert await leased(parts, "M") == [Resource("content", DIGEST)]
            await parts.content.delete(DIGEST)
            assert await leased(parts, "M") == []


@on_loop
async def test_unknown_lease_begins_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns", "gone"):
            await fails_with(NotFound, parts.content.writer("ref"), "lease does not exist")
        assert await parts.raw.list_statuses() == []
        assert parts.record("ns", "content", "ingests") == {}


@on_loop
async def test_lease_that_ends_before_the_commit_leaves_the_ingest(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns", "L"):
            await parts.leases.create("L", {})
            async with await parts.content.writer("ref") as writer:
                await writer.write(DATA)
                await parts.leases.delete("L")
                await fails_with(NotFound, writer.commit(), "lease does not exist")
            assert (await parts.content.status("ref")).offset == len(DATA)
        assert not parts.blob_file(DIGEST).exists()


# --- sharing ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_shared_ingest_needs_no_bytes(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("one"):
            await commit(parts, labels={"mine": "1"})
        with bind("two"):
            for total in (0, len(DATA)):
                async with await parts.content.writer("ref", total, DIGEST) as writer:
                    status = await writer.status()
                    assert (status.offset, status.total, status.expected) == (len(DATA), len(DATA), DIGEST)
                    assert writer.digest == DIGEST
                    assert await parts.content.list_statuses() == []
                    await fails_with(NotFound, parts.content.status("ref"))
            assert parts.record("two", "content", "ingests", "ref")["expected"] == DIGEST.encode()
            async with await parts.content.writer("ref", 0, DIGEST) as writer:
                info = await writer.commit(len(DATA), DIGEST, {"yours": "2"})
            assert info.labels == {"yours": "2"}
            assert await get(parts.content, DIGEST) == DATA
            assert parts.record("two", "content", "ingests") == {}
        with bind("one"):
            assert (await parts.content.info(DIGEST)).labels == {"mine": "1"}
        assert parts.sent.events[-1] == ("/content/create", ContentCreate(digest=DIGEST, size=len(DATA)), "two")


@on_loop
async def test_shared_ingest_checks_what_it_commits(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("one"):
            await commit(parts)
        with bind("two"):
            writer = await parts.content.writer("ref", 0, DIGEST)
            text = f"unexpected commit size {len(DATA)}, expected 3"
            await fails_with(FailedPrecondition, writer.commit(3), text)
            await fails_with(FailedPrecondition, writer.commit())
            writer = await parts.content.writer("ref", 0, DIGEST)
            text = f"unexpected commit digest {DIGEST}, expected {EMPTY}"
            await fails_with(FailedPrecondition, writer.commit(0, EMPTY), text)
            writer = await parts.content.writer("ref", 0, DIGEST)
            await parts.content.abort("ref")
            await fails_with(Aborted, writer.commit())
            await fails_with(NotFound, parts.content.info(DIGEST))


@on_loop
async def test_writing_to_a_shared_ingest_makes_it_an_own_one(tmp_path: Path) -> None:
    data = pattern(3 << 20)
    async with world(tmp_path) as parts:
        with bind("one"):
            await put(parts.content, data)
        with bind("two"):
            async with await parts.content.writer("ref", 0, digest_of(data)) as writer:
                assert await writer.write(b"") == len(data)
                assert await writer.write(b"more") == len(data) + 4
                assert (await parts.content.status("ref")).offset == len(data) + 4
                assert "expected" not in parts.record("two", "content", "ingests", "ref")
                assert (await writer.commit()).digest == digest_of(data + b"more")
            async with await parts.content.writer("ref", 0, digest_of(data)) as writer:
                await writer.truncate(5)
                await writer.write(b"!")
                assert (await writer.commit()).digest == digest_of(data[:5] + b"!")
            async with await parts.content.writer("ref", 0, digest_of(data)) as writer:
                await writer.truncate()
                assert (await writer.commit()).digest == EMPTY
        with bind("one"):
            assert await get(parts.content, digest_of(data)) == data


@on_loop
async def test_other_total_is_not_shared(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("one"):
            await commit(parts)
        with bind("two"):
            async with await parts.content.writer("ref", 5, DIGEST) as writer:
                assert (await writer.status()).offset == 0


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@on_loop
async def test_isolated_namespace_has_to_send_the_bytes(tmp_path: Path, algorithm: str) -> None:
    digest = digest_of(DATA, algorithm)
    async with world(tmp_path, ISOLATED) as parts:
        with bind("one"):
            async with await parts.content.writer("ref") as writer:
                await writer.write(DATA)
                await writer.commit(0, digest)
        before = parts.blob_file(digest).stat().st_ino
        with bind("two"):
            async with await parts.content.writer("ref", 0, digest) as writer:
                assert (await writer.status()).offset == 0
                await writer.write(DATA)
                assert (await writer.commit(len(DATA), digest)).digest == digest
            assert await get(parts.content, digest) == DATA
        assert parts.blob_file(digest).stat().st_ino == before


@on_loop
async def test_isolated_namespace_gets_what_a_shareable_one_has(tmp_path: Path) -> None:
    async with world(tmp_path, ISOLATED) as parts:
        await parts.namespaces.create("one", {"containerd.io/namespace.shareable": "true"})
        with bind("one"):
            await commit(parts)
        with bind("two"):
            async with await parts.content.writer("ref", 0, DIGEST) as writer:
                assert (await writer.status()).offset == len(DATA)
        await parts.namespaces.update("one", {"containerd.io/namespace.shareable": "TRUE"})
        with bind("three"):
            async with await parts.content.writer("ref", 0, DIGEST) as writer:
                assert (await writer.status()).offset == 0


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize("expected", ["", DIGEST], ids=["blind", "expected"])
@on_loop
async def test_blob_that_lost_bytes_can_be_written_again(tmp_path: Path, damage: str, expected: str) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            await commit(parts, labels={"a": "1", "b": "2"})
            before = await parts.content.info(DIGEST)
            file = parts.blob_file(DIGEST)
            file.unlink() if damage == "gone" else os.truncate(file, 3)
            with pytest.raises(MooredError, match=DIGEST):
                await get(parts.content, DIGEST)

            async with await parts.content.writer("again", len(DATA), expected) as writer:
                assert (await writer.status()).offset == 0
                await writer.write(DATA)
                info = await writer.commit(len(DATA), DIGEST, {"b": "3"})

            assert info.labels == {"a": "1", "b": "3"}
            assert info.created_at == before.created_at
            assert await get(parts.content, DIGEST) == DATA
            await fails_with(AlreadyExists, parts.content.writer("ref", 0, DIGEST))


@on_loop
async def test_blob_without_a_record_is_taken_over(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        await put(parts.raw, DATA)
        with bind("ns"):
            await fails_with(NotFound, parts.content.info(DIGEST))
            await commit(parts)
            assert await get(parts.content, DIGEST) == DATA


@on_loop
async def test_record_without_an_ingest_begins_anew_or_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("ns"):
            for ref in ("again", "gone"):
                async with await parts.content.writer(ref) as writer:
                    await writer.write(b"lost")
                await parts.raw.abort(f"ns/1/{ref}")
                await fails_with(NotFound, parts.content.status(ref), f"ingest ref '{ref}'")
            assert await parts.content.list_statuses() == []
            async with await parts.content.writer("again") as writer:
                assert (await writer.status()).offset == 0
            await parts.content.abort("gone")
            await fails_with(NotFound, parts.content.abort("gone"))


@on_loop
async def test_failed_opening_leaves_no_record(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        (tmp_path / "content" / "ingest").rmdir()
        with bind("ns"), pytest.raises(MooredError):
            await parts.content.writer("ref")
        assert parts.record("ns", "content", "ingests") == {}


# --- sweep ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_deleted_blob_goes_with_the_sweep_unless_another_namespace_has_it(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        for namespace in ("one", "two"):
            with bind(namespace):
                await commit(parts)
        assert parts.content.dirty
        with bind("one"):
            await parts.content.delete(DIGEST)
        assert await parts.content.sweep() == Swept(0, whole=True)
        with bind("two"):
            await parts.content.delete(DIGEST)
        assert parts.blob_file(DIGEST).exists()
        assert await parts.content.sweep() == Swept(1, whole=True)
        assert not parts.blob_file(DIGEST).exists()


@on_loop
async def test_sweep_takes_leftovers_and_keeps_what_is_named(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        with bind("one"):
            await commit(parts)
            async with await parts.content.writer("mine") as writer:
                await writer.write(b"x")
        with bind("two"):
            shared = await parts.content.writer("ref", 0, DIGEST)
        with bind("one"):
            await parts.content.delete(DIGEST)
        await put(parts.raw, b"leftover")
        for ref in ("stray", "one/1/stray", "one/2/mine", "/", "two/1/ref"):
            async with await parts.raw.writer(ref):
                pass

        assert await parts.content.sweep() == Swept(5, whole=True)

        assert [status.ref for status in await parts.raw.list_statuses()] == ["one/1/mine", "two/1/ref"]
        assert [info.digest async for info in parts.raw.walk()] == [DIGEST]
        with bind("two"):
            await shared.commit()
            assert await get(parts.content, DIGEST) == DATA


@on_loop
async def test_sweep_goes_on_after_what_it_cannot_remove(tmp_path: Path) -> None:
    async with world(tmp_path) as parts:
        for data in (b"1", b"2", b"3"):
            await put(parts.raw, data)
        digests = sorted(digest_of(data) for data in (b"1", b"2", b"3"))
        file = parts.blob_file(digests[0])
        real = parts.raw.delete

        async def refuse_first(digest: str) -> None:
            if digest == digests[0]:
                raise FailedPrecondition("no")
            await real(digest)

        parts.raw.delete = refuse_first  # type: ignore[method-assign]
        assert await parts.content.sweep() == Swept(2, whole=False)
        assert file.exists()


@pytest.mark.parametrize("policy", [SHARED, ISOLATED])
@on_loop
async def test_sweep_beside_writers_takes_nothing_that_they_were_promised(tmp_path: Path, policy: str) -> None:
    datas = [pattern(2000, str(number)) for number in range(6)]
    async with world(tmp_path, policy) as parts:
        done = asyncio.Event()

        async def sweep() -> None:
            while not done.is_set():
                assert (await parts.content.sweep()).whole

        async def work(namespace: str) -> None:
            with bind(namespace):
                for number in range(60):
                    data = datas[number % len(datas)]
                    digest = digest_of(data)
                    async with await parts.content.writer("ref", len(data), digest) as writer:
                        if (await writer.status()).offset == 0:
                            await writer.write(data)
                        await writer.commit(len(data), digest)
                    assert await get(parts.content, digest) == data
                    await parts.content.delete(digest)

        sweeping = asyncio.create_task(sweep())
        await asyncio.gather(*(work(f"ns{number}") for number in range(4)))
        done.set()
        await sweeping
        await parts.content.sweep()
        assert [info async for info in parts.raw.walk()] == []
        assert await parts.raw.list_statuses() == []
