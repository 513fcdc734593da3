"""The Exchange inside of this process: every event goes straight into the queue of each subscriber that wants it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, ResourceExhausted, Unavailable
from moored.kernel.filters import Filter, Path, compile_filters
from moored.kernel.namespaces import validate_identifier
from moored.kernel.payloads import Packed, Payload
from moored.kernel.ports.events import Envelope, Fields, validate_envelope, validate_topic

Watcher = Callable[[str, "Sent"], None]

MAX_TOPICS: Final = 1024
"""Topics that are known to be well formed; publishers choose them."""


@dataclass(slots=True)
class Bounds:
    """What one subscriber may leave unfetched: events, and bytes of their payloads. May be changed at any time."""

    events: int
    payload_bytes: int


class LocalExchange:
    """See Exchange. `watch` is called with each topic and event after the subscribers have got it, and never raises."""

    def __init__(self, bounds: Bounds, log: FilteringBoundLogger, watch: Watcher) -> None:
        self.bounds = bounds
        self._log = log
        self._watch = watch
        self._subscribers: dict[Subscriber, None] = {}
        self._topics: set[str] = set()
        self._stopped = False

    @property
    def subscribers(self) -> int:
        """How many there are at this moment."""
        return len(self._subscribers)

    async def publish(self, topic: str, event: Payload | Packed | None, namespace: str) -> None:
        """See Exchange."""
        if not namespace:
            raise FailedPrecondition("failed publishing event: namespace is required")
        validate_identifier(namespace, "failed publishing event: namespace validation")
        self._validate_topic(topic)
        self._send(Sent(namespace, topic, event))

    async def forward(self, envelope: Envelope) -> None:
        """See Exchange."""
        validate_envelope(envelope)
        self._send(Sent(envelope.namespace, envelope.topic, None, envelope))

    @asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncGenerator[AsyncIterator[Envelope]]:
        """See Exchange."""
        try:
            wanted = compile_filters(filters)
        except InvalidArgument as error:
            raise InvalidArgument(f"failed parsing subscription filters: {error.text}") from error
        self._check_running()
        subscriber = Subscriber(wanted, self.bounds)
        self._subscribers[subscriber] = None
        try:
            yield subscriber
        finally:
            self._subscribers.pop(subscriber, None)

    def stop(self) -> None:
        """End all subscribers with Unavailable, and take no more events."""
        self._stopped = True
        while self._subscribers:
            self._subscribers.popitem()[0].end(_stopped())

    def _validate_topic(self, topic: str) -> None:
        if topic in self._topics:
            return
        validate_topic(topic)
        if len(self._topics) < MAX_TOPICS:
            self._topics.add(topic)

    def _send(self, sent: Sent) -> None:
        self._check_running()
        for subscriber in tuple(self._subscribers):
            if not subscriber.offer(sent):
                del self._subscribers[subscriber]
                self._log.warning("subscriber fell behind", events=subscriber.lost, filtered=subscriber.filtered)
        self._watch(sent.topic, sent)

    def _check_running(self) -> None:
        if self._stopped:
            raise _stopped()


class Sent:
    """An event on its way, as filters see it. Its message is packed when somebody wants it, which is rarely so."""

    __slots__ = ("_envelope", "_event", "_fields", "namespace", "topic")

    def __init__(
        self, namespace: str, topic: str, event: Payload | Packed | None, envelope: Envelope | None = None
    ) -> None:
        """Take an event of this moment, or the envelope that it came in."""
        self.namespace = namespace
        self.topic = topic
        self._event = event
        self._envelope = envelope
        self._fields: Fields | None = None

    @property
    def envelope(self) -> Envelope:
        """What subscribers get."""
        if self._envelope is None:
            now, event = time.time_ns(), self._event
            if event is None:
                self._envelope = Envelope(now, self.namespace, self.topic)
            else:
                packed = event.pack() if isinstance(event, Payload) else event
                self._envelope = Envelope(now, self.namespace, self.topic, packed.type_url, packed.value)
        return self._envelope

    @property
    def fields(self) -> Fields:
        """Its envelope as filters see it, with the decoded payload."""
        if self._fields is None:
            self._fields = Fields(self.envelope)
        return self._fields

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "topic":
                return self.topic, bool(self.topic)
            case "namespace":
                return self.namespace, bool(self.namespace)
            case _:
                return self.fields.field(path)


class Subscriber:
    """One subscription: its filter, what it has not fetched, and its end. An iterator for one task at a time."""

    def __init__(self, wanted: Filter, bounds: Bounds) -> None:
        self.lost = 0
        self._wanted = wanted
        self._bounds = bounds
        self._pending: deque[Envelope] = deque()
        self._pending_bytes = 0
        self._end: MooredError | None = None
        self._arrival: asyncio.Future[None] | None = None

    @property
    def filtered(self) -> bool:
        """Whether it wants less than everything."""
        return not self._wanted.matches_all

    def offer(self, sent: Sent) -> bool:
        """Take an event if it is wanted; False if there is no room for it, which ends the subscription."""
        if not self._wanted.match(sent):
            return True
        envelope = sent.envelope
        size = len(envelope.payload or b"")
        room = self._bounds.payload_bytes - self._pending_bytes
        if len(self._pending) >= self._bounds.events or (self._pending and size > room):
            self.lost = len(self._pending) + 1
            self.end(ResourceExhausted(f"subscriber fell behind by {self.lost} events"))
            return False
        self._pending.append(envelope)
        self._pending_bytes += size
        self._wake()
        return True

    def end(self, why: MooredError) -> None:
        """Drop what is pending; the next fetch raises `why`."""
        self._end = why
        self._pending.clear()
        self._pending_bytes = 0
        self._wake()

    def __aiter__(self) -> AsyncIterator[Envelope]:
        return self

    async def __anext__(self) -> Envelope:
        while not self._pending:
            if self._end is not None:
                raise self._end
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        envelope = self._pending.popleft()
        self._pending_bytes -= len(envelope.payload or b"")
        return envelope

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


def _stopped() -> Unavailable:
    return Unavailable("event exchange has stopped")
