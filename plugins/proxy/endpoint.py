"""Presents a plugin that runs in another process, `[proxy_plugins.NAME]`, as a plugin of this daemon.

Nothing is dialled before the first call, so that a proxy which is not there yet delays nothing; each call names the
address it could not reach.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from moored.api.errors import from_status
from moored.kernel.errors import InvalidArgument, Unavailable
from moored.kernel.plugin import InitContext, PluginType, Registration

if TYPE_CHECKING:
    import grpc.aio
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

NAMESPACE_HEADER = "containerd-namespace"
CONNECT_SECONDS = 5.0
"""How long a call waits for the connection."""
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
    """A lazily dialled gRPC channel to one address. Calls may overlap; cancelling one cancels it there too."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None

    async def unary(
        self,
        method: str,
        request: Message,
        response_type: type[M],
        namespace: str = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the other side
    ) -> M:
        """Call `/SERVICE/METHOD` and return its answer.

        The other side's errors arrive as what they were there. Raises Unavailable naming the address if nobody can be
        reached there within CONNECT_SECONDS, DeadlineExceeded after `timeout` seconds.
        """
        import grpc.aio

        channel = await self._connected()
        call: Any = channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=response_type.FromString
        )
        metadata = ((NAMESPACE_HEADER, namespace),) if namespace else None
        try:
            answer: M = await call(request, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise self._mapped(error) from error
        return answer

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _connected(self) -> grpc.aio.Channel:
        """The channel, once somebody answers at the other end."""
        import asyncio

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

    def _mapped(self, error: grpc.aio.AioRpcError) -> Exception:
        code = error.code().value[0]
        text = error.details() or ""
        found = from_status(code, text)
        if isinstance(found, Unavailable):
            return Unavailable(f"proxy at {self.address!r}: {text or 'no connection'}")
        return found


def registration(name: str, settings: ProxySettings) -> Registration[RemoteEndpoint, None]:
    """Make the plugin `<type>.<name>`. Raises InvalidArgument for a type or an address that cannot be."""
    if settings.type not in TYPES:
        raise InvalidArgument(f"proxies of type {settings.type!r} are unknown, wanted one of {', '.join(TYPES)}")
    if not settings.address:
        raise InvalidArgument(f"proxy {name!r} has no address")
    return Registration(
        kind=PluginType(settings.type),
        id=name,
        open=_opener(settings),
        summary=f"proxy for the plugin at {settings.address}",
    )


def _opener(
    settings: ProxySettings,
) -> Callable[[InitContext[None]], AbstractAsyncContextManager[RemoteEndpoint]]:
    @asynccontextmanager
    async def open_(ctx: InitContext[None]) -> AsyncGenerator[RemoteEndpoint]:
        ctx.facts.exports.update({**settings.exports, "address": settings.address})
        ctx.facts.capabilities.extend(settings.capabilities)
        if settings.platform:
            ctx.facts.platforms.append(settings.platform)
        endpoint = RemoteEndpoint(settings.address)
        try:
            yield endpoint
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


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
