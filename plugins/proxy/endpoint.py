"""Presents a plugin that runs in another process, `[proxy_plugins.NAME]`, as a plugin of this daemon.

Nothing is dialled before the first call, so that a proxy which is not there yet delays nothing; each call names the
address it could not reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from moored.api.errors import from_status
from moored.kernel.errors import InvalidArgument, Unavailable
from moored.kernel.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    import grpc.aio
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")
P = TypeVar("P")

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"
CONNECT_SECONDS = 5.0
"""How long a call waits for the connection."""
ANSWER_SECONDS = 120.0
"""How long a call that should be quick may take, unless `[timeouts]` has ANSWER_TIMEOUT."""
ANSWER_TIMEOUT = "io.moored.timeout.proxy.answer"
RECONNECT_SECONDS = 1.0
"""Longest pause between two attempts to connect."""
MAX_MESSAGE = 16 << 20
TYPES = (
    "io.containerd.snapshotter.v1",
    "io.containerd.content.v1",
    "io.containerd.differ.v1",
    "io.containerd.sandbox.controller.v1",
)
"""The types that `registration` makes proxies of."""


class ProxySettings(Protocol):
    """One `[proxy_plugins.NAME]` table."""

    @property
    def type(self) -> str:
        """The plugin type's URI."""

    @property
    def address(self) -> str:
        """Path of a unix socket, or HOST:PORT."""

    @property
    def platform(self) -> str:
        """`linux/amd64`, or empty."""

    @property
    def exports(self) -> Mapping[str, str]:
        """Shown to clients."""

    @property
    def capabilities(self) -> Sequence[str]:
        """Shown to clients."""


class RemoteEndpoint:
    """A lazily dialled gRPC channel to one address. Calls may overlap; cancelling one cancels it there too.

    answer_timeout is the deadline for those who want one: they give it to each call.
    """

    def __init__(self, address: str, answer_timeout: float = ANSWER_SECONDS) -> None:
        self.address = address
        self.answer_timeout = answer_timeout
        self._channel: grpc.aio.Channel | None = None

    async def unary(
        self,
        method: str,
        request: Message,
        response_type: type[M],
        namespace: str = "",
        *,
        lease: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the other side
    ) -> M:
        """Call `/SERVICE/METHOD` and return its answer.

        The other side's errors arrive as what they were there. Raises Unavailable naming the address if nobody can be
        reached there within CONNECT_SECONDS, DeadlineExceeded after `timeout` seconds.
        """
        channel = await self._connected()
        call: Any = channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=response_type.FromString
        )
        with self._errors():
            answer: M = await call(request, metadata=_headers(namespace, lease), timeout=timeout)
        return answer

    async def server_stream(
        self, method: str, request: Message, response_type: type[M], namespace: str = ""
    ) -> AsyncGenerator[M]:
        """Call `/SERVICE/METHOD` and give its answers, errors as `unary`; closing the generator cancels the call."""
        channel = await self._connected()
        start: Any = channel.unary_stream(
            method, request_serializer=_serialize, response_deserializer=response_type.FromString
        )
        call = start(request, metadata=_headers(namespace, ""))
        try:
            with self._errors():
                async for answer in call:
                    yield answer
        finally:
            call.cancel()

    async def bidi_stream(
        self, method: str, response_type: type[M], namespace: str = "", *, lease: str = ""
    ) -> RemoteStream[M]:
        """Begin `/SERVICE/METHOD`; errors as `unary`."""
        channel = await self._connected()
        start: Any = channel.stream_stream(
            method, request_serializer=_serialize, response_deserializer=response_type.FromString
        )
        return RemoteStream(start(metadata=_headers(namespace, lease)), self._errors)

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _connected(self) -> grpc.aio.Channel:
        """The channel, once somebody answers at the other end."""
        import grpc

        channel = self._channel = self._channel or _dial(self.address)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise Unavailable(f"nobody answers at proxy address {self.address!r}")
                    await channel.wait_for_state_change(state)
        except TimeoutError as error:
            raise Unavailable(f"no connection to {self.address!r} within {CONNECT_SECONDS:g}s") from error
        return channel

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Raise what the other side, or the way to it, answers as an error of the closed set."""
        import grpc.aio

        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._mapped(error) from error

    def _mapped(self, error: grpc.aio.AioRpcError) -> Exception:
        code = error.code().value[0]
        text = error.details() or ""
        found = from_status(code, text)
        if isinstance(found, Unavailable):
            return Unavailable(f"proxy at {self.address!r}: {text or 'no connection'}")
        return found


class RemoteStream(Generic[M]):
    """A call in which both sides send any number of messages. Ask and end it from one task at a time."""

    def __init__(self, call: Any, errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._call = call
        self._errors = errors

    async def ask(self, request: Message) -> M:
        """Send a message and give the answer to it.

        Raises the other side's error, or Unavailable if it ends the call without one. When cancelled, so is the call.
        """
        import grpc.aio

        with self._errors():
            # Ended by the other side: `read` tells why.
            with suppress(asyncio.InvalidStateError):
                await self._call.write(request)
            answer: Any = await self._call.read()
        if answer is grpc.aio.EOF:
            raise Unavailable("the other side ended the call without an answer")
        return cast(M, answer)

    async def end(self) -> None:
        """Say that no more is coming and wait until the other side has ended too; its error is of no interest now."""
        import grpc.aio

        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()
            while await self._call.read() is not grpc.aio.EOF:
                pass

    def cancel(self) -> None:
        """End it at once."""
        self._call.cancel()


def registration(name: str, settings: ProxySettings) -> Registration[RemoteEndpoint, None]:
    """Make the plugin `<type>.<name>`. Raises InvalidArgument for a type or an address that cannot be."""
    return registration_of(name, settings, lambda endpoint: endpoint)


def registration_of(name: str, settings: ProxySettings, port: Callable[[RemoteEndpoint], P]) -> Registration[P, None]:
    """Make the plugin `<type>.<name>` that yields what `port` makes of the endpoint. Raises as `registration`."""
    if settings.type not in TYPES:
        raise InvalidArgument(f"proxies of type {settings.type!r} are unknown, wanted one of {', '.join(TYPES)}")
    if not settings.address:
        raise InvalidArgument(f"proxy {name!r} has no address")
    return Registration(
        kind=PluginType(settings.type),
        id=name,
        open=_opener(settings, port),
        summary=f"proxy for the plugin at {settings.address}",
    )


def _opener(
    settings: ProxySettings, port: Callable[[RemoteEndpoint], P]
) -> Callable[[InitContext[None]], AbstractAsyncContextManager[P]]:
    @asynccontextmanager
    async def open_(ctx: InitContext[None]) -> AsyncGenerator[P]:
        ctx.facts.exports.update({**settings.exports, "address": settings.address})
        ctx.facts.capabilities.extend(settings.capabilities)
        if settings.platform:
            ctx.facts.platforms.append(settings.platform)
        endpoint = RemoteEndpoint(settings.address, ctx.daemon.timeout(ANSWER_TIMEOUT) or ANSWER_SECONDS)
        try:
            yield port(endpoint)
        finally:
            await endpoint.close()

    return open_


def _dial(address: str) -> grpc.aio.Channel:
    import urllib.parse

    import grpc.aio

    path = address.removeprefix("unix://")
    target = f"unix:{urllib.parse.quote(path)}" if path.startswith("/") else address
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS * 1000)),
            ("grpc.default_authority", "localhost"),  # or a path would become one, which Go servers refuse
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def _headers(namespace: str, lease: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in ((NAMESPACE_HEADER, namespace), (LEASE_HEADER, lease)) if value)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
