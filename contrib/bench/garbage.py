"""A garbage collection over 100,000 objects that are all in use: how long it takes, and how long writers wait.

The store is made as containerd's own file, which moored imports, for making it by calls would take minutes.
"""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from contrib.bench.http2 import Client, Link, run
from contrib.bench.metadata import CREATE_IMAGE, image
from contrib.bench.peers import Peer, Running
from contrib.bench.rounds import Group, Values

from moored.api.services.leases.v1 import leases_pb2
from moored.kernel.records import encode_time, encode_zigzag
from moored.plugins.metadata.bbolt.tree import LEAVE, Enter, Event, Value
from moored.plugins.metadata.bbolt.write import write_file

IMAGES = 25_000
"""Each with a manifest and two layers: four objects."""
NAMESPACE = "bench"
CREATE_LEASE = "/containerd.services.leases.v1.Leases/Create"
DELETE_LEASE = "/containerd.services.leases.v1.Leases/Delete"
STORE = "io.containerd.metadata.v1.bolt"
NOW = encode_time(1_700_000_000 * 10**9)


def seed(peer: Peer, root: Path, scale: float) -> None:
    """Put the metadata into a daemon's root."""
    file = root / STORE / "meta.db"
    if peer.name != "moored":
        file.parent.mkdir(parents=True)
        write_file(file, _tree(int(IMAGES * scale)))
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    source = root.parent / "meta.db"
    write_file(source, _tree(int(IMAGES * scale)))
    command = [*peer.command, "--root", str(root), "metadata", "import", str(source)]
    subprocess.run(command, check=True, capture_output=True, env=peer.environment())
    source.unlink()


def _tree(images: int) -> Iterator[Event]:
    """The metadata in the order of their names."""
    yield from (Enter(b"", 0), Enter(b"v1", 0), Enter(NAMESPACE.encode(), 0))
    yield from (Enter(b"content", 0), Enter(b"blob", 0))
    blobs: dict[bytes, dict[bytes, bytes]] = {}
    for number in range(images):
        layers = [_digest(f"layer-{number}-{layer}") for layer in range(2)]
        links = {b"containerd.io/gc.ref.content.l.%d" % at: digest for at, digest in enumerate(layers)}
        blobs |= {_digest(f"manifest-{number}"): links} | {digest: {} for digest in layers}
    for digest in sorted(blobs):
        yield from (Enter(digest, 0), Value(b"createdat", NOW))
        if blobs[digest]:
            yield Enter(b"labels", 0)
            yield from (Value(name, value) for name, value in sorted(blobs[digest].items()))
            yield LEAVE
        yield from (Value(b"size", encode_zigzag(1000)), Value(b"updatedat", NOW), LEAVE)
    yield from (LEAVE, LEAVE, Enter(b"images", 0))
    for name, number in sorted((b"docker.io/library/image-%d:latest" % number, number) for number in range(images)):
        yield from (Enter(name, 0), Value(b"createdat", NOW), Enter(b"target", 0))
        yield Value(b"digest", _digest(f"manifest-{number}"))
        yield Value(b"mediatype", b"application/vnd.oci.image.manifest.v1+json")
        yield from (Value(b"size", encode_zigzag(1000)), LEAVE, Value(b"updatedat", NOW), LEAVE)
    yield from (LEAVE, LEAVE, Value(b"version", encode_zigzag(4)), LEAVE, LEAVE)


def _digest(text: str) -> bytes:
    return b"sha256:" + hashlib.sha256(text.encode()).hexdigest().encode()


def _collecting(number: int, ended: threading.Event) -> list[Callable[[Link], Client]]:
    lease = f"gone-{number}"
    create = leases_pb2.CreateRequest(id=lease).SerializeToString()
    delete = leases_pb2.DeleteRequest(id=lease, sync=True).SerializeToString()

    def client(link: Link) -> Client:
        yield link.unary(CREATE_LEASE, create)
        yield link.unary(DELETE_LEASE, delete)
        ended.set()

    def writer(link: Link) -> Client:
        at = 0
        while not ended.is_set():
            yield link.unary(CREATE_IMAGE, image(f"beside-{number}-{at}"))
            at += 1

    return [client, writer]


def collect(running: Running, number: int, _scale: float) -> Values:
    """Seconds of a collection that a client waits for, alone and with a writer beside it; what that one had to wait."""
    alone, _ = run(running.address, _collecting(-1 - number, threading.Event())[:1], namespace=NAMESPACE)
    seconds, taken = run(running.address, _collecting(number, threading.Event()), namespace=NAMESPACE)
    waits = sorted(taken)[:-1]  # the longest is the collection itself
    return {
        "gc_alone_s": alone,
        "gc_s": seconds,
        "gc_write_max_ms": waits[-1] * 1e3,
        "gc_write_p50_ms": statistics.median(waits) * 1e3,
        "gc_writes_beside_per_s": len(waits) / seconds,
    }


GROUP = Group(collect, seed=seed)
