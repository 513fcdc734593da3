"""A crane with a config, a gRPC service that reports it, and a crane that needs water."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.plugin import InitContext, PluginType, Registration, Skip
from moored.kernel.ports.services import GRPC, GrpcRegistrar


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.example.crane.v1.harbour"]"""

    reach: int = setting(10, ge=1, doc="metres")
    names: list[str] = setting(factory=list, doc="names painted on it")
    patience: Duration = setting(Duration(1), doc="how long it waits for a ship")


@dataclass(frozen=True)
class Crane:
    config: Config


CRANE: PluginType[Crane] = PluginType("io.example.crane.v1")


@asynccontextmanager
async def open_crane(ctx: InitContext[Config]) -> AsyncGenerator[Crane]:
    ctx.facts.exports["root"] = str(ctx.root)
    ctx.facts.capabilities.append("lift")
    ctx.log.info("crane is up", reach=ctx.config.reach)
    yield Crane(ctx.config)
    (ctx.root / "stopped").touch()


@asynccontextmanager
async def open_dry(ctx: InitContext[None]) -> AsyncGenerator[Crane]:
    raise Skip("no water in this harbour")
    yield


class Harbour:
    """`/example.Harbour/Reach`: the crane's config as JSON."""

    def __init__(self, crane: Crane) -> None:
        self._crane = crane

    async def reach(self, _request: bytes, _context: object) -> bytes:
        config = self._crane.config
        return json.dumps([config.reach, config.names, float(config.patience)]).encode()

    def register(self, server: GrpcRegistrar) -> None:
        handlers = {"Reach": grpc.unary_unary_rpc_method_handler(self.reach)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("example.Harbour", handlers),))


@asynccontextmanager
async def open_service(ctx: InitContext[None]) -> AsyncGenerator[Harbour]:
    yield Harbour(ctx.named(CRANE, "harbour"))


crane = Registration(kind=CRANE, id="harbour", config=Config, open=open_crane)
dry = Registration(kind=CRANE, id="dry", open=open_dry)
service = Registration(kind=GRPC, id="harbour", requires=(CRANE,), open=open_service)
