"""Makes and deletes one task, and kills itself at a given step: `shim_load.py FOLDER NAMESPACE RUNTIME STEP`.

A step is the beginning or the end of one of the pieces of work below, in the order in which they are met. It prints
the steps that it passed; a step that is never met ends it with status 0.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any

from moored.plugins.runtime.manager import kinds, shim
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.manager.shim import ManagedShim
from moored.plugins.runtime.manager.task import ShimTask
from shims import Place

STEPS = (
    (Bundle, "make"),
    (Bundle, "write"),
    (Bundle, "finished"),
    (Bundle, "remove"),
    (ManagedShim, "start"),
    (kinds, "run"),
    (shim, "connect"),
    (ShimTask, "create"),
    (ShimTask, "_ask_delete"),
    (ShimTask, "_shut_down"),
    (ManagedShim, "retire"),
)


class Fuse:
    """Counts the steps and kills at one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.met = 0

    def pass_(self, name: str) -> None:
        """One more step."""
        self.met += 1
        if self.met == self.last:
            print(name, flush=True)  # noqa: T201 - it is what the test reads
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work: Any, name: str) -> Any:
        """The same work, with a step before and one after it."""

        @functools.wraps(work)
        async def waits(*args: Any, **kwargs: Any) -> Any:
            self.pass_(f"before {name}")
            result = await work(*args, **kwargs)
            self.pass_(f"after {name}")
            return result

        @functools.wraps(work)
        def blocks(*args: Any, **kwargs: Any) -> Any:
            self.pass_(f"before {name}")
            result = work(*args, **kwargs)
            self.pass_(f"after {name}")
            return result

        return waits if inspect.iscoroutinefunction(work) else blocks


async def main(folder: str, namespace: str, runtime: str, last: str) -> None:
    """Make a task, start it, wait for it, delete it."""
    fuse = Fuse(int(last))
    for owner, name in STEPS:
        setattr(owner, name, fuse.around(getattr(owner, name), name))
    here = Place(Path(folder), namespace)
    async with here.world() as world:
        task = await world.runtime.create("c", here.new(runtime, "true"))
        fuse.pass_("after the create was answered")
        await task.start()
        await task.wait()
        await task.delete()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
