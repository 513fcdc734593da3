"""The transfer service on the wire. Source: semantics 3.10."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, cast

from google.protobuf.empty_pb2 import Empty
from structlog.typing import FilteringBoundLogger

from moored.api.services.transfer.v1 import transfer_pb2 as pb
from moored.api.services.transfer.v1 import transfer_pb2_grpc as rpc
from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
from moored.api.types.transfer import progress_pb2
from moored.kernel.errors import InvalidArgument, MooredError, Unimplemented
from moored.kernel.namespaces import current_namespace
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.ports.streaming import Stream, StreamManager
from moored.kernel.ports.transfer import Progress, Report, Transferrer
from moored.plugins.services.transfer.bytestreams import packed
from moored.plugins.services.transfer.ends import Ends

MAX_NEWS: Final = 4096
"""News that wait for a slow client; beyond it the oldest that only tell numbers are left out."""
LAST_SECONDS: Final = 10.0
"""How long the answer to a transfer waits for a client to take the last news."""
_NUMBERS: Final = frozenset({"downloading", "uploading", "extracting"})


class TransferService(rpc.TransferServicer):
    """containerd.services.transfer.v1.Transfer."""

    def __init__(self, transferrers: Sequence[Transferrer], streams: StreamManager, log: FilteringBoundLogger) -> None:
        self._transferrers = transferrers
        self._streams = streams
        self._log = log

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_TransferServicer_to_server(self, cast(Any, server))

    async def Transfer(self, request: pb.TransferRequest, context: Any) -> Empty:  # noqa: N802
        """Move an image, and tell of it on the stream that the request names."""
        current_namespace()
        if not request.HasField("source") or not request.HasField("destination"):
            raise InvalidArgument("source and destination must be given")
        async with AsyncExitStack() as stack:
            report: Report | None = None
            if name := request.options.progress_stream:
                stream = self._streams.get(name)
                stack.push_async_callback(stream.close)
                report = await stack.enter_async_context(_told(stream))
            # Streams of bytes are closed before the last news are awaited, as clients wait for their end.
            async with AsyncExitStack() as streams:
                ends = Ends(self._streams, streams)
                source, destination = ends.open(request.source), ends.open(request.destination)
                await self._transfer(request, source, destination, report)
        return Empty()

    async def _transfer(
        self, request: pb.TransferRequest, source: object, destination: object, report: Report | None
    ) -> None:
        for transferrer in self._transferrers:
            try:
                await transferrer.transfer(source, destination, report)
            except Unimplemented as error:
                self._log.debug("transfer is not implemented", reason=error.text)
            else:
                return
        text = f"method Transfer not implemented for {request.source.type_url} to {request.destination.type_url}"
        raise Unimplemented(text, bare=True)


@asynccontextmanager
async def _told(stream: Stream) -> AsyncGenerator[Report]:
    """Send news to a client beside the block; at its end the last ones are waited for."""
    news = _News(stream)
    sending = asyncio.create_task(news.send(), name="progress")
    try:
        yield news.add
    finally:
        news.end()
        await asyncio.wait([sending], timeout=LAST_SECONDS)
        sending.cancel()
        await asyncio.wait([sending])


class _News:
    """What a client has still to be told."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: deque[Progress] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    def add(self, news: Progress) -> None:
        """See Report."""
        if len(self._waiting) < MAX_NEWS or news.event not in _NUMBERS:
            self._waiting.append(news)
            self._arrived.set()

    def end(self) -> None:
        """Say that there will be no more."""
        self._ended = True
        self._arrived.set()

    async def send(self) -> None:
        """Send all until the end; a client that has left is told nothing."""
        try:
            while self._waiting or not self._ended:
                while self._waiting:
                    await self._stream.send(packed(_message(self._waiting.popleft())))
                if not self._ended:
                    self._arrived.clear()
                    await self._arrived.wait()
        except MooredError:
            pass


def _message(news: Progress) -> progress_pb2.Progress:
    message = progress_pb2.Progress(
        event=news.event, name=news.name, parents=news.parents, progress=news.progress, total=news.total
    )
    if (one := news.descriptor) is not None:
        message.desc.CopyFrom(
            DescriptorMessage(
                media_type=one.media_type, digest=one.digest, size=one.size, annotations=dict(one.annotations)
            )
        )
    return message
