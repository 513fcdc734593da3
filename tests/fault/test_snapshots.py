"""Snapshotters that are killed, run out of disk, or find what they did not make."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.conformance import fails_with
from moored.kernel.errors import NotFound, ResourceExhausted
from moored.kernel.ports.snapshots import Kind, Snapshotter
from moored.plugins.snapshots.blockfile.layers import BlockfileLayers
from moored.plugins.snapshots.blockfile.layers import Options as BlockfileOptions
from moored.plugins.snapshots.layers import Layers
from unit.snapshots.world import image, layers_of, mounted, opened, scratch

LOAD = Path(__file__).parent / "snapshot_load.py"
SECONDS = 20.0
KILLS = 40


@dataclass
class Model:
    """What was acknowledged: for each live name its kind and the file that must be in it, or none."""

    live: dict[str, tuple[Kind, str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    calls: int = 0

    def read(self, lines: list[str]) -> list[list[str]]:
        """Follow a run, and give the calls that had no answer."""
        open_calls: dict[str, list[str]] = {}
        for line in lines:
            sign, writer, *words = line.split(" ")
            if sign == "?":
                open_calls[writer] = words
                continue
            del open_calls[writer]
            self.calls += 1
            self.apply(words)
        return list(open_calls.values())

    def apply(self, words: list[str]) -> None:
        match words:
            case ["prepare", key, _]:
                self.live[key] = (Kind.ACTIVE, "")
            case ["write", key]:
                self.live[key] = (Kind.ACTIVE, key)
            case ["commit", name, key]:
                self.live[name] = (Kind.COMMITTED, self.live.pop(key)[1])
                self.gone.add(key)
            case ["remove", name]:
                del self.live[name]
                self.gone.add(name)

    async def settle(self, s: Snapshotter, unanswered: list[list[str]]) -> None:
        """Find out which of the calls without answer happened: all of each, or nothing."""
        for words in unanswered:
            if words[0] == "write":
                continue
            there = words[1] in {info.name async for info in s.walk()}
            if there == (words[0] != "remove"):
                self.apply(words)


def killed(kind: str, root: Path, round_: int, after: float) -> list[str]:
    """Run the load until `after` seconds past its readiness; what it said."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(LOAD), kind, str(root), str(round_)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines()
    assert process.returncode == -signal.SIGKILL
    return lines


async def agrees(s: Snapshotter, model: Model, root: Path) -> None:
    """Records, files and what was acknowledged are one."""
    infos = {info.name: info async for info in s.walk()}
    assert {name: infos[name].kind for name in model.live} == {name: kind for name, (kind, _) in model.live.items()}
    assert not model.gone & infos.keys()
    assert infos.keys() == model.live.keys() | {"base"}
    await s.cleanup()
    assert len(list((root / "snapshots").iterdir())) == len(infos)
    for name, (kind, content) in model.live.items():
        mounts = await (s.view("look", name) if kind is Kind.COMMITTED else s.mounts(name))
        (mount,) = mounts
        places = [Path(mount.source)] if mount.type == "bind" else _folders(mount.options)
        if content:
            assert any((place / content).exists() for place in places), name
            assert {(place / content).read_text() for place in places if (place / content).exists()} == {content}
        if infos[name].parent:
            assert any((place / "below").exists() for place in places), name
        if kind is Kind.COMMITTED:
            await s.remove("look")
    await s.cleanup()
    assert len(list((root / "snapshots").iterdir())) == len(infos)


def _folders(options: tuple[str, ...]) -> list[Path]:
    keys = ("upperdir=", "lowerdir=")
    return [Path(path) for option in options if option.startswith(keys) for path in option.split("=")[1].split(":")]


@pytest.mark.parametrize("kind", ["native", "overlayfs"])
@pytest.mark.root
@on_loop
async def test_killed_snapshotter_keeps_what_it_acknowledged(tmp_path: Path, kind: str) -> None:
    chance, model, kills = random.Random(11), Model(), 0
    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end and kills < KILLS // 2:
        unanswered = model.read(killed(kind, tmp_path, kills, chance.uniform(0.0, 0.3)))
        kills += 1
        async with opened(layers_of(kind, tmp_path)) as s:
            await model.settle(s, unanswered)
            await agrees(s, model, tmp_path)
    assert kills >= 5
    assert model.calls > 50
    async with opened(layers_of(kind, tmp_path)) as s:
        for name in list(model.live):
            await s.remove(name)
        await s.remove("base")
        await s.cleanup()
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize("kind", ["native", "overlayfs"])
@pytest.mark.root
@on_loop
async def test_full_disk_fails_new_snapshots_and_lets_old_ones_go(tmp_path: Path, kind: str) -> None:
    with image(tmp_path / "image", 64 << 20, "mkfs.ext4", "-q", "-N", "256", place=tmp_path / "disk") as disk:
        async with opened(layers_of(kind, disk / "root")) as s:
            async with mounted(await s.prepare("p")) as top:
                (top / "big").write_bytes(os.urandom(8 << 20))
            await s.commit("c", "p")
            made = await _until_full(s)
            assert made, "some did fit"
            assert {info.name async for info in s.walk()} == {"c", *made}
            await fails_with(NotFound, s.stat(f"k{len(made)}"))
            names = {path.name for path in (disk / "root/snapshots").iterdir()}
            assert len(names) == len(made) + 1, "what failed left nothing behind"
            for key in made:
                await s.remove(key)
            await s.cleanup()
            assert [path.name for path in (disk / "root/snapshots").iterdir()] == ["1"]
            async with mounted(await s.prepare("again", "c")) as top:
                assert (top / "big").stat().st_size == 8 << 20


@pytest.mark.parametrize("kind", ["native", "overlayfs"])
@pytest.mark.root
@on_loop
async def test_disk_without_a_free_byte_lets_snapshots_go(tmp_path: Path, kind: str) -> None:
    with image(tmp_path / "image", 64 << 20, "mkfs.ext4", "-q", place=tmp_path / "disk") as disk:
        async with opened(layers_of(kind, disk / "root")) as s:
            for number in range(4):
                await s.prepare(f"k{number}")
            _fill(disk)
            for number in range(3):
                await s.remove(f"k{number}")
            await s.cleanup()
            assert [info.name async for info in s.walk()] == ["k3"]
            assert len(list((disk / "root/snapshots").iterdir())) == 1
            (disk / "filler").unlink()
            await s.prepare("k4")


@pytest.mark.parametrize("kind", ["native", "overlayfs", "blockfile"])
@pytest.mark.root
@on_loop
async def test_snapshotter_starts_on_a_full_disk_and_lets_snapshots_go(tmp_path: Path, kind: str) -> None:
    scratch(tmp_path / "scratch")
    with image(tmp_path / "image", 64 << 20, "mkfs.ext4", "-q", place=tmp_path / "disk") as disk:

        def layers() -> Layers:
            if kind != "blockfile":
                return layers_of(kind, disk / "root")
            options = BlockfileOptions(scratch_file=str(tmp_path / "scratch"), recreate_scratch=True)
            return BlockfileLayers(disk / "root", options)

        async with opened(layers()) as s:
            await s.prepare("p")
            await s.commit("c", "p")
            await s.prepare("k", "c")
        _fill(disk)
        async with opened(layers()) as s:
            mounts = await s.mounts("k")
            await s.remove("k")
            await s.remove("c")
            await s.cleanup()
            assert list((disk / "root/snapshots").iterdir()) == []
            (disk / "filler").unlink()
            await s.prepare("p")
            await s.commit("c", "p")
            await s.prepare("k", "c")
            assert [one.type for one in await s.mounts("k")] == [one.type for one in mounts]


def _fill(disk: Path) -> None:
    """Take all room that is left, to the last byte."""
    fd = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        for size in (1 << 20, 4096, 512, 1):
            while _written(fd, size):
                pass
    finally:
        os.close(fd)


def _written(fd: int, size: int) -> bool:
    try:
        return os.write(fd, b"\0" * size) == size
    except OSError:
        return False


async def _until_full(s: Snapshotter) -> list[str]:
    """Prepare children of `c` until there is no room, and give those that were made."""
    made = []
    for number in range(256):
        try:
            await s.prepare(f"k{number}", "c")
        except ResourceExhausted:
            return made
        made.append(f"k{number}")
    raise AssertionError("the disk never became full")
