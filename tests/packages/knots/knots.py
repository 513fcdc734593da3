"""Three plugins in a ring."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, PluginType, Registration

BOWLINE: PluginType[None] = PluginType("io.example.bowline.v1")
HITCH: PluginType[None] = PluginType("io.example.hitch.v1")
SPLICE: PluginType[None] = PluginType("io.example.splice.v1")


@asynccontextmanager
async def open_(_ctx: InitContext[None]) -> AsyncGenerator[None]:
    yield


a = Registration(kind=BOWLINE, id="a", requires=(HITCH,), open=open_)
b = Registration(kind=HITCH, id="b", requires=(SPLICE,), open=open_)
c = Registration(kind=SPLICE, id="c", requires=(BOWLINE,), open=open_)
