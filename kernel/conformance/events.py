"""What every `Exchange` does; each check takes a fresh one that lets subscribers fall behind by MAX_PENDING events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

from moored.kernel.conformance import fails_with
from moored.kernel.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from moored.kernel.payloads import (
    ContainerCreate,
    ContainerUpdate,
    ContentCreate,
    ImageCreate,
    NamespaceUpdate,
    Packed,
    Payload,
    Runtime,
    SandboxExit,
    SnapshotPrepare,
    TaskCreate,
    TaskExecAdded,
    TaskExit,
    TaskIO,
)
from moored.kernel.ports.events import Envelope, Exchange

Check = Callable[[Exchange], Awaitable[None]]

MAX_PENDING: Final = 1000
"""Events that the exchange under test keeps for one subscriber."""
SECONDS: Final = 20.0
"""Within which everything that is to come must have come."""
RE: Final = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
LAST: Final = "/the/last"
_LAST: Final = f'topic=="{LAST}"'


async def take(events: AsyncIterator[Envelope], count: int) -> list[Envelope]:
    """Give the next events."""
    async with asyncio.timeout(SECONDS):
        return [await anext(events) for _ in range(count)]


async def take_to_last(events: AsyncIterator[Envelope]) -> list[Envelope]:
    """Give the events up to the one that `publish_last` sends, without it."""
    found: list[Envelope] = []
    async with asyncio.timeout(SECONDS):
        async for envelope in events:
            if envelope.topic == LAST:
                break
            found.append(envelope)
    return found


async def publish_last(exchange: Exchange) -> None:
    """Send what `take_to_last` stops at."""
    await exchange.publish(LAST, None, "last")


async def check_subscriber_gets_what_was_published(exchange: Exchange) -> None:
    """Namespace, topic and message as given, the time that of the call."""
    payload = ImageCreate(name="docker.io/library/a:1", labels={"a": "1", "b": ""})
    async with exchange.subscribe() as events:
        before = time.time_ns()
        await exchange.publish("/images/create", payload, "one")
        after = time.time_ns()
        (got,) = await take(events, 1)
    packed = payload.pack()
    assert got.timestamp_ns is not None
    assert before <= got.timestamp_ns <= after, f"the time is {got.timestamp_ns}, wanted {before} to {after}"
    assert got == Envelope(got.timestamp_ns, "one", "/images/create", packed.type_url, packed.value)


async def check_message_passes_whatever_it_is(exchange: Exchange) -> None:
    """Unknown types, bytes that do not parse, prefixes, an empty message and none are told apart and kept."""
    messages = (
        Packed("example.Thing", b"\xff\x00"),
        Packed("containerd.events.TaskExit", b"\xff"),
        Packed("type.googleapis.com/containerd.events.TaskStart", b"\n\x01c"),
        Packed(),
        None,
    )
    async with exchange.subscribe() as events:
        for message in messages:
            await exchange.publish("/some/thing", message, "one")
        got = await take(events, len(messages))
    seen = [None if one.payload is None else Packed(one.type_url, one.payload) for one in got]
    assert seen == list(messages), f"got {seen}, wanted {list(messages)}"


async def check_forwarded_envelope_arrives_as_it_is(exchange: Exchange) -> None:
    """Time and namespace are the sender's, be it 1970 or long before; order is that of the calls, not of the times."""
    envelopes = [
        Envelope(1_700_000_000_123_456_789, "two", "/tasks/exit", "containerd.events.TaskExit", b"\n\x01c"),
        Envelope(0, "one", "/tasks/start"),
        Envelope(-1, "one", "/x", "", b""),
        Envelope(-62_135_596_800 * 10**9 + 1, "a.b-c_d", "/a.b/c-d/e_f", "x", b""),
        Envelope(253_402_300_799_999_999_999, "one", "/" + "t" * 76),
    ]
    async with exchange.subscribe() as events:
        for envelope in envelopes:
            await exchange.forward(envelope)
        got = await take(events, len(envelopes))
    assert got == envelopes, f"got {got}, wanted {envelopes}"


async def check_subscription_starts_with_what_comes_next(exchange: Exchange) -> None:
    """Nothing from before, nothing from between two subscriptions."""
    await exchange.publish("/before", None, "one")
    for topic in ("/first", "/second"):
        async with exchange.subscribe() as events:
            await exchange.publish(topic, None, "one")
            (got,) = await take(events, 1)
            assert got.topic == topic, f"got {got.topic}, wanted {topic}"
        await exchange.publish("/between", None, "one")


async def check_every_namespace_is_seen(exchange: Exchange) -> None:
    """A subscription has no namespace of its own."""
    names = ["one", "two", "moby", "k8s.io"]
    async with exchange.subscribe("") as events:
        for name in names:
            await exchange.publish("/a", None, name)
        assert [one.namespace for one in await take(events, len(names))] == names


async def check_all_subscribers_see_one_order(exchange: Exchange) -> None:
    """500 of 500, from publishers side by side; each publisher's own order is kept."""
    publishers, each, subscribers = 5, 100, 8

    async def send(publisher: int) -> None:
        for number in range(each):
            await exchange.publish(f"/p{publisher}/{number}", TaskExit(container_id="c", id="e"), "one")

    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(exchange.subscribe()) for _ in range(subscribers)]
        sending = asyncio.gather(*map(send, range(publishers)))
        seen = await asyncio.gather(*(take(events, publishers * each) for events in streams))
        await sending
    orders = [[one.topic for one in envelopes] for envelopes in seen]
    assert all(order == orders[0] for order in orders), "subscribers saw different orders"
    for publisher in range(publishers):
        own = [topic for topic in orders[0] if topic.startswith(f"/p{publisher}/")]
        assert own == [f"/p{publisher}/{number}" for number in range(each)], f"publisher {publisher}: got {own}"


EVENTS: Final[tuple[tuple[str, str, Payload | Packed | None], ...]] = (
    ("/tasks/exit", "one", TaskExit(container_id="c1", id="e1", pid=7, exit_status=3, exited_at=5)),
    ("/tasks/create", "two", TaskCreate(container_id="c2", bundle="/b", io=TaskIO(stdout="/o"), checkpoint="cp")),
    ("/tasks/exec-added", "one", TaskExecAdded(container_id="c1", exec_id="e2")),
    ("/images/create", "one", ImageCreate(name="a:1", labels={"a.b/c": "d", "empty": ""})),
    ("/containers/create", "two", ContainerCreate(id="c2", image="a:1", runtime=Runtime(name="runc"))),
    ("/containers/update", "one", ContainerUpdate(id="c1", labels={"x": "y"}, snapshot_key="s")),
    ("/snapshot/prepare", "one", SnapshotPrepare(key="k", parent="p", snapshotter="overlayfs")),
    ("/content/create", "one", ContentCreate(digest="sha256:00", size=4)),
    ("/namespaces/update", "three", NamespaceUpdate(name="three", labels={"l": "m"})),
    ("/sandboxes/exit", "two", SandboxExit(sandbox_id="s1", exit_status=9)),
    ("/none", "one", None),
    ("/broken", "one", Packed("containerd.events.TaskExit", b"\n\x09c1")),
    ("/foreign", "one", Packed("example.Thing", b"\n\x02c1")),
    ("/prefixed", "one", Packed("type.googleapis.com/containerd.events.TaskExit", b"\n\x02c9")),
)
ALL: Final = frozenset(topic for topic, _, _ in EVENTS)
FILTERS: Final[tuple[tuple[tuple[str, ...], frozenset[str]], ...]] = (
    (("namespace==three",), frozenset({"/namespaces/update"})),
    (('topic=="/tasks/exit"',), frozenset({"/tasks/exit"})),
    (("topic~=|^/tasks/|",), frozenset({"/tasks/exit", "/tasks/create", "/tasks/exec-added"})),
    (("topic~=|^/tasks/|,namespace==one",), frozenset({"/tasks/exit", "/tasks/exec-added"})),
    (("namespace==three", "event.id==e1"), frozenset({"/namespaces/update", "/tasks/exit"})),
    (("event.container_id==c1",), frozenset({"/tasks/exit", "/tasks/exec-added"})),
    (("event.container_id",), frozenset({"/tasks/exit", "/tasks/create", "/tasks/exec-added", "/prefixed"})),
    (("event.container_id.whatever==c9",), frozenset({"/prefixed"})),
    (("event.exec_id==e2",), frozenset({"/tasks/exec-added"})),
    (('event.bundle=="/b"',), frozenset({"/tasks/create"})),
    (('event.io.stdout=="/o",event.checkpoint==cp',), frozenset({"/tasks/create"})),
    (("event.io.terminal==false",), frozenset({"/tasks/create"})),
    (("event.io.stdin",), frozenset()),
    (("event.io",), frozenset()),
    (('event.labels."a.b/c"==d',), frozenset({"/images/create"})),
    (("event.labels.empty",), frozenset({"/images/create"})),
    (("event.labels.x==y,event.snapshot_key==s",), frozenset({"/containers/update"})),
    (("event.name",), frozenset({"/images/create", "/namespaces/update"})),
    (("event.runtime.name==runc,event.image~=:1$",), frozenset({"/containers/create"})),
    (("event.key==k,event.parent==p,event.snapshotter==overlayfs",), frozenset({"/snapshot/prepare"})),
    (('event.digest=="sha256:00"',), frozenset({"/content/create"})),
    (("event.sandbox_id==s1",), frozenset({"/sandboxes/exit"})),
    (("event.pid",), frozenset()),
    (("event.exit_status",), frozenset()),
    (("event.exited_at",), frozenset()),
    (("event.size",), frozenset()),
    (("event.no_such!=x",), ALL),
    (("event",), frozenset()),
    (("timestamp",), frozenset()),
    (("no.such",), frozenset()),
    (("topic~=/(/",), frozenset()),
    (("topic==nothing", ""), ALL),
)
REFUSED: Final = (
    ("topic==/x", "filters: parse error: [topic== >|/|< x]: quoted literal not terminated"),
    ("topic==", "filters: parse error: [topic==]: expected value or quoted"),
    ("b===", 'filters: parse error: [b >|=|< ==]: unsupported operator "==="'),
)


async def check_filters_choose(exchange: Exchange) -> None:
    """Fields of the envelope and of known payloads; what does not parse has none."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(exchange.subscribe(*filters, _LAST)) for filters, _ in FILTERS]
        for topic, namespace, payload in EVENTS:
            await exchange.publish(topic, payload, namespace)
        await publish_last(exchange)
        for (filters, topics), events in zip(FILTERS, streams, strict=True):
            seen = [one.topic for one in await take_to_last(events)]
            expected = [topic for topic, _, _ in EVENTS if topic in topics]
            assert seen == expected, f"{filters} chose {seen}, wanted {expected}"


async def check_bad_filter_is_refused(exchange: Exchange) -> None:
    """The subscription does not begin, also if another filter is good."""
    for bad, text in REFUSED:
        for filters in ((bad,), ("namespace==one", bad)):
            await fails_with(
                InvalidArgument, _enter(exchange, *filters), f"failed parsing subscription filters: {text}"
            )


async def _enter(exchange: Exchange, *filters: str) -> None:
    async with exchange.subscribe(*filters):
        pass


LONG: Final = "x" * 77
TOO_LONG: Final = f'identifier "{LONG}" greater than maximum length (76 characters)'
BAD_TOPICS: Final = (
    ("", 'envelope topic "": must not be empty'),
    ("a", "envelope topic \"a\": must start with '/'"),
    ('a"\n', 'envelope topic "a\\"\\n": must start with \'/\''),
    ("/", 'envelope topic "/": must have at least one component'),
    ("/a/", 'envelope topic "/a/": failed validation on component "": identifier must not be empty'),
    ("//a", 'envelope topic "//a": failed validation on component "": identifier must not be empty'),
    ("/a b", f'envelope topic "/a b": failed validation on component "a b": identifier "a b" must match {RE}'),
    ("/a/" + LONG, f'envelope topic "/a/{LONG}": failed validation on component "{LONG}": {TOO_LONG}'),
)


async def check_bad_events_are_refused(exchange: Exchange) -> None:
    """With the words that clients know, the namespace first, and nobody sees them."""
    async with exchange.subscribe() as events:
        for topic, text in BAD_TOPICS:
            await fails_with(InvalidArgument, exchange.publish(topic, None, "one"), text)
            await fails_with(InvalidArgument, exchange.forward(Envelope(1, "one", topic)), text)
        no_namespace = "failed publishing event: namespace is required"
        await fails_with(FailedPrecondition, exchange.publish("bad", None, ""), no_namespace)
        bad_namespace = f'failed publishing event: namespace validation: identifier "a b" must match {RE}'
        await fails_with(InvalidArgument, exchange.publish("bad", None, "a b"), bad_namespace)
        for namespace, fault in (("", "must not be empty"), ("a b", f'"a b" must match {RE}')):
            text = f"event envelope has invalid namespace: identifier {fault}"
            await fails_with(InvalidArgument, exchange.forward(Envelope(None, namespace, "bad")), text)
        no_time = "timestamp must be set on forwarded event"
        await fails_with(InvalidArgument, exchange.forward(Envelope(None, "one", "/a")), no_time)
        await fails_with(InvalidArgument, exchange.forward(Envelope(None, "one", "bad")))
        await publish_last(exchange)
        assert await take_to_last(events) == []


FILLER: Final = Packed("example.Filler", b"x" * (16 << 10))
"""Large enough that a socket between us and the exchange cannot hold MAX_PENDING of it."""


async def check_slow_subscriber_is_cut_off_alone(exchange: Exchange) -> None:
    """It gets a run of events without a gap, then the error; publishers and a quick subscriber do not notice."""
    total = 3 * MAX_PENDING
    seen: list[str] = []

    async def read(events: AsyncIterator[Envelope]) -> int:
        async with asyncio.timeout(SECONDS):
            async for envelope in events:
                seen.append(envelope.topic)  # noqa: PERF401 - what came before the error counts
        return len(seen)

    async with exchange.subscribe() as slow, exchange.subscribe() as quick:
        for number in range(total):
            await exchange.publish(f"/n/{number}", FILLER, "one")
            (got,) = await take(quick, 1)
            assert got.topic == f"/n/{number}", f"got {got.topic}, wanted /n/{number}"
        text = f"subscriber fell behind by {MAX_PENDING + 1} events"
        await fails_with(ResourceExhausted, read(slow), text)
    assert seen == [f"/n/{number}" for number in range(len(seen))]
    assert len(seen) < total - MAX_PENDING


async def check_events_that_are_not_wanted_do_not_count(exchange: Exchange) -> None:
    """A subscriber falls behind only by what its filter lets through."""
    async with exchange.subscribe(_LAST) as events:
        for _ in range(3 * MAX_PENDING):
            await exchange.publish("/a", None, "one")
        await publish_last(exchange)
        assert [one.topic for one in await take(events, 1)] == [LAST]


async def check_subscriber_that_leaves_disturbs_nobody(exchange: Exchange) -> None:
    """With events unfetched, by an exception, and while another one waits."""
    async with exchange.subscribe() as stays:
        async with exchange.subscribe() as leaves:
            await exchange.publish("/a", None, "one")
            await take(leaves, 1)
            await exchange.publish("/b", None, "one")
        with suppress(KeyError):
            async with exchange.subscribe():
                await exchange.publish("/c", None, "one")
                raise KeyError("left")
        await exchange.publish("/d", None, "one")
        assert [one.topic for one in await take(stays, 4)] == ["/a", "/b", "/c", "/d"]


async def check_waiting_subscriber_can_be_cancelled(exchange: Exchange) -> None:
    """The task ends at once; others go on."""
    async with exchange.subscribe() as stays:
        begun = asyncio.Event()

        async def wait() -> None:
            async with exchange.subscribe() as events:
                begun.set()
                await anext(events)

        task = asyncio.ensure_future(wait())
        await begun.wait()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=SECONDS)
        assert done, "the cancelled subscriber goes on"
        assert task.cancelled(), f"the cancelled subscriber ended with {task.exception()!r}"
        await exchange.publish("/a", None, "one")
        assert [one.topic for one in await take(stays, 1)] == ["/a"]


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
