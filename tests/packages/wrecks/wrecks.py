"""One plugin for each way to go wrong."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from moored.kernel.plugin import InitContext, PluginType, Registration
from moored.kernel.ports.services import GRPC

WRECK: PluginType[str] = PluginType("io.example.wreck.v1")
ROCK: PluginType[str] = PluginType("io.example.rock.v1")
MAST: PluginType[str] = PluginType("io.example.mast.v1")
HULL: PluginType[str] = PluginType("io.example.hull.v1")
CARGO: PluginType[str] = PluginType("io.example.cargo.v1")

Open = Callable[[InitContext[None]], AbstractAsyncContextManager[str]]


def does(action: Callable[[InitContext[None]], Any], *, at_stop: bool = False) -> Open:
    @asynccontextmanager
    async def open_(ctx: InitContext[None]) -> AsyncGenerator[str]:
        if not at_stop:
            result = action(ctx)
            if asyncio.iscoroutine(result):
                await result
        yield "afloat"
        if at_stop:
            await action(ctx)

    return open_


class Panic(BaseException):
    """Nothing catches this by accident."""


def throw(error: BaseException) -> None:
    raise error


async def forever(_ctx: InitContext[None]) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def sink_later(ctx: InitContext[None]) -> AsyncGenerator[str]:
    async def leak() -> None:
        while not (ctx.root / "sink").exists():
            await asyncio.sleep(0.02)
        raise RuntimeError("water in the engine room")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(leak())
        yield "afloat"
        task.cancel()


nothing = object()
misnamed = Registration(kind=WRECK, id="other-name", open=does(lambda _: None))
raises = Registration(kind=WRECK, id="raises", open=does(lambda _: throw(ValueError("hit a rock"))))
exits = Registration(kind=WRECK, id="exits", open=does(lambda _: sys.exit(3)))
interrupts = Registration(kind=WRECK, id="interrupts", open=does(lambda _: throw(KeyboardInterrupt())))
panics = Registration(kind=WRECK, id="panics", open=does(lambda _: throw(Panic("all hands"))))
hangs = Registration(kind=WRECK, id="hangs", start_timeout=0.5, open=does(forever))
holds_the_loop = Registration(kind=WRECK, id="holds-the-loop", start_timeout=0.5, open=does(lambda _: time.sleep(600)))
hangs_at_stop = Registration(kind=WRECK, id="hangs-at-stop", stop_timeout=0.5, open=does(forever, at_stop=True))
undeclared = Registration(kind=WRECK, id="undeclared", open=does(lambda ctx: ctx.all(GRPC)))
lonely = Registration(kind=WRECK, id="lonely", requires=(ROCK,), open=does(lambda _: None))
sinks_later = Registration(kind=WRECK, id="sinks-later", open=sink_later)
mast = Registration(kind=MAST, id="broken", open=does(lambda _: throw(OSError("mast gone"))))
hull = Registration(kind=HULL, id="behind", requires=(MAST,), open=does(lambda _: None))
cargo = Registration(kind=CARGO, id="behind", requires=(HULL,), open=does(lambda _: None))
