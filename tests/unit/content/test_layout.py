"""The local store's files: their names, texts and modes, and what it makes of those that are not as it left them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.content import digest_of, get, put
from moored.kernel.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, Unavailable
from moored.kernel.ports.content import Status
from moored.plugins.content.local.blobs import Blobs
from moored.plugins.content.local.layout import Layout, read_stamp, stamp
from moored.plugins.content.local.reader import SMALL
from moored.plugins.content.local.store import LocalContentStore
from unit.content.opened import with_store
from unit.descriptors import descriptors

REF = "default/1/layer"
FOLDER = hashlib.sha256(REF.encode()).hexdigest()
DATA = b"0123456789"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "content"


@pytest.fixture
def ingest(root: Path) -> Path:
    """The folder of a closed ingest with ten bytes of twenty."""

    async def begin(store: LocalContentStore) -> None:
        async with await store.writer(REF, 20) as writer:
            await writer.write(DATA)

    with_store(root, begin)
    return root / "ingest" / FOLDER


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def offset_on_resume(root: Path) -> int:
    async def resume(store: LocalContentStore) -> int:
        async with await store.writer(REF) as writer:
            return (await writer.status()).offset

    return with_store(root, resume)


def statuses(root: Path) -> list[Status]:
    return with_store(root, lambda store: store.list_statuses())


def test_blob_is_a_read_only_file_named_by_its_digest(root: Path) -> None:
    before = os.umask(0o077)
    try:
        digest = with_store(root, lambda store: put(store, DATA))
    finally:
        os.umask(before)

    blob = root / "blobs" / "sha256" / digest.encoded
    assert blob.read_bytes() == DATA
    assert mode(blob) == 0o444
    assert [mode(folder) for folder in (root, root / "ingest", root / "blobs", blob.parent)] == [0o755] * 4
    assert list((root / "ingest").iterdir()) == []


def test_ingest_is_a_folder_named_by_the_hash_of_its_ref(ingest: Path) -> None:
    assert mode(ingest) == 0o755
    wanted = ["data", "ref", "startedat", "synced", "total", "updatedat"]
    assert sorted(file.name for file in ingest.iterdir()) == wanted
    assert (ingest / "ref").read_text() == REF
    assert (ingest / "total").read_text() == "20"
    assert (ingest / "data").read_bytes() == DATA
    started = (ingest / "startedat").read_text()
    assert started.startswith("20")
    assert started.endswith("Z")


def offset_after_a_crash(root: Path, ingest: Path, *, machine: bool) -> int:
    """What is left of the ingest once three more bytes, which nobody synced, were written and all came down."""
    with (ingest / "data").open("ab") as file:
        file.write(b"abc")
    if machine:
        (root / "boot").write_text("00000000-0000-4000-8000-000000000000")
    return offset_on_resume(root)


def test_bytes_that_are_not_durable_are_kept_while_the_machine_runs(root: Path, ingest: Path) -> None:
    assert offset_after_a_crash(root, ingest, machine=False) == len(DATA) + 3


def test_bytes_that_are_not_durable_are_cut_off_after_a_power_cut(root: Path, ingest: Path) -> None:
    assert offset_after_a_crash(root, ingest, machine=True) == len(DATA)
    # Noted: once is enough.
    assert offset_after_a_crash(root, ingest, machine=False) == len(DATA) + 3


def test_bytes_written_over_durable_ones_are_not_taken_for_them(root: Path, ingest: Path) -> None:
    async def begin_anew(store: LocalContentStore) -> None:
        async with await store.writer(REF) as writer:
            await writer.truncate(4)
            await writer.write(DATA)
            assert not (ingest / "synced").exists()

    with_store(root, begin_anew)
    assert (ingest / "synced").read_text() == "14"


def test_ingest_of_which_nothing_is_known_to_be_durable_begins_anew_after_a_power_cut(root: Path, ingest: Path) -> None:
    (ingest / "synced").unlink()

    assert offset_after_a_crash(root, ingest, machine=True) == 0


def test_ingest_without_a_total_has_no_file_for_it(root: Path) -> None:
    async def begin(store: LocalContentStore) -> None:
        await (await store.writer(REF)).close()

    with_store(root, begin)

    assert not (root / "ingest" / FOLDER / "total").exists()


def test_ingest_that_containerd_began_is_resumed(root: Path) -> None:
    folder = root / "ingest" / FOLDER
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(DATA)
    (folder / "ref").write_text(REF)
    (folder / "startedat").write_text("2026-01-02T03:04:05.000000006+01:00")
    (folder / "updatedat").write_text("2099-01-02T03:04:05Z")
    (folder / "total").write_text("10")

    status = with_store(root, lambda store: store.status(REF))

    assert (status.ref, status.offset, status.total) == (REF, 10, 10)
    assert status.started_at == 1767319445_000000006
    assert status.updated_at == 4071006245_000000000


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, b"1970-01-01T00:00:00Z"),
        (1767319445_000000006, b"2026-01-02T02:04:05.000000006Z"),
        (1767319445_120000000, b"2026-01-02T02:04:05.12Z"),
        (-1, b"1969-12-31T23:59:59.999999999Z"),
    ],
)
def test_time_is_written_and_read_to_the_nanosecond(tmp_path: Path, ns: int, text: bytes) -> None:
    (tmp_path / "at").write_bytes(stamp(ns))
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert stamp(ns) == text
        assert read_stamp(folder, "at") == ns
    finally:
        os.close(folder)


@pytest.mark.parametrize("text", [b"", b"now", b"2026-13-02T03:04:05Z", b"2026-01-02T03:04:05Z\n", b"2" * 100, b"\xff"])
def test_time_that_cannot_be_read_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "at").write_bytes(text)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_stamp(folder, "at") is None
    finally:
        os.close(folder)


@pytest.mark.parametrize("name", ["startedat", "updatedat", "total"])
@pytest.mark.parametrize("text", [b"", b"\0\xff", b"-1", b"9" * 50])
def test_ingest_with_a_bad_note_is_still_resumed(root: Path, ingest: Path, name: str, text: bytes) -> None:
    (ingest / name).write_bytes(text)

    (status,) = statuses(root)
    assert (status.ref, status.offset) == (REF, 10)
    assert 0 < status.started_at <= status.updated_at
    assert offset_on_resume(root) == 10


def lose_data(ingest: Path) -> None:
    (ingest / "data").unlink()


def lose_ref(ingest: Path) -> None:
    (ingest / "ref").unlink()


def tear_ref(ingest: Path) -> None:
    (ingest / "ref").write_bytes(REF.encode()[:4])


def other_ref(ingest: Path) -> None:
    (ingest / "ref").write_bytes(b"\xff\0")


def link_data(ingest: Path) -> None:
    lose_data(ingest)
    (ingest / "data").symlink_to(ingest.parents[1] / "canary")


def link_ref(ingest: Path) -> None:
    (ingest / "ref").unlink()
    (ingest / "ref").symlink_to(ingest.parents[1] / "canary")


def fifo_as_data(ingest: Path) -> None:
    lose_data(ingest)
    os.mkfifo(ingest / "data")


def fifo_as_ref(ingest: Path) -> None:
    (ingest / "ref").unlink()
    os.mkfifo(ingest / "ref")


def folder_as_data(ingest: Path) -> None:
    lose_data(ingest)
    (ingest / "data").mkdir()
    (ingest / "data" / "link").symlink_to(ingest.parents[1])


def second_name_for_data(ingest: Path) -> None:
    (ingest.parents[1] / "canary").unlink()
    os.link(ingest / "data", ingest.parents[1] / "canary")
    (ingest / "data").write_bytes(b"canary")


def link_the_folder(ingest: Path) -> None:
    elsewhere = ingest.parents[1] / "elsewhere"
    ingest.rename(elsewhere)
    ingest.symlink_to(elsewhere)


def file_as_folder(ingest: Path) -> None:
    ingest.rename(ingest.parents[1] / "elsewhere")
    ingest.write_bytes(b"")


DAMAGE: list[Callable[[Path], None]] = [
    lose_data,
    lose_ref,
    tear_ref,
    other_ref,
    link_data,
    link_ref,
    fifo_as_data,
    fifo_as_ref,
    folder_as_data,
    second_name_for_data,
    link_the_folder,
    file_as_folder,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_ingest_is_removed_at_start(root: Path, ingest: Path, damage: Callable[[Path], None]) -> None:
    canary = root / "canary"
    canary.write_bytes(b"canary")
    damage(ingest)

    assert statuses(root) == []

    assert list((root / "ingest").iterdir()) == []
    assert canary.read_bytes() == b"canary"
    if damage in (link_the_folder, file_as_folder):
        assert (root / "elsewhere" / "data").read_bytes() == DATA


@pytest.mark.parametrize("damage", DAMAGE)
def test_ingest_damaged_while_running_harms_nobody_and_begins_again(
    root: Path, ingest: Path, damage: Callable[[Path], None]
) -> None:
    canary = root / "canary"
    canary.write_bytes(b"canary")

    async def run(store: LocalContentStore) -> None:
        async with await store.writer("other") as writer:
            await writer.write(b"other")
        damage(ingest)
        assert [status.ref for status in await store.list_statuses()] == ["other"]
        await fails_with(NotFound, store.status(REF))
        async with await store.writer(REF) as writer:
            assert (await writer.status()).offset == 0
            await writer.write(DATA)
            await writer.commit(10, digest_of(DATA))

    with_store(root, run)

    assert canary.read_bytes() == b"canary"
    assert mode(canary) == 0o644


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_ingest_is_not_found_by_abort_and_gone_after_it(
    root: Path, ingest: Path, damage: Callable[[Path], None]
) -> None:
    canary = root / "canary"
    canary.write_bytes(b"canary")

    async def run(store: LocalContentStore) -> None:
        damage(ingest)
        await fails_with(NotFound, store.abort(REF))

    with_store(root, run)

    assert list((root / "ingest").iterdir()) == []
    assert canary.read_bytes() == b"canary"


def test_names_that_are_no_ingests_are_left_alone(root: Path) -> None:
    (root / "ingest" / "lost+found").mkdir(parents=True)
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "blobs" / "sha256" / "README").write_text("x")
    (root / "blobs" / "md5").mkdir()
    (root / "blobs" / "md5" / ("a" * 32)).write_text("x")

    async def run(store: LocalContentStore) -> None:
        assert await store.list_statuses() == []
        assert [info async for info in store.walk()] == []

    with_store(root, run)

    assert (root / "ingest" / "lost+found").is_dir()
    assert (root / "blobs" / "sha256" / "README").exists()


@pytest.mark.parametrize("name", ["blobs", "ingest"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_store_does_not_open_on_a_foreign_thing_in_place_of_a_folder(root: Path, name: str, kind: str) -> None:
    root.mkdir()
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        (root / name).symlink_to(elsewhere)
    else:
        (root / name).write_bytes(b"")

    with pytest.raises(FailedPrecondition, match=f"{name!r} in the content folder is no folder"):
        statuses(root)

    assert list(elsewhere.iterdir()) == []


def test_linked_algorithm_folder_is_not_followed(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (root / "blobs").mkdir(parents=True)

    async def run(store: LocalContentStore) -> None:
        (root / "blobs" / "sha256").symlink_to(elsewhere)
        writer = await store.writer(REF)
        await writer.write(DATA)
        await fails_with(FailedPrecondition, writer.commit())
        assert (await store.status(REF)).offset == 10

    with_store(root, run)

    assert list(elsewhere.iterdir()) == []


def test_second_store_on_one_folder_is_refused(root: Path) -> None:
    async def run(_store: LocalContentStore) -> None:
        second = Layout()
        try:
            with pytest.raises(Unavailable, match="in use by another store"):
                second.open(root)
        finally:
            second.close()

    with_store(root, run)
    assert statuses(root) == []


# --- damaged blobs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def blob(root: Path) -> Path:
    digest = with_store(root, lambda store: put(store, DATA))
    return root / "blobs" / "sha256" / digest.encoded


def shorten(blob: Path) -> None:
    blob.chmod(0o644)
    blob.write_bytes(DATA[:5])


def replace_by_link(blob: Path) -> None:
    canary = blob.parents[2] / "canary"
    canary.write_bytes(DATA)
    blob.unlink()
    blob.symlink_to(canary)


def replace_by_fifo(blob: Path) -> None:
    blob.unlink()
    os.mkfifo(blob)


def lose(blob: Path) -> None:
    blob.unlink()


@pytest.mark.parametrize("damage", [shorten, replace_by_link, replace_by_fifo, lose])
def test_damaged_blob_is_noticed_and_can_be_written_again(
    root: Path, blob: Path, damage: Callable[[Path], None]
) -> None:
    damage(blob)
    digest = digest_of(DATA)
    error = NotFound if damage is lose else DataLoss

    async def run(store: LocalContentStore) -> None:
        await fails_with(error, store.reader(digest, len(DATA)))
        await fails_with(error, store.verify(digest))
        async with await store.writer(REF, len(DATA), digest) as writer:
            await writer.write(DATA)
            await writer.commit(len(DATA), digest)
        assert (await store.verify(digest)).size == len(DATA)
        assert await get(store, digest) == DATA
        await fails_with(AlreadyExists, store.writer(REF, len(DATA), digest))

    with_store(root, run)

    assert stat.S_ISREG(blob.lstat().st_mode)
    if damage is replace_by_link:
        assert (root / "canary").read_bytes() == DATA


def test_changed_byte_is_found_by_verify(root: Path, blob: Path) -> None:
    blob.chmod(0o644)
    blob.write_bytes(b"X" + DATA[1:])
    digest = digest_of(DATA)

    text = f"content {digest} has the bytes of {digest_of(b'X' + DATA[1:])}"
    with_store(root, lambda store: fails_with(DataLoss, store.verify(digest), text))


def test_blob_that_shrinks_while_open_is_data_loss(root: Path) -> None:
    data = bytes(SMALL + 1)

    async def run(store: LocalContentStore) -> None:
        digest = await put(store, data)
        async with await store.reader(digest) as reader:
            shorten(root / "blobs" / "sha256" / digest.encoded)
            await fails_with(DataLoss, reader.read_at(0), f"content {digest} has 5 bytes, {len(data)} wanted")

    with_store(root, run)


def test_small_blob_is_read_when_it_is_opened(root: Path, blob: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        async with await store.reader(digest_of(DATA)) as reader:
            shorten(blob)
            assert await reader.read_at(2, 5) == DATA[2:7]
            assert [chunk async for chunk in reader.chunks(7)] == [DATA[7:]]
            assert [chunk async for chunk in reader.chunks(10)] == []
        with pytest.raises(FailedPrecondition):
            await reader.read_at(0)

    with_store(root, run)


def test_blob_in_memory_is_opened_without_a_thread(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(store: LocalContentStore) -> None:
        digests = [await put(store, data) for data in (DATA, bytes(SMALL + 1), b"")]
        monkeypatch.delattr(Blobs, "open")
        for digest, size in zip(digests, (len(DATA), SMALL + 1, 0), strict=True):
            async with await store.reader(digest, size) as reader:
                assert [len(chunk) async for chunk in reader.chunks()] == [size] * bool(size)
        await fails_with(DataLoss, store.reader(digests[0], 9), f"content {digests[0]} has 10 bytes, 9 wanted")

    with_store(root, run)


def test_blob_that_is_not_in_memory_is_read_from_the_disk(root: Path, blob: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        assert await get(store, digest_of(DATA)) == DATA  # opens the folder
        with blob.open("rb") as file:
            os.fsync(file)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert await get(store, digest_of(DATA)) == DATA

    with_store(root, run)


@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo, lambda blob: blob.symlink_to("else")])
def test_what_is_no_file_is_refused_by_an_open_store(root: Path, blob: Path, kind: Callable[[Path], None]) -> None:
    async def run(store: LocalContentStore) -> None:
        digest = digest_of(DATA)
        assert await get(store, digest) == DATA
        shutil.move(blob, root)
        kind(blob)
        await fails_with(DataLoss, store.reader(digest), f"content {digest} is no regular file")

    with_store(root, run)


def test_reader_gives_a_descriptor_for_sendfile(root: Path, blob: Path) -> None:
    inode = blob.stat().st_ino

    async def run(store: LocalContentStore) -> None:
        async with await store.reader(digest_of(DATA)) as reader:
            fd = reader.fileno()
            assert fd is not None
            assert os.pread(fd, 100, 0) == DATA
            assert os.fstat(fd).st_ino == inode

    with_store(root, run)


def test_closing_the_store_keeps_open_ingests_and_frees_readers(root: Path, blob: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        writer = await store.writer(REF)
        await writer.write(DATA)
        await store.reader(digest_of(DATA))

    before = descriptors()
    with_store(root, run)

    assert descriptors() == before
    assert offset_on_resume(root) == 10


def test_ingest_changed_behind_the_writer_is_never_committed(root: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        writer = await store.writer(REF)
        await writer.write(DATA)
        os.truncate(root / "ingest" / FOLDER / "data", 5)
        await fails_with(DataLoss, writer.commit())
        await fails_with(NotFound, store.status(REF))
        assert [info async for info in store.walk()] == []

    with_store(root, run)


def test_ingest_removed_behind_the_writer_is_not_found_by_commit(root: Path) -> None:
    async def run(store: LocalContentStore) -> None:
        writer = await store.writer(REF)
        await writer.write(DATA)
        shutil.rmtree(root / "ingest" / FOLDER)
        await fails_with(NotFound, writer.commit())
        assert await put(store, DATA, REF) == digest_of(DATA)

    with_store(root, run)


def test_one_thread_is_enough(root: Path) -> None:
    data = DATA * 100_000

    async def run(store: LocalContentStore) -> None:
        digest = await put(store, data)
        assert await get(store, digest) == data

    with_store(root, run, threads=1)
