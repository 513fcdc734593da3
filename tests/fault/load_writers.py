"""Writers on a daemon over gRPC, as clients are: images, containers, leases, labels, ingests, beside each other."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask

from fault.load_images import Blob, Image, Layer, digest_of, random_image
from fault.load_model import Key, Model
from moored.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from moored.api.services.content.v1 import content_pb2, content_pb2_grpc
from moored.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
from moored.api.services.images.v1 import images_pb2, images_pb2_grpc
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc

NAMESPACES = ("one", "two")
WRITERS = 4
ALREADY = grpc.StatusCode.ALREADY_EXISTS
WENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
"""What a call may end with when the daemon is killed under it."""
LOCKED_SECONDS = 20.0
"""How long a ref may be locked by somebody who works on it."""
_UNSHARED = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class Client:
    """The stubs, in one namespace and under one lease or none."""

    def __init__(self, channel: grpc.aio.Channel, namespace: str, lease: str = "") -> None:
        self.channel = channel
        self.namespace = namespace
        self.metadata = (("containerd-namespace", namespace), *((("containerd-lease", lease),) if lease else ()))
        self._content: Any = content_pb2_grpc.ContentStub(channel)
        self._stubs: dict[str, Any] = {
            "content": self._content,
            "containers": containers_pb2_grpc.ContainersStub(channel),
            "diff": diff_pb2_grpc.DiffStub(channel),
            "images": images_pb2_grpc.ImagesStub(channel),
            "leases": leases_pb2_grpc.LeasesStub(channel),
            "snapshots": snapshots_pb2_grpc.SnapshotsStub(channel),
        }

    def under(self, lease: str) -> Client:
        """The same under a lease."""
        return Client(self.channel, self.namespace, lease)

    async def call(self, service: str, method: str, request: Any) -> Any:
        """One unary call."""
        return await getattr(self._stubs[service], method)(request, metadata=self.metadata, timeout=60)

    async def all(self, service: str, method: str, request: Any) -> list[Any]:
        """The answers of a stream."""
        return [one async for one in getattr(self._stubs[service], method)(request, metadata=self.metadata, timeout=60)]

    async def write(self, *requests: content_pb2.WriteContentRequest) -> content_pb2.WriteContentResponse:
        """One Write stream, each message after the answer to the last; gives the last answer."""
        call = self._content.Write(metadata=self.metadata, timeout=60)
        try:
            for request in requests:
                await call.write(request)
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise AssertionError(f"the stream ended with {await call.code()}")
            await call.done_writing()
            # The writer is closed, and its ref free, when the stream has ended.
            await call.read()
        except asyncio.InvalidStateError:
            # What the stream ended with, instead of its being over.
            await call
            raise
        finally:
            call.cancel()
        return answer

    async def store(self, blob: Blob, labels: dict[str, str] | None = None, ref: str = "") -> None:
        """Write a blob, unless it is there."""
        ref = ref or f"blob-{blob.digest}"
        total, expected = len(blob.data), blob.digest
        begin = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref, total=total, expected=expected)
        commit = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, data=blob.data, total=total, expected=expected, labels=labels or {}
        )
        async with asyncio.timeout(LOCKED_SECONDS):
            while True:
                try:
                    await self.write(begin, commit)
                except grpc.aio.AioRpcError as error:
                    if "locked for" in str(error.details()):
                        # Somebody else stores the same; clients try again.
                        await asyncio.sleep(0.01)
                        continue
                    if error.code() is not ALREADY:
                        raise
                return


@asynccontextmanager
async def connected(socket: Path) -> AsyncGenerator[grpc.aio.Channel]:
    """A channel that shares no connection with others."""
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=_UNSHARED) as channel:
        yield channel


def image_labels(image: Image) -> dict[str, str]:
    """What a manifest's blob is labelled with."""
    refs = {"config": image.config, **{f"l.{n}": layer.blob for n, layer in enumerate(image.layers)}}
    return {f"containerd.io/gc.ref.content.{key}": blob.digest for key, blob in refs.items()}


def snapshot_ref(snapshotter: str) -> str:
    """The label of a config's blob that keeps the unpacked snapshot."""
    return f"containerd.io/gc.ref.snapshot.{snapshotter}"


async def unpack(client: Client, snapshotter: str, layer: Layer, parent: str, key: str) -> None:
    """Unpack one layer and commit it, unless that has been done."""
    prepare = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent, labels={"containerd.io/snapshot.ref": layer.chain_id}
    )
    try:
        mounts = (await client.call("snapshots", "Prepare", prepare)).mounts
    except grpc.aio.AioRpcError as error:
        if error.code() is ALREADY:
            return
        raise
    apply = diff_pb2.ApplyRequest(diff=layer.blob.descriptor, mounts=mounts)
    applied = (await client.call("diff", "Apply", apply)).applied
    assert applied.digest == layer.diff_id
    commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=layer.chain_id, key=key)
    try:
        await client.call("snapshots", "Commit", commit)
    except grpc.aio.AioRpcError as error:
        if error.code() is not ALREADY:
            raise
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        await client.call("snapshots", "Remove", remove)


async def store_and_unpack(client: Client, image: Image, snapshotter: str, key: str) -> None:
    """All of an image but its name; the client holds a lease."""
    for layer in image.layers:
        await client.store(layer.blob, {"containerd.io/uncompressed": layer.diff_id})
    await client.store(image.config)
    await client.store(image.manifest, image_labels(image))
    parent = ""
    for number, layer in enumerate(image.layers):
        await unpack(client, snapshotter, layer, parent, f"extract-{key}-{number} {layer.chain_id}")
        parent = layer.chain_id
    await label_blob(client, image.config.digest, snapshot_ref(snapshotter), parent)


async def label_blob(client: Client, digest: str, label: str, value: str) -> None:
    """Set one label of a blob."""
    info = content_pb2.Info(digest=digest, labels={label: value})
    mask = FieldMask(paths=[f"labels.{label}"])
    await client.call("content", "Update", content_pb2.UpdateRequest(info=info, update_mask=mask))


class Writer:
    """One client that works until it is cancelled or the daemon goes; its names are its own."""

    def __init__(self, client: Client, model: Model, name: str, seed: str, snapshotter: str) -> None:
        self.client = client
        self.model = model
        self.name = name
        self.snapshotter = snapshotter
        self.choose = random.Random(seed)
        self.number = 0

    async def run(self) -> None:
        """Work for ever."""
        weighted = (
            (self.import_image, 5),
            (self.delete_image, 3),
            (self.lease_blob, 3),
            (self.delete_lease, 2),
            (self.label, 5),
            (self.create_container, 2),
            (self.delete_container, 1),
            (self.ingest, 3),
        )
        steps, weights = zip(*weighted, strict=True)
        while True:
            await self.choose.choices(steps, weights)[0]()

    def own(self, kind: str) -> list[str]:
        """Names of that kind that are there and this writer's."""
        found = self.model.of_kind(kind, self.client.namespace)
        mine = [name for name in found if name.startswith(f"{self.name}.")]
        return [name for name in mine if self.model.current(self.key(kind, name)) is not None]

    def key(self, kind: str, name: str) -> Key:
        return Key(kind, self.client.namespace, name)

    def fresh(self) -> str:
        """A name that nothing has had."""
        self.number += 1
        return f"{self.name}.{self.number}-{self.choose.randrange(1 << 40):x}"

    # --- leases -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def leased(self) -> AsyncGenerator[Client]:
        """Work under a lease that goes at the end, unless the daemon does."""
        lease = self.fresh()
        with self.model.writing(self.key("lease", lease), "there"):
            await self.client.call("leases", "Create", leases_pb2.CreateRequest(id=lease))
        yield self.client.under(lease)
        await self.end_lease(lease)

    async def end_lease(self, lease: str) -> None:
        """Delete it, sometimes waiting for the collection."""
        request = leases_pb2.DeleteRequest(id=lease, sync=self.choose.random() < 0.3)
        with self.model.writing(self.key("lease", lease), None):
            await self.client.call("leases", "Delete", request)

    async def lease_blob(self) -> None:
        """A blob that only a lease keeps; both have the lease's name in the model."""
        if len(self.own("blob")) >= 4:
            return await self.delete_lease()
        lease = self.fresh()
        with self.model.writing(self.key("lease", lease), "there"):
            await self.client.call("leases", "Create", leases_pb2.CreateRequest(id=lease))
        data = lease.encode() + self.choose.randbytes(self.choose.choice([0, 500, 70_000]))
        # The digest belongs to the value: it tells what to look for.
        with self.model.writing(self.key("blob", lease), (digest_of(data), "")):
            await self.client.under(lease).store(Blob("", data))
        return None

    async def delete_lease(self) -> None:
        """Let a blob go with its lease."""
        if leases := self.own("blob"):
            lease = self.choose.choice(leases)
            with self.model.writing(self.key("blob", lease), None):
                await self.end_lease(lease)

    # --- images -------------------------------------------------------------------------------------------------------

    async def import_image(self) -> None:
        """Store, unpack and name an image."""
        if len(self.own("image")) >= 3:
            return await self.delete_image()
        image = random_image(self.choose)
        name = self.fresh()
        self.model.images[image.manifest.digest] = image
        async with self.leased() as client:
            await store_and_unpack(client, image, self.snapshotter, name)
            request = images_pb2.CreateImageRequest(image=images_pb2.Image(name=name, target=image.manifest.descriptor))
            with self.model.writing(self.key("image", name), (image.manifest.digest, "")):
                await client.call("images", "Create", request)
        return None

    async def delete_image(self) -> None:
        """Delete one, sometimes waiting for the collection."""
        if images := self.own("image"):
            name = self.choose.choice(images)
            request = images_pb2.DeleteImageRequest(name=name, sync=self.choose.random() < 0.4)
            with self.model.writing(self.key("image", name), None):
                await self.client.call("images", "Delete", request)

    # --- labels -------------------------------------------------------------------------------------------------------

    async def label(self) -> None:
        """Change the label `n` of an image, a container or a blob."""
        kind = self.choose.choice(["image", "container", "blob"])
        if not (names := self.own(kind)):
            return
        name = self.choose.choice(names)
        key = self.key(kind, name)
        what, value = self.model.current(key)[0], self.fresh()
        with self.model.writing(key, (what, value)):
            await self._label(kind, name, what, value)

    async def _label(self, kind: str, name: str, what: str, value: str) -> None:
        mask = FieldMask(paths=["labels.n"])
        if kind == "blob":
            await label_blob(self.client, what, "n", value)
        elif kind == "image":
            image = images_pb2.Image(name=name, labels={"n": value})
            await self.client.call("images", "Update", images_pb2.UpdateImageRequest(image=image, update_mask=mask))
        else:
            container = containers_pb2.Container(id=name, labels={"n": value})
            request = containers_pb2.UpdateContainerRequest(container=container, update_mask=mask)
            await self.client.call("containers", "Update", request)

    # --- containers ---------------------------------------------------------------------------------------------------

    async def create_container(self) -> None:
        """A container with a snapshot on an image's."""
        if not (images := self.own("image")) or len(self.own("container")) >= 2:
            return await self.delete_container()
        image = self.model.images[self.model.current(self.key("image", self.choose.choice(images)))[0]]
        name = self.fresh()
        container = containers_pb2.Container(
            id=name,
            runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
            snapshotter=self.snapshotter,
            snapshot_key=name,
        )
        async with self.leased() as client:
            prepare = snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self.snapshotter, key=name, parent=image.chain_id
            )
            await client.call("snapshots", "Prepare", prepare)
            with self.model.writing(self.key("container", container.id), (name, "")):
                await client.call("containers", "Create", containers_pb2.CreateContainerRequest(container=container))
        return None

    async def delete_container(self) -> None:
        """Delete one, and sometimes its snapshot, which goes anyway."""
        if containers := self.own("container"):
            name = self.choose.choice(containers)
            key = self.model.current(self.key("container", name))[0]
            with self.model.writing(self.key("container", name), None):
                await self.client.call("containers", "Delete", containers_pb2.DeleteContainerRequest(id=name))
            if self.choose.random() < 0.5:
                remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
                try:
                    await self.client.call("snapshots", "Remove", remove)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise

    # --- ingests ------------------------------------------------------------------------------------------------------

    async def ingest(self) -> None:
        """Begin an ingest, or go on with one; its name is the seed of its bytes."""
        if len(refs := self.own("ingest")) < 3:
            ref = self.fresh()
            await self._write(ref, 0, self.choose.randrange(60_000))
            return
        ref = self.choose.choice(refs)
        done = self.model.current(self.key("ingest", ref))
        if done < 150_000 and self.choose.random() < 0.6:
            await self._write(ref, done, done + self.choose.randrange(60_000))
        else:
            with self.model.writing(self.key("ingest", ref), None):
                await self.client.call("content", "Abort", content_pb2.AbortRequest(ref=ref))

    async def _write(self, ref: str, start: int, end: int) -> None:
        requests = [content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref)]
        if end > start:
            data = ingest_bytes(ref, end)[start:]
            requests.append(content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=start, data=data))
        with self.model.writing(self.key("ingest", ref), end):
            answer = await self.client.write(*requests)
        assert answer.offset == end, f"ref {ref}: {answer.offset} bytes after writing {start} to {end}"


def ingest_bytes(ref: str, size: int) -> bytes:
    """The first bytes of an ingest."""
    return hashlib.shake_128(ref.encode()).digest(size)


async def work(
    channel: grpc.aio.Channel, model: Model, seed: str, snapshotter: str, going: asyncio.Event, names: Sequence[str]
) -> None:
    """Run the writers until the daemon has gone (`going` is set before it is killed) or they are cancelled.

    Any error of a call before that, and any that a kill does not explain, is raised.
    """

    async def one(number: int, name: str) -> None:
        client = Client(channel, NAMESPACES[number % len(NAMESPACES)])
        try:
            await Writer(client, model, name, f"{seed}-{name}", snapshotter).run()
        except grpc.aio.AioRpcError as error:
            if not going.is_set() or error.code() not in WENT:
                raise AssertionError(f"{name}: {error.code().name} {error.details()}") from error

    async with asyncio.TaskGroup() as tasks:
        for number, name in enumerate(names):
            tasks.create_task(one(number, name))
