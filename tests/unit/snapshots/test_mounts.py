from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from moored.kernel import mounts
from moored.kernel.errors import InvalidArgument, Unimplemented
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


def test_id_mappings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unimplemented):
        mounts.mount(bind(tmp_path, "uidmap=0:1:2"), tmp_path)


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
