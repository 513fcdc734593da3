"""What a type's prefixes do: texts filled in, folders made, images made, and nothing outside of the folders allowed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness import on_loop, program
from moored.kernel.conformance import fails_with
from moored.kernel.errors import InvalidArgument, Unimplemented, Unknown
from moored.kernel.ports.mounts import ActiveMount, Mount
from moored.plugins.mounts.roots import Roots
from moored.plugins.mounts.transform import Format, Mkdir, Mkfs, Transformer

EARLIER = [
    ActiveMount(mount=Mount(type="x", source=f"/s{number}", target=f"/t{number}"), mount_point=f"/m{number}")
    for number in range(3)
]


def mount(*options: str, source: str = "") -> Mount:
    return Mount(type="ext4", source=source, options=options)


async def option(transformer: Transformer, text: str) -> str:
    return (await transformer.transform(mount(text), EARLIER)).options[0]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain {0} }} text", "plain {0} }} text"),
        ("a={{ source 0 }}", "a=/s0"),
        ("{{target 1}}{{mount 2}}", "/t1/m2"),
        ("{{ overlay 0 2 }}", "/m0:/m1:/m2"),
        ("{{ overlay 2 0 }}", "/m2:/m1:/m0"),
        ("{{- overlay 1 1 -}}", "/m1"),
    ],
)
@on_loop
async def test_texts_are_filled_in(text: str, filled: str) -> None:
    given = Mount(type="x", source=text, target=text, options=(text, "ro"))
    made = await Format().transform(given, EARLIER)
    assert made == Mount(type="x", source=filled, target=filled, options=(filled, "ro"))


@pytest.mark.parametrize(
    "text",
    ["{{ mount 3 }}", "{{ overlay 0 3 }}", "{{ overlay 3 0 }}", "{{ mount -1 }}", "{{ mount }}", "{{ env 1 }}", "{{}}"],
)
@on_loop
async def test_texts_that_mean_nothing_are_refused(text: str) -> None:
    await fails_with(InvalidArgument, option(Format(), text))


def roots(folder: Path) -> Roots:
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    return Roots([folder / "in"])


@on_loop
async def test_folders_are_made_with_mode_and_owner(tmp_path: Path) -> None:
    mkdir = Mkdir(roots(tmp_path))
    for path, text, mode, owner in (
        ("a", "", 0o700, (os.getuid(), os.getgid())),
        ("b", ":0751", 0o751, (os.getuid(), os.getgid())),
        ("b/c", ":777:11:12", 0o777, (11, 12)),
        ("a", ":750:13:14", 0o750, (13, 14)),
    ):
        made = await mkdir.transform(mount("ro", f"X-containerd.mkdir.path={tmp_path}/in/{path}{text}", "x=y"), [])
        assert made.options == ("ro", "x=y")
        status = (tmp_path / "in" / path).stat()
        assert (stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid)) == (mode, owner)


@on_loop
async def test_folders_elsewhere_are_refused(tmp_path: Path) -> None:
    mkdir = Mkdir(roots(tmp_path))
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    (tmp_path / "in/file").write_text("x")
    for path, kind in (
        (f"{tmp_path}/out/x", Unimplemented),
        (f"{tmp_path}/in2", Unimplemented),
        (f"{tmp_path}/in", Unimplemented),
        ("relative", Unimplemented),
        (f"{tmp_path}/in/../out/x", InvalidArgument),
        (f"{tmp_path}/in/link/x", Unknown),
        (f"{tmp_path}/in/link", Unknown),
        (f"{tmp_path}/in/file", Unknown),
        (f"{tmp_path}/in/no/x", Unknown),
        (f"{tmp_path}/in/x:888", InvalidArgument),
        (f"{tmp_path}/in/x:4755", InvalidArgument),
        (f"{tmp_path}/in/x:755:1", InvalidArgument),
        (f"{tmp_path}/in/x:755:a:1", InvalidArgument),
        (f"{tmp_path}/in/x:755:1:1:1", InvalidArgument),
    ):
        await fails_with(kind, mkdir.transform(mount(f"X-containerd.mkdir.path={path}"), []))
    await fails_with(InvalidArgument, mkdir.transform(mount("X-containerd.mkdir.mode=1"), []))
    assert list((tmp_path / "out").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert not (tmp_path / "in/x").exists()


SIZE = "X-containerd.mkfs.size=8MiB"


@on_loop
async def test_image_is_made_once(tmp_path: Path) -> None:
    mkfs, image = Mkfs(roots(tmp_path)), tmp_path / "in/image"
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    made = await mkfs.transform(mount("rw", SIZE, f"X-containerd.mkfs.uuid={uuid}", source=str(image)), [])
    assert made == mount("rw", source=str(image))
    assert (image.stat().st_size, stat.S_IMODE(image.stat().st_mode)) == (8 << 20, 0o640)
    _, told = await program("blkid", "-o", "export", image)
    assert f"UUID={uuid}" in told
    assert "TYPE=ext4" in told
    before = image.stat()
    await mkfs.transform(mount("X-containerd.mkfs.size=16m", source=str(image)), [])
    assert image.stat() == before
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["image"]


@on_loop
async def test_images_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    mkfs, image = Mkfs(roots(tmp_path)), f"{tmp_path}/in/image"
    for options, kind, text in (
        (("rw",), InvalidArgument, "mkfs requires mkfs.size option"),
        (("X-containerd.mkfs.size=much",), InvalidArgument, None),
        ((SIZE, "X-containerd.mkfs.depth=1"), InvalidArgument, "unknown mount option depth"),
        ((SIZE, "X-containerd.mkfs.fs=zfs"), InvalidArgument, 'unsupported filesystem "zfs"'),
        ((SIZE, "X-containerd.mkfs.uuid=--help x"), InvalidArgument, None),
        (("X-containerd.mkfs.size=1k",), Unknown, None),
    ):
        await fails_with(kind, mkfs.transform(mount(*options, source=image), []), text)
    text = f'no root "{tmp_path}/out/x" configured for mkfs'
    await fails_with(Unimplemented, mkfs.transform(mount(SIZE, source=f"{tmp_path}/out/x"), []), text)
    assert list((tmp_path / "in").iterdir()) == list((tmp_path / "out").iterdir()) == []


pytestmark = pytest.mark.root
