"""Every event exchange does what its port says, used directly and through gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage

from harness import basics, on_loop
from moored.api.convert import timestamp, to_ns
from moored.api.errors import from_status
from moored.api.services.events.v1 import events_pb2 as pb
from moored.api.services.events.v1 import events_pb2_grpc as rpc
from moored.api.types.event_pb2 import Envelope as EnvelopeMessage
from moored.kernel.conformance.events import MAX_PENDING, Check, checks
from moored.kernel.errors import InvalidArgument
from moored.kernel.payloads import Packed, Payload
from moored.kernel.ports.events import Envelope, Exchange
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange

EXCHANGE = "io.containerd.event.v1.exchange"
SERVICE = "io.containerd.grpc.v1.events"
BAD_FILTER = "subscription error: "


class RemoteExchange:
    """The Exchange of a daemon at the other end of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = rpc.EventsStub(channel)

    async def publish(self, topic: str, event: Payload | Packed | None, namespace: str) -> None:
        packed = event.pack() if isinstance(event, Payload) else event
        message = None if packed is None else AnyMessage(type_url=packed.type_url, value=packed.value)
        header = (("containerd-namespace", namespace),) if namespace else ()
        with told():
            await self._stub.Publish(pb.PublishRequest(topic=topic, event=message), metadata=header)

    async def forward(self, envelope: Envelope) -> None:
        with told():
            await self._stub.Forward(pb.ForwardRequest(envelope=to_message(envelope)))

    @asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncGenerator[AsyncIterator[Envelope]]:
        call = self._stub.Subscribe(pb.SubscribeRequest(filters=filters))
        try:
            with told():
                await call.initial_metadata()
                if call.done():
                    await call.read()
            yield self._envelopes(call)
        finally:
            call.cancel()

    async def _envelopes(self, call: Any) -> AsyncGenerator[Envelope]:
        with told():
            async for message in call:
                payload = message.event.value if message.HasField("event") else None
                when = to_ns(message.timestamp)
                yield Envelope(when, message.namespace, message.topic, message.event.type_url, payload)


@contextmanager
def told() -> Iterator[None]:
    """Turn the status of a call into the error that the port names."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code, text = error.code().value[0], error.details() or ""
        if code == 2 and text.startswith(BAD_FILTER):
            raise InvalidArgument(text.removeprefix(BAD_FILTER).removesuffix(": invalid argument")) from error
        raise from_status(code, text) from error


def to_message(envelope: Envelope) -> EnvelopeMessage:
    event = None if envelope.payload is None else AnyMessage(type_url=envelope.type_url, value=envelope.payload)
    when = timestamp(envelope.timestamp_ns)
    return EnvelopeMessage(timestamp=when, namespace=envelope.namespace, topic=envelope.topic, event=event)


by_name = pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))


@by_name
@on_loop
async def test_local_exchange(check: Check) -> None:
    exchange = LocalExchange(Bounds(MAX_PENDING, 64 << 20), structlog.get_logger(), lambda *_: None)
    await check(exchange)
    assert exchange.subscribers == 0


@by_name
@on_loop
async def test_exchange_through_grpc(check: Check, tmp_path: Path) -> None:
    configs = {EXCHANGE: {"max_pending": MAX_PENDING}}
    async with basics(tmp_path, EXCHANGE, SERVICE, configs=configs) as (_, channel):
        remote: Exchange = RemoteExchange(channel)
        await check(remote)
