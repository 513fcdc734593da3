"""The event exchange as a plugin: hook, bounds and their change, stop; and the services in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from google.protobuf.empty_pb2 import Empty

from harness import THING, Running, basics, fails, on_loop, running
from moored.api.services.events.v1 import events_pb2 as pb
from moored.api.services.events.v1 import events_pb2_grpc as rpc
from moored.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from moored.api.ttrpc.client import connect
from moored.api.types.event_pb2 import Envelope as EnvelopeMessage
from moored.kernel import payloads
from moored.kernel.conformance import fails_with
from moored.kernel.errors import InvalidArgument, ResourceExhausted, Unavailable
from moored.kernel.hooks import hookimpl
from moored.kernel.payloads import ContentCreate, ImageCreate, Packed, TaskExit
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT, Exchange
from moored.plugins.events.exchange.exchange import MAX_TOPICS, Bounds, LocalExchange
from moored.plugins.events.exchange.plugin import Config, reconfigure

EXCHANGE = "io.containerd.event.v1.exchange"
SERVICES = ("io.containerd.grpc.v1.events", "io.containerd.ttrpc.v1.events")
TTRPC_SERVER = "io.containerd.server.v1.ttrpc"


def exchange(events: int = 10, payload_bytes: int = 1000) -> LocalExchange:
    return LocalExchange(Bounds(events, payload_bytes), structlog.get_logger(), lambda *_: None)


class Listener:
    """Implements the hook, and holds the exchange that its plugin was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.exchange: Exchange
        self.heard: list[tuple[str, str, Mapping[str, Any]]] = []
        self.error = error

    @hookimpl
    def moored_object_event(self, namespace: str, topic: str, event: Mapping[str, Any]) -> None:
        self.heard.append((namespace, topic, event))
        if self.error is not None:
            raise self.error

    def plugin(self) -> Registration[Any, Any]:
        @asynccontextmanager
        async def open_(ctx: InitContext[Any]) -> AsyncGenerator[Any]:
            self.exchange = ctx.one(EVENT)
            ctx.hooks.register(self)
            yield self

        return Registration(kind=THING, id="listener", open=open_, requires=(EVENT,))


@on_loop
async def test_hook_gets_the_fields_of_object_events_alone(tmp_path: Path) -> None:
    listener = Listener()
    async with running(tmp_path, EXCHANGE, listener.plugin()):
        send = listener.exchange.publish
        await send("/images/create", ImageCreate(name="a", labels={"b": "c"}), "one")
        await send("/content/create", ContentCreate(digest="d"), "one")
        await send("/imagesque/create", None, "one")
        await send("/tasks/exit", Packed("containerd.events.TaskExit", b"\xff"), "two")
        exit_event = TaskExit(container_id="c", id="e", pid=1, exit_status=2, exited_at=3)
        await send("/tasks/exit", exit_event, "two")

    fields = {"container_id": "c", "id": "e", "pid": 1, "exit_status": 2, "exited_at": 3}
    assert listener.heard == [
        ("one", "/images/create", {"name": "a", "labels": {"b": "c"}}),
        ("two", "/tasks/exit", {}),
        ("two", "/tasks/exit", fields),
    ]


@on_loop
async def test_event_is_packed_once_and_only_for_those_who_want_it() -> None:
    packed = []

    class Told(ImageCreate):
        def pack(self) -> Packed:
            packed.append(self.name)
            return super().pack()

    source = exchange()
    async with (
        source.subscribe('topic=="/b"') as some,
        source.subscribe('topic=="/b",namespace==one') as same,
        source.subscribe('topic=="/x",event.name==a'),
    ):
        await source.publish("/a", Told(name="a"), "one")
        await source.publish("/b", Told(name="b", labels={"c": "d"}), "one")
        got = await anext(some)
        assert got is await anext(same)

    assert packed == ["b"]
    assert (got.namespace, got.topic) == ("one", "/b")
    assert payloads.unpack(Packed(got.type_url, got.payload or b"")) == ImageCreate(name="b", labels={"c": "d"})


@on_loop
async def test_only_well_formed_topics_are_taken_however_many_there_were() -> None:
    source = exchange(events=2 * MAX_TOPICS)
    async with source.subscribe() as events:
        for number in range(MAX_TOPICS + 1):
            await source.publish(f"/{number}", None, "one")
        for _ in range(2):
            await fails_with(InvalidArgument, source.publish("/bad!", None, "one"))
            await source.publish(f"/{MAX_TOPICS}", None, "one")

        assert [(await anext(events)).topic for _ in range(MAX_TOPICS + 3)][-3:] == [f"/{MAX_TOPICS}"] * 3


@on_loop
async def test_hook_that_fails_changes_nothing(tmp_path: Path) -> None:
    listener = Listener(KeyError("broken"))
    async with running(tmp_path, EXCHANGE, listener.plugin()), listener.exchange.subscribe() as events:
        await listener.exchange.publish("/images/delete", None, "one")
        assert (await anext(events)).topic == "/images/delete"
    assert len(listener.heard) == 1


@on_loop
async def test_payload_bytes_are_bounded_but_one_event_always_fits() -> None:
    source = exchange(events=10, payload_bytes=1000)
    async with source.subscribe() as events:
        await source.publish("/big", Packed("x", b"x" * 5000), "one")
        assert (await anext(events)).topic == "/big"
        await source.publish("/a", Packed("x", b"x" * 600), "one")
        await source.publish("/b", Packed("x", b"x" * 400), "one")
        await source.publish("/c", Packed("x", b"x"), "one")
        await fails_with(ResourceExhausted, anext(events), "subscriber fell behind by 3 events")
        assert source.subscribers == 0


@on_loop
async def test_bounds_can_be_changed_while_it_runs() -> None:
    source = exchange(events=1)
    async with source.subscribe() as events:
        await reconfigure(source, Config(), Config(max_pending=2, max_pending_bytes=5))
        await source.publish("/a", None, "one")
        await source.publish("/b", None, "one")
        assert [(await anext(events)).topic for _ in range(2)] == ["/a", "/b"]


@on_loop
async def test_waiting_fetch_that_is_cancelled_loses_nothing() -> None:
    source = exchange()
    async with source.subscribe() as events:
        fetch = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await source.publish("/a", None, "one")
        fetch.cancel()
        await asyncio.wait([fetch])
        assert fetch.cancelled()
        assert (await anext(events)).topic == "/a"


@on_loop
async def test_stop_ends_subscribers_and_refuses_events() -> None:
    source = exchange()
    async with source.subscribe() as events:
        waiting = asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        source.stop()
        await fails_with(Unavailable, waiting, "event exchange has stopped")
    await fails_with(Unavailable, source.publish("/a", None, "one"), "event exchange has stopped")
    await fails_with(Unavailable, source.subscribe().__aenter__(), "event exchange has stopped")


# --- on the wire ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[tuple[Running, Any]]:
    configs = {TTRPC_SERVER: {"address": f"{folder}/m.ttrpc"}}
    async with basics(folder, EXCHANGE, *SERVICES, TTRPC_SERVER, configs=configs) as (world, channel):
        yield world, rpc.EventsStub(channel)


@on_loop
async def test_bad_filter_is_of_unknown_class_on_the_wire(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub):
        code, text = await fails(stub.Subscribe(pb.SubscribeRequest(filters=["topic=="])).read())
    where = "filters: parse error: [topic==]: expected value or quoted: invalid argument"
    assert (code, text) == ("UNKNOWN", f"subscription error: failed parsing subscription filters: {where}")


@on_loop
async def test_missing_envelope_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub):
        code, text = await fails(stub.Forward(pb.ForwardRequest()))
    fault = "identifier must not be empty: invalid argument"
    assert (code, text) == ("INVALID_ARGUMENT", f"event envelope has invalid namespace: {fault}")


@pytest.mark.parametrize(("seconds", "nanos"), [(10**12, 0), (-(10**12), 0), (5, -1), (5, 10**9)])
@on_loop
async def test_time_that_older_clients_cannot_read_is_refused(tmp_path: Path, seconds: int, nanos: int) -> None:
    async with served(tmp_path) as (_, stub):
        envelope = EnvelopeMessage(namespace="one", topic="/a")
        envelope.timestamp.seconds, envelope.timestamp.nanos = seconds, nanos
        code, text = await fails(stub.Forward(pb.ForwardRequest(envelope=envelope)))
    assert code == "INVALID_ARGUMENT"
    assert "is outside of the years 1 to 9999" in text


@on_loop
async def test_headers_tell_that_the_subscription_has_begun(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub):
        call = stub.Subscribe(pb.SubscribeRequest())
        await asyncio.wait_for(call.initial_metadata(), 10)
        await stub.Publish(pb.PublishRequest(topic="/a"), metadata=(("containerd-namespace", "one"),))
        assert (await call.read()).topic == "/a"
        call.cancel()


@on_loop
async def test_shim_forwards_over_ttrpc(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub), await connect(f"{tmp_path}/m.ttrpc") as shim:
        call = stub.Subscribe(pb.SubscribeRequest())
        await call.initial_metadata()
        envelope = EnvelopeMessage(namespace="moby", topic="/tasks/start")
        envelope.event.type_url, envelope.event.value = "containerd.events.TaskStart", b"\n\x01c"
        service = "containerd.services.events.ttrpc.v1.Events"

        await shim.unary(service, "Forward", ForwardRequest(envelope=envelope), Empty)
        got = await call.read()
        refused = shim.unary(service, "Forward", ForwardRequest(), Empty)
        fault = "event envelope has invalid namespace: identifier must not be empty"
        await fails_with(InvalidArgument, refused, fault)
        call.cancel()

    envelope.timestamp.SetInParent()
    assert got == envelope
