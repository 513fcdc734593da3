"""Registers the tasks service."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcService
from moored.kernel.ports.tasks import TASKS


@asynccontextmanager
async def open_(ctx: InitContext[None]) -> AsyncGenerator[GrpcService]:
    """Serve it on every gRPC listener."""
    from moored.plugins.services.tasks.service import TasksService

    yield TasksService(ctx.named(TASKS, "tasks-service"))


plugin = Registration(
    kind=GRPC,
    id="tasks",
    open=open_,
    requires=(TASKS,),
    essential=True,
    summary="lets clients run, signal, measure, checkpoint and remove what runs in containers",
)
