from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel import mounts as mounting
from moored.kernel.errors import InvalidArgument
from moored.kernel.plugin import Skip
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import GID_MAPPING, UID_MAPPING
from moored.plugins.snapshots.overlayfs.layers import Options, OverlayLayers, mapped_root
from unit.snapshots.world import mounted, opened

pytestmark = pytest.mark.root

UPPERDIR = "containerd.io/snapshot/overlay.upperdir"
MAPPED = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "1:5:1,0:200000:65536"}


def bind(source: Path, *options: str) -> list[Mount]:
    return [Mount(type="bind", source=str(source), options=options)]


def overlay(*options: str) -> list[Mount]:
    return [Mount(type="overlay", source="overlay", options=options)]


def modes(top: Path) -> dict[str, int]:
    return {str(path.relative_to(top)): stat.S_IMODE(path.stat().st_mode) for path in top.rglob("*")}


@on_loop
async def test_mounts_are_those_of_containerd(tmp_path: Path) -> None:
    at = tmp_path / "snapshots"
    async with opened(OverlayLayers(tmp_path, Options(extra=("volatile",)))) as s:
        assert await s.prepare("a1") == bind(at / "1/fs", "rw", "rbind")
        await s.commit("c1", "a1")
        assert await s.prepare("a2", "c1") == overlay(
            f"workdir={at}/2/work", f"upperdir={at}/2/fs", f"lowerdir={at}/1/fs", "volatile", "index=off"
        )
        await s.commit("c2", "a2")
        assert await s.prepare("a3", "c2") == overlay(
            f"workdir={at}/3/work", f"upperdir={at}/3/fs", f"lowerdir={at}/2/fs:{at}/1/fs", "volatile", "index=off"
        )
        assert await s.view("v1", "c1") == bind(at / "1/fs", "ro", "rbind")
        assert await s.view("v2", "c2") == overlay(f"lowerdir={at}/2/fs:{at}/1/fs", "volatile", "index=off")
        assert await s.view("v0") == bind(at / "6/fs", "ro", "rbind")


@on_loop
async def test_folders_are_those_of_containerd(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        async with opened(OverlayLayers(tmp_path, Options())) as s:
            await s.prepare("a")
            await s.view("v")
    finally:
        os.umask(umask)
    assert modes(tmp_path / "snapshots") == {"1": 0o700, "1/fs": 0o755, "1/work": 0o711, "2": 0o700, "2/fs": 0o755}
    assert {path for path in modes(tmp_path) if "/" not in path} == {"metadata", "snapshots"}


@pytest.mark.parametrize("chosen", ["index=on", "index=off", "index"])
@on_loop
async def test_chosen_index_is_not_overridden(tmp_path: Path, chosen: str) -> None:
    layers = OverlayLayers(tmp_path, Options(extra=(chosen,)))
    async with opened(layers) as s:
        await s.prepare("a")
        await s.commit("c", "a")
        (mount,) = await s.prepare("b", "c")
    assert [option for option in mount.options if option.startswith("index")] == [chosen]


@on_loop
async def test_upper_folder_is_shown_as_a_label(tmp_path: Path) -> None:
    async with opened(OverlayLayers(tmp_path, Options(upperdir_label=True))) as s:
        await s.prepare("a", "", {"l": "v"})
        wanted = {"l": "v", UPPERDIR: f"{tmp_path}/snapshots/1/fs"}
        assert (await s.stat("a")).labels == wanted
        assert [info.labels async for info in s.walk(f'labels."{UPPERDIR}"')] == [wanted]
        assert (await s.update("a", {"m": "w"})).labels == {"m": "w", UPPERDIR: wanted[UPPERDIR]}
    async with opened(OverlayLayers(tmp_path, Options())) as s:
        assert (await s.stat("a")).labels == {"m": "w"}


@on_loop
async def test_mapped_snapshot_has_the_mapped_root(tmp_path: Path) -> None:
    fs = tmp_path / "snapshots"
    async with opened(OverlayLayers(tmp_path, Options())) as s:
        assert s.capabilities == {"remap-ids", "only-remap-ids", "rebase"}
        options = ("uidmap=0:100000:65536", "gidmap=1:5:1,0:200000:65536")
        assert await s.prepare("a", "", MAPPED) == bind(fs / "1/fs", *options, "rw", "rbind")
        status = (fs / "1/fs").stat()
        assert (status.st_uid, status.st_gid) == (100000, 200000)
        await s.commit("c", "a", MAPPED)
        (mount,) = await s.prepare("b", "c", MAPPED)
        assert mount.options[:2] == options
        (mount,) = await s.view("v", "c", MAPPED)
        assert mount == bind(fs / "1/fs", *options, "ro", "rbind")[0]
        await s.prepare("heir", "c")
        assert (fs / "4/fs").stat().st_uid == 100000, "without labels the parent's owner"


@on_loop
async def test_mapped_snapshot_shows_mapped_files(tmp_path: Path) -> None:
    real = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}
    async with opened(OverlayLayers(tmp_path, Options())) as s:
        for name, parent in (("base", ""), ("above", "base")):
            async with mounted(await s.prepare("a", parent)) as top:
                (top / name).write_text(name)
                os.chown(top / name, 5, 7)
            await s.commit(name, "a")
        async with mounted(await s.prepare("mapped", "above", real)) as top:
            found = {one.name: (one.stat().st_uid, one.stat().st_gid) for one in (top, top / "base", top / "above")}
            (top / "base").write_text("changed")
            os.chown(top / "above", 100001, 200001)
        async with mounted(await s.prepare("plain", "above")) as top:
            plain = {one.name: (one.stat().st_uid, one.stat().st_gid) for one in (top / "base", top / "above")}
        assert set(found.values()) == {(100000, 200000), (100005, 200007)}
        assert set(plain.values()) == {(5, 7)}
        uppers = [path.stat().st_uid for path in sorted((tmp_path / "snapshots/3/fs").iterdir())]
        assert uppers == [100001, 100005]
        await s.commit("again", "mapped", real)
        async with mounted(await s.view("look", "above", real)) as top:
            assert (top / "base").stat().st_uid == 100005


@pytest.mark.parametrize(
    "labels",
    [
        {UID_MAPPING: "0:1:2"},
        {GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "", GID_MAPPING: ""},
        {UID_MAPPING: "1:1:2", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:1", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:1:2\n", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:-1:2", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:4294967295:1", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:1:0", GID_MAPPING: "0:1:2"},
        {UID_MAPPING: "0:1:2,", GID_MAPPING: "0:1:2"},
    ],
)
@on_loop
async def test_malformed_mappings_are_refused(tmp_path: Path, labels: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        mapped_root(labels)
    async with opened(OverlayLayers(tmp_path, Options())) as s:
        if any(labels.values()):
            with pytest.raises(InvalidArgument):
                await s.prepare("a", "", labels)
            assert [info async for info in s.walk()] == []
    assert list((tmp_path / "snapshots").iterdir()) == []


@on_loop
async def test_slow_chown_drops_a_capability(tmp_path: Path) -> None:
    async with opened(OverlayLayers(tmp_path, Options(slow_chown=True))) as s:
        assert s.capabilities == {"remap-ids", "rebase"}


@pytest.mark.parametrize(("sync", "left"), [(False, ["1", "2"]), (True, ["2"])])
@on_loop
async def test_files_go_at_cleanup_or_at_once(tmp_path: Path, sync: bool, left: list[str]) -> None:
    async with opened(OverlayLayers(tmp_path, Options(sync_remove=sync))) as s:
        await s.prepare("a")
        await s.prepare("b")
        await s.remove("a")
        assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == left
        await s.cleanup()
        assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["2"]


@on_loop
async def test_overlay_cannot_lie_on_an_overlay(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = tuple(f"{key}dir={tmp_path}/{key}" for key in ("lower", "upper", "work"))
    with mounting.mounted(overlay(*options)) as place:
        with pytest.raises(Skip, match="overlayfs cannot be mounted on the snapshots' file system"):
            async with opened(OverlayLayers(place / "root", Options())):
                pass
        assert list((place / "root/snapshots").iterdir()) == []


@on_loop
async def test_whiteouts_of_a_rebased_layer_hide_its_parent(tmp_path: Path) -> None:
    async with opened(OverlayLayers(tmp_path, Options())) as s:
        async with mounted(await s.prepare("p")) as top:
            (top / "f").write_text("x")
            (top / "g").write_text("x")
        await s.commit("base", "p")
        async with mounted(await s.prepare("a")) as top:
            os.mknod(top / "f", stat.S_IFCHR, 0)
        await s.commit("c", "a", {}, "base")
        async with mounted(await s.view("v", "c")) as top:
            assert [path.name for path in top.iterdir()] == ["g"]
