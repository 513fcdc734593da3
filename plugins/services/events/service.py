"""The events services on the wire: publish, forward and subscribe over gRPC, forward over ttrpc."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp, to_ns
from moored.api.errors import to_status
from moored.api.services.events.v1 import events_pb2 as pb
from moored.api.services.events.v1 import events_pb2_grpc as rpc
from moored.api.services.ttrpc.events.v1 import events_pb2 as ttrpc_pb
from moored.api.types.event_pb2 import Envelope as EnvelopeMessage
from moored.kernel.errors import InvalidArgument, Unknown
from moored.kernel.namespaces import namespace_or_empty
from moored.kernel.payloads import Packed
from moored.kernel.ports.events import Envelope, Exchange
from moored.kernel.ports.services import GrpcRegistrar, TtrpcRegistrar

EMPTY = Empty()


class EventsService(rpc.EventsServicer):
    """containerd.services.events.v1.Events."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_EventsServicer_to_server(self, cast(Any, server))

    async def Publish(self, request: pb.PublishRequest, context: Any) -> Empty:  # noqa: N802
        """Send an event in the call's namespace. Errors: those of `Exchange.publish`."""
        event = Packed(request.event.type_url, request.event.value) if request.HasField("event") else None
        await self._exchange.publish(request.topic, event, namespace_or_empty())
        return EMPTY

    async def Forward(self, request: pb.ForwardRequest, context: Any) -> Empty:  # noqa: N802
        """Send an event in the envelope's namespace. Errors: those of `Exchange.forward`."""
        await self._exchange.forward(from_message(request.envelope))
        return EMPTY

    async def Subscribe(  # noqa: N802
        self, request: pb.SubscribeRequest, context: Any
    ) -> AsyncGenerator[EnvelopeMessage]:
        """Events from the moment on in which the answer's headers are sent.

        Errors: Unknown for a bad filter, as clients know it; ResourceExhausted for a client that reads too slowly.
        """
        async with AsyncExitStack() as stack:
            try:
                events = await stack.enter_async_context(self._exchange.subscribe(*request.filters))
            except InvalidArgument as error:
                raise Unknown(f"subscription error: {to_status(error)[1]}") from error
            # containerd's come with the first event; sent now, they tell a client that it misses nothing any more.
            await context.send_initial_metadata(())
            async for envelope in events:
                yield to_message(envelope)


class TtrpcEventsService:
    """containerd.services.events.ttrpc.v1.Events."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def register(self, server: TtrpcRegistrar) -> None:
        """See TtrpcService."""
        server.add_service(ttrpc_pb.DESCRIPTOR.services_by_name["Events"], self)

    async def Forward(self, request: ttrpc_pb.ForwardRequest, context: Any) -> Empty:  # noqa: N802
        """Send a shim's event. Errors: those of `Exchange.forward`."""
        await self._exchange.forward(from_message(request.envelope))
        return EMPTY


def to_message(envelope: Envelope) -> EnvelopeMessage:
    """The envelope on the wire."""
    event = None if envelope.payload is None else AnyMessage(type_url=envelope.type_url, value=envelope.payload)
    return EnvelopeMessage(
        timestamp=timestamp(envelope.timestamp_ns), namespace=envelope.namespace, topic=envelope.topic, event=event
    )


def from_message(message: EnvelopeMessage) -> Envelope:
    """The envelope of the wire; an unset timestamp is 1970.

    Raises InvalidArgument for a timestamp outside of the years 1 to 9999: older clients drop their subscription at one.
    """
    return Envelope(
        to_ns(message.timestamp),
        message.namespace,
        message.topic,
        message.event.type_url,
        message.event.value if message.HasField("event") else None,
    )
