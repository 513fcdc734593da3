"""Four writers on a snapshotter until they are killed: `python snapshot_load.py KIND ROOT ROUND`.

Before each call a line `? WRITER WORDS` goes out, after it `= WRITER WORDS`; words are `prepare KEY PARENT`,
`write KEY`, `commit NAME KEY` and `remove NAME`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Snapshotter
from unit.snapshots.world import layers_of, opened

WRITERS = 4


def upper(mounts: list[Mount]) -> Path:
    """Where to write without mounting anything that would outlive the process."""
    (mount,) = mounts
    found = [option.removeprefix("upperdir=") for option in mount.options if option.startswith("upperdir=")]
    return Path(found[0] if found else mount.source)


class Writer:
    def __init__(self, snapshotter: Snapshotter, name: str) -> None:
        self.snapshotter = snapshotter
        self.name = name
        self.random = random.Random(name)
        self.live: list[str] = []

    def say(self, sign: str, *words: str) -> None:
        os.write(1, f"{sign} {self.name} {' '.join(words)}\n".encode())

    async def run(self) -> None:
        for number in range(1_000_000):
            await self.one(f"{self.name}-{number}")
            if len(self.live) > 4:
                await self.remove(self.live.pop(self.random.randrange(len(self.live))))

    async def one(self, name: str) -> None:
        parent = self.random.choice(["base", ""])
        key = f"{name}-active"
        self.say("?", "prepare", key, parent)
        mounts = await self.snapshotter.prepare(key, parent)
        self.say("=", "prepare", key, parent)
        self.say("?", "write", key)
        (upper(mounts) / key).write_text(key)
        self.say("=", "write", key)
        if self.random.random() < 0.2:
            self.live.append(key)
            return
        self.say("?", "commit", name, key)
        await self.snapshotter.commit(name, key)
        self.say("=", "commit", name, key)
        self.live.append(name)
        if self.random.random() < 0.1:
            await self.snapshotter.cleanup()

    async def remove(self, name: str) -> None:
        self.say("?", "remove", name)
        await self.snapshotter.remove(name)
        self.say("=", "remove", name)


async def main(kind: str, root: Path, round_: str) -> None:
    async with opened(layers_of(kind, root)) as snapshotter:
        if not [info async for info in snapshotter.walk("name==base")]:
            mounts = await snapshotter.prepare("base-active")
            (upper(mounts) / "below").write_text("below")
            await snapshotter.commit("base", "base-active")
        os.write(1, b"ready\n")
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(Writer(snapshotter, f"r{round_}w{number}").run())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
