"""Unpacking: what an entry becomes, in a plain folder and in an overlay's upper one."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from moored.kernel.conformance.diff import bind, digest_of
from moored.kernel.errors import FailedPrecondition, InvalidArgument, Unknown
from moored.kernel.ports.diff import LAYER, LAYER_GZIP
from moored.kernel.ports.mounts import Mount
from moored.plugins.diff import walking
from moored.plugins.diff.decompress.gzip import MAX_PIECE
from moored.plugins.diff.walking import SMALL, TINY, direct_target
from unit.diff.world import (
    END,
    as_root,
    block,
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
    unpacked,
)

pytestmark = as_root

CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)


def folder(name: bytes, **fields: object) -> bytes:
    return block(name, type=b"5", **{"mode": 0o755, **fields})


def upper_of(path: Path, lowers: list[Path], *layers: bytes, options: tuple[str, ...] = ()) -> Path:
    """Layers unpacked into the upper folder of an overlay."""

    async def go() -> None:
        async with staged(path) as stage:
            for layer in layers:
                await unpack(stage, layer, overlay(path / "upper", *lowers, options=options))

    done(go())
    return path / "upper"


def test_kinds_of_files(tmp_path: Path) -> None:
    layer = (
        folder(b"d/", mode=0o1777)
        + file(b"d/file", b"data", mode=0o6755, uid=3, gid=4, mtime=1_000_000_000)
        + block(b"d/fifo", type=b"6", mode=0o4600, uid=1)
        + block(b"d/char", type=b"3", mode=0o666, major=1, minor=3)
        + block(b"d/block", type=b"4", mode=0o660, major=7, minor=300)
        + block(b"d/sym", type=b"2", link=b"../nowhere", uid=9)
        + block(b"d/hard", type=b"1", link=b"d/file", mode=0o6755, uid=3, gid=4, mtime=1_000_000_000)
        + END
    )
    root = unpacked(tmp_path, layer)
    kinds = {path.name: stat.filemode(path.lstat().st_mode) for path in (root / "d").iterdir()}
    assert kinds == {
        "file": "-rwsr-sr-x",
        "fifo": "prwS------",
        "char": "crw-rw-rw-",
        "block": "brw-rw----",
        "sym": "lrwxrwxrwx",
        "hard": "-rwsr-sr-x",
    }
    assert (root / "d/fifo").lstat().st_mode & 0o7777 == 0o4600
    assert (root / "d/block").lstat().st_rdev == os.makedev(7, 300)
    assert (root / "d/hard").samefile(root / "d/file")
    assert (root / "d/sym").lstat().st_uid == 9
    assert (root / "d/file").lstat().st_mtime == 1_000_000_000


def test_times_have_nanoseconds_and_folders_get_theirs_last(tmp_path: Path) -> None:
    layer = pax(mtime=b"1600000000.123456789") + folder(b"d/") + pax(mtime=b"5.5") + file(b"d/f", b"x") + file(b"d/g")
    root = unpacked(tmp_path, layer)
    assert (root / "d").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (root / "d/f").stat().st_mtime_ns == 5_500_000_000


def test_times_out_of_range_become_1970(tmp_path: Path) -> None:
    layer = b"".join(
        pax(mtime=text) + file(name)
        for name, text in ((b"before", b"-5.5"), (b"beyond", b"9223372037"), (b"far", str(2**40).encode()))
    )
    root = unpacked(tmp_path, layer)
    assert [(root / name).stat().st_mtime_ns for name in ("before", "beyond", "far")] == [0, 0, 0]


def test_extended_attributes(tmp_path: Path) -> None:
    records = {b"SCHILY.xattr.user.a": b"\0bin", b"SCHILY.xattr.security.capability": CAPABILITY}
    link = pax_of({b"SCHILY.xattr.user.a": b"x"}) + block(b"l", type=b"2", link=b"f")
    ignored = pax_of({b"SCHILY.xattr.trusted.overlay.opaque": b"y"}) + folder(b"d/")
    root = unpacked(tmp_path, pax_of(records) + file(b"f", b"x", uid=5, mode=0o755) + link + ignored)
    assert os.getxattr(root / "f", "user.a") == b"\0bin"
    assert os.getxattr(root / "f", "security.capability") == CAPABILITY
    assert os.listxattr(root / "d") == []


def test_hard_link_without_attributes_leaves_those_of_the_file(tmp_path: Path) -> None:
    records = pax_of({b"SCHILY.xattr.security.capability": CAPABILITY})
    root = unpacked(tmp_path, records + file(b"f", b"x", mode=0o4755) + block(b"h", type=b"1", link=b"f", mode=0o4755))
    assert os.getxattr(root / "f", "security.capability") == CAPABILITY
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o4755


def test_hard_link_with_attributes_sets_those_of_the_file(tmp_path: Path) -> None:
    records = pax_of({b"SCHILY.xattr.security.capability": CAPABILITY})
    root = unpacked(tmp_path, file(b"f", b"x") + records + block(b"h", type=b"1", link=b"f", uid=5, mode=0o600))
    found = (root / "f").stat()
    assert (os.getxattr(root / "f", "security.capability"), found.st_uid) == (CAPABILITY, 5)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_missing_parents_are_made(tmp_path: Path) -> None:
    root = unpacked(tmp_path, file(b"a/b/c/f", b"x"))
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [0o755] * 3


def test_parent_of_an_entry_may_be_a_link_inside(tmp_path: Path) -> None:
    layer = (
        folder(b"usr/lib/")
        + block(b"lib", type=b"2", link=b"usr/lib")
        + block(b"abs", type=b"2", link=b"/usr/lib")
        + block(b"dangling", type=b"2", link=b"/made/later")
        + file(b"lib/one")
        + file(b"abs/two")
        + file(b"dangling/three")
    )
    root = unpacked(tmp_path, layer)
    made = ["made", "made/later", "made/later/three"]
    assert names(root) == ["abs", "dangling", "lib", *made, "usr", "usr/lib", "usr/lib/one", "usr/lib/two"]


def test_entries_replace_what_is_there(tmp_path: Path) -> None:
    lower = folder(b"d/") + file(b"d/f", b"old") + file(b"was-file") + block(b"was-link", type=b"2", link=b"d")
    upper = (
        file(b"d/f", b"new") + folder(b"was-file/") + file(b"was-file/x") + folder(b"was-link/") + file(b"was-link/y")
    )
    root = unpacked(tmp_path, lower, upper)
    assert names(root) == ["d", "d/f", "was-file", "was-file/x", "was-link", "was-link/y"]
    assert (root / "d/f").read_text() == "new"
    again = unpacked(tmp_path, file(b"d", b"now a file") + folder(b"was-link/", mode=0o700), root=root)
    assert (again / "d").read_text() == "now a file"
    assert (again / "was-link/y").exists()
    assert stat.S_IMODE((again / "was-link").stat().st_mode) == 0o700


def test_hard_link_replaces_and_is_replaced(tmp_path: Path) -> None:
    layer = file(b"a", b"1") + file(b"b", b"2") + block(b"b", type=b"1", link=b"a") + file(b"a", b"3")
    root = unpacked(tmp_path, layer)
    assert ((root / "a").read_text(), (root / "b").read_text()) == ("3", "1")


def test_root_entry_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o711)
    unpacked(tmp_path, folder(b"./", mode=0o777, uid=5) + folder(b"/") + folder(b"x/..") + file(b"f"), root=root)
    assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_uid, names(root)) == (0o711, 0, ["f"])


def test_setgid_folder_does_not_give_its_group(tmp_path: Path) -> None:
    root = unpacked(tmp_path, folder(b"d/", mode=0o2755, gid=50) + file(b"d/f") + folder(b"d/e/"))
    assert ((root / "d/f").stat().st_gid, (root / "d/e").stat().st_gid) == (0, 0)
    assert stat.S_IMODE((root / "d/e").stat().st_mode) == 0o755


def test_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as made:
        made.write(b"start")
        made.seek(50_000_000)
        made.write(b"end")
    command = ["tar", "-C", tmp_path, "--sparse", "--format=pax", "-cf", "-", "hole"]
    root = unpacked(tmp_path, subprocess.run(command, check=True, capture_output=True).stdout)
    assert (root / "hole").read_bytes() == (tmp_path / "hole").read_bytes()
    assert (root / "hole").stat().st_blocks * 512 < 1_000_000


def test_large_file(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 5 + b"tail"
    assert (unpacked(tmp_path, file(b"f", data)) / "f").read_bytes() == data


@pytest.mark.parametrize("size", [1, MAX_PIECE - 2048, MAX_PIECE, 10 << 20], ids=["tiny", "piece", "more", "bomb"])
def test_small_blob_becomes_files_of_any_size(size: int, tmp_path: Path) -> None:
    async def go() -> None:
        async with staged(tmp_path) as stage:
            stored = gzip.compress(layer)
            assert len(stored) < TINY
            root = stage.new_folder("root")
            assert (await unpack(stage, stored, root, LAYER_GZIP)).digest == digest_of(layer)
            assert (root / "f").stat().st_size == size

    layer = file(b"f", bytes(size)) + END
    done(go())


@pytest.mark.parametrize("size", [TINY, SMALL - 4096, SMALL + 4096], ids=["tiny", "small", "large"])
@pytest.mark.parametrize("kind", [LAYER, LAYER_GZIP])
def test_blob_is_unpacked_whoever_decompresses_it(size: int, kind: str, tmp_path: Path) -> None:
    async def go() -> None:
        async with staged(tmp_path) as stage:
            stored = layer if kind == LAYER else gzip.compress(layer, 1)
            root = stage.new_folder("root")
            found = await unpack(stage, stored, root, kind)
            assert (found.digest, found.size) == (digest_of(layer), len(layer))
            assert (root / "f").read_bytes() == data
            with pytest.raises(Unknown):
                await unpack(stage, stored[: len(stored) // 2], stage.new_folder("cut"), kind)

    data = os.urandom(size)
    layer = file(b"f", data) + END
    done(go())


@pytest.mark.parametrize("size", [1, 10 << 20], ids=["at_once", "with_a_thread"])
def test_small_blob_that_is_cut_is_refused(size: int, tmp_path: Path) -> None:
    async def go() -> None:
        async with staged(tmp_path) as stage:
            with pytest.raises(Unknown, match="unexpected end of the stream"):
                await unpack(
                    stage, gzip.compress(file(b"f", bytes(size)) + END)[:-1], stage.new_folder("r"), LAYER_GZIP
                )

    done(go())


def test_opaque_in_a_plain_folder_keeps_what_the_layer_brought(tmp_path: Path) -> None:
    lower = folder(b"d/") + folder(b"d/sub/") + file(b"d/sub/old") + file(b"d/old") + file(b"d/deep/er/old")
    upper = file(b"d/sub/new") + file(b"d/new") + file(b"d/.wh..wh..opq") + file(b"d/later")
    root = unpacked(tmp_path, lower, upper)
    assert names(root) == ["d", "d/later", "d/new", "d/sub", "d/sub/new"]


def test_whiteout_in_a_plain_folder_removes_what_the_layer_brought_too(tmp_path: Path) -> None:
    assert names(unpacked(tmp_path, folder(b"a/") + file(b"a/f") + file(b".wh.a"))) == []


def test_aufs_metadata_is_left_out(tmp_path: Path) -> None:
    assert names(unpacked(tmp_path, file(b".wh..wh.plnk") + file(b".wh..wh.aufs") + file(b"f"))) == ["f"]


def test_overlay_marks(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    upper = upper_of(tmp_path, [lower], file(b".wh.gone", uid=3) + folder(b"d/") + file(b"d/.wh..wh..opq"))
    gone = (upper / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev, gone.st_uid) == (True, 0, 3)
    assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"
    assert names(upper) == ["d", "gone"]


def test_overlay_marks_with_userxattr(tmp_path: Path) -> None:
    forged = pax_of({b"SCHILY.xattr.user.overlay.opaque": b"y"}) + folder(b"forged/")
    upper = upper_of(tmp_path, [tmp_path], folder(b"d/") + file(b"d/.wh..wh..opq") + forged, options=("userxattr",))
    assert os.getxattr(upper / "d", "user.overlay.opaque") == b"y"
    assert os.listxattr(upper / "forged") == []


def test_missing_parents_in_an_overlay_are_like_the_nearest_lower_ones(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    for lower, mode, uid in ((near, 0o711, 5), (far, 0o700, 6)):
        (lower / "both").mkdir(parents=True)
        (lower / "both").chmod(mode)
        os.chown(lower / "both", uid, uid)
        os.setxattr(lower / "both", "user.from", lower.name.encode())
        os.utime(lower / "both", ns=(0, uid * 10**9 + 1))
    (far / "only").mkdir(mode=0o1777)
    (far / "only").chmod(0o1777)
    (far / "link").symlink_to("only")
    (near / "hidden").touch()
    (far / "hidden").mkdir(mode=0o700)
    upper = upper_of(tmp_path, [near, far], file(b"both/f") + file(b"only/f") + file(b"link/f") + file(b"hidden/f"))
    both = (upper / "both").stat()
    assert (stat.S_IMODE(both.st_mode), both.st_uid, both.st_mtime_ns) == (0o711, 5, 5_000_000_001)
    assert os.getxattr(upper / "both", "user.from") == b"near"
    assert stat.S_IMODE((upper / "only").stat().st_mode) == 0o1777
    assert stat.S_IMODE((upper / "link").lstat().st_mode) == 0o1777
    assert stat.S_IMODE((upper / "hidden").stat().st_mode) == 0o755


def test_folder_over_its_whiteout_stays_hidden(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "d").mkdir(parents=True)
    (lower / "d/old").touch()
    upper = upper_of(tmp_path, [lower], file(b".wh.d") + folder(b"d/") + file(b"d/new"))
    assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"


def test_whiteout_of_what_the_overlay_layer_brought_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^cannot unpack '.wh.a': file exists$"):
        upper_of(tmp_path, [tmp_path], file(b"a") + file(b".wh.a"))


def test_layers_on_an_overlay_show_what_plain_folders_have(tmp_path: Path) -> None:
    layers = [
        folder(b"a/") + file(b"a/1", b"x") + file(b"a/2", b"y") + folder(b"b/") + file(b"b/old") + file(b"c"),
        file(b"a/.wh.1") + file(b"b/.wh..wh..opq") + file(b"b/new") + folder(b"c/") + file(b"c/in"),
        file(b".wh.c") + file(b"a/2", b"z") + block(b"l", type=b"2", link=b"a"),
    ]
    plain = unpacked(tmp_path, *layers)
    lowers: list[Path] = []

    async def go() -> None:
        async with staged(tmp_path) as stage:
            for number, layer in enumerate(layers):
                upper = tmp_path / f"layer{number}"
                upper.mkdir()
                mounts = overlay(upper, *lowers) if lowers else bind(upper)
                await unpack(stage, layer, mounts)
                lowers.insert(0, upper)

    done(go())
    merged = tmp_path / "merged"
    merged.mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={':'.join(map(str, lowers))}", merged], check=True
    )
    try:
        assert tree(merged, times=False) == tree(plain, times=False)
    finally:
        subprocess.run(["umount", merged], check=True)


def test_other_mounts_are_mounted(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    below = Mount(type="bind", source=str(tmp_path / "below"), target="sub", options=("rbind",))
    mounts = [*overlay(upper, tmp_path), below]
    (upper / "sub").mkdir()
    (tmp_path / "below").mkdir()

    async def go() -> None:
        async with staged(tmp_path) as stage:
            await unpack(stage, file(b"sub/f") + file(b"g"), mounts)

    done(go())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert names(tmp_path / "below") == ["f"]
    assert names(upper) == ["g", "sub"]


def test_read_only_mounts_are_refused(tmp_path: Path) -> None:
    async def go() -> None:
        async with staged(tmp_path) as stage:
            view = Mount(type="overlay", source="overlay", options=(f"lowerdir={tmp_path}:{tmp_path}",))
            for mounts in (bind(tmp_path, read_only=True), [view]):
                with pytest.raises(FailedPrecondition, match="read-only"):
                    await unpack(stage, file(b"f"), mounts)

    done(go())


def test_lower_folders_are_read_from_the_options() -> None:
    options = ("index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b\\:c:/d")
    target = direct_target([Mount(type="overlay", source="overlay", options=options)])
    assert target is not None
    assert (target.root, target.lowers, target.userxattr) == ("/u", ("/a", "/b:c", "/d"), False)


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    data = file(b"f", os.urandom(3 << 20)) + END

    async def go() -> None:
        async with staged(tmp_path) as stage:
            await stage.differ.apply(await stage.put(data, LAYER), [], progress=told.append)

    done(go())
    assert told == sorted(told)
    assert told[-1] == len(data)
    assert len(told) > 2


@pytest.mark.parametrize("fault", [False, True])
def test_long_unpacking_is_written_to_its_disk_meanwhile_and_fails_with_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    synced: list[tuple[str, bool]] = []

    def sync(folder: str) -> None:
        synced.append((folder, (tmp_path / "root").is_dir()))
        if fault:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(walking, "EARLY_SECONDS", 0)
    monkeypatch.setattr(walking, "_sync", sync)
    large = file(b"large", os.urandom(1 << 20)) + END

    if fault:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            unpacked(tmp_path, large)
    else:
        unpacked(tmp_path, large)
    assert synced
    assert set(synced) == {(str(tmp_path / "root"), True)}


def test_junk_behind_the_archive_belongs_to_the_diff_id(tmp_path: Path) -> None:
    data = padded(file(b"f", b"x")) + END + os.urandom(3 << 20)

    async def go() -> None:
        async with staged(tmp_path) as stage:
            root = stage.new_folder("root")
            assert (await unpack(stage, data, root)).digest == digest_of(data)

    done(go())
