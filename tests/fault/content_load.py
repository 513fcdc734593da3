"""A process to be killed: four tasks that write, resume, cut, abort and commit blobs, telling what was acknowledged.

Run as `python content_load.py ROOT SEED`. Lines on standard output, each after the call has returned:

    ready                 the store is open
    wrote REF OFFSET      so many bytes of the ref were acknowledged
    committed DIGEST      the blob is safe
    deleted DIGEST        about to be deleted: no longer promised
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import structlog

from moored.kernel.conformance.content import pattern
from moored.kernel.errors import AlreadyExists
from moored.plugins.content.local.store import LocalContentStore, open_store

WRITERS = 4


def tell(line: str) -> None:
    """Write a line in one call: it is whole, and out, or not there."""
    os.write(1, f"{line}\n".encode())


async def work(store: LocalContentStore, task: int, choose: random.Random) -> None:
    """Ingest for ever; the ref's name carries the seed of its bytes, so that a reader can know them."""
    for number in range(1_000_000):
        seed = f"{task}-{number}-{choose.random()}"
        ref = f"load/1/{seed}"
        data = pattern(choose.choice([0, 1, 5_000, 300_000, 1_500_000]), seed)
        half = choose.randrange(len(data) + 1)
        async with await store.writer(ref, len(data)) as writer:
            await writer.write(data[:half])
            tell(f"wrote {ref} {half}")
        async with await store.writer(ref) as writer:
            await writer.write(data[half:])
            tell(f"wrote {ref} {len(data)}")
            if choose.random() < 0.1:
                continue
            try:
                info = await writer.commit(len(data))
            except AlreadyExists:
                continue
            tell(f"committed {info.digest}")
        if choose.random() < 0.3:
            tell(f"deleted {info.digest}")
            await store.delete(info.digest)


async def main() -> None:
    """Open the store and work until killed."""
    async with open_store(Path(sys.argv[1]), structlog.get_logger(), 8) as store, asyncio.TaskGroup() as tasks:
        tell("ready")
        for task in range(WRITERS):
            tasks.create_task(work(store, task, random.Random(f"{sys.argv[2]}-{task}")))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main())
