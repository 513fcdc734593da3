"""The content service on a socket: what each message of each call is answered with."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from harness import fails, on_loop
from moored.api.services.content.v1 import content_pb2 as pb
from moored.kernel.namespaces import bind
from unit.content.served import Served, headers, served

DATA = b"some content"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
ABSENT = f"sha256:{'0' * 64}"
NS = headers("ns")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Writing:
    """One Write stream of a client."""

    def __init__(self, service: Served, metadata: Any = NS) -> None:
        self.call = service.stub.Write(metadata=metadata)

    async def ask(self, **message: Any) -> pb.WriteContentResponse:
        await self.call.write(pb.WriteContentRequest(**message))
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF
        return answer

    async def end(self) -> None:
        """Half-close, and see that the other side ends without another word."""
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


async def refused(service: Served, *messages: dict[str, Any], metadata: Any = NS) -> tuple[str, str]:
    """Send messages on a new stream; code and text of the last one's answer, which must be an error."""
    stream = Writing(service, metadata)
    for message in messages[:-1]:
        await stream.ask(**message)
    return await fails(stream.ask(**messages[-1]))


async def ingest(service: Served, data: bytes = DATA, ref: str = "in", metadata: Any = NS, **more: Any) -> str:
    stream = Writing(service, metadata)
    await stream.ask(ref=ref)
    answer = await stream.ask(action=pb.COMMIT, data=data, **more)
    return answer.digest


async def offset_of(service: Served, ref: str) -> int:
    return (await service.stub.Status(pb.StatusRequest(ref=ref), metadata=NS)).status.offset


async def refs(service: Served) -> list[str]:
    answer = await service.stub.ListStatuses(pb.ListStatusesRequest(filters=[""]), metadata=NS)
    return [status.ref for status in answer.statuses]


@asynccontextmanager
async def written(folder: Path) -> AsyncGenerator[Served]:
    """A service whose namespace has DATA."""
    async with served(folder) as service:
        await ingest(service)
        yield service


# --- the first message ------------------------------------------------------------------------------------------------


@on_loop
async def test_client_writes_as_clients_do(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        opened = await stream.ask(ref="ref", total=len(DATA), expected=DIGEST)
        assert (opened.action, opened.offset, opened.total) == (pb.STAT, 0, len(DATA))
        assert opened.digest == digest_of(b"")
        assert opened.started_at.seconds == opened.updated_at.seconds > 1_600_000_000
        assert (await stream.ask()).offset == 0
        first = await stream.ask(action=pb.WRITE, data=DATA[:5], offset=0)
        assert (first.action, first.offset, first.digest) == (pb.WRITE, 5, digest_of(DATA[:5]))
        assert first.total == len(DATA)  # of the STAT before
        second = await stream.ask(action=pb.WRITE, data=DATA[5:], offset=5)
        assert (second.offset, second.digest) == (len(DATA), DIGEST)
        done = await stream.ask(
            action=pb.COMMIT, total=len(DATA), expected=DIGEST, offset=len(DATA), labels={"a": "1", "b": ""}
        )
        assert (done.action, done.offset, done.digest) == (pb.COMMIT, len(DATA), DIGEST)
        assert await stream.call.read() is grpc.aio.EOF
        assert await stream.call.code() is grpc.StatusCode.OK
        info = (await service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NS)).info
        assert (info.digest, info.size, dict(info.labels)) == (DIGEST, len(DATA), {"a": "1"})
        assert await refs(service) == []


@on_loop
async def test_first_message_decides(tmp_path: Path) -> None:
    async with written(tmp_path) as service:
        assert await refused(service, {"ref": ""}) == ("INVALID_ARGUMENT", "first message must have a reference")
        assert await refused(service, {"ref": "r", "expected": DIGEST}) == (
            "ALREADY_EXISTS",
            f"content {DIGEST}: already exists",
        )
        assert await refused(service, {"ref": "r"}, metadata=()) == (
            "FAILED_PRECONDITION",
            "namespace is required: failed precondition",
        )
        assert await refused(service, {"ref": "r"}, metadata=headers("ns", "gone")) == (
            "NOT_FOUND",
            "lease does not exist: not found",
        )
        for bad in ("sha256:123", "md5:" + "0" * 32, "sha256:../../" + "0" * 58):
            code, _ = await refused(service, {"ref": "r", "expected": bad})
            assert code == "INVALID_ARGUMENT"
        code, _ = await refused(service, {"ref": "r", "total": -3})
        assert code == "INVALID_ARGUMENT"
        assert await refs(service) == []


@on_loop
async def test_stream_that_ends_before_its_first_message_is_fine(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        await Writing(service).end()
        assert await refs(service) == []


@on_loop
async def test_open_ref_is_locked_and_then_resumed(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", action=pb.WRITE, data=DATA[:5])
        code, text = await refused(service, {"ref": "ref"})
        assert code == "UNAVAILABLE"
        assert text.startswith("ref ns/1/ref locked for ")
        assert text.endswith("): unavailable")
        await stream.end()
        again = Writing(service)
        opened = await again.ask(ref="ref")
        assert (opened.offset, opened.digest) == (5, digest_of(DATA[:5]))
        await again.end()
        assert await offset_of(service, "ref") == 5


@on_loop
async def test_other_total_begins_anew(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", total=10, action=pb.WRITE, data=b"01234")
        await stream.end()
        again = Writing(service)
        opened = await again.ask(ref="ref", total=20)
        assert (opened.offset, opened.total) == (0, 20)


@on_loop
async def test_blob_of_another_namespace_needs_no_bytes(tmp_path: Path) -> None:
    async with written(tmp_path) as service:
        stream = Writing(service, headers("two"))
        opened = await stream.ask(ref="ref", expected=DIGEST)
        assert (opened.offset, opened.digest) == (len(DATA), DIGEST)
        done = await stream.ask(action=pb.COMMIT, total=len(DATA), expected=DIGEST, offset=len(DATA))
        assert done.digest == DIGEST
        await service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=headers("two"))


# --- later messages ---------------------------------------------------------------------------------------------------


@on_loop
async def test_offsets_of_writes(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        assert (await stream.ask(ref="ref", action=pb.WRITE, data=b"0123")).offset == 4
        assert (await stream.ask(ref="another", action=pb.WRITE, data=b"45", offset=4)).offset == 6
        assert (await stream.ask(action=pb.WRITE, data=b"67", offset=-1)).offset == 8
        assert (await stream.ask(action=pb.WRITE, offset=8)).offset == 8
        error = await fails(stream.ask(action=pb.WRITE, data=b"x", offset=3))
        assert error == ("OUT_OF_RANGE", "write @3 must occur at current offset 8")
        assert await refs(service) == ["ref"]
        again = Writing(service)
        assert (await again.ask(ref="ref")).digest == digest_of(b"01234567")
        cut = await again.ask(action=pb.WRITE, data=b"new")
        assert (cut.offset, cut.digest) == (3, digest_of(b"new"))


@on_loop
async def test_commit_at_offset_0_without_data_is_the_empty_blob(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", action=pb.WRITE, data=DATA)
        done = await stream.ask(action=pb.COMMIT)
        assert (done.offset, done.digest) == (0, digest_of(b""))


@on_loop
async def test_commit_that_does_not_fit_keeps_the_ingest(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        write = {"ref": 'r"f', "action": pb.WRITE, "data": DATA}
        size = len(DATA)
        assert await refused(service, write, {"action": pb.COMMIT, "offset": size, "total": 5}) == (
            "FAILED_PRECONDITION",
            f'"r\\"f" failed size validation: {size} != 5: failed precondition',
        )
        assert await refused(service, write, {"action": pb.COMMIT, "offset": size, "expected": ABSENT}) == (
            "FAILED_PRECONDITION",
            f"unexpected commit digest {DIGEST}, expected {ABSENT}: failed precondition",
        )
        long = {"action": pb.COMMIT, "offset": size, "labels": {"k": "v" * 4096}}
        code, text = await refused(service, write, long)
        assert (code, text[:12]) == ("INVALID_ARGUMENT", "info.Labels:")
        assert await offset_of(service, 'r"f') == size


@on_loop
async def test_total_and_expected_of_earlier_messages_are_held_against_the_commit(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        commit = {"action": pb.COMMIT, "data": DATA}
        for first in ({"total": 5}, {"expected": ABSENT}):
            code, _ = await refused(service, {"ref": "ref", **first}, commit)
            assert code == "FAILED_PRECONDITION"
            code, _ = await refused(service, {"ref": "ref"}, first, commit)
            assert code == "FAILED_PRECONDITION"
        stream = Writing(service)
        await stream.ask(ref="ref", total=5, expected=ABSENT)
        assert (await stream.ask(action=pb.COMMIT, data=DATA, total=len(DATA), expected=DIGEST)).digest == DIGEST


@pytest.mark.parametrize("action", [pb.STAT, pb.WRITE, pb.COMMIT, 7])
@on_loop
async def test_blob_that_is_there_by_now_ends_the_ingest(tmp_path: Path, action: int) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", action=pb.WRITE, data=DATA)
        await ingest(service)
        error = await fails(stream.ask(action=action, expected=DIGEST, offset=len(DATA)))
        assert error == ("ALREADY_EXISTS", f"blob with expected digest {DIGEST} exists")
        assert await refs(service) == []


@on_loop
async def test_commit_of_a_blob_that_is_there_removes_the_ingest(tmp_path: Path) -> None:
    async with written(tmp_path) as service:
        error = await refused(service, {"ref": "ref"}, {"action": pb.COMMIT, "data": DATA})
        assert error == ("ALREADY_EXISTS", f"content {DIGEST}: already exists")
        assert await refs(service) == []


@on_loop
async def test_only_labels_of_the_commit_count(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", labels={"first": "1"})
        await stream.ask(action=pb.WRITE, data=DATA, labels={"second": "1"})
        await stream.ask(action=pb.COMMIT, offset=len(DATA), labels={"third": "1"})
        info = (await service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NS)).info
        assert dict(info.labels) == {"third": "1"}


@on_loop
async def test_unknown_action_is_echoed(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        answer = await stream.ask(ref="ref", action=9, data=DATA)
        assert (answer.action, answer.offset, answer.digest) == (9, 0, "")


@on_loop
async def test_sha512_is_committed_as_such(tmp_path: Path) -> None:
    wanted = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref")
        await stream.ask(action=pb.WRITE, data=DATA)
        done = await stream.ask(action=pb.COMMIT, offset=len(DATA), expected=wanted)
        assert done.digest == wanted


async def opened_when_free(service: Served) -> pb.WriteContentResponse:
    """The first answer on `ref`, as soon as nobody else has it."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await Writing(service).ask(ref="ref")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


# --- clients that go away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["half close", "cancel"])
@on_loop
async def test_end_without_commit_keeps_the_bytes_and_never_commits(tmp_path: Path, how: str) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", total=len(DATA), expected=DIGEST)
        await stream.ask(action=pb.WRITE, data=DATA)
        if how == "cancel":
            stream.call.cancel()
        else:
            await stream.end()
        opened = await opened_when_free(service)
        assert opened.offset == len(DATA)
        error = await fails(service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NS))
        assert error[0] == "NOT_FOUND"


@on_loop
async def test_many_open_streams_hold_up_nobody(tmp_path: Path) -> None:
    async with written(tmp_path) as service:
        streams = [Writing(service) for _ in range(200)]
        await asyncio.gather(*(stream.ask(ref=f"r{number}") for number, stream in enumerate(streams)))
        async with asyncio.timeout(2):
            await service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NS)
            await ingest(service, b"beside")
        for stream in streams:
            stream.call.cancel()


@on_loop
async def test_abort_ends_a_stream_cleanly(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stream = Writing(service)
        await stream.ask(ref="ref", action=pb.WRITE, data=DATA)
        await service.stub.Abort(pb.AbortRequest(ref="ref"), metadata=NS)
        assert await refs(service) == []
        code, text = await fails(stream.ask(action=pb.COMMIT, offset=len(DATA)))
        assert code == "ABORTED"
        assert str(tmp_path) not in text
        error = await fails(service.stub.Abort(pb.AbortRequest(ref="ref"), metadata=NS))
        assert error == ("NOT_FOUND", "reference ref: not found")
        assert await ingest(service, ref="ref") == DIGEST


# --- the other calls --------------------------------------------------------------------------------------------------


@on_loop
async def test_status_names_a_missing_ref(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        error = await fails(service.stub.Status(pb.StatusRequest(ref="no"), metadata=NS))
        assert error == ("NOT_FOUND", 'could not get status for ref "no": reference no: not found')
        stream = Writing(service)
        await stream.ask(ref="yes", total=20, expected=ABSENT, action=pb.WRITE, data=DATA)
        status = (await service.stub.Status(pb.StatusRequest(ref="yes"), metadata=NS)).status
        assert (status.ref, status.offset, status.total, status.expected) == ("yes", len(DATA), 20, "")


@on_loop
async def test_digests_are_refused_in_the_words_of_each_call(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        stub, bad = service.stub, "what"
        fault = "invalid checksum digest format"
        for call, text in (
            (stub.Info(pb.InfoRequest(digest=bad), metadata=NS), '"what" failed validation'),
            (stub.Update(pb.UpdateRequest(info=pb.Info(digest=bad)), metadata=NS), '"what" failed validation'),
            (stub.Update(pb.UpdateRequest(), metadata=NS), '"" failed validation'),
            (stub.Delete(pb.DeleteContentRequest(digest=bad), metadata=NS), fault),
            (stub.Read(pb.ReadContentRequest(digest=bad), metadata=NS).read(), f"what: {fault}"),
        ):
            assert await fails(call) == ("INVALID_ARGUMENT", text)
        for call in (
            stub.Info(pb.InfoRequest(digest=ABSENT), metadata=NS),
            stub.Update(pb.UpdateRequest(info=pb.Info(digest=ABSENT)), metadata=NS),
            stub.Delete(pb.DeleteContentRequest(digest=ABSENT), metadata=NS),
            stub.Read(pb.ReadContentRequest(digest=ABSENT), metadata=NS).read(),
        ):
            assert await fails(call) == ("NOT_FOUND", f"content digest {ABSENT}: not found")


@on_loop
async def test_read_gives_messages_of_a_mebibyte_with_offsets_of_the_answer(tmp_path: Path) -> None:
    data = bytes(range(256)) * (5 << 11) + b"end"
    async with served(tmp_path) as service:
        digest = await ingest(service, data)

        async def read(offset: int = 0, size: int = 0) -> list[tuple[int, bytes]]:
            request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
            return [(part.offset, part.data) async for part in service.stub.Read(request, metadata=NS)]

        mebibyte = 1 << 20
        assert [(at, len(part)) for at, part in await read()] == [
            (0, mebibyte),
            (mebibyte, mebibyte),
            (2 * mebibyte, 524291),
        ]
        assert b"".join(part for _, part in await read()) == data
        assert await read(100, 5) == [(0, data[100:105])]
        assert await read(len(data) - 3, 1000) == [(0, b"end")]
        assert await read(-5, 4) == [(0, data[:4])]
        assert await read(len(data) - 3, -1) == [(0, b"end")]
        assert await read(len(data)) == []
        error = await fails(read(len(data) + 1))
        assert error == ("OUT_OF_RANGE", f"read past object length {len(data)} bytes")


@on_loop
async def test_list_gives_messages_of_100(tmp_path: Path) -> None:
    async with served(tmp_path) as service:
        with bind("ns"):
            for number in range(250):
                async with await service.parts.content.writer(f"r{number}") as writer:
                    await writer.write(str(number).encode())
                    await writer.commit(0, "", {"half": str(number % 2)})

        async def listed(*filters: str) -> list[int]:
            call = service.stub.List(pb.ListContentRequest(filters=filters), metadata=NS)
            return [len(message.info) async for message in call]

        assert await listed() == [100, 100, 50]
        assert await listed("labels.half==1") == [100, 25]
        assert await listed("labels.half==2") == []
        code, text = await fails(listed("x=="))
        assert (code, text.count("invalid argument")) == ("INVALID_ARGUMENT", 1)


@on_loop
async def test_update_changes_labels_only(tmp_path: Path) -> None:
    async with written(tmp_path) as service:

        async def update(labels: dict[str, str], *paths: str) -> dict[str, str]:
            request = pb.UpdateRequest(
                info=pb.Info(digest=DIGEST, size=5, labels=labels), update_mask=FieldMask(paths=paths)
            )
            info = (await service.stub.Update(request, metadata=NS)).info
            assert info.size == len(DATA)
            return dict(info.labels)

        assert await update({"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
        assert await update({"a.b/c": "3"}, "labels.a.b/c") == {"a": "1", "b": "2", "a.b/c": "3"}
        assert await update({}, "labels.a") == {"b": "2", "a.b/c": "3"}
        assert await update({"z": "1"}, "labels") == {"z": "1"}
        assert await fails(update({}, "size")) == (
            "INVALID_ARGUMENT",
            f'cannot update "size" field on content info "{DIGEST}": invalid argument',
        )
        assert await update({}) == {}


@on_loop
async def test_deleted_blob_is_gone_at_once(tmp_path: Path) -> None:
    async with written(tmp_path) as service:
        await service.stub.Delete(pb.DeleteContentRequest(digest=DIGEST), metadata=NS)
        error = await fails(service.stub.Info(pb.InfoRequest(digest=DIGEST), metadata=NS))
        assert error[0] == "NOT_FOUND"
        assert service.parts.blob_file(DIGEST).exists()
        assert await ingest(service) == DIGEST
