"""Runs every gRPC call: bytes to messages, headers to context, errors to codes; observers and policies see each call.

Services register their generated handlers with a `Registrar`; `Calls` keeps them by full name, each wrapped once. The
server itself moves bytes only, so that a message which does not parse or is too long is answered as Go's server
answers it (semantics 1.1).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import CoroutineType
from typing import Any

import grpc
import grpc.aio
from structlog.typing import FilteringBoundLogger

from moored.api.errors import to_status
from moored.kernel.errors import (
    AlreadyExists,
    Internal,
    MooredError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
)
from moored.kernel.namespaces import LEASE, NAMESPACE
from moored.kernel.plugin import HookRegistrar
from moored.kernel.ports.metrics import CallObserver

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"
UNKNOWN = "unknown"
"""Service and method under which observers are told of calls that nobody serves; clients cannot make up new names."""
SETTLE_SECONDS = 0.005
"""How long the end of a client's messages waits for the news that the client has in fact gone (see `Stream.read`)."""

_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_CODE_NAMES = {
    status: "OK" if status is grpc.StatusCode.OK else "".join(word.title() for word in status.name.split("_"))
    for status in grpc.StatusCode
} | {grpc.StatusCode.CANCELLED: "Canceled"}
"""Codes as Go names them."""

Deserialize = Callable[[bytes], Any]
Serialize = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC as its service registered it; kind as in `CallObserver`."""

    kind: str
    service: str
    name: str
    behaviour: Callable[[Any, Any], Any]
    deserialize: Deserialize
    serialize: Serialize
    label: tuple[str, str, str]
    """What observers are told: kind, service and name."""

    @property
    def path(self) -> str:
        """The full name, as requests carry it."""
        return f"/{self.service}/{self.name}"

    @property
    def client_streams(self) -> bool:
        """Whether the client sends any number of messages."""
        return self.kind in ("client_stream", "bidi_stream")

    @property
    def server_streams(self) -> bool:
        """Whether the server sends any number of messages."""
        return self.kind in ("server_stream", "bidi_stream")


class Registrar:
    """The GrpcRegistrar that one plugin's service is given."""

    def __init__(self, calls: Calls, owner: str) -> None:
        self._calls = calls
        self._owner = owner

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Take handlers that look methods up. Raises AlreadyExists naming the plugin that serves their service."""
        for handler in generic_rpc_handlers:
            self._calls.add_generic(self._owner, handler)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Take the methods of one service. Raises AlreadyExists naming the plugin that serves it."""
        self._calls.add(self._owner, service_name, method_handlers)

    def service_owners(self) -> Mapping[str, str]:
        """The URI of the plugin behind each service of the server, by the service's full name."""
        return self._calls.owners


class Calls(grpc.GenericRpcHandler):
    """Every method of one server. Register first, then serve; all of it on one event loop.

    hooks        asked for `moored_admit` where somebody implements it
    max_send     bytes of the longest answer
    common_name  what the client's certificate must be for; "" asks for none
    """

    def __init__(
        self,
        *,
        observers: Sequence[CallObserver],
        hooks: HookRegistrar,
        log: FilteringBoundLogger,
        max_send: int,
        common_name: str = "",
    ) -> None:
        self.owners: dict[str, str] = {}
        self.running: set[asyncio.Task[Any]] = set()
        self._methods: dict[str, Any] = {}
        self._generic: list[Any] = []
        self._observers = Observers(observers, log)
        self._hooks = hooks
        self._log = log
        self._max_send = max_send
        self._common_name = common_name

    def registrar(self, owner: str) -> Registrar:
        """What the service of the plugin `owner` (a URI) registers with."""
        return Registrar(self, owner)

    def add(self, owner: str, service: str, handlers: Mapping[str, Any]) -> None:
        """Serve the methods of a service. Raises AlreadyExists naming the plugin that serves it."""
        self._own(owner, service)
        for name, handler in handlers.items():
            method = _method(service, name, handler)
            self._methods[method.path] = self._wrapped(method)

    def add_generic(self, owner: str, handler: Any) -> None:
        """Ask a generic handler for methods that no service named; stubs of old generators register nothing else."""
        if isinstance(handler, grpc.ServiceRpcHandler):
            self._own(owner, handler.service_name())
        self._generic.append(handler)

    def _own(self, owner: str, service: str) -> None:
        if (first := self.owners.setdefault(service, owner)) != owner:
            raise AlreadyExists(f"gRPC service {service!r} of {owner!r} is already served by {first!r}")

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; one for every call, as those to nobody are answered and counted too."""
        path: str = handler_call_details.method
        if (known := self._methods.get(path)) is not None:
            return known
        service, _, name = path.removeprefix("/").rpartition("/")
        for generic in self._generic:
            if (handler := generic.service(handler_call_details)) is not None:
                return self._methods.setdefault(path, self._wrapped(_method(service, name, handler)))
        return self._wrapped(self._missing(service, name))

    def _missing(self, service: str, name: str) -> Method:
        known = service in self.owners
        text = f"unknown method {name} for service {service}" if known else f"unknown service {service}"

        async def refuse(_requests: Any, _context: Any) -> None:
            raise Unimplemented(text, bare=True)

        # In the form of a stream, whose request nobody waits for.
        return Method("bidi_stream", UNKNOWN, UNKNOWN, refuse, bytes, bytes, ("bidi_stream", UNKNOWN, UNKNOWN))

    def _wrapped(self, method: Method) -> Any:
        if not method.client_streams and not method.server_streams:

            async def unary(raw: bytes, context: Any) -> bytes | None:
                return await self._run(method, context, lambda: self._unary(method, raw, context))

            return grpc.unary_unary_rpc_method_handler(unary)

        async def single(raw: bytes, context: Any) -> bytes | None:
            return await self._run(method, context, lambda: self._server_stream(method, raw, context))

        async def many(_requests: Any, context: Any) -> bytes | None:
            return await self._run(method, context, lambda: self._client_stream(method, context))

        if not method.client_streams:
            return grpc.unary_stream_rpc_method_handler(single)
        if not method.server_streams:
            return grpc.stream_unary_rpc_method_handler(many)
        return grpc.stream_stream_rpc_method_handler(many)

    async def _run(self, method: Method, context: Any, work: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """One call from its headers to its status; the task's own context holds namespace and lease."""
        began = time.perf_counter()
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        self._observers.tell("started", method)
        code = grpc.StatusCode.UNKNOWN
        try:
            _bind_headers(context)
            self._check_peer(context)
            answer = await work()
            code = _code_of(context)
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except asyncio.CancelledError as error:
            if task.cancelling():
                expired = context.time_remaining() == 0
                code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
                raise
            # Not the client gave up but something inside; grpc.aio would leave the client waiting for ever.
            code, text = self._status(method, error)
            await context.abort(code, text)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a request ends here, and nothing else with it
            code, text = self._status(method, error)
            await context.abort(code, text)
        else:
            return answer
        finally:
            self.running.discard(task)
            self._observers.tell("handled", method, _CODE_NAMES[code], time.perf_counter() - began)
        return None

    def _status(self, method: Method, error: BaseException) -> tuple[grpc.StatusCode, str]:
        """The status that stands for an error; what no service means to raise is logged with its traceback."""
        if isinstance(error, NotImplementedError):
            # What generated servicer classes raise for a method that the service left out.
            error = Unimplemented(f"method {method.name} not implemented", bare=True)
        elif not _is_meant(error):
            self._log.error("call failed", method=method.path, exc_info=error)
        number, text = to_status(error)
        return _STATUS[number], text

    def _check_peer(self, context: Any) -> None:
        if not self._common_name:
            return
        names = [name.decode("utf-8", "replace") for name in context.auth_context().get("x509_common_name", ())]
        if self._common_name not in names:
            raise Unauthenticated(f"client certificate is for {names}, wanted common name {self._common_name!r}")

    def _admit(self, method: Method, request: object) -> None:
        hook = self._hooks.hook.moored_admit
        if not hook.get_hookimpls():
            return
        try:
            reason = hook(method=method.path, namespace=NAMESPACE.get(), request=request)
        except Exception as error:
            self._log.exception("hook failed", hook="moored_admit", method=method.path)
            raise PermissionDenied(f"policy failed for {method.path!r}") from error
        if reason is not None:
            raise PermissionDenied(str(reason))

    async def _unary(self, method: Method, raw: bytes, context: Any) -> bytes:
        request = self.decode(method, raw)
        self._admit(method, request)
        return self.encode(method, await _settled(method.behaviour(request, context)))

    async def _server_stream(self, method: Method, raw: bytes, context: Any) -> None:
        request = self.decode(method, raw)
        self._admit(method, request)
        stream = Stream(self, method, context)
        await _send_all(method.behaviour(request, stream), stream)

    async def _client_stream(self, method: Method, context: Any) -> bytes | None:
        self._admit(method, None)
        stream = Stream(self, method, context)
        async with aclosing(stream.messages()) as requests:
            found = method.behaviour(requests, stream)
            if method.server_streams:
                await _send_all(found, stream)
                return None
            return self.encode(method, await _settled(found))

    def decode(self, method: Method, raw: bytes) -> Any:
        """A message from its bytes. Raises Internal in the words of Go's server."""
        self._observers.tell("received", method)
        try:
            return method.deserialize(raw)
        except Exception as error:
            raise Internal(f"grpc: error unmarshalling request: {error}", bare=True) from error

    def encode(self, method: Method, message: Any) -> bytes:
        """A message's bytes. Raises Internal if it is none of the method's, ResourceExhausted if it is too long."""
        try:
            raw = method.serialize(message)
        except Exception as error:
            self._log.exception("answer cannot be encoded", method=method.path)
            raise Internal(f"grpc: error while marshaling: {error}", bare=True) from error
        if len(raw) > self._max_send:
            text = f"grpc: trying to send message larger than max ({len(raw)} vs. {self._max_send})"
            raise ResourceExhausted(text, bare=True)
        self._observers.tell("sent", method)
        return raw


class Stream:
    """The context that the handler of a stream is given: `read` and `write` move messages, the rest is grpc.aio's."""

    def __init__(self, calls: Calls, method: Method, context: Any) -> None:
        self._calls = calls
        self._method = method
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF. Raises Internal for one that does not parse."""
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            # A client that was killed looks like one that has said all, until its cancellation arrives just after.
            await asyncio.sleep(SETTLE_SECONDS)
            return raw
        return self._calls.decode(self._method, raw)

    def write(self, message: Any) -> Awaitable[None]:
        """Send one message; waits until the client has room for it."""
        sending: Awaitable[None] = self._context.write(self._calls.encode(self._method, message))
        return sending

    async def messages(self) -> AsyncGenerator[Any]:
        """All messages up to the end of them."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


class Observers:
    """Tells all observers; one that raises is told no more."""

    def __init__(self, observers: Sequence[CallObserver], log: FilteringBoundLogger) -> None:
        self._log = log
        self._told = {
            event: [(observer, getattr(observer, event)) for observer in observers]
            for event in ("started", "received", "sent", "handled")
        }

    def tell(self, event: str, method: Method, *more: object) -> None:
        """Call the CallObserver method `event` of each."""
        for observer, call in self._told[event]:
            try:
                call(*method.label, *more)
            except Exception:  # noqa: BLE001 - told with its traceback below
                # A call must not fail because it could not be counted.
                self._told = {
                    name: [one for one in told if one[0] is not observer] for name, told in self._told.items()
                }
                self._log.exception("metrics plugin failed and is left out", observer=type(observer).__name__)


def _method(service: str, name: str, handler: Any) -> Method:
    if handler.request_streaming:
        kind = "bidi_stream" if handler.response_streaming else "client_stream"
    else:
        kind = "server_stream" if handler.response_streaming else "unary"
    behaviour = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    return Method(
        kind,
        service,
        name,
        behaviour,
        handler.request_deserializer or bytes,
        handler.response_serializer or bytes,
        (kind, service, name),
    )


async def _settled(found: Any) -> Any:
    return await found if type(found) is CoroutineType or inspect.isawaitable(found) else found


async def _send_all(found: Any, stream: Stream) -> None:
    """Run the handler of a stream: an async generator's messages are sent, a coroutine writes its own."""
    if inspect.isawaitable(found):
        await found
        return
    async with aclosing(found) as messages:
        async for message in messages:
            await stream.write(message)


def _bind_headers(context: Any) -> None:
    namespace: str | None = None
    lease: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_HEADER and namespace is None:
            namespace = value
        elif key == LEASE_HEADER and lease is None:
            lease = value
    NAMESPACE.set(namespace or "")
    LEASE.set(lease or "")


def _code_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else _STATUS.get(code or 0, grpc.StatusCode.UNKNOWN)


def _is_meant(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(MooredError)[1] is None
    return isinstance(error, MooredError)
