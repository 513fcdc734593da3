"""What every `Differ` does; each check takes a `Stage`, and `checks()` lists them all.

    @pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__)
    def test_differ(check, tmp_path):
        asyncio.run(run(check, tmp_path))       # opens a store and a differ over it, awaits check(Stage(...))

Needs the right to change owners. Folders are given as bind mounts.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moored.kernel.conformance import fails_with
from moored.kernel.errors import AlreadyExists, MooredError, NotFound, Unimplemented, Unknown
from moored.kernel.ports.content import ContentStore, Digest, read_blob
from moored.kernel.ports.diff import LAYER, LAYER_GZIP, LAYER_ZSTD, UNCOMPRESSED_LABEL, Differ
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount

MAX_LAYER = 1 << 24
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Stage:
    """What a check works with: a differ, the empty store that it uses, and an empty folder."""

    differ: Differ
    store: ContentStore
    folder: Path

    def new_folder(self, name: str) -> Path:
        """Make an empty folder."""
        made = self.folder / name
        made.mkdir(mode=0o755)
        return made

    async def put(self, data: bytes, media_type: str = LAYER) -> Descriptor:
        """Store a blob, if it is not there yet, and describe it."""
        digest = digest_of(data)
        with suppress(AlreadyExists):
            async with await self.store.writer(f"put-{digest}", expected=digest) as writer:
                await writer.write(data)
                await writer.commit(len(data))
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    async def members(self, blob: Descriptor) -> dict[str, tarfile.TarInfo]:
        """Give the entries of a stored plain or gzip layer by name."""
        data = await read_blob(self.store, blob.digest, MAX_LAYER)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            return {member.name: member for member in archive}


Check = Callable[[Stage], Awaitable[None]]


def bind(folder: Path, *, read_only: bool = False) -> list[Mount]:
    """Give the mounts of a plain folder."""
    return [Mount(type="bind", source=str(folder), options=("ro" if read_only else "rw", "rbind"))]


def member(name: str, data: bytes | None = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """Give a tar entry: a file with data, whatever `type` says in the fields; a folder where data is None."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = 0o644, 1_600_000_000
    if data is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    info.size = len(data or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data or b""


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Give an archive of entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def digest_of(data: bytes) -> Digest:
    """Give the digest of bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


async def check_apply_gives_the_diff_id(stage: Stage) -> None:
    """Whatever the compression, the result describes the plain tar."""
    data = tar(member("d", None), member("d/f", b"hello"))
    for number, (blob, media_type) in enumerate(
        ((data, LAYER), (gzip.compress(data), LAYER_GZIP), (data, f"{LAYER}+zstd"))
    ):
        root = stage.new_folder(str(number))
        applied = await stage.differ.apply(await stage.put(blob, media_type), bind(root))
        assert applied == Descriptor(media_type=LAYER, digest=digest_of(data), size=len(data))
        assert (root / "d/f").read_bytes() == b"hello"


async def check_apply_keeps_attributes(stage: Stage) -> None:
    """Owner, mode with its special bits, and time are those of the entry, for folders too."""
    data = tar(
        member("d", None, mode=0o1777, uid=7, gid=8, mtime=1_000_000_000),
        member("d/f", b"x", mode=0o4755, uid=1000, gid=1001, mtime=1_234_567_890),
        member("d/l", type=tarfile.SYMTYPE, linkname="f", uid=5),
    )
    root = stage.new_folder("root")
    await stage.differ.apply(await stage.put(data), bind(root))
    folder, file, link = (os.lstat(root / name) for name in ("d", "d/f", "d/l"))
    assert (folder.st_mode & 0o7777, folder.st_uid, folder.st_gid, folder.st_mtime) == (0o1777, 7, 8, 1_000_000_000)
    assert (file.st_mode & 0o7777, file.st_uid, file.st_gid, file.st_mtime) == (0o4755, 1000, 1001, 1_234_567_890)
    assert link.st_uid == 5


async def check_whiteouts_remove(stage: Stage) -> None:
    """A whiteout removes one name, an opaque one what lower layers have in the folder."""
    root = stage.new_folder("root")
    lower = tar(member("a", b"1"), member("d", None), member("d/old", b"2"), member("e", None), member("e/f", b"3"))
    await stage.differ.apply(await stage.put(lower), bind(root))
    upper = tar(member(".wh.a"), member("d/new", b"4"), member("d/.wh..wh..opq"), member(".wh.e"))
    await stage.differ.apply(await stage.put(upper), bind(root))
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["d", "d/new"]


async def check_apply_errors(stage: Stage) -> None:
    """Types that nobody knows, blobs that are missing, archives that are none."""
    root = stage.new_folder("root")
    data = tar(member("f", b"x" * 1000))
    blob = await stage.put(data)
    strange = Descriptor(media_type="text/plain", digest=blob.digest, size=blob.size)
    text = "failed to get stream processor for text/plain: no processor for media-type"
    await fails_with(Unknown, stage.differ.apply(strange, bind(root)), text)
    missing = Descriptor(media_type=LAYER, digest=digest_of(b"nothing"), size=7)
    await fails_with(NotFound, stage.differ.apply(missing, bind(root)))
    await fails_with(Unknown, stage.differ.apply(await stage.put(data[:700]), bind(root)))
    await fails_with(Unknown, stage.differ.apply(await stage.put(b"junk" * 400), bind(root)))
    cut = await stage.put(gzip.compress(data)[:-3], LAYER_GZIP)
    await fails_with(Unknown, stage.differ.apply(cut, bind(root)))


async def check_apply_without_mounts(stage: Stage) -> None:
    """The diff id is found without writing anything."""
    data = tar(member("f", b"x"))
    applied = await stage.differ.apply(await stage.put(gzip.compress(data), LAYER_GZIP), [])
    assert applied.digest == digest_of(data)


async def check_apply_stays_inside(stage: Stage) -> None:
    """No name and no link leads out of the folder."""
    outside = stage.new_folder("outside")
    (outside / "canary").write_text("alive")
    root = stage.new_folder("root")
    for entries in (
        (member("../outside/canary", b"dead"),),
        (member(f"{outside}/canary", b"dead"),),
        (member("s", type=tarfile.SYMTYPE, linkname=str(outside)), member("s/canary", b"dead")),
        (member("t", type=tarfile.SYMTYPE, linkname="../outside"), member("t/.wh.canary")),
        (member("h", type=tarfile.LNKTYPE, linkname=f"{outside}/canary"), member("h", b"dead")),
    ):
        try:
            await stage.differ.apply(await stage.put(tar(*entries)), bind(root))
        except MooredError:
            continue
    assert (outside / "canary").read_text() == "alive"
    assert [path.name for path in outside.iterdir()] == ["canary"]


def _grown(stage: Stage) -> tuple[Path, Path]:
    """Give a lower tree, and an upper one with a file added, one changed, one gone and one untouched."""
    lower, upper = stage.new_folder("lower"), stage.new_folder("upper")
    for root in (lower, upper):
        (root / "d").mkdir()
        for name in ("gone", "same", "changed"):
            (root / "d" / name).write_text(name)
            os.utime(root / "d" / name, (DAY, DAY))
    (upper / "d/gone").unlink()
    (upper / "d/changed").write_text("anew")
    (upper / "d/new").write_text("new")
    return lower, upper


async def check_compare_finds_changes(stage: Stage) -> None:
    """What is new or changed is there with its folders, what is gone a whiteout, what is the same is not."""
    lower, upper = _grown(stage)
    blob = await stage.differ.compare(bind(lower, read_only=True), bind(upper))
    assert blob.media_type == LAYER_GZIP
    members = await stage.members(blob)
    assert sorted(members) == ["d", "d/.wh.gone", "d/changed", "d/new"]
    gone = members["d/.wh.gone"]
    assert (gone.mode, gone.mtime, gone.size, gone.type) == (0, 0, 0, tarfile.REGTYPE)


async def check_compare_then_apply(stage: Stage) -> None:
    """The layer makes the lower tree the upper one, in each form that it can have."""
    lower, upper = _grown(stage)
    for media_type in (LAYER, LAYER_GZIP, LAYER_ZSTD):
        blob = await stage.differ.compare(bind(lower), bind(upper), media_type=media_type)
        assert (await stage.store.info(blob.digest)).size == blob.size
        base = await stage.differ.compare([], bind(lower), media_type=LAYER)
        root = stage.new_folder(media_type.rpartition("+")[2].replace("/", "-"))
        for layer in (base, blob):
            await stage.differ.apply(layer, bind(root))
        found = {path.relative_to(root).as_posix() for path in root.rglob("*")}
        assert found == {"d", "d/same", "d/changed", "d/new"}
        assert (root / "d/changed").read_text() == "anew"


async def check_compare_is_repeatable(stage: Stage) -> None:
    """The same trees give the same bytes; a source date caps the times."""
    lower, upper = _grown(stage)
    epoch = DAY * 1_000_000_000
    one, other = [await stage.differ.compare(bind(lower), bind(upper), source_date_epoch=epoch) for _ in range(2)]
    assert one == other
    assert {found.mtime for found in (await stage.members(one)).values()} <= {0, DAY}


async def check_compare_types(stage: Stage) -> None:
    """Other media types are for other differs."""
    folder = stage.new_folder("empty")
    call = stage.differ.compare(bind(folder), bind(folder), media_type="application/x")
    await fails_with(Unimplemented, call, "unsupported diff media type: application/x")


async def check_compare_reference(stage: Stage) -> None:
    """A given ingest is begun anew; afterwards it is gone."""
    lower, upper = _grown(stage)
    async with await stage.store.writer("mine") as writer:
        await writer.write(b"left over")
    blob = await stage.differ.compare(bind(lower), bind(upper), reference="mine")
    assert zlib.decompress(await read_blob(stage.store, blob.digest, MAX_LAYER), 31)
    assert await stage.store.list_statuses() == []


async def check_compare_failure_leaves_nothing(stage: Stage) -> None:
    """A tree that is not there fails the call, and no ingest stays."""
    lower = stage.new_folder("lower")
    try:
        await stage.differ.compare(bind(lower), bind(stage.folder / "missing"))
    except (MooredError, OSError):
        assert await stage.store.list_statuses() == []
    else:
        raise AssertionError("compared with a folder that is not there")


async def check_compare_labels(stage: Stage) -> None:
    """In a store that keeps labels a new blob has those given, a compressed one its diff id too."""
    lower, upper = _grown(stage)
    plain = await stage.differ.compare(bind(lower), bind(upper), media_type=LAYER)
    blob = await stage.differ.compare(bind(lower), bind(upper), labels={"a": "b"})
    labels = (await stage.store.info(blob.digest)).labels
    try:
        await stage.store.update(blob.digest, labels)
    except Unimplemented:
        return
    assert labels == {"a": "b", UNCOMPRESSED_LABEL: plain.digest}


async def check_cancelled_apply_writes_no_more(stage: Stage) -> None:
    """Once the cancelled call has ended the folder stays as it is."""
    root = stage.new_folder("root")
    data = tar(*(member(f"f{number}", b"x" * 4096) for number in range(3000)))
    call = asyncio.ensure_future(stage.differ.apply(await stage.put(data), bind(root)))
    # the call tells nobody that it has begun to write
    while not any(root.iterdir()) and not call.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    before = sorted(root.iterdir())
    await asyncio.sleep(0.05)
    assert sorted(root.iterdir()) == before


def checks() -> list[Check]:
    """List all checks."""
    return [value for name, value in sorted(globals().items()) if name.startswith("check_")]
