"""The open streams by namespace and name; collections close those that nothing keeps."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from moored.kernel.errors import NotFound, ResourceExhausted, Unknown
from moored.kernel.namespaces import current_lease, namespace_or_empty
from moored.kernel.payloads import Packed
from moored.kernel.ports.objects import Collectable
from moored.kernel.ports.streaming import Stream

MAX_STREAMS: Final = 4096
"""Names that are taken at once, over all namespaces."""

_Key = tuple[str, str]


class LeasedStreams:
    """The StreamManager. An async context manager; on one event loop."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._max = max_streams
        self._streams: dict[_Key, _Managed] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self.listed():
            await stream.close()

    async def register(self, name: str, stream: Stream) -> Stream:
        """See StreamManager."""
        key = (namespace_or_empty(), name)
        if key in self._streams:
            raise Unknown("already exists")
        if len(self._streams) >= self._max:
            await self._make_room()
        managed = _Managed(self, key, current_lease(), stream)
        self._streams[key] = managed
        return managed

    async def _make_room(self) -> None:
        left = next((stream for stream in self._streams.values() if stream.abandoned), None)
        if left is None:
            raise ResourceExhausted(f"{self._max} streams are open, which is the limit")
        await left.close()

    def get(self, name: str) -> Stream:
        """See StreamManager."""
        found = self._streams.get((namespace_or_empty(), name))
        if found is None:
            raise NotFound("not found", bare=True)
        return found

    def abandoned(self, name: str, stream: Stream) -> None:
        """See StreamManager."""
        if isinstance(stream, _Managed):
            stream.abandoned = True

    def forget(self, key: _Key, stream: _Managed) -> None:
        """Free a name that this stream has."""
        if self._streams.get(key) is stream:
            del self._streams[key]

    def listed(self) -> list[Collectable]:
        """Give all of them, for `Objects.collectable`."""
        return list(self._streams.values())


class _Managed:
    """A client's stream that frees its name when it is closed."""

    def __init__(self, manager: LeasedStreams, key: _Key, lease: str, inner: Stream) -> None:
        self.namespace, self.name = key
        self.lease = lease
        self.abandoned = False
        self._manager = manager
        self._inner = inner

    async def send(self, message: Packed) -> None:
        """See Stream."""
        await self._inner.send(message)

    async def receive(self) -> Packed | None:
        """See Stream."""
        return await self._inner.receive()

    async def close(self) -> None:
        """See Stream."""
        self._manager.forget((self.namespace, self.name), self)
        await self._inner.close()
