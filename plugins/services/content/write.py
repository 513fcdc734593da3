"""One Write stream: its messages on a writer of the store. Source: semantics 2, Write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from moored.api.convert import timestamp
from moored.api.services.content.v1 import content_pb2 as pb
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from moored.kernel.filters import quote
from moored.kernel.ports.content import LabelledContentStore, LabelledWriter


class WriteStream:
    """The state of a stream: what of its messages counts for later ones, and the answer.

    The answer is one message for the whole stream: fields that a later action does not set stay as they were.
    """

    def __init__(self, store: LabelledContentStore) -> None:
        self._store = store
        self._answer = pb.WriteContentResponse()
        self._ref = ""
        self._total = 0
        self._expected = ""
        self._offset = 0

    async def answers(self, requests: AsyncIterator[pb.WriteContentRequest]) -> AsyncGenerator[pb.WriteContentResponse]:
        """Give the answer to each message, before the next is looked at, up to that to a COMMIT.

        Raises InvalidArgument `first message must have a reference`, and what the messages lead to.
        """
        first = await anext(requests, None)
        if first is None:
            return
        if not first.ref:
            raise InvalidArgument("first message must have a reference", bare=True)
        self._ref, self._total, self._expected = first.ref, first.total, first.expected
        async with await self._store.writer(self._ref, self._total, self._expected) as writer:
            self._offset = (await writer.status()).offset
            await self._act(first, writer)
            yield self._answer
            if first.action == pb.COMMIT:
                return
            async for request in requests:
                await self._take_over(request, writer)
                await self._act(request, writer)
                yield self._answer
                if request.action == pb.COMMIT:
                    return

    async def _take_over(self, request: pb.WriteContentRequest, writer: LabelledWriter) -> None:
        """Keep what a message says of the whole. Raises AlreadyExists for a blob that is there: the ingest goes."""
        if request.total < 0:
            raise InvalidArgument(f"total {request.total} of ref {quote(self._ref[:256])} is negative")
        self._total = request.total or self._total
        if not request.expected:
            return
        self._expected = request.expected
        try:
            await self._store.info(request.expected)
        except NotFound:
            return
        await writer.close()
        with suppress(NotFound):
            await self._store.abort(self._ref)
        raise AlreadyExists(f"blob with expected digest {request.expected} exists", bare=True)

    async def _act(self, request: pb.WriteContentRequest, writer: LabelledWriter) -> None:
        answer = self._answer
        answer.action = request.action
        match request.action:
            case pb.STAT:
                status = await writer.status()
                self._offset = status.offset
                answer.started_at.CopyFrom(timestamp(status.started_at))
                answer.updated_at.CopyFrom(timestamp(status.updated_at))
                answer.total = self._total
                answer.digest = writer.digest
            case pb.WRITE:
                await self._write(request, writer)
                answer.digest = writer.digest
            case pb.COMMIT:
                await self._write(request, writer)
                answer.digest = await self._commit(request, writer)
        answer.offset = self._offset

    async def _write(self, request: pb.WriteContentRequest, writer: LabelledWriter) -> None:
        if request.offset > 0 and request.offset != self._offset:
            text = f"write @{request.offset} must occur at current offset {self._offset}"
            raise OutOfRange(text, bare=True)
        # Below 0 it means "wherever the end is".
        if request.offset == 0 and self._offset > 0:
            await writer.truncate()
            self._offset = 0
        if data := request.data:
            self._offset = await writer.write(data)

    async def _commit(self, request: pb.WriteContentRequest, writer: LabelledWriter) -> str:
        if self._total not in (0, self._offset):
            raise FailedPrecondition(f"{quote(self._ref)} failed size validation: {self._offset} != {self._total}")
        info = await writer.commit(self._total, self._expected, dict(request.labels))
        return info.digest
