"""Containers: the records of what runs, made from images; what runs is their task.

Source: contracts/semantics.md 3.2 and what clients do, 4.
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moored.api.client import spec as specs
from moored.api.client.connection import Calls
from moored.api.client.images import Images
from moored.api.client.leases import under_lease
from moored.api.client.rootfs import find_user
from moored.api.client.snapshots import Snapshots, default_snapshotter
from moored.api.client.spec import Options
from moored.api.client.stdio import PIPES, Io
from moored.api.client.tasks import Task, attached_streams, opened_streams, process_state
from moored.api.client.wire import any_message, descriptor_message, mask, mount_messages, nanoseconds, typed_bytes
from moored.api.services.containers.v1 import containers_pb2 as pb
from moored.api.services.containers.v1 import containers_pb2_grpc
from moored.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import ImageConfig
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.namespaces import MAX_LABEL_BYTES, validate_identifier
from moored.kernel.ports.containers import Container as Record
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import Exit, Metric, ProcessState, Status

USUAL: Final = Options()
RUNTIME: Final = "io.containerd.runc.v2"
STOP_SIGNAL: Final = "io.containerd.image.config.stop-signal"
_RESERVED: Final = ("containerd.io/", "io.containerd.", "io.cri-containerd")


@dataclass(frozen=True, slots=True)
class Result:
    """How a container ran: its end, and what it wrote, as far as that was read."""

    exit: Exit
    stdout: bytes
    stderr: bytes


class Containers:
    """The containers of the namespace. Errors, beside those of the connection, as `kernel.ports.containers`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = containers_pb2_grpc.ContainersStub(calls.channel)
        self._tasks = tasks_pb2_grpc.TasksStub(calls.channel)

    async def get(self, id: str) -> Container:  # noqa: A002 - the field's term
        """Give one. Raises NotFound."""
        answer = await self._calls.unary(self._stub.Get, pb.GetContainerRequest(id=id))
        return Container(self._calls, record_of(answer.container))

    async def list(self, *filters: str) -> list[Container]:
        """Give those that match any filter (fields `id`, `runtime.name`, `image`, `labels`), by id."""
        answer = await self._calls.unary(self._stub.List, pb.ListContainersRequest(filters=filters))
        return [Container(self._calls, record_of(one)) for one in answer.containers]

    async def states(self) -> dict[str, ProcessState]:
        """Give the state of every container's task, by the container's id; those without a task are left out."""
        answer = await self._calls.unary(self._tasks.List, tasks_pb2.ListTasksRequest())
        return {one.id: process_state(one, one.id) for one in answer.tasks}

    async def metrics(self, *ids: str) -> builtins.list[Metric]:
        """Read the counters of the tasks that have some: of all, or of those with these ids."""
        request = tasks_pb2.MetricsRequest(filters=[f'id=="{id_}"' for id_ in ids])
        answer = await self._calls.unary(self._tasks.Metrics, request)
        return [
            Metric(id=one.id, timestamp=nanoseconds(one.timestamp), data=typed_bytes(one.data))
            for one in answer.metrics
        ]

    async def create(
        self,
        id: str,  # noqa: A002 - the field's term
        image: str | Image | None = None,
        options: Options = USUAL,
        *,
        platform: Platform | None = None,
        snapshotter: str = "",
        snapshot_labels: Mapping[str, str] = NO_LABELS,
        rootfs: Path | None = None,
        runtime: str = "",
        runtime_options: TypedBytes | None = None,
        labels: Mapping[str, str] = NO_LABELS,
        image_labels: bool = True,
        config: ImageConfig | None = None,
        sandbox: str = "",
        spec: Mapping[str, Any] | None = None,
    ) -> Container:
        """Make a container of an image, whole or not at all; the image is unpacked if it is not yet.

        rootfs         a folder of the host in place of a snapshot of the image; either will do
        runtime        a name, or a shim's path; empty for the namespace's default
        config         the image's, where the caller has read it before
        sandbox        id of the sandbox that it is to run in
        image_labels   take over the labels of the image's config, but for those with a meaning to daemons
        spec           the finished spec, in place of one made from the options

        Looking up a user's name means mounting the snapshot, for which the client has to be root on the daemon's host.
        Raises AlreadyExists, NotFound for the image or a user, InvalidArgument for options that cannot be.
        """
        validate_identifier(id)
        async with under_lease(self._calls) as calls:
            source = await self._source(image, platform, config)
            async with _snapshot(
                calls,
                id,
                source,
                snapshotter=snapshotter,
                platform=platform,
                rootfs=rootfs,
                labels=snapshot_labels,
            ) as base:
                if spec is None:
                    spec = await self._spec(id, source, options, base)
                record = Record(
                    id=id,
                    image=source.image.name if source.image else "",
                    runtime=runtime or await self._default_runtime(),
                    runtime_options=runtime_options,
                    spec=TypedBytes(specs.SPEC_TYPE, json.dumps(dict(spec)).encode()),
                    snapshotter=base.snapshotter,
                    snapshot_key=id if base.snapshotter else "",
                    sandbox=sandbox,
                    labels=_labels(source.config if image_labels else None, source.config, labels),
                )
                request = pb.CreateContainerRequest(container=message_of(record))
                answer = await calls.unary(self._stub.Create, request)
        return Container(self._calls, record_of(answer.container))

    async def _source(
        self, image: str | Image | None, platform: Platform | None, config: ImageConfig | None
    ) -> _Source:
        if image is None:
            return _Source(None, None)
        images = Images(self._calls)
        found = await images.get(image) if isinstance(image, str) else image
        return _Source(found, config or await images.config(found, platform))

    async def _spec(self, id_: str, source: _Source, options: Options, base: _Base) -> dict[str, Any]:
        process = source.config.config if source.config else None
        user = await find_user(options.user or (process.user if process else ""), options.groups, base.place)
        # Devices of the host may be looked at.
        return await asyncio.to_thread(
            specs.build,
            options,
            container_id=id_,
            namespace=self._calls.namespace,
            image=source.config,
            user=user,
            rootfs=base.root,
        )

    async def _default_runtime(self) -> str:
        from moored.api.client.namespaces import Namespaces

        labels = (await Namespaces(self._calls).get(self._calls.namespace)).labels
        return labels.get("containerd.io/defaults/runtime") or RUNTIME


@dataclass(frozen=True, slots=True)
class _Source:
    image: Image | None
    config: ImageConfig | None


@dataclass(frozen=True, slots=True)
class _Base:
    """Where a container's files are: root as its spec names it, and the place where they can be looked at."""

    snapshotter: str
    root: str
    place: Path | Sequence[Mount]


@asynccontextmanager
async def _snapshot(
    calls: Calls,
    key: str,
    source: _Source,
    *,
    snapshotter: str,
    platform: Platform | None,
    rootfs: Path | None,
    labels: Mapping[str, str],
) -> AsyncGenerator[_Base]:
    """Prepare a container's files; what was made goes again if the block fails."""
    if rootfs is not None:
        yield _Base("", str(rootfs), rootfs)
        return
    if source.image is None:
        raise InvalidArgument(f"container {key!r} has neither an image nor a rootfs, one is wanted")
    snapshots = Snapshots(calls, snapshotter or await default_snapshotter(calls))
    mounts = await _prepared(calls, snapshots, key, source, platform=platform, labels=labels)
    try:
        yield _Base(snapshots.name, "rootfs", mounts)
    except BaseException:
        with suppress(MooredError):
            await snapshots.remove(key)
        raise


async def _prepared(
    calls: Calls,
    snapshots: Snapshots,
    key: str,
    source: _Source,
    *,
    platform: Platform | None,
    labels: Mapping[str, str],
) -> list[Mount]:
    """Prepare a snapshot above an image, which is unpacked if it is not yet."""
    chain = chain_ids(source.config.rootfs.diff_ids) if source.config else []
    if chain:
        # An image that is unpacked, as most are, need not be looked through for its layers.
        with suppress(NotFound):
            return await snapshots.prepare(key, chain[-1], labels)
    from moored.api.client.unpacking import unpack

    assert source.image is not None
    parent = await unpack(calls, source.image, snapshots.name, platform=platform)
    return await snapshots.prepare(key, parent, labels)


class Container:
    """One container, with its record as last read. Errors: NotFound once it is deleted."""

    def __init__(self, calls: Calls, record: Record) -> None:
        self._calls = calls
        self._stub = containers_pb2_grpc.ContainersStub(calls.channel)
        self._tasks = tasks_pb2_grpc.TasksStub(calls.channel)
        self._record = record

    @property
    def id(self) -> str:
        """Its id."""
        return self._record.id

    @property
    def record(self) -> Record:
        """All that is stored of it."""
        return self._record

    async def refresh(self) -> Record:
        """Read the record anew."""
        answer = await self._calls.unary(self._stub.Get, pb.GetContainerRequest(id=self.id))
        self._record = record_of(answer.container)
        return self._record

    async def spec(self) -> dict[str, Any]:
        """Give its OCI runtime spec. Raises FailedPrecondition for one that is none."""
        spec = self._record.spec
        try:
            found = json.loads(spec.value) if spec is not None else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise FailedPrecondition(f"container {self.id} has no spec that is a JSON object")
        return found

    async def image(self) -> Image:
        """Give the image that it was made of. Raises NotFound for none."""
        if not self._record.image:
            raise NotFound(f"container {self.id} has no image")
        return await Images(self._calls).get(self._record.image)

    async def label(self, labels: Mapping[str, str]) -> Record:
        """Set some labels, an empty value removes one, and give the record."""
        return await self.update(replace(self._record, labels=labels), [f"labels.{key}" for key in labels])

    async def update(self, record: Record, paths: Sequence[str]) -> Record:
        """Replace what paths name (`labels`, `spec`, `extensions`, `image`, `snapshotkey`), and give the record."""
        if paths:
            request = pb.UpdateContainerRequest(container=message_of(record), update_mask=mask(paths))
            self._record = record_of((await self._calls.unary(self._stub.Update, request)).container)
        return self._record

    async def create_task(
        self,
        io: Io = PIPES,
        *,
        checkpoint: Descriptor | None = None,
        options: TypedBytes | None = None,
        runtime_path: str = "",
    ) -> Task:
        """Make the task, which `Task.start` runs; checkpoint is what to restore it from.

        A process with a terminal needs streams with one. Raises AlreadyExists for a container with a task.
        """
        terminal = bool((await self.spec()).get("process", {}).get("terminal"))
        if io.kind in {"pipes", "terminal"} and terminal != io.is_terminal:
            wanted = "TERMINAL" if terminal else "streams without a terminal"
            raise InvalidArgument(f"process of container {self.id!r} has terminal={terminal}, wanted {wanted}")
        streams = opened_streams(self._calls, self.id, "", io)
        try:
            stdio = streams.stdio
            request = tasks_pb2.CreateTaskRequest(
                container_id=self.id,
                rootfs=mount_messages(await self._mounts()),
                stdin=stdio.stdin,
                stdout=stdio.stdout,
                stderr="" if terminal else stdio.stderr,
                terminal=terminal,
                checkpoint=descriptor_message(checkpoint) if checkpoint else None,
                options=any_message(options),
                runtime_path=runtime_path,
            )
            answer = await self._calls.unary(self._tasks.Create, request, slow=True)
        except BaseException:
            streams.close()
            raise
        return Task(self._calls, self.id, "", streams, answer.pid)

    async def _mounts(self) -> list[Mount]:
        if not self._record.snapshot_key:
            return []
        return await Snapshots(self._calls, self._record.snapshotter).mounts(self._record.snapshot_key)

    async def task(self, *, attach: bool = False) -> Task:
        """Find its task; attach opens its streams again. Raises NotFound."""
        state = await self._state()
        return Task(self._calls, self.id, "", attached_streams(self._calls, state, attach=attach), state.pid)

    async def _state(self) -> ProcessState:
        answer = await self._calls.unary(self._tasks.Get, tasks_pb2.GetRequest(container_id=self.id))
        return process_state(answer.process, self.id)

    async def run(self, io: Io = PIPES, *, stdin: bytes | None = None) -> Result:
        """Run it to its end, with this input, and delete the task; what it writes is kept in memory.

        When cancelled, or after an error, nothing runs any more.
        """
        if stdin is not None:
            io = replace(io, stdin=True)
        async with await self.create_task(io) as task:
            async with asyncio.TaskGroup() as group:
                outputs = [
                    group.create_task(output.read()) if output is not None else None
                    for output in (task.stdout, task.stderr)
                ]
                ended = group.create_task(task.wait())
                await task.start()
                if stdin is not None and task.stdin is not None:
                    with suppress(FailedPrecondition):  # it need not read all of it
                        await task.stdin.write(stdin)
                    await task.stdin.close()
            out, err = (output.result() if output is not None else b"" for output in outputs)
            await task.delete()
            return Result(ended.result(), out, err)

    async def delete(self, *, force: bool = False, keep_snapshot: bool = False) -> None:
        """Remove the record, and its snapshot unless that is to be kept; force ends its task before.

        Raises FailedPrecondition for a container with a task.
        """
        with suppress(NotFound):
            state = await self._state()
            if not force and state.status is not Status.STOPPED:
                raise FailedPrecondition(f"container {self.id} has a task, delete it first")
            await (await self.task()).delete(force=True)
        if self._record.snapshot_key and not keep_snapshot:
            with suppress(NotFound):
                await Snapshots(self._calls, self._record.snapshotter).remove(self._record.snapshot_key)
        await self._calls.unary(self._stub.Delete, pb.DeleteContainerRequest(id=self.id))


def _labels(image: ImageConfig | None, config: ImageConfig | None, given: Mapping[str, str]) -> dict[str, str]:
    """Give a container's labels: the image's, none of which may tell a daemon what to do; the stop signal; those given.

    An image's label that is too long is left out.
    """
    theirs = (image.config.labels if image and image.config else None) or {}
    found = {key: value for key, value in theirs.items() if _harmless(key, value)}
    if config is not None:
        found[STOP_SIGNAL] = (config.config.stop_signal if config.config else "") or "SIGTERM"
    return found | dict(given)


def _harmless(key: str, value: str) -> bool:
    return not key.startswith(_RESERVED) and len(key.encode()) + len(value.encode()) <= MAX_LABEL_BYTES


def record_of(message: pb.Container) -> Record:
    """Give the record that a message stands for."""
    return Record(
        id=message.id,
        image=message.image,
        runtime=message.runtime.name,
        runtime_options=typed_bytes(message.runtime.options) if message.runtime.HasField("options") else None,
        spec=typed_bytes(message.spec) if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        labels=dict(message.labels),
        extensions={name: typed_bytes(extension) for name, extension in message.extensions.items()},
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )


def message_of(record: Record) -> pb.Container:
    """Give a record as the wire has it."""
    made = pb.Container(
        id=record.id,
        image=record.image,
        runtime=pb.Container.Runtime(name=record.runtime, options=any_message(record.runtime_options)),
        spec=any_message(record.spec),
        snapshotter=record.snapshotter,
        snapshot_key=record.snapshot_key,
        sandbox=record.sandbox,
        labels=record.labels,
    )
    for name, extension in record.extensions.items():
        made.extensions[name].type_url, made.extensions[name].value = extension.type_url, extension.value
    return made
