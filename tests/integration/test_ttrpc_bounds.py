"""Nothing that a ttrpc peer does or leaves undone grows without bound, lasts without end or reaches another peer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue, UInt64Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.ttrpc_world import (
    SERVICE,
    answering,
    data,
    echo,
    open_stream,
    request,
    run,
    stalled,
    text,
    until,
    world,
)
from moored.api.ttrpc.client import Limits, connect
from moored.api.ttrpc.frame import (
    DATA,
    END,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    Frame,
    encode,
)
from moored.api.ttrpc.server import Kind
from moored.kernel.errors import (
    MooredError,
    ResourceExhausted,
    Unavailable,
)

# Bounds.


def test_a_handler_that_does_not_read_stops_the_connection_until_it_reads() -> None:
    async def main() -> None:
        async with world(queue=3, stall_timeout=60) as w:
            raw = await w.raw()
            words = [str(n) for n in range(200)]
            await raw.send(request(1, "gated_join", flags=REMOTE_OPEN), *(data(1, word) for word in words))
            await raw.send(Frame(1, DATA, END), request(3, "unary", text("after")))
            await w.echo.entered.wait()
            await stalled(w)
            assert w.echo.seen == []  # the unary call is stuck behind the stream
            w.echo.gate.set()
            assert {(await raw.recv()).stream_id for _ in range(2)} == {1, 3}
            assert sorted(w.echo.seen) == sorted([*words, "after"])

    run(main())


def test_what_a_stuck_stream_holds_is_bounded() -> None:
    async def main() -> None:
        async with world(queue=3, stall_timeout=60) as w:
            raw = await w.raw()
            big = data(1, "x" * (64 << 10))
            await raw.send(request(1, "gated_join", flags=REMOTE_OPEN))
            sending = asyncio.create_task(raw.send(*[big] * 128, Frame(1, DATA, END)))
            await w.echo.entered.wait()
            await stalled(w)
            (link,) = [link for link in w.server._links if link.tasks]
            assert 0 < link._decoder.held <= 256 << 10  # asyncio reads that much at once
            assert not sending.done()
            w.echo.gate.set()
            await sending
            await w.echo.finished.wait()
            assert len(w.echo.seen) == 128

    run(main())


def test_a_call_that_ends_without_reading_frees_the_connection() -> None:
    async def main() -> None:
        async with world(queue=2, stall_timeout=60) as w:
            raw = await w.raw()
            await raw.send(request(1, "ignore", flags=REMOTE_OPEN), *(data(1, "x") for _ in range(3)))
            await w.echo.entered.wait()
            await stalled(w)
            w.echo.gate.set()
            assert await raw.recv() == Frame(1, RESPONSE, 0)
            assert await raw.status(1) == (3, "StreamID is no longer active")

    run(main())


def test_a_stream_that_stays_full_is_given_up_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with world(queue=2, stall_timeout=0.05) as w:
            raw = await w.raw()
            await raw.send(request(1, "gated_join", flags=REMOTE_OPEN), *(data(1, "x") for _ in range(3)))
            await raw.send(request(3, "nothing"))
            assert await raw.status(1) == (3, "data handling error: ttrpc: stream buffer full")
            assert await raw.recv() == Frame(3, RESPONSE, 0)

    run(main())


def test_a_client_that_does_not_read_a_stream_loses_that_stream_only() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client(queue=2, stall_timeout=0.05)
            async with await open_stream(client, "count", Kind.SERVER_STREAM, UInt64Value(value=10)) as stream:
                await echo(client)
                assert [await stream.recv(), await stream.recv()] == [UInt64Value(value=0), UInt64Value(value=1)]
                with pytest.raises(ResourceExhausted, match=r"^ttrpc: stream buffer full$"):
                    await stream.recv()
            await echo(client)

    run(main())


def test_a_slow_client_gets_every_message() -> None:
    async def main() -> None:
        async with world(write_buffer=1024) as w:
            client = await w.client(queue=1)
            async with await open_stream(client, "count", Kind.SERVER_STREAM, UInt64Value(value=3000)) as stream:
                got = []
                async for message in stream:
                    got.append(message.value)
                    await asyncio.sleep(0)
            assert got == list(range(3000))

    run(main())


def test_a_stream_closed_early_leaves_the_connection_usable() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client(queue=1, stall_timeout=60)
            async with await open_stream(client, "count", Kind.SERVER_STREAM, UInt64Value(value=500)) as stream:
                assert await stream.recv() == UInt64Value(value=0)
            await echo(client)
            assert client.pending == 0

    run(main())


def test_a_peer_that_does_not_read_is_cut_off() -> None:
    async def main() -> None:
        async with world(write_timeout=0.1, write_buffer=64 << 10) as w:
            raw = await w.raw()
            other = await w.client()
            await raw.send(request(1, "flood", flags=REMOTE_CLOSED))
            await w.echo.cancelled.wait()
            await until(lambda: w.server.connections == 1)
            await echo(other)

    run(main())


def test_a_peer_that_calls_without_reading_is_held_up_and_cut_off() -> None:
    async def main() -> None:
        async with world(write_timeout=0.1, write_buffer=1024, max_streams=8) as w:
            raw = await w.raw()
            call = request(1, "sized", UInt64Value(value=1 << 20))
            with contextlib.suppress(OSError):
                for stream_id in range(1, 1 << 20, 2):
                    await raw.send(call._replace(stream_id=stream_id))
            await until(lambda: w.server.connections == 0)

    run(main())


def test_answers_that_nobody_reads_are_bounded() -> None:
    async def main() -> None:
        async with world(write_timeout=0.2, write_buffer=1024) as w:
            raw = await w.raw()
            sizes: list[int] = []

            def gone() -> bool:
                sizes.extend(link._transport.get_write_buffer_size() for link in w.server._links if link._transport)
                return bool(sizes) and w.server.connections == 0

            sending = asyncio.create_task(raw.send(encode(Frame(2, DATA, 0)) * 200_000))
            await until(gone)
            assert 1024 < max(sizes) < 2048
            with pytest.raises(OSError, match=r"reset|[Bb]roken"):
                await sending

    run(main())


def test_a_peer_that_reads_late_gets_every_answer() -> None:
    async def main() -> None:
        async with world(write_timeout=60, write_buffer=1024) as w:
            raw = await w.raw()
            sending = asyncio.create_task(raw.send(encode(Frame(2, DATA, 0)) * 100_000))
            await stalled(w)
            for _ in range(100_000):
                frame = await raw.recv()
            assert frame[:3] == (2, RESPONSE, 0)
            await sending

    run(main())


def test_a_server_that_does_not_read_is_cut_off_and_waiting_writers_fail() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            client = await connect(ours, limits=Limits(write_timeout=0.05, write_buffer=1024))
            stream = await open_stream(client, "x", Kind.CLIENT_STREAM, response=StringValue)
            sending = asyncio.gather(*(stream.send(text("x" * 4096)) for _ in range(1000)))
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await sending
            await client.wait_closed()

    run(main())


def test_calls_beyond_the_limit_are_refused_on_both_sides() -> None:
    async def main() -> None:
        async with world(max_streams=2) as w:
            raw = await w.raw()
            await raw.send(request(1, "hang"), request(3, "hang"), request(5, "nothing"))
            assert await raw.status(5) == (8, "connection has 2 calls under way, the most allowed")
            client = await w.client(max_streams=1)
            first = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await until(lambda: client.pending == 1)
            with pytest.raises(ResourceExhausted, match="1 calls under way"):
                await client.unary(SERVICE, "nothing", Empty(), Empty)
            w.echo.gate.set()
            assert {(await raw.recv()).stream_id for _ in range(2)} == {1, 3}
            await first
            await raw.send(request(7, "nothing"))
            assert await raw.recv() == Frame(7, RESPONSE, 0)

    run(main())


def test_connections_beyond_the_limit_are_closed() -> None:
    async def main() -> None:
        async with world(max_connections=1) as w:
            first = await w.client()
            await echo(first)
            refused = await w.raw()
            with pytest.raises(EOFError):
                await refused.recv()
            await first.close()
            await until(lambda: w.server.connections == 0)
            await echo(await w.client())

    run(main())


# Who may connect.


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("group_only", [True, False])
def test_a_peer_of_another_user_or_group_is_closed(group_only: bool) -> None:
    async def main() -> None:
        async with world() as w:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            os.chmod(w.path, 0o777)  # noqa: PTH101 - nothing else runs
            os.chmod(os.path.dirname(w.path), 0o755)  # noqa: PTH101, PTH120 - likewise
            os.setegid(65534)
            try:
                if not group_only:
                    os.seteuid(65534)
                sock.connect(w.path)
            finally:
                os.seteuid(0)
                os.setegid(0)
            client = await connect(sock)
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await echo(client)
            await client.close()
            await echo(await w.client())

    run(main())


def test_the_handler_is_told_who_calls() -> None:
    async def main() -> None:
        async with world() as w:
            await echo(await w.client())
            peer = w.echo.contexts[0].peer
            assert peer is not None
            assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())

    run(main())


@pytest.mark.parametrize("required", [True, False])
def test_a_peer_without_credentials_is_served_only_if_none_are_wanted(required: bool) -> None:
    async def main() -> None:
        async with world(require_same_user=required) as w:
            listener = socket.create_server(("127.0.0.1", 0))
            await w.server.serve(listener)
            client = await connect(socket.create_connection(listener.getsockname()))
            async with client:
                if required:
                    with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                        await echo(client)
                else:
                    await echo(client)
                    assert w.echo.contexts[0].peer is None

    run(main())


# Ends.


def test_handlers_are_cancelled_when_the_client_goes() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            waiting = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            await client.close()
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await waiting
            await w.echo.cancelled.wait()
            await until(lambda: w.server.connections == 0)

    run(main())


def test_a_half_closed_peer_has_gone() -> None:
    async def main() -> None:
        async with world() as w:
            raw = await w.raw()
            await raw.send(request(1, "hang"))
            await w.echo.entered.wait()
            raw.writer.write_eof()
            await w.echo.cancelled.wait()
            with pytest.raises(EOFError):
                await raw.recv()

    run(main())


def test_pending_and_later_calls_fail_when_the_server_goes() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            stream = await open_stream(client, "chat", Kind.BIDI, response=StringValue)
            await stream.send(text("a"))
            waiting = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            await w.server.close()
            await client.wait_closed()
            assert client.closed
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await waiting
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await echo(client)
            assert await stream.recv() == text("A")  # what came before the end is not lost
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await stream.recv()
            with pytest.raises(Unavailable, match=r"^ttrpc: closed$"):
                await stream.send(text("b"))

    run(main())


def test_a_graceful_stop_closes_idle_connections_and_lets_calls_end() -> None:
    async def main() -> None:
        async with world() as w:
            idle, busy = await w.client(), await w.client()
            await echo(idle)
            waiting = asyncio.create_task(busy.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            stopping = asyncio.create_task(w.server.stop(60))
            await idle.wait_closed()
            with pytest.raises(Unavailable, match="closed"):
                await echo(busy)  # no new calls, even where others go on
            assert not os.path.exists(w.path)  # noqa: ASYNC240, PTH110 - nothing else runs
            with pytest.raises(Unavailable, match="dial"):
                await connect(w.path)
            w.echo.gate.set()
            assert await waiting == Empty()
            await busy.wait_closed()
            await stopping

    run(main())


def test_a_graceful_stop_ends_with_its_grace() -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            waiting = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            await w.echo.entered.wait()
            await w.server.stop(0.02)
            assert w.echo.cancelled.is_set()
            assert w.server.connections == 0
            with pytest.raises(Unavailable):
                await waiting

    run(main())


def test_a_peer_that_reads_nothing_cannot_hold_up_a_stop() -> None:
    async def main() -> None:
        async with world(write_timeout=60) as w:
            raw = await w.raw()
            await raw.send(request(1, "flood", flags=REMOTE_CLOSED))
            await w.echo.entered.wait()
            await w.server.stop(0.02)
            assert w.echo.cancelled.is_set()

    run(main())


# Garbage.

garbage_frames = st.builds(
    lambda stream_id, kind, flags, data: encode(Frame(stream_id, kind, flags, data)),
    st.integers(0, 9),
    st.sampled_from([0, REQUEST, RESPONSE, DATA, DATA, 9]),
    st.sampled_from([0, REMOTE_CLOSED, REMOTE_OPEN, NO_DATA, END, 0xFF]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(["unary", "count", "join", "chat", "hang", "stubborn", "no"]).map(
            lambda m: request(1, m, text("x")).data
        ),
    ),
)
garbage = st.lists(st.one_of(st.binary(max_size=60), garbage_frames, garbage_frames), max_size=20).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(garbage)
def test_garbage_on_one_connection_disturbs_no_other(junk: bytes) -> None:
    async def main() -> None:
        async with world() as w:
            client = await w.client()
            waiting = asyncio.create_task(client.unary(SERVICE, "hang", Empty(), Empty))
            raw = await w.raw()
            await raw.send(junk)
            await echo(client)
            raw.writer.close()
            await until(lambda: w.server.connections == 1)
            w.echo.gate.set()
            assert await waiting == Empty()

    run(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(garbage)
def test_garbage_from_a_server_ends_or_fails_calls_and_nothing_else(junk: bytes) -> None:
    async def main() -> None:
        async with answering(junk) as client:
            for kind in Kind:
                stream = await open_stream(client, "x", kind, Empty(), StringValue)
                with contextlib.suppress(MooredError, TimeoutError):
                    async with asyncio.timeout(0.002):
                        await stream.recv()
                stream.close()
            assert client.pending == 0

    run(main())
