"""Runs every gRPC call: bytes to messages, headers to context, errors to codes; observers and policies see each call.

Services register their generated handlers with a `Registrar`; `Calls` keeps them by full name. A message which does not
parse or is too long is answered as Go's server answers it (semantics 1.1).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
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
    Unknown,
)
from moored.kernel.namespaces import LEASE, NAMESPACE
from moored.kernel.plugin import HookRegistrar
from moored.kernel.ports.metrics import CallObserver
from moored.kernel.ports.services import Encoded
from moored.plugins.server.grpc.call import Call

UNKNOWN = "unknown"
"""Service and method under which observers are told of calls that nobody serves; clients cannot make up new names."""
SETTLE_SECONDS = 0.002
"""How long the refusal of a stream waits whose first message has not come.

grpc.aio's clients report INTERNAL when a call ends while they are still busy with having sent its headers.
"""

_CODE_NAMES = {
    status.value[0]: "".join(word.title() for word in status.name.split("_")) for status in grpc.StatusCode
} | {0: "OK", 1: "Canceled"}
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
    path: str = field(init=False)
    client_streams: bool = field(init=False)
    server_streams: bool = field(init=False)
    label: tuple[str, str, str] = field(init=False)
    """What observers are told: kind, service and name."""

    def __post_init__(self) -> None:
        """Work out once what every call asks for."""
        derived = {
            "path": f"/{self.service}/{self.name}",
            "client_streams": self.kind in ("client_stream", "bidi_stream"),
            "server_streams": self.kind in ("server_stream", "bidi_stream"),
            "label": (self.kind, self.service, self.name),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Details:
    """What generic handlers are asked with, see grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: Any


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


class Calls:
    """Every method of one server. Register first, then serve; all of it on one event loop.

    hooks        asked for `moored_admit` where somebody implements it
    max_receive  bytes of the longest request
    max_send     bytes of the longest answer
    common_name  what the client's certificate must be for; "" asks for none
    """

    def __init__(
        self,
        *,
        observers: Sequence[CallObserver],
        hooks: HookRegistrar,
        log: FilteringBoundLogger,
        max_receive: int,
        max_send: int,
        common_name: str = "",
    ) -> None:
        self.owners: dict[str, str] = {}
        self.running: set[asyncio.Task[Any]] = set()
        self.max_receive = max_receive
        self._methods: dict[str, Method] = {}
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
            self._methods[method.path] = method

    def add_generic(self, owner: str, handler: Any) -> None:
        """Ask a generic handler for methods that no service named; stubs of old generators register nothing else."""
        if isinstance(handler, grpc.ServiceRpcHandler):
            self._own(owner, handler.service_name())
        self._generic.append(handler)

    def _own(self, owner: str, service: str) -> None:
        if (first := self.owners.setdefault(service, owner)) != owner:
            raise AlreadyExists(f"gRPC service {service!r} of {owner!r} is already served by {first!r}")

    def find(self, path: str, metadata: Any) -> Method:
        """The method of a call; one for every call, as those to nobody are answered and counted too."""
        if (known := self._methods.get(path)) is not None:
            return known
        service, _, name = path.removeprefix("/").rpartition("/")
        for generic in self._generic:
            if (handler := generic.service(Details(path, metadata))) is not None:
                return self._methods.setdefault(path, _method(service, name, handler))
        known_service = service in self.owners
        text = f"unknown method {name} for service {service}" if known_service else f"unknown service {service}"

        def refuse(_requests: Any, _context: Any) -> None:
            raise Unimplemented(text, bare=True)

        # In the form of a stream, whose request nobody waits for.
        return Method("bidi_stream", UNKNOWN, UNKNOWN, refuse, bytes, bytes)

    async def serve(self, call: Call) -> None:
        """One call from its headers to its status; the task's own context holds namespace and lease."""
        began = time.perf_counter()
        method, task = call.method, call.task
        assert task is not None
        self.running.add(task)
        self._observers.tell("started", method)
        code = 2
        try:
            NAMESPACE.set(call.request.namespace)
            LEASE.set(call.request.lease)
            if self._common_name:
                self._check_peer(call)
            await (self._unary if method.kind == "unary" else self._streamed)(method, call)
            code = 0 if call.status is None else _number(call.status)
            call.end(code, call.text)
        except grpc.aio.AbortError:
            # What was aborted has not gone well, whatever it says.
            code = _number(call.code()) or 2
            call.end(code, call.text)
        except asyncio.CancelledError as error:
            # Either somebody gave the call up, or it was something inside: that is answered too.
            code, text = call.interruption() if task.cancelling() else self._status(method, error)
            call.end(code, text)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a request ends here, and nothing else with it
            code, text = self._status(method, error)
            if method.client_streams and not call.incoming.begun:
                await asyncio.sleep(SETTLE_SECONDS)
            call.end(code, text)
        finally:
            self.running.discard(task)
            self._observers.tell("handled", method, _CODE_NAMES[code], time.perf_counter() - began)

    def _status(self, method: Method, error: BaseException) -> tuple[int, str]:
        """The status that stands for an error; what no service means to raise is logged with its traceback."""
        if isinstance(error, NotImplementedError):
            # What generated servicer classes raise for a method that the service left out.
            error = Unimplemented(f"method {method.name} not implemented", bare=True)
        elif not _is_meant(error):
            self._log.error("call failed", method=method.path, exc_info=error)
        return to_status(error)

    def _check_peer(self, call: Call) -> None:
        names = [name.decode() for name in call.peer_identities() or ()]
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

    async def _unary(self, method: Method, call: Call) -> None:
        request = await self._request(method, call)
        self._admit(method, request)
        answer = await _settled(method.behaviour(request, call))
        await self._answer(method, call, answer)

    async def _streamed(self, method: Method, call: Call) -> None:
        if not method.client_streams:
            request = await self._request(method, call)
            self._admit(method, request)
            await _send_all(method.behaviour(request, call), call)
            return
        self._admit(method, None)
        async with aclosing(call.messages()) as requests:
            found = method.behaviour(requests, call)
            if method.server_streams:
                await _send_all(found, call)
            else:
                await self._answer(method, call, await _settled(found))

    async def _request(self, method: Method, call: Call) -> Any:
        raw = await call.read_raw()
        if raw is None:
            raise Unknown("EOF", bare=True)
        return self.decode(method, raw)

    async def _answer(self, method: Method, call: Call, answer: Any) -> None:
        raw = self.encode(method, answer)
        if call.status is None and not call.text:
            await call.answer(raw)
        elif not call.status or _number(call.status) == 0:
            await call.write_raw(raw)

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
            raw = message if type(message) is Encoded else method.serialize(message)
        except Exception as error:
            self._log.exception("answer cannot be encoded", method=method.path)
            raise Internal(f"grpc: error while marshaling: {error}", bare=True) from error
        if len(raw) > self._max_send:
            text = f"grpc: trying to send message larger than max ({len(raw)} vs. {self._max_send})"
            raise ResourceExhausted(text, bare=True)
        self._observers.tell("sent", method)
        return raw


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
    )


async def _settled(found: Any) -> Any:
    return await found if type(found) is CoroutineType or inspect.isawaitable(found) else found


async def _send_all(found: Any, call: Call) -> None:
    """Run the handler of a stream: an async generator's messages are sent, a coroutine writes its own."""
    if inspect.isawaitable(found):
        await found
        return
    async with aclosing(found) as messages:
        async for message in messages:
            await call.write(message)


def _number(code: Any) -> int:
    """A code as number: handlers give a StatusCode, or a number; one that is none is UNKNOWN."""
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    return number if number in _CODE_NAMES else 2


def _is_meant(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(MooredError)[1] is None
    return isinstance(error, MooredError)
