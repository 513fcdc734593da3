"""Events: the exchange that hands what happened to everybody who subscribed.

publish, forward --> exchange --one order--> filter --> bounded queue of each subscriber --> its iterator
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import EllipsisType
from typing import Final, Protocol

from moored.kernel import payloads
from moored.kernel.errors import InvalidArgument
from moored.kernel.filters import Path, quote
from moored.kernel.namespaces import is_identifier, validate_identifier
from moored.kernel.payloads import Packed, Payload
from moored.kernel.plugin import PluginType


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event. timestamp_ns is nanoseconds since 1970, UTC, None for no time, which subscribers never see.

    type_url and payload are the event's message as its publisher packed it, byte for byte; payload None, with an empty
    type_url, is an event without a message.
    """

    timestamp_ns: int | None
    namespace: str
    topic: str
    type_url: str = ""
    payload: bytes | None = None


class Fields:
    """An envelope as filters see it: `namespace`, `topic` and `event.FIELD`; the payload is decoded when asked for."""

    __slots__ = ("_envelope", "_payload")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._payload: Payload | EllipsisType | None = ...  # not decoded yet

    @property
    def payload(self) -> Payload | None:
        """The decoded payload, None if it is of a type that the kernel does not know, or does not parse."""
        if isinstance(self._payload, EllipsisType):
            packed = Packed(self._envelope.type_url, self._envelope.payload or b"")
            self._payload = payloads.unpack(packed)
        return self._payload

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "namespace":
                return self._envelope.namespace, bool(self._envelope.namespace)
            case "topic":
                return self._envelope.topic, bool(self._envelope.topic)
            case "event" if self.payload is not None:
                return payloads.field(self.payload, path[1:])
            case _:
                return "", False


class Exchange(Protocol):
    """Tells subscribers what happened, from the moment of their subscribing on; nothing is kept for later.

    A *topic* is a path of identifiers, `/tasks/exit`. Every subscriber sees the events of all namespaces that match its
    filters, each once, all subscribers in the same order: that of the publish and forward calls. An event is in every
    subscriber's queue when the call that sent it returns; so what is published after a commit is seen after it.

    Publishers never wait for subscribers. A subscriber's queue has a bound, and one that falls behind it is ended:
    what it has not fetched is dropped and its iterator raises ResourceExhausted `subscriber fell behind by N events`,
    N being what was dropped, so that nobody takes a stream with a gap for a whole one.

    Errors: InvalidArgument for a malformed namespace, topic, time or filter, FailedPrecondition for no namespace in
    publish; then nobody sees the event. Unavailable once the exchange has stopped.
    Concurrency: all of it on one event loop; any calls may overlap.
    Cancellation: a cancelled publish or forward sent the event to all subscribers or to none.
    """

    async def publish(self, topic: str, event: Payload | Packed | None, namespace: str) -> None:
        """Send an event of this moment; None sends one without a message.

        Errors: FailedPrecondition `failed publishing event: namespace is required`, InvalidArgument `failed publishing
        event: namespace validation: ..` and those of `validate_topic`, in this order.
        """

    async def forward(self, envelope: Envelope) -> None:
        """Send an event as it is, on behalf of its publisher. Raises what `validate_envelope` raises."""

    def subscribe(self, *filters: str) -> AbstractAsyncContextManager[AsyncIterator[Envelope]]:
        """Subscribe for the length of an `async with`; its value gives the events, to one task at a time.

        Without filters, or with an empty one, all events; else those that match any of them (fields `namespace`,
        `topic`, `event.FIELD`). The iterator ends by raising only; leaving the block ends the subscription.
        Entering raises InvalidArgument `failed parsing subscription filters: ..`.
        """


def validate_topic(topic: str) -> str:
    """Give the topic if it is one: each part after its first `/` an identifier.

    Raises InvalidArgument `envelope topic "T": ..`.
    """
    if not topic:
        fault = "must not be empty"
    elif topic[0] != "/":
        fault = "must start with '/'"
    elif topic == "/":
        fault = "must have at least one component"
    else:
        for component in topic[1:].split("/"):
            if not is_identifier(component):
                place = f"envelope topic {quote(topic)}: failed validation on component {quote(component)}"
                validate_identifier(component, place)
        return topic
    raise InvalidArgument(f"envelope topic {quote(topic)}: {fault}")


def validate_envelope(envelope: Envelope) -> Envelope:
    """Give the envelope if it can be forwarded.

    Raises InvalidArgument `event envelope has invalid namespace: ..`, what `validate_topic` raises, `timestamp must be
    set on forwarded event`, in this order.
    """
    validate_identifier(envelope.namespace, "event envelope has invalid namespace")
    validate_topic(envelope.topic)
    if envelope.timestamp_ns is None:
        raise InvalidArgument("timestamp must be set on forwarded event")
    return envelope


EVENT: Final[PluginType[Exchange]] = PluginType("io.containerd.event.v1")
