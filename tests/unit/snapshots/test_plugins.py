from __future__ import annotations

from pathlib import Path

import pytest

from harness import on_loop, outcome_of, running
from moored.kernel.config import decode
from moored.kernel.plugin import Registration
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.snapshots import Snapshotter
from moored.plugins.snapshots.blockfile.layers import BlockfileLayers, Options
from moored.plugins.snapshots.blockfile.plugin import plugin as blockfile
from moored.plugins.snapshots.btrfs.plugin import plugin as btrfs
from moored.plugins.snapshots.native.plugin import plugin as native
from moored.plugins.snapshots.overlayfs.plugin import plugin as overlayfs
from unit.snapshots.world import mounted, opened, place_for, scratch

DATABASES = "io.moored.database.v1.lmdb"
TYPE = "io.containerd.snapshotter.v1"


@pytest.mark.parametrize(
    ("id_", "capabilities"), [("native", ()), ("overlayfs", ("only-remap-ids", "rebase", "remap-ids"))]
)
@pytest.mark.root
@on_loop
async def test_snapshotter_serves_its_own_folder(tmp_path: Path, id_: str, capabilities: tuple[str, ...]) -> None:
    uri = f"{TYPE}.{id_}"
    async with running(tmp_path, uri, DATABASES) as world:
        record = world.record(uri)
        assert record.outcome is Outcome.OK, record.reason
        assert record.exports == {"root": str(tmp_path / "root" / uri)}
        assert record.capabilities == capabilities
        assert [text.partition("/")[0] for text in record.platforms] == ["linux"]
    assert (tmp_path / "root" / uri / "snapshots").is_dir()


@on_loop
async def test_root_path_is_used(tmp_path: Path) -> None:
    uri = f"{TYPE}.native"
    configs = {uri: {"root_path": str(tmp_path / "deep/elsewhere")}}
    async with running(tmp_path, uri, DATABASES, configs=configs) as world:
        assert world.record(uri).exports == {"root": str(tmp_path / "deep/elsewhere")}
    assert (tmp_path / "deep/elsewhere/snapshots").is_dir()
    assert not (tmp_path / "root" / uri).exists()


@pytest.mark.parametrize("plugin", [native, overlayfs, btrfs, blockfile], ids=lambda plugin: plugin.id)
def test_settings_are_those_of_containerd(plugin: Registration[Snapshotter, object]) -> None:
    assert plugin.config is not None
    wanted = {
        "native": {"root_path": ""},
        "btrfs": {"root_path": ""},
        "overlayfs": {
            "root_path": "",
            "upperdir_label": False,
            "sync_remove": False,
            "slow_chown": False,
            "mount_options": [],
        },
        "blockfile": {
            "root_path": "",
            "scratch_file": "",
            "fs_type": "",
            "mount_options": [],
            "recreate_scratch": False,
        },
    }[plugin.id]
    config, problems = decode(plugin.config, wanted)
    assert problems == []
    assert config == plugin.config()
    _, problems = decode(plugin.config, {"root_path": "relative/path"})
    assert [problem.message for problem in problems] == ["root_path is 'relative/path', wanted an absolute path"]


@on_loop
async def test_btrfs_is_skipped_elsewhere(tmp_path: Path) -> None:
    outcome, reason = await outcome_of(tmp_path, f"{TYPE}.btrfs", DATABASES)
    assert outcome is Outcome.SKIPPED
    assert "the btrfs snapshotter needs a btrfs file system" in reason


@pytest.mark.root
@on_loop
async def test_btrfs_serves_on_btrfs(tmp_path: Path) -> None:
    with place_for("btrfs", tmp_path) as place:
        outcome, reason = await outcome_of(tmp_path, f"{TYPE}.btrfs", DATABASES, root_path=str(place / "root"))
        assert outcome is Outcome.OK, reason


@on_loop
async def test_blockfile_is_skipped_without_an_empty_file_system(tmp_path: Path) -> None:
    uri = f"{TYPE}.blockfile"
    outcome, reason = await outcome_of(tmp_path, uri, DATABASES)
    assert outcome is Outcome.SKIPPED
    assert "no scratch_file is set" in reason
    (tmp_path / "empty").write_bytes(b"one")
    outcome, reason = await outcome_of(tmp_path, uri, DATABASES, scratch_file=str(tmp_path / "empty"))
    assert outcome is Outcome.OK, reason
    outcome, reason = await outcome_of(tmp_path, uri, DATABASES)
    assert outcome is Outcome.OK, "the copy is there now"


def test_scratch_is_copied_once_or_at_each_start(tmp_path: Path) -> None:
    given, root = tmp_path / "given", tmp_path / "root"
    given.write_bytes(b"one")
    for content, recreate, wanted in ((b"one", False, b"one"), (b"two", False, b"one"), (b"two", True, b"two")):
        given.write_bytes(content)
        layers = BlockfileLayers(root, Options(scratch_file=str(given), recreate_scratch=recreate))
        layers.open()
        layers.folder.close()
        assert (root / "scratch").read_bytes() == wanted
    assert sorted(path.name for path in root.iterdir()) == ["scratch", "snapshots"]


@pytest.mark.root
@on_loop
async def test_blockfile_mounts_with_the_chosen_options(tmp_path: Path) -> None:
    scratch(tmp_path / "scratch")
    options = Options(scratch_file=str(tmp_path / "scratch"), mount_options=("noatime",))
    async with opened(BlockfileLayers(tmp_path / "root", options)) as s:
        mounts = await s.prepare("a")
        assert [(one.type, one.options) for one in mounts] == [("ext4", ("noatime", "loop", "rw"))]
        async with mounted(mounts) as top:
            (top / "f").write_text("x")
        await s.commit("c", "a")
        (view,) = await s.view("v", "c")
        assert (view.source, view.options) == (mounts[0].source, ("noatime", "loop", "ro"))
