"""Layers on mounts that the mount manager has to carry out first."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from harness import on_loop
from moored.kernel import mounts as mounting
from moored.kernel.conformance.diff import Stage, digest_of, member, tar
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.mounts import Mount
from moored.plugins.content.local.store import open_store
from moored.plugins.diff.walking import WalkingDiffer
from unit.mounts.world import EROFS, erofs_image, opened

pytestmark = pytest.mark.root

MKFS = ("X-containerd.mkfs.size=16m", "rw", "loop")


def layered(folder: Path) -> tuple[list[Mount], list[Mount]]:
    """The mounts of a layer that is an image, and of a writable one above it."""
    lower = [Mount(type="erofs", source=str(erofs_image(folder / "lower")), options=("ro",))]
    overlay = Mount(
        type="format/mkdir/overlay",
        source="overlay",
        options=(
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 0 }}/work",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
            "lowerdir={{ mount 1 }}",
        ),
    )
    (folder / "root").mkdir(exist_ok=True)
    return lower, [Mount(type="mkfs/ext4", source=f"{folder}/root/rw", options=MKFS), *lower, overlay]


@on_loop
async def test_layer_is_applied_and_found_again(tmp_path: Path) -> None:
    log = structlog.get_logger()
    (tmp_path / "stage").mkdir()
    lower, upper = layered(tmp_path)
    async with opened(tmp_path, EROFS) as world, open_store(tmp_path / "content", log) as store:
        differ = WalkingDiffer(store, log, activated=world.manager.activated)
        stage = Stage(differ, store, tmp_path / "stage")
        data = tar(member("d", None), member("d/f", b"new"), member(".wh.hello"))
        applied = await differ.apply(await stage.put(data), upper)
        assert applied.digest == digest_of(data)
        assert (world.mounted, world.folders) == ([], [])
        async with world.manager.activated(upper) as left:
            with mounting.mounted(left) as top:
                assert sorted(path.relative_to(top).as_posix() for path in top.rglob("*")) == ["d", "d/f"]
        found = await stage.members(await differ.compare(lower, upper))
        assert sorted(found) == [".wh.hello", "d", "d/f"]
        assert (world.mounted, world.folders, await world.manager.list()) == ([], [], [])


@on_loop
async def test_without_a_manager_such_mounts_fail(tmp_path: Path) -> None:
    log = structlog.get_logger()
    (tmp_path / "stage").mkdir()
    async with open_store(tmp_path / "content", log) as store:
        stage = Stage(WalkingDiffer(store, log), store, tmp_path / "stage")
        blob = await stage.put(tar(member("f", b"x")))
        with pytest.raises(InvalidArgument, match="for the mount manager"):
            await stage.differ.apply(blob, layered(tmp_path)[1])
