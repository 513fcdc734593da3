"""Images brought in and unpacked through the API: a small one, one of many files, one of many layers.

Import is writing all blobs; unpacking is preparing, applying and committing a snapshot of each layer. Both are timed
from a client's first call to its last answer, without the start of any program.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from contrib.bench.http2 import Client, Link, run
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values

from moored.api.services.content.v1 import content_pb2
from moored.api.services.diff.v1 import diff_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2

SNAPSHOTTER = "overlayfs"
APPLY = "/containerd.services.diff.v1.Diff/Apply"
PREPARE = "/containerd.services.snapshots.v1.Snapshots/Prepare"
COMMIT = "/containerd.services.snapshots.v1.Snapshots/Commit"
CREATE_LEASE = "/containerd.services.leases.v1.Leases/Create"
WRITE = "/containerd.services.content.v1.Content/Write"
PIECE = 32 << 10
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAMESPACE = "bench"


@dataclass(frozen=True)
class Layer:
    """A compressed layer."""

    data: bytes
    digest: str


def layer(seed: str, files: int, size: int) -> Layer:
    """A layer of so many files of so many bytes, in folders of 100; every other seed gives another digest."""
    choose = random.Random(seed)
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for number in range(files):
            if number % 100 == 0:
                folder = tarfile.TarInfo(f"{seed}/{number // 100}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            member = tarfile.TarInfo(f"{seed}/{number // 100}/{number}")
            member.size, member.mode = size, 0o644
            tar.addfile(member, io.BytesIO(choose.randbytes(size)))
    data = buffer.getvalue()
    return Layer(data, f"sha256:{hashlib.sha256(data).hexdigest()}")


@cache
def shape(name: str, number: int, scale: float) -> tuple[Layer, ...]:
    """The layers of an image; each round has its own, for nobody unpacks twice."""
    if name == "small":
        return (layer(f"small-{number}", 4, 256 << 10),)
    if name == "files":
        return (layer(f"files-{number}", int(60_000 * scale), 300),)
    return tuple(layer(f"layers-{number}-{at}", 10, 4096) for at in range(max(2, int(64 * scale))))


def _ingest(one: Layer) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        pb = content_pb2
        stream = link.open(WRITE)
        size = len(one.data)
        opening = pb.WriteContentRequest(action=pb.STAT, ref=one.digest, total=size, expected=one.digest)
        yield stream.send(opening.SerializeToString())
        for at in range(0, size, PIECE):
            part = pb.WriteContentRequest(action=pb.WRITE, offset=at, data=one.data[at : at + PIECE])
            yield stream.send(part.SerializeToString())
        end = pb.WriteContentRequest(action=pb.COMMIT, total=size, offset=size, expected=one.digest)
        yield stream.send(end.SerializeToString(), last=True)

    return client


def _import(layers: tuple[Layer, ...]) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        for one in layers:
            yield from _ingest(one)(link)

    return client


def _unpack(name: str, layers: tuple[Layer, ...]) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        parent = ""
        for at, one in enumerate(layers):
            key = f"extract-{name}-{at}"
            prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent)
            answer = yield link.unary(PREPARE, prepare.SerializeToString())
            apply = diff_pb2.ApplyRequest(mounts=snapshots_pb2.PrepareSnapshotResponse.FromString(answer).mounts)
            apply.diff.digest, apply.diff.size, apply.diff.media_type = one.digest, len(one.data), LAYER
            yield link.unary(APPLY, apply.SerializeToString())
            parent = f"sha256:{hashlib.sha256((parent + one.digest).encode()).hexdigest()}"
            commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, name=parent)
            yield link.unary(COMMIT, commit.SerializeToString())

    return client


def prepare(running: Running, _scale: float) -> None:
    """Make the lease that keeps what is brought in."""
    request = leases_pb2.CreateRequest(id="bench").SerializeToString()

    def client(link: Link) -> Client:
        yield link.unary(CREATE_LEASE, request)

    run(running.address, [client], namespace=NAMESPACE)


def unpack(running: Running, number: int, scale: float) -> Values:
    """Seconds of both halves for each shape."""
    found: Values = {}
    for name in ("small", "files", "layers"):
        layers = shape(name, number, scale)
        os.sync()  # nobody is to wait for what another one has left unwritten
        for half, client in (("import", _import(layers)), ("unpack", _unpack(f"{name}-{number}", layers))):
            began = time.perf_counter()
            run(running.address, [client], namespace=NAMESPACE, lease="bench")
            found[f"{half}_{name}_s"] = time.perf_counter() - began
    return found


GROUP = Group(unpack, prepare=prepare, needs_root=True)
