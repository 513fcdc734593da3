"""Mounts for real: options, lower folders, mapped owners, loop devices, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from moored.kernel import mounts
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.mounts import Mount
from unit.snapshots.world import nothing_left


def bind(source: Path, *options: str, target: str = "") -> Mount:
    return Mount(type="bind", source=str(source), target=target, options=("rbind", *options))


@pytest.mark.parametrize(
    ("options", "parsed"),
    [
        (("rbind", "ro"), mounts.Parsed(mounts.BIND | mounts.REC | mounts.RDONLY)),
        (("ro", "rw", "nosuid", "noexec", "exec"), mounts.Parsed(mounts.NOSUID)),
        (("loop", "defaults", "ro"), mounts.Parsed(mounts.RDONLY, loop=True)),
        (("rslave", "bind"), mounts.Parsed(mounts.BIND, mounts.SLAVE | mounts.REC)),
        (("lowerdir=/a:/b", "index=off"), mounts.Parsed(data=("lowerdir=/a:/b", "index=off"))),
        (("uidmap=0:1:2", "gidmap=0:3:4"), mounts.Parsed(uid_mapping="0:1:2", gid_mapping="0:3:4")),
        ((), mounts.Parsed()),
    ],
)
def test_options_are_flags_and_data(options: tuple[str, ...], parsed: mounts.Parsed) -> None:
    assert mounts.parse(options) == parsed


def test_options_of_the_mount_manager_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        mounts.parse(["X-containerd.mkfs.size=1"])


@pytest.mark.parametrize(
    "options",
    [
        ("uidmap=0:1:2",),
        ("uidmap=0:1:2", "gidmap="),
        ("uidmap=0:1:2", "gidmap=0:1"),
        ("uidmap=0:-1:2", "gidmap=0:1:2"),
        ("uidmap=0:1:2,", "gidmap=0:1:2"),
        ("uidmap=0:1:2", "gidmap=0:1:2", "remount"),
    ],
)
def test_malformed_id_mappings_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    with nothing_left(), pytest.raises(InvalidArgument):
        mounts.mount(bind(tmp_path, *options), tmp_path)


@pytest.mark.parametrize(
    ("options", "read_only"), [((), False), (("ro",), True), (("rw", "ro"), True), (("ro", "rw"), False)]
)
def test_last_word_on_writing_counts(options: tuple[str, ...], read_only: bool) -> None:
    assert Mount(type="bind", source="/", options=options).read_only is read_only


@pytest.mark.root
def test_bind_is_read_only_where_asked(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with nothing_left():
        with mounts.mounted([bind(tmp_path, "ro")]) as place:
            assert (place / "f").read_text() == "x"
            with pytest.raises(OSError, match=r".*") as caught:
                (place / "f").write_text("y")
            assert caught.value.errno == errno.EROFS
        with mounts.mounted([bind(tmp_path, "rw")]) as place:
            (place / "f").write_text("y")
    assert (tmp_path / "f").read_text() == "y"


@pytest.mark.root
def test_failed_mount_takes_the_earlier_ones_along(tmp_path: Path) -> None:
    (tmp_path / "place/below").mkdir(parents=True)
    wrong = Mount(type="no-such-type", source="x")
    with nothing_left():
        for one in (bind(tmp_path), bind(tmp_path, target="/below")):
            with pytest.raises(OSError, match="no-such-type"):
                mounts.mount_all([one, wrong], tmp_path / "place")


@pytest.mark.root
def test_target_below_never_leads_out(tmp_path: Path) -> None:
    place, outside = tmp_path / "place", tmp_path / "outside"
    for folder in (place / "etc", outside):
        folder.mkdir(parents=True)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_text("x")
    (place / "link").symlink_to("/etc")
    (place / "up").symlink_to("../../outside")
    mounts.mount(bind(tmp_path / "source", target="link"), place)
    try:
        assert (place / "etc/f").read_text() == "x"
    finally:
        mounts.unmount_all(place / "etc")
    with pytest.raises(FileNotFoundError):
        mounts.mount(bind(tmp_path / "source", target="up"), place)
    assert list(outside.iterdir()) == []


@pytest.mark.root
def test_lower_folders_may_take_more_than_a_page(tmp_path: Path) -> None:
    top = tmp_path / ("long" * 20)
    names = [f"{number}/fs" for number in range(100)]
    for name in names:
        (top / name).mkdir(parents=True)
        (top / name / f"f{name[:-3]}").write_text(name)
    lower = ":".join(str(top / name) for name in names)
    assert len(lower) > 2 * mounts.MAX_DATA
    before = Path.cwd()
    with (
        nothing_left(),
        mounts.mounted([Mount(type="overlay", source="overlay", options=(f"lowerdir={lower}",))]) as place,
    ):
        assert len(list(place.iterdir())) == 100
    assert Path.cwd() == before


@pytest.mark.root
def test_lower_folders_may_take_more_than_a_page_even_by_their_last_names(tmp_path: Path) -> None:
    names = [f"{number}-{'n' * 40}/fs" for number in range(480)]
    for name in names:
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / name.partition("-")[0]).write_text(name)
        (tmp_path / "all" / name / "top").write_text(name)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    lower = ":".join(str(tmp_path / "all" / name) for name in names)
    assert len(":".join(names)) > 5 * mounts.MAX_DATA
    upper = (f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work", "index=off")
    before = Path.cwd()
    for options in ((f"lowerdir={lower}", "ro", "noexec"), (f"lowerdir={lower}", *upper)):
        with (
            nothing_left(),
            mounts.mounted([Mount(type="overlay", source="overlay", options=options)]) as place,
        ):
            assert len(list(place.iterdir())) == 481
            assert (place / "top").read_text() == names[0]
            assert bool(os.statvfs(place).f_flag & os.ST_RDONLY) is ("ro" in options)
            assert bool(os.statvfs(place).f_flag & os.ST_NOEXEC) is ("noexec" in options)
    assert Path.cwd() == before


@pytest.mark.root
def test_more_lower_folders_than_the_kernel_takes_are_its_error(tmp_path: Path) -> None:
    names = [f"{number:040}" for number in range(510)]
    for name in names:
        (tmp_path / name).mkdir()
    lower = ":".join(str(tmp_path / name) for name in names)
    with nothing_left(), pytest.raises(OSError, match="lowerdir"):
        mounts.mount(Mount(type="overlay", source="overlay", options=(f"lowerdir={lower}",)), tmp_path)


@pytest.mark.root
def test_overlay_may_be_volatile(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    folders = (f"lowerdir={tmp_path}/lower", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    with mounts.mounted([Mount(type="overlay", source="overlay", options=("volatile", *folders))]) as place:
        (place / "f").write_text("x")
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place} " in line)
        assert "volatile" in line
    assert (tmp_path / "upper/f").read_text() == "x"


MAPPED = ("uidmap=0:100000:1000", "gidmap=7:300000:1,0:200000:5")


def owned(path: Path, uid: int, gid: int) -> Path:
    path.write_text("x")
    os.chown(path, uid, gid)
    return path


def owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


@pytest.mark.root
def test_bind_shows_mapped_owners(tmp_path: Path) -> None:
    source, below = tmp_path / "source", tmp_path / "below"
    for folder in (source, below, source / "sub"):
        folder.mkdir()
    owned(source / "f", 3, 4)
    owned(source / "g", 999, 7)
    owned(source / "none", 5000, 5000)
    owned(below / "h", 0, 0)
    mounts.mount(bind(below), source / "sub")
    try:
        with nothing_left():
            with mounts.mounted([bind(source, *MAPPED, "noexec")]) as place:
                assert owner(place / "f") == (100003, 200004)
                assert owner(place / "g") == (100999, 300000)
                assert owner(place / "none") == (65534, 65534)
                assert owner(place / "sub/h") == (100000, 200000)
                os.chown(place / "f", 100001, 200001)
                assert os.statvfs(place).f_flag & os.ST_NOEXEC
                (place / "sub/h").chmod(0o600)
            with mounts.mounted([bind(source, *MAPPED, "ro")]) as place, pytest.raises(OSError, match="Read-only"):
                (place / "f").write_text("y")
    finally:
        mounts.unmount_all(source / "sub")
    assert owner(source / "f") == (1, 1)


@pytest.mark.root
def test_image_shows_mapped_owners(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "root_owner=5:6", str(image)], check=True, capture_output=True)
    with (
        nothing_left(),
        mounts.mounted([Mount(type="ext4", source=str(image), options=("loop", "rw", *MAPPED))]) as place,
    ):
        assert place.stat().st_uid == 100005
        assert (
            len([line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place} " in line]) == 1
        )


@pytest.mark.root
@pytest.mark.parametrize("many", [False, True])
def test_overlay_shows_its_lower_folders_with_mapped_owners(tmp_path: Path, many: bool) -> None:
    names = [f"{number}-{'n' * 40}/fs" for number in range(200 if many else 2)]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    owned(tmp_path / names[0] / "a", 1, 2)
    owned(tmp_path / names[-1] / "b", 3, 4)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "upper", 100000, 200000)
    lower = ":".join(str(tmp_path / name) for name in names)
    options = (*MAPPED, f"lowerdir={lower}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    with nothing_left():
        with mounts.mounted([Mount(type="overlay", source="overlay", options=options)]) as place:
            assert owner(place) == (100000, 200000)
            assert owner(place / "a") == (100001, 200002)
            assert owner(place / "b") == (100003, 200004)
            (place / "b").write_text("above")
            owned(place / "new", 100009, 200001)
            assert owner(place / "b") == (100003, 200004)
        with mounts.mounted([Mount(type="overlay", source="overlay", options=(*MAPPED, f"lowerdir={lower}"))]) as place:
            assert owner(place / "b") == (100003, 200004)
    assert owner(tmp_path / "upper/b") == (100003, 200004)
    assert owner(tmp_path / "upper/new") == (100009, 200001)
    assert owner(tmp_path / names[-1] / "b") == (3, 4)


@pytest.mark.root
def test_what_cannot_be_mapped_leaves_nothing(tmp_path: Path) -> None:
    with nothing_left():
        for one in (
            Mount(type="proc", source="proc", options=MAPPED),
            Mount(type="overlay", source="overlay", options=MAPPED),
            Mount(type="overlay", source="overlay", options=(*MAPPED, f"lowerdir={tmp_path}/none:{tmp_path}")),
        ):
            with pytest.raises((OSError, InvalidArgument)):
                mounts.mount(one, tmp_path)


@pytest.mark.root
def test_options_that_fit_nowhere_are_refused(tmp_path: Path) -> None:
    options = (f"upperdir=/{'x' * 5000}",)
    with pytest.raises(InvalidArgument):
        mounts.mount(Mount(type="overlay", source="overlay", options=options), tmp_path)


@pytest.mark.root
def test_loop_device_goes_with_its_mount(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    with nothing_left():
        with mounts.mounted([Mount(type="ext4", source=str(image), options=("loop", "rw"))]) as place:
            (place / "f").write_text("x")
            found = mounts.lookup(place / "f")
            assert (found.type, found.target) == ("ext4", place)
            assert Path(found.source).stat().st_rdev >> 8 == 7
        with mounts.mounted([Mount(type="ext4", source=str(image), options=("loop", "ro"))]) as place:
            assert (place / "f").read_text() == "x"
            with pytest.raises(OSError, match=r".*"):
                (place / "f").write_text("y")


@pytest.mark.root
def test_unmounting_nothing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r".*") as caught:
        mounts.unmount(tmp_path)
    assert caught.value.errno == errno.EINVAL
    mounts.unmount_all(tmp_path)
    mounts.unmount_all(tmp_path / "missing")
