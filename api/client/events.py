"""What happens in a daemon, as it happens.

    async with client.events.subscribe('topic=="/tasks/exit"') as events:
        async for event in events:
            ...

Source: contracts/semantics.md 3.12.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from google.protobuf.any_pb2 import Any

from moored.api.client.connection import Calls
from moored.api.client.wire import nanoseconds
from moored.api.services.events.v1 import events_pb2 as pb
from moored.api.services.events.v1 import events_pb2_grpc
from moored.api.types.event_pb2 import Envelope
from moored.kernel import payloads
from moored.kernel.payloads import Packed, Payload

SETTLE_SECONDS: Final = 0.25
"""How long `subscribe` waits for a daemon that does not say that it has begun (containerd's does not)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: timestamp in nanoseconds since 1970; packed is its message, payload the same decoded.

    payload is one of `moored.kernel.payloads`, None for a type that is none of those.
    """

    timestamp: int
    namespace: str
    topic: str
    packed: Packed
    payload: Payload | None


class Events:
    """The daemon's events, those of all namespaces."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = events_pb2_grpc.EventsStub(calls.channel)

    @asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncGenerator[AsyncIterator[Event]]:
        """Subscribe for the block; the value gives what happens from now on.

        Filters have the fields `namespace`, `topic` and `event.FIELD`; without any, all events come. Iterating raises
        Unavailable when the daemon ends, ResourceExhausted where it drops one who reads too slowly.
        """
        patient = self._calls.connection.patient
        request = pb.SubscribeRequest(filters=filters)
        call = self._stub.Subscribe(request, metadata=self._calls.metadata, wait_for_ready=patient)
        try:
            begun = asyncio.ensure_future(call.initial_metadata())
            await asyncio.wait([begun], timeout=SETTLE_SECONDS)
            begun.cancel()
            if call.done():
                with self._calls.connection.errors():
                    await call.read()
            async with aclosing(self._events(call)) as events:
                yield events
        finally:
            call.cancel()

    async def _events(self, call: AsyncIterable[Envelope]) -> AsyncGenerator[Event]:
        with self._calls.connection.errors():
            async for envelope in call:
                yield _event(envelope)

    async def publish(self, topic: str, message: Payload | Packed) -> None:
        """Tell all subscribers something, in the client's namespace. Raises InvalidArgument for a malformed topic."""
        packed = message.pack() if isinstance(message, Payload) else message
        event = Any(type_url=packed.type_url, value=packed.value)
        await self._calls.unary(self._stub.Publish, pb.PublishRequest(topic=topic, event=event))


def _event(envelope: Envelope) -> Event:
    packed = Packed(envelope.event.type_url, envelope.event.value)
    return Event(nanoseconds(envelope.timestamp), envelope.namespace, envelope.topic, packed, payloads.unpack(packed))
