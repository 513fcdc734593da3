"""A process to be killed: tasks that ingest, resume, abort, commit and delete in two namespaces of one store.

Run as `python namespaced_load.py ROOT SEED`. Lines on standard output, each after the call has returned:

    ready                       the store is open
    committed NAMESPACE DIGEST  recorded and durable
    deleted NAMESPACE DIGEST    about to be deleted: no longer promised
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import structlog

from moored.kernel.conformance.content import digest_of, pattern
from moored.kernel.errors import AlreadyExists
from moored.kernel.namespaces import bind
from unit.content.namespaced import World, world

TASKS = 3
BLOBS = 15
"""Different blobs of a task, the same in both namespaces, so that these meet; no two tasks of one namespace do."""


def tell(line: str) -> None:
    """Write a line in one call: it is whole, and out, or not there."""
    os.write(1, f"{line}\n".encode())


async def work(parts: World, namespace: str, task: int, choose: random.Random) -> None:
    content = parts.content
    while True:
        number = choose.randrange(BLOBS)
        data = pattern(number * 997, f"{task}-{number}")
        expected = choose.choice(["", digest_of(data)])
        try:
            async with await content.writer(f"{task}-{number}", len(data), expected) as writer:
                done = (await writer.status()).offset
                if choose.random() < 0.2:
                    await writer.write(data[done : done + 1000])
                    continue
                if done < len(data):
                    await writer.write(data[done:])
                info = await writer.commit(len(data), digest_of(data), {"task": str(task)})
        except AlreadyExists:
            tell(f"deleted {namespace} {digest_of(data)}")
            await content.delete(digest_of(data))
        else:
            tell(f"committed {namespace} {info.digest}")
        if choose.random() < 0.1:
            await content.sweep()


async def main() -> None:
    """Open the store and work until killed."""
    async with world(Path(sys.argv[1])) as parts, asyncio.TaskGroup() as tasks:
        tell("ready")
        for namespace in ("one", "two"):
            for task in range(TASKS):
                with bind(namespace):
                    choose = random.Random(f"{sys.argv[2]}-{namespace}-{task}")
                    tasks.create_task(work(parts, namespace, task, choose))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main())
