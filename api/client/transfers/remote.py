"""Transfers that the daemon carries out. Source: contracts/semantics.md 3.10."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

from google.protobuf.message import Message

from moored.api.client.connection import Calls
from moored.api.client.transfers.streams import (
    answer_questions,
    opened,
    receive_archive,
    report_progress,
    send_bytes,
)
from moored.api.client.transfers.tasks import beside
from moored.api.client.wire import platform_message
from moored.api.convert import pack
from moored.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from moored.api.transfer.secrets import SecretLookup
from moored.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from moored.kernel.errors import Unimplemented
from moored.kernel.ports.transfer import ArchiveSink, ArchiveSource, Report, Repository, StoredImages

Work: TypeAlias = Coroutine[Any, Any, None]


class RemoteTransfer:
    """The Transferrer that is the daemon's transfer service; of containerd, from 1.7 on."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = transfer_pb2_grpc.TransferStub(calls.channel)

    async def transfer(self, source: object, destination: object, report: Report | None = None) -> None:
        """See Transferrer. What is read and written here may raise its own errors."""
        async with AsyncExitStack() as stack:
            ends = _Ends(self._calls, stack)
            try:
                request = transfer_pb2.TransferRequest(
                    source=pack(await ends.message(source)), destination=pack(await ends.message(destination))
                )
                if report is not None:
                    request.options.progress_stream = await ends.progress(report)
            except BaseException:
                ends.drop()
                raise
            await beside(self._call(request, ends), to_the_end=ends.to_the_end, meanwhile=ends.meanwhile)

    async def _call(self, request: transfer_pb2.TransferRequest, ends: _Ends) -> None:
        await self._calls.unary(self._stub.Transfer, request, slow=True)
        ends.answered.set()


class _Ends:
    """The two ends of a transfer as messages, with what has to be done for them while it runs."""

    def __init__(self, calls: Calls, stack: AsyncExitStack) -> None:
        self.to_the_end: list[Work] = []
        self.meanwhile: list[Work] = []
        self.answered = asyncio.Event()
        self._calls = calls
        self._stack = stack

    async def message(self, end: object) -> Message:
        """Give an end as the wire has it. Raises Unimplemented for one of another type."""
        match end:
            case Repository():
                return await self._repository(end)
            case StoredImages():
                return _stored_images(end)
            case ArchiveSource():
                name, stream = await self._stack.enter_async_context(opened(self._calls, "import"))
                self.meanwhile.append(send_bytes(stream, end.chunks()))
                return importexport_pb2.ImageImportStream(
                    stream=name, media_type=end.media_type, force_compress=end.force_compress
                )
            case ArchiveSink():
                name, stream = await self._stack.enter_async_context(opened(self._calls, "export"))
                self.to_the_end.append(receive_archive(stream, end.write, self.answered))
                return importexport_pb2.ImageExportStream(
                    stream=name,
                    media_type=end.media_type,
                    platforms=[platform_message(platform) for platform in end.platforms],
                    all_platforms=end.all_platforms,
                    skip_compatibility_manifest=end.skip_docker_manifest,
                    skip_non_distributable=end.skip_nondistributable,
                )
            case _:
                raise Unimplemented(f"{type(end).__name__} cannot be an end of a transfer")

    async def progress(self, report: Report) -> str:
        """Open the stream for progress and give its name."""
        name, stream = await self._stack.enter_async_context(opened(self._calls, "progress"))
        self.to_the_end.append(report_progress(stream, report, self.answered))
        return name

    async def _repository(self, end: Repository) -> Message:
        resolver = registry_pb2.RegistryResolver(
            headers=end.headers, host_dir=end.hosts_folder, default_scheme=end.default_scheme
        )
        if end.secret is not None:
            resolver.auth_stream, stream = await self._stack.enter_async_context(opened(self._calls, "auth"))
            self.meanwhile.append(answer_questions(stream, SecretLookup(end.secret)))
        return registry_pb2.OCIRegistry(reference=end.reference, resolver=resolver)

    def drop(self) -> None:
        """Forget what was to be done."""
        for work in (*self.to_the_end, *self.meanwhile):
            work.close()


def _stored_images(end: StoredImages) -> Message:
    return imagestore_pb2.ImageStore(
        name=end.name,
        labels=end.labels,
        platforms=[platform_message(platform) for platform in end.platforms],
        all_metadata=end.all_metadata,
        manifest_limit=end.manifest_limit,
        extra_references=[
            imagestore_pb2.ImageReference(
                name=extra.name,
                is_prefix=extra.is_prefix,
                allow_overwrite=extra.allow_overwrite,
                add_digest=extra.add_digest,
                skip_named_digest=extra.skip_named_digest,
            )
            for extra in end.extra
        ],
        unpacks=[
            imagestore_pb2.UnpackConfiguration(platform=platform_message(one.platform), snapshotter=one.snapshotter)
            for one in end.unpacks
        ],
    )
