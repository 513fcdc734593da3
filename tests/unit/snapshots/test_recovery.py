from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import DataLoss, FailedPrecondition
from moored.plugins.snapshots.btrfs import subvolumes
from moored.plugins.snapshots.tree import FOLDER
from unit.snapshots.world import layers_of, mounted, opened, place_for

FOLDERS = ("native", "overlayfs")


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "snapshots").iterdir())


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_what_belongs_to_no_record_goes_at_start(tmp_path: Path, kind: str) -> None:
    root, kept = tmp_path / "root", tmp_path / "kept"
    kept.mkdir()
    (kept / "f").write_text("x")
    async with opened(layers_of(kind, root)) as s:
        await s.prepare("a")
    for name in ("7", "new-8", "rm-5", "new-1", "strange"):
        (root / "snapshots" / name / "fs/sub").mkdir(parents=True)
    (root / "snapshots/9").symlink_to(kept)
    (root / "snapshots/file").write_text("x")
    async with opened(layers_of(kind, root)) as s:
        await s.cleanup()
        assert entries(root) == ["1"]
        await s.prepare("b")
        assert entries(root) == ["1", "10"], "an id that was in use is not used again"
    assert (kept / "f").read_text() == "x"


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_files_that_a_record_lacks_are_made_again(tmp_path: Path, kind: str) -> None:
    async with opened(layers_of(kind, tmp_path)) as s:
        async with mounted(await s.prepare("p")) as top:
            (top / "f").write_text("x")
        await s.commit("c", "p")
        for key, parent in (("a", "c"), ("empty", "")):
            await s.prepare(key, parent)
        await s.view("v")
    for id_ in (2, 3, 4):
        shutil.rmtree(tmp_path / "snapshots" / str(id_))
    (tmp_path / "snapshots/new-2").mkdir()
    async with opened(layers_of(kind, tmp_path)) as s:
        async with mounted(await s.mounts("a")) as top:
            assert [path.name for path in top.iterdir()] == ["f"]
            (top / "g").write_text("x")
        for key in ("empty", "v"):
            async with mounted(await s.mounts(key)) as top:
                assert list(top.iterdir()) == []
        await s.cleanup()
    assert entries(tmp_path) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_lost_committed_files_are_told_and_hurt_nothing_else(tmp_path: Path, kind: str) -> None:
    async with opened(layers_of(kind, tmp_path)) as s:
        for name in ("c", "d"):
            await s.prepare("k")
            await s.commit(name, "k")
    shutil.rmtree(tmp_path / "snapshots/1")
    async with opened(layers_of(kind, tmp_path)) as s:
        with pytest.raises(DataLoss):
            await s.prepare("a", "c")
        await s.prepare("b", "d")
        await s.remove("c")
        assert [info.name async for info in s.walk()] == ["b", "d"]


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_planted_link_is_not_followed(tmp_path: Path, kind: str) -> None:
    root, kept = tmp_path / "root", tmp_path / "kept"
    (kept / "fs").mkdir(parents=True)
    (kept / "work").mkdir()
    (kept / "f").write_text("x")
    before = sorted(str(path) for path in kept.rglob("*"))
    async with opened(layers_of(kind, root)) as s:
        for key in ("a", "b"):
            await s.prepare(key)
            shutil.rmtree(root / f"snapshots/{1 if key == 'a' else 2}")
            (root / f"snapshots/{1 if key == 'a' else 2}").symlink_to(kept)
        for call in (s.mounts("a"), s.usage("a"), s.commit("c", "a")):
            with pytest.raises(DataLoss):
                await call
        await s.remove("a")
        await s.remove("b")
        await s.cleanup()
        assert entries(root) == []
    assert sorted(str(path) for path in kept.rglob("*")) == before


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_linked_snapshots_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere/1").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/snapshots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FailedPrecondition, match="is no folder, wanted one with snapshots in it"):
        async with opened(layers_of(kind, tmp_path / "root")):
            pass
    assert (tmp_path / "elsewhere/1").is_dir()


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_snapshots_without_any_records_are_kept(tmp_path: Path, kind: str) -> None:
    async with opened(layers_of(kind, tmp_path)) as s:
        await s.prepare("a")
    shutil.rmtree(tmp_path / "metadata")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="has snapshots but no records of them"):
            async with opened(layers_of(kind, tmp_path)):
                pass
    assert entries(tmp_path) == ["1"]


@pytest.mark.parametrize("kind", FOLDERS)
@on_loop
async def test_folder_has_one_user(tmp_path: Path, kind: str) -> None:
    async with opened(layers_of(kind, tmp_path)) as s:
        with pytest.raises(FailedPrecondition, match="in use by process"):
            async with opened(layers_of(kind, tmp_path)):
                pass
        await s.prepare("a")


@pytest.mark.root
@on_loop
async def test_subvolumes_of_no_record_go_with_those_in_them(tmp_path: Path) -> None:
    with place_for("btrfs", tmp_path) as place:
        async with opened(layers_of("btrfs", place / "root")) as s:
            await s.prepare("a")
            await s.commit("c", "a")
            await s.prepare("b", "c")
            make(place / "root/active/2", "nested")
            await s.remove("b")
            assert list((place / "root/active").iterdir()) == []
        make(place / "root/snapshots", "9")
        make(place / "root/snapshots/9", "nested")
        (place / "root/view/3").mkdir()
        (place / "root/active/1").mkdir()
        async with opened(layers_of("btrfs", place / "root")) as s:
            await s.cleanup()
            found = {str(path.relative_to(place / "root")) for path in (place / "root").glob("[avs]*/*")}
            assert found == {"snapshots/1"}


def make(folder: Path, name: str) -> None:

    fd = os.open(folder, FOLDER)
    try:
        subvolumes.create(name, fd)
    finally:
        os.close(fd)


@pytest.mark.root
@on_loop
async def test_committed_subvolume_and_view_are_read_only(tmp_path: Path) -> None:
    with place_for("btrfs", tmp_path) as place:
        async with opened(layers_of("btrfs", place / "root")) as s:
            await s.prepare("a")
            await s.commit("c", "a")
            await s.view("v", "c")
            for path in ("snapshots/1/f", "view/2/f"):
                with pytest.raises(OSError, match="Read-only"):
                    (place / "root" / path).write_text("x")
