"""Hostile and broken layers: each gets its answer, and nothing outside of the target changes."""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.diff import Stage, bind
from moored.kernel.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MooredError,
    ResourceExhausted,
    Unknown,
)
from moored.kernel.ports.diff import LAYER, LAYER_GZIP, LAYER_ZSTD, Budget
from moored.kernel.ports.images import Descriptor
from moored.plugins.diff.syscalls import Syscalls
from moored.plugins.diff.tree import Tree, remove
from moored.plugins.diff.walking import APPLY_MODULE, SMALL, TINY
from moored.plugins.diff.worker import Crew
from unit.diff.world import (
    END,
    as_root,
    block,
    children,
    done,
    file,
    names,
    overlay,
    padded,
    pax,
    pax_of,
    staged,
    tree,
    unpack,
)

pytestmark = as_root


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the target that must stay as it is."""
    place = tmp_path / "canary"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_text("alive")
    (place / "file").chmod(0o600)
    (place / "sub/file").write_text("alive too")
    before = tree(place)
    status = place.stat()
    yield place
    assert tree(place) == before
    assert place.stat() == status


def symlink(name: bytes, target: str | Path) -> bytes:
    return block(name, type=b"2", link=os.fsencode(target))


def hard(name: bytes, target: str | Path, **fields: object) -> bytes:
    return block(name, type=b"1", link=os.fsencode(target), **fields)


def folder(name: bytes, **fields: object) -> bytes:
    return block(name, type=b"5", **{"mode": 0o755, **fields})


# rows of hostile layers: what is done, and what comes of it: the paths that are there, or the error

CONFINED: dict[str, tuple[Callable[[Path], list[bytes]], list[str]]] = {
    "dots": (lambda c: [file(b"../../../../f") + file(b"a/../../g")], ["f", "g"]),
    "absolute": (lambda c: [file(os.fsencode(c) + b"/file", b"dead")], []),
    "through a link": (lambda c: [symlink(b"s", c) + file(b"s/file", b"dead")], []),
    "through a link of a lower layer": (lambda c: [symlink(b"s", c), file(b"s/file", b"dead") + folder(b"s/sub/")], []),
    "through a relative link": (lambda c: [symlink(b"s", "../canary") + file(b"s/file", b"dead")], []),
    "folder over link": (lambda c: [symlink(b"s", c) + folder(b"s/") + file(b"s/file", b"dead")], ["s", "s/file"]),
    "parent swapped": (
        lambda c: [folder(b"d/") + file(b"d/x") + symlink(b"d", c) + file(b"d/file", b"dead") + file(b"d/.wh.sub")],
        [],
    ),
    "parent of a parent swapped": (
        lambda c: [file(b"d/sub/x") + symlink(b"d", c) + file(b"d/sub/file", b"dead")],
        [],
    ),
    "whiteout through a link": (lambda c: [symlink(b"s", c), file(b"s/.wh.file") + file(b"s/.wh..wh..opq")], []),
    "hard link to a link, then chmod": (
        lambda c: [symlink(b"s", c / "file") + hard(b"h", "s", mode=0o777)],
        ["h", "s"],
    ),
    "hard link to a link, then write": (
        lambda c: [symlink(b"s", c / "file") + hard(b"h", "s") + file(b"h", b"dead")],
        ["h", "s"],
    ),
    "file over link": (lambda c: [symlink(b"s", c / "file") + file(b"s", b"dead", mode=0o777, uid=5)], ["s"]),
    "link with attributes": (
        lambda c: [pax_of({b"SCHILY.xattr.security.capability": b"\1\0\0\2" + bytes(16)}) + symlink(b"s", c / "file")],
        ["s"],
    ),
    "fifo over link": (lambda c: [symlink(b"s", c / "file") + block(b"s", type=b"6", mode=0o777, uid=5)], ["s"]),
    "root as a link": (lambda c: [symlink(b".", c) + symlink(b"./", c) + file(b"file", b"new")], ["file"]),
    "folder times after a swap": (
        lambda c: [folder(b"d/", mtime=5) + symlink(b"d", c) + folder(b"e/sub/", mtime=5) + symlink(b"e", c)],
        ["d", "e"],
    ),
    "duplicates": (
        lambda c: [file(b"a") + folder(b"a/") + symlink(b"a", c) + folder(b"a/") + file(b"a/f") + file(b"a", b"last")],
        ["a"],
    ),
    "fake whiteout": (lambda c: [block(b"a", type=b"3")], ["a"]),
    "magic links": (
        lambda c: [symlink(b"s", "/proc/self/root") + file(b"s/f") + symlink(b"t", "/dev/fd/0") + file(b"x")],
        ["proc", "proc/self", "proc/self/root", "proc/self/root/f", "s", "t", "x"],
    ),
    "times and numbers at the edge": (
        lambda c: [
            file(b"f", mtime=b"\x80" + (2**40).to_bytes(11, "big"), uid=b"\x80" + (2**32 - 2).to_bytes(7, "big"))
        ],
        ["f"],
    ),
    "name of 255 bytes": (lambda c: [pax(path=b"n" * 255) + file(b"x")], ["n" * 255]),
    "no bytes": (lambda c: [b"", bytes(512), END], []),
    "folder that is gone in the end": (lambda c: [folder(b"d/", mtime=5) + file(b".wh.d")], []),
}


@pytest.mark.parametrize("row", CONFINED)
def test_layer_is_confined(tmp_path: Path, canary: Path, row: str) -> None:
    layers, left = CONFINED[row]

    async def go() -> None:
        async with staged(tmp_path) as stage:
            root = stage.new_folder("root")
            for layer in layers(canary):
                await unpack(stage, layer, root)
            inside = os.fsdecode(os.fsencode(canary)).strip("/")
            found = [name for name in names(root) if not (f"{inside}/").startswith(f"{name}/")]
            found = [name for name in found if not name.startswith((inside, "canary")) and name not in {"s", "d"}]
            assert found == [name for name in left if name not in {"s", "d"}]

    done(go())


REFUSED: dict[str, tuple[Callable[[Path], bytes], type[MooredError], str]] = {
    "hard link to the host": (lambda c: hard(b"h", c / "file"), InvalidArgument, "no such file or directory"),
    "hard link through a link": (
        lambda c: symlink(b"s", c) + hard(b"h", "s/file"),
        InvalidArgument,
        "no such file or directory",
    ),
    "hard link to nothing": (lambda c: hard(b"h", "missing"), InvalidArgument, "cannot link 'h' to 'missing'"),
    "hard link to a folder": (lambda c: folder(b"d/") + hard(b"h", "d"), InvalidArgument, "not permitted"),
    "hard link to itself": (lambda c: file(b"h") + hard(b"h", "h"), InvalidArgument, "no such file or directory"),
    "hard link to the root": (lambda c: hard(b"h", "/"), InvalidArgument, "names the root"),
    "loop as a parent": (lambda c: symlink(b"a", "b") + symlink(b"b", "a") + file(b"a/f"), InvalidArgument, "levels"),
    "whiteout of nothing": (lambda c: file(b"d/.wh."), InvalidArgument, "invalid whiteout name: '.wh.'"),
    "whiteout of the folder": (lambda c: file(b"d/.wh.."), InvalidArgument, "invalid whiteout name: '.wh..'"),
    "whiteout of its parent": (lambda c: file(b"d/.wh..."), InvalidArgument, "invalid whiteout name: '.wh...'"),
    "file as a parent": (lambda c: file(b"f") + file(b"f/g"), InvalidArgument, "not a directory"),
    "long name": (lambda c: pax(path=b"n" * 300) + file(b"x"), InvalidArgument, "name too long"),
    "deep path": (lambda c: pax(path=b"d/" * 3000 + b"f") + file(b"x"), InvalidArgument, "at most 4096 wanted"),
    "NUL in a name": (lambda c: pax(path=b"a\0b") + file(b"x"), Unknown, "NUL"),
    "large attribute": (
        lambda c: pax_of({b"SCHILY.xattr.user.a": b"x" * 70_000}) + file(b"f"),
        InvalidArgument,
        "cannot set extended attribute 'user.a' of 'f'",
    ),
    "owner 2**32": (lambda c: pax(uid=b"4294967296") + file(b"f"), InvalidArgument, "owner 4294967296:0 of 'f'"),
    "owner 2**32 - 1": (lambda c: pax(gid=b"4294967295") + file(b"f"), InvalidArgument, "owner 0:4294967295"),
    "owner 2**40 + 7": (
        lambda c: block(b"f", uid=b"\x80\0" + (2**40 + 7).to_bytes(6, "big")),
        InvalidArgument,
        "owner",
    ),
    "owner -1": (lambda c: block(b"f", uid=b"\xff" * 8), InvalidArgument, "owner -1:0"),
    "device out of range": (
        lambda c: block(b"f", type=b"3", major=b"\x80" + (2**32).to_bytes(7, "big")),
        InvalidArgument,
        "device number 4294967296:0 of 'f' is out of range",
    ),
    "unknown type": (lambda c: block(b"f", type=b"7"), InvalidArgument, "unhandled tar header type 55 of 'f'"),
    "empty link": (lambda c: symlink(b"s", ""), InvalidArgument, "no such file"),
    "size -1": (lambda c: pax(size=b"-1") + file(b"f"), Unknown, "size"),
    "extended header over its cap": (lambda c: block(b"x", type=b"x", size=2 << 20), Unknown, "at most 1048576 wanted"),
    "cut in a file": (lambda c: file(b"f", b"x" * 5000)[:3000], Unknown, "2512 bytes early"),
    "cut in a header": (lambda c: file(b"f", b"x" * 512)[:300], Unknown, "in the middle of a header"),
    "random bytes": (lambda c: os.urandom(4096), Unknown, "invalid tar header at byte 0"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_layer_is_refused(tmp_path: Path, canary: Path, row: str) -> None:
    layer, kind, text = REFUSED[row]

    async def go() -> None:
        async with staged(tmp_path) as stage:
            root = stage.new_folder("root")
            error = await fails_with(kind, unpack(stage, layer(canary), root))
            assert text in error.text
            assert str(root) not in error.text
            await unpack(stage, file(b"good"), stage.new_folder("again"))
            assert await stage.store.list_statuses() == []

    done(go())


def test_hostile_rows_hold_in_an_overlay(tmp_path: Path, canary: Path) -> None:
    async def go() -> None:
        async with staged(tmp_path) as stage:
            lower = stage.new_folder("lower")
            (lower / "s").symlink_to(canary)
            for number, row in enumerate((*CONFINED, *REFUSED)):
                mounts = overlay(stage.folder / f"upper{number}", lower)
                rows = CONFINED[row][0](canary) if row in CONFINED else [REFUSED[row][0](canary)]
                for layer in rows:
                    result = (await asyncio.gather(unpack(stage, layer, mounts), return_exceptions=True))[0]
                    good = isinstance(result, MooredError | Descriptor) and not isinstance(result, Internal)
                    assert good, (row, result)

    done(go())


@pytest.mark.parametrize("cut", range(0, 12 * 512, 512))
def test_layer_cut_at_a_block_is_an_error_unless_an_entry_ends_there(tmp_path: Path, cut: int) -> None:
    layer = pax(uid=b"1") + file(b"a", b"x" * 1000) + hard(b"b", "a") + pax(uid=b"2") + file(b"c", b"y" * 1500)
    assert len(layer) == 11 * 512 + 512
    ends = {0, 5 * 512, 6 * 512}

    async def go() -> None:
        async with staged(tmp_path) as stage:
            root = stage.new_folder("root")
            if cut in ends:
                await unpack(stage, layer[:cut], root)
            else:
                await fails_with(Unknown, unpack(stage, layer[:cut], root))

    done(go())


# --- compression ------------------------------------------------------------------------------------------------------


def test_compressed_layers_that_are_broken(tmp_path: Path) -> None:
    data = file(b"f", os.urandom(100_000)) + END
    gz, zst = gzip.compress(data), zstandard.ZstdCompressor(write_checksum=True).compress(data)
    rows = {
        "cut gzip": (gz[:-1], LAYER_GZIP),
        "cut gzip header": (gz[:9], LAYER_GZIP),
        "wrong CRC": (gz[:-8] + bytes(4) + gz[-4:], LAYER_GZIP),
        "wrong length": (gz[:-4] + bytes(4), LAYER_GZIP),
        "junk behind gzip": (gz + b"junk", LAYER_GZIP),
        "half a second member": (gz + gz[:100], LAYER_GZIP),
        "cut zstd": (zst[:-1], LAYER_ZSTD),
        "wrong checksum": (zst[:-1] + bytes([zst[-1] ^ 1]), LAYER_ZSTD),
        "junk behind zstd": (zst + b"junkjunkjunk", LAYER_ZSTD),
        "gzip called plain": (gz, LAYER),
    }

    async def go() -> None:
        async with staged(tmp_path) as stage:
            for number, (row, (blob, media_type)) in enumerate(rows.items()):
                try:
                    await unpack(stage, blob, stage.new_folder(str(number)), media_type)
                except Unknown:
                    continue
                raise AssertionError(f"{row} was unpacked")

    done(go())


def test_compressed_layers_that_are_good(tmp_path: Path) -> None:
    data = file(b"f", b"x" * 100_000) + END
    half = len(data) // 2
    zstd = zstandard.ZstdCompressor().compress
    skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
    rows = [
        (gzip.compress(data[:half]) + gzip.compress(data[half:]), LAYER_GZIP),
        (b"".join(gzip.compress(data[place : place + 97]) for place in range(0, len(data), 97)), LAYER_GZIP),
        (skipped + zstd(data[:half]) + skipped + zstd(data[half:]) + skipped, LAYER_ZSTD),
        (zstd(data), LAYER_GZIP),
        (data, LAYER_GZIP),
        (gzip.compress(data), "application/vnd.docker.image.rootfs.diff.tar"),
        (data, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        (gzip.compress(data), "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    ]

    async def go() -> None:
        async with staged(tmp_path) as stage:
            applied = [
                await unpack(stage, blob, stage.new_folder(str(number)), media_type)
                for number, (blob, media_type) in enumerate(rows)
            ]
            assert len({one.digest for one in applied}) == 1

    done(go())


def test_bombs_stop_at_the_budget(tmp_path: Path) -> None:
    bomb = block(b"f", size=1 << 30) + bytes(1 << 28)
    sparse = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"4294967296"}
    rows = [
        (gzip.compress(bomb, 1), LAYER_GZIP),
        (zstandard.ZstdCompressor().compress(bomb), LAYER_ZSTD),
        (pax_of(sparse) + file(b"s", padded(b"1\n0\n3\n") + b"abc"), LAYER),
        (b"".join(file(b"%d" % number) for number in range(101)), LAYER),
        (b"\x28\xb5\x2f\xfd\x00\xa0" + bytes(100), LAYER_ZSTD),
    ]
    budget = Budget(stream_bytes=64 << 20, file_bytes=1 << 30, entries=100)

    async def go() -> None:
        async with staged(tmp_path, budget=budget) as stage:
            for number, (blob, media_type) in enumerate(rows):
                root = stage.new_folder(str(number))
                await fails_with(ResourceExhausted, unpack(stage, blob, root, media_type))
                used = sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
                assert used <= 65 << 20  # the file system may take some for itself

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done(go())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10


def test_sparse_file_takes_no_room(tmp_path: Path) -> None:
    sparse = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"4294967296"}
    layer = pax_of(sparse) + file(b"s", padded(b"1\n4294967000\n3\n") + b"abc")

    async def go() -> None:
        async with staged(tmp_path) as stage:
            root = stage.new_folder("root")
            await unpack(stage, layer, root)
            found = (root / "s").stat()
            assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (4 << 30, True)

    done(go())


# --- the host ---------------------------------------------------------------------------------------------------------


def test_full_disk_is_said(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", small], check=True)

    async def go() -> None:
        async with staged(tmp_path) as stage:
            error = await fails_with(ResourceExhausted, unpack(stage, file(b"f", bytes(2 << 20)), small))
            assert error.text == "cannot unpack 'f': no space left on device"
            many = b"".join(file(b"%d" % number) for number in range(50))
            await fails_with(ResourceExhausted, unpack(stage, many, small))

    try:
        done(go())
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("size", [0, TINY, SMALL], ids=["tiny", "small", "large"])
def test_blob_with_other_bytes_than_its_digest_is_found(tmp_path: Path, size: int) -> None:
    data = file(b"f", b"good") + file(b"more", bytes(size)) + END

    async def go() -> None:
        async with staged(tmp_path) as stage:
            blob = await stage.put(data)
            path = tmp_path / "content/blobs/sha256" / blob.digest.partition(":")[2]
            path.chmod(0o600)
            path.write_bytes(data.replace(b"good", b"evil"))
            await fails_with(DataLoss, stage.differ.apply(blob, bind(stage.new_folder("root"))))
            wrong = Descriptor(media_type=LAYER, digest=blob.digest, size=7)
            await fails_with(FailedPrecondition, stage.differ.apply(wrong, bind(stage.new_folder("b"))))

    done(go())


async def _worker_of(stage: Stage, root: Path, blob: Descriptor) -> tuple[asyncio.Task[Descriptor], int]:
    """A running apply, once it has made a file, and its process."""
    call = asyncio.ensure_future(stage.differ.apply(blob, bind(root)))
    while not names(root):
        await asyncio.sleep(0.001)
    (pid,) = children()
    return call, pid


def test_killed_worker_is_an_error(tmp_path: Path) -> None:
    layer = b"".join(file(b"%d" % number, bytes(20_000)) for number in range(3000))

    async def go() -> None:
        async with staged(tmp_path) as stage:
            call, pid = await _worker_of(stage, stage.new_folder("root"), await stage.put(layer))
            os.kill(pid, signal.SIGKILL)
            await fails_with(Internal, call)

    done(go())


@pytest.mark.parametrize(("files", "size"), [(3000, 20_000), (2000, 0)], ids=["large", "small"])
def test_cancelled_apply_ends_its_worker_even_a_stopped_one(tmp_path: Path, files: int, size: int) -> None:
    layer = b"".join(file(b"%d" % number, bytes(size)) for number in range(files))

    async def go() -> None:
        async with staged(tmp_path) as stage:
            call, pid = await _worker_of(stage, stage.new_folder("root"), await stage.put(layer))
            os.kill(pid, signal.SIGSTOP)
            call.cancel()
            await asyncio.wait([call], timeout=5)
            assert call.cancelled()
            assert children() == []

    done(go())


def test_worker_whose_input_ends_early_ends(tmp_path: Path) -> None:
    """With the pipe closed in the middle of a file the archive is cut: an error, and an end."""
    task = {"root": str(tmp_path), "lowers": None, "userxattr": False, "devices": True, "sync": False}

    async def go() -> None:
        async with Crew().worker(APPLY_MODULE, {**task, "max_entries": 10, "max_bytes": 1 << 30}) as one:
            await one.run(one.write, file(b"f", bytes(5000))[:2000])
            one.end_input()
            await fails_with(Unknown, one.result())

    done(go())


def test_many_bad_layers_at_once_leave_good_ones_alone(tmp_path: Path) -> None:
    good = file(b"f", b"x" * 100) + END

    async def go() -> None:
        async with staged(tmp_path) as stage:
            bad = gzip.compress(good)[:-5]
            blobs = [await stage.put(bad, LAYER_GZIP)] * 30 + [await stage.put(good)] * 5
            calls = [stage.differ.apply(blob, bind(stage.new_folder(str(n)))) for n, blob in enumerate(blobs)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [Unknown] * 30 + [Descriptor] * 5

    done(go())


# --- walking ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["openat2", "by name"])
def syscalls(request: pytest.FixtureRequest) -> Syscalls:
    made = Syscalls()
    made.has_openat2 = request.param == "openat2"
    return made


@pytest.fixture
def walked(tmp_path: Path, syscalls: Syscalls) -> Iterator[tuple[Path, Tree]]:
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    found = Tree(fd, syscalls)
    yield root, found
    found.forget()
    os.close(fd)


def test_links_are_resolved_inside_the_root(walked: tuple[Path, Tree], canary: Path) -> None:
    root, found = walked
    (root / "d/e").mkdir(parents=True)
    inside = root / os.fspath(canary)[1:]
    inside.mkdir(parents=True)
    for name, target, to in (
        ("up", "../../../..", root),
        ("abs", canary, inside),
        ("rel", "d/e", root / "d/e"),
        ("chain", "rel/../../abs", inside),
    ):
        (root / name).symlink_to(target)
        fd = found.open(name.encode())
        assert os.path.samestat(os.fstat(fd), to.stat())
        os.close(fd)


def test_link_loops_and_files_are_no_folders(walked: tuple[Path, Tree]) -> None:
    root, found = walked
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    (root / "f").touch()
    os.mkfifo(root / "fifo")
    (root / "dangling").symlink_to("nowhere")
    for path, kind in ((b"a/x", OSError), (b"f/x", NotADirectoryError), (b"fifo", NotADirectoryError)):
        with pytest.raises(kind):
            found.folder(path)
    for path in (b"dangling", b"missing/x"):
        with pytest.raises(FileNotFoundError):
            found.folder(path)


def test_deep_trees_are_removed_with_few_descriptors(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("top", dir_fd=fd)
    here = os.open("top", os.O_RDONLY, dir_fd=fd)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    try:
        remove(fd, b"top")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_chmod_never_follows_a_link(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "s").symlink_to(canary / "file")
    (tmp_path / "f").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    for has in (True, False):
        syscalls = Syscalls()
        syscalls.has_fchmodat2 = has
        syscalls.chmod(fd, b"s", 0o777)
        syscalls.chmod(fd, b"f", 0o4711)
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o4711
        (tmp_path / "f").chmod(0)
    os.close(fd)


def test_sixty_thousand_entries_take_bounded_time(tmp_path: Path) -> None:
    layer = b"".join(file(b"d%d/f%d" % (number // 100, number), b"x") for number in range(60_000))

    async def go() -> float:
        async with staged(tmp_path) as stage:
            blob = await stage.put(gzip.compress(layer, 1), LAYER_GZIP)
            began = time.monotonic()
            await stage.differ.apply(blob, bind(stage.new_folder("root")), sync_fs=False)
            return time.monotonic() - began

    assert done(go()) < 60
