"""Streams: messages that go both ways between a client and whoever in the daemon uses the stream that it named.

client opens a stream, names it --registered--> a later call names it --found--> its consumer sends, receives, closes
"""

from __future__ import annotations

from typing import Protocol

from moored.kernel.payloads import Packed
from moored.kernel.plugin import PluginType


class Stream(Protocol):
    """One client's stream, for one consumer.

    Errors: Unavailable once the client is gone or the stream is closed. Concurrency: one receive at a time; sends are
    carried out one after the other. Cancellation: a cancelled receive has lost no message.
    """

    async def send(self, message: Packed) -> None:
        """Send a message; waits until the client has room for it."""

    async def receive(self) -> Packed | None:
        """Give the next message of the client, None once it has said that there will be none or is gone."""

    async def close(self) -> None:
        """End the stream; its name is free. Again is harmless."""


class StreamManager(Protocol):
    """The open streams by namespace and name; names are any text.

    A name stays taken until the consumer closes the stream, whatever the client does. A stream that was registered
    under a lease is closed by a collection once that is gone and no label names the stream. The number of streams is
    bounded; beyond it those whose client is gone make room.
    """

    async def register(self, name: str, stream: Stream) -> Stream:
        """Take a stream of the current namespace and lease in, and give it as its consumer will see it.

        Raises Unknown `already exists` for a name that is taken, ResourceExhausted over the bound.
        """

    def get(self, name: str) -> Stream:
        """Give a stream of the current namespace. Raises NotFound."""

    def abandoned(self, name: str, stream: Stream) -> None:
        """Note that the client of a stream that `register` gave is gone."""


STREAMING: PluginType[StreamManager] = PluginType("io.containerd.streaming.v1")
