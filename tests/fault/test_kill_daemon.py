"""The whole daemon killed at random points under four clients, again and again on one root.

MOORED_TEST_KILLS says how often (40), MOORED_TEST_SEED where the randomness begins; both are printed with the result.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from daemons import Daemon
from fault.load_checks import Checker, gone
from fault.load_model import Model
from fault.load_writers import WRITERS, connected, work
from unit.snapshots.world import place_for

KILLS = int(os.environ.get("MOORED_TEST_KILLS", "40"))
SEED = os.environ.get("MOORED_TEST_SEED", "1")
SOON = 10.0
"""Seconds within which a daemon serves after a crash."""

NEEDED = frozenset(
    {
        "io.containerd.content.v1.content",
        "io.containerd.differ.v1.walking",
        "io.containerd.event.v1.exchange",
        "io.containerd.gc.v1.scheduler",
        *(
            f"io.containerd.grpc.v1.{name}"
            for name in ("containers", "content", "diff", "images", "leases", "snapshots")
        ),
        "io.containerd.lease.v1.manager",
        "io.containerd.metadata.v1.bolt",
        "io.containerd.server.v1.grpc",
        "io.containerd.service.v1.diff-service",
        *(f"io.containerd.snapshotter.v1.{name}" for name in ("blockfile", "btrfs", "native", "overlayfs")),
        "io.moored.database.v1.lmdb",
    }
)
"""What this load uses; without the others a start is cheap."""
DISABLED = sorted({point.name for point in entry_points(group="moored.plugins")} - NEEDED)
CONFIG = f"version = 4\ndisabled_plugins = {DISABLED}\n"
SCRATCH = """
[plugins."io.containerd.snapshotter.v1.blockfile"]
scratch_file = "{}"
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacks images"),
]


@dataclass
class Campaign:
    """Kills of one daemon and what they did."""

    daemon: Daemon
    snapshotter: str
    choose: random.Random
    model: Model = field(default_factory=Model)
    slowest: float = 0.0
    while_starting: int = 0

    def __post_init__(self) -> None:
        self.checker = Checker(self.daemon, self.model, self.snapshotter)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing of it is left."""
        process = self.daemon.process
        assert process is not None
        assert process.poll() is None, f"the daemon ended by itself:\n{self.daemon.text()}"
        process.kill()
        process.wait()
        gone(process.pid)

    def start(self) -> None:
        """Start, sometimes only after a start that is killed too."""
        if self.choose.random() < 0.15:
            self.daemon.spawn()
            time.sleep(self.choose.uniform(0.0, 0.6))
            self.kill()
            self.while_starting += 1
        self.daemon.log.unlink(missing_ok=True)
        began = time.monotonic()
        self.daemon.start()
        self.slowest = max(self.slowest, time.monotonic() - began)

    async def round(self, number: int) -> None:
        """Start, check what the last kill left, work, kill."""
        self.start()
        async with connected(self.daemon.socket) as channel:
            moment = self.model.now()
            await self.checker.check(channel, moment, moment)
            self.model.forget_images()
            going = asyncio.Event()
            names = [f"w{writer}" for writer in range(WRITERS)]
            load = asyncio.create_task(work(channel, self.model, f"{SEED}-{number}", self.snapshotter, going, names))
            await self.until_the_point(load)
            going.set()
            self.kill()
            await load

    async def until_the_point(self, load: asyncio.Task[None]) -> None:
        """Wait for a random number of answers and a little longer, or a random time."""
        answered = self.model.answered + self.choose.choice([1, 5, 20, 60, self.choose.randrange(1, 100)])
        end = time.monotonic() + self.choose.uniform(0.0, 1.0)
        while not load.done() and self.model.answered < answered and time.monotonic() < end:
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.choose.uniform(0.0, 0.01))

    async def run(self, kills: int) -> None:
        """All rounds, and a last look at what is left."""
        for number in range(kills):
            try:
                await self.round(number)
            except BaseException as error:
                error.add_note(f"at kill {number}, seed {SEED}; the log:\n{self.daemon.text()[-4000:]}")
                raise
        self.daemon.log.unlink(missing_ok=True)
        self.daemon.start()
        async with connected(self.daemon.socket) as channel:
            moment = self.model.now()
            await self.checker.check(channel, moment, moment)

    def report(self, kills: int, seconds: float) -> str:
        """One line of numbers."""
        counts = ", ".join(f"{count} {what}" for what, count in self.checker.counts.items())
        return (
            f"{self.snapshotter}: seed {SEED}, {kills} kills and {self.while_starting} of starts in {seconds:.0f} s, "
            f"{self.model.answered} changes acknowledged, looked at {counts}; slowest start {self.slowest:.2f} s"
        )


def run(folder: Path, root: Path, snapshotter: str, kills: int) -> str:
    """A campaign on a root; what it printed. The daemon is stopped at the end, whatever happened."""
    config = CONFIG + (SCRATCH.format(root / "scratch") if snapshotter == "blockfile" else "")
    daemon = Daemon(folder, config)
    daemon.root = root / "root"
    campaign = Campaign(daemon, snapshotter, random.Random(SEED))
    began = time.monotonic()
    try:
        asyncio.run(campaign.run(kills))
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)
    return campaign.report(kills, time.monotonic() - began)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Generator[list[str]]:
    """Lines that are shown though the test passes."""
    lines: list[str] = []
    yield lines
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{line}\n" for line in lines))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("snapshotter", ["overlayfs"])
def test_killed_daemon_keeps_its_word_and_leaves_nothing(tmp_path: Path, snapshotter: str, told: list[str]) -> None:
    told.append(run(tmp_path, tmp_path, snapshotter, KILLS))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("snapshotter", ["btrfs", "blockfile", "native"])
def test_killed_daemon_leaves_no_mounts(tmp_path: Path, snapshotter: str, told: list[str]) -> None:
    """These snapshotters are mounted to be written; the load is the same."""
    with place_for(snapshotter, tmp_path) as place:
        told.append(run(tmp_path, place, snapshotter, max(8, KILLS // 5)))
