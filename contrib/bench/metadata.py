"""Writes of metadata by 1, 16 and 64 clients at once, and full lists of 10,000 images and containers."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from contrib.bench.http2 import Client, Link, run
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values

from moored.api.services.containers.v1 import containers_pb2
from moored.api.services.images.v1 import images_pb2

CREATE_IMAGE = "/containerd.services.images.v1.Images/Create"
LIST_IMAGES = "/containerd.services.images.v1.Images/List"
CREATE_CONTAINER = "/containerd.services.containers.v1.Containers/Create"
LIST_CONTAINERS = "/containerd.services.containers.v1.Containers/List"
STREAM_CONTAINERS = "/containerd.services.containers.v1.Containers/ListStream"

WRITES = {1: 800, 16: 4800, 64: 4800}
"""Calls by number of clients."""
LISTED = 10_000
LISTS = 3
FILLERS = 16
DIGEST = f"sha256:{'a' * 64}"
SPEC = b'{"ociVersion":"1.1.0","process":{"args":["sh"],"env":["PATH=/usr/bin:/bin"]},"root":{"path":"rootfs"}}' * 8


def image(name: str) -> bytes:
    """A request that makes an image with a label."""
    request = images_pb2.CreateImageRequest()
    made = request.image
    made.name, made.labels["tier"] = name, "bench"
    made.target.digest, made.target.size = DIGEST, 1000
    made.target.media_type = "application/vnd.oci.image.manifest.v1+json"
    return request.SerializeToString()


def container(name: str) -> bytes:
    """A request that makes a container with a spec of 0.8 KB and the labels of a small pod."""
    request = containers_pb2.CreateContainerRequest()
    made = request.container
    made.id, made.image, made.runtime.name = name, "docker.io/library/busybox:latest", "io.containerd.runc.v2"
    made.runtime.options.type_url = "containerd.runc.v1.Options"
    made.snapshotter, made.snapshot_key = "overlayfs", name
    made.spec.type_url, made.spec.value = "types.containerd.io/opencontainers/runtime-spec/1/Spec", SPEC
    for number in range(5):
        made.labels[f"io.kubernetes.label{number}"] = f"value-{number}"
    return request.SerializeToString()


def caller(path: str, requests: list[bytes]) -> Callable[[Link], Client]:
    """A client that makes one call after the other."""

    def client(link: Link) -> Client:
        for request in requests:
            yield link.unary(path, request)

    return client


def write(running: Running, number: int, scale: float) -> Values:
    """Creates a second, and the median time of one."""
    found: Values = {}
    for clients, calls in WRITES.items():
        each = max(1, int(calls * scale) // clients)
        names = [[f"image-{number}-{clients}-{client}-{call}" for call in range(each)] for client in range(clients)]
        seconds, taken = run(running.address, [caller(CREATE_IMAGE, list(map(image, some))) for some in names])
        found[f"write_{clients}_per_s"] = len(taken) / seconds
        found[f"write_{clients}_p50_ms"] = statistics.median(taken) * 1e3
    return found


def fill(running: Running, scale: float) -> None:
    """Make the objects that are listed."""
    each = max(1, int(LISTED * scale) // FILLERS)
    for path, make in ((CREATE_IMAGE, image), (CREATE_CONTAINER, container)):
        names = [[f"docker.io/library/one-{client}-{call}" for call in range(each)] for client in range(FILLERS)]
        if make is container:
            names = [[name.rpartition("/")[2] for name in some] for some in names]
        run(running.address, [caller(path, list(map(make, some))) for some in names], namespace="lists")


def lists(running: Running, _number: int, _scale: float) -> Values:
    """The median time of a full list."""
    found: Values = {}
    paths = {"images": LIST_IMAGES, "containers": LIST_CONTAINERS, "containers_stream": STREAM_CONTAINERS}
    for name, path in paths.items():
        _, taken = run(running.address, [caller(path, [b""] * LISTS)], namespace="lists")
        found[f"list_{name}_ms"] = statistics.median(taken) * 1e3
    return found


WRITE_GROUP = Group(write)
LIST_GROUP = Group(lists, prepare=fill)
