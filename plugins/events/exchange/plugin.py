"""Registers the event exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from moored.kernel.config import setting
from moored.kernel.plugin import HookRegistrar, InitContext, Registration
from moored.kernel.ports.events import EVENT, Exchange
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange, Sent, Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.event.v1.exchange"]"""

    max_pending: int = setting(10_000, ge=1, doc="events a subscriber may fall behind before it is cut off")
    max_pending_bytes: int = setting(64 << 20, ge=1, doc="bytes of event payloads it may fall behind, likewise")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Exchange]:
    """Take and hand out events until the end."""
    bounds = Bounds(ctx.config.max_pending, ctx.config.max_pending_bytes)
    exchange = LocalExchange(bounds, ctx.log, _watcher(ctx.hooks, ctx.log))
    try:
        yield exchange
    finally:
        exchange.stop()


async def reconfigure(exchange: Exchange, _old: Config, new: Config) -> None:
    """Change the bounds, those of present subscribers too."""
    assert isinstance(exchange, LocalExchange)
    exchange.bounds.events = new.max_pending
    exchange.bounds.payload_bytes = new.max_pending_bytes


TOLD = ("images", "containers", "snapshot", "tasks")
"""First parts of the topics that the hook is called for."""


def _watcher(hooks: HookRegistrar, log: FilteringBoundLogger) -> Watcher:
    hook = hooks.hook.moored_object_event

    def watch(topic: str, sent: Sent) -> None:
        if not hook.get_hookimpls() or topic.split("/", 2)[1] not in TOLD:
            return
        payload = sent.fields.payload
        event = dataclasses.asdict(payload) if payload is not None else {}
        try:
            hook(namespace=sent.namespace, topic=topic, event=event)
        except Exception:
            # What happened has happened, whatever a listener makes of it.
            log.exception("hook failed", hook="moored_object_event", topic=topic)

    return watch


plugin = Registration(
    kind=EVENT,
    id="exchange",
    config=Config,
    open=open_,
    reconfigure=reconfigure,
    essential=True,
    summary="hands every event to everybody who subscribed, in one order",
)
