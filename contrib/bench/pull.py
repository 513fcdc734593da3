"""Images pulled and unpacked from a registry on this host: one layer, 16 layers, and with BENCH_LARGE=1 one of 1 GB.

The registry is a plain server in this process that has everything in memory. A daemon that pulls by itself is asked to;
for one that does not, ctr on PATH pulls. Timed from the request to its answer; for ctr that is its whole run.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values
from contrib.bench.unpack import LAYER, Layer, layer
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from moored.api.services.images.v1 import images_pb2, images_pb2_grpc
from moored.api.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from moored.api.types.platform_pb2 import Platform
from moored.api.types.transfer import imagestore_pb2, registry_pb2

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
NAMESPACE = "bench"
SECONDS = 600.0
LINUX = Platform(os="linux", architecture="amd64")


class Content:
    """What the registry has: objects by the last part of their path, each with its media type."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, bytes]] = {}

    def add(self, media_type: str, data: bytes) -> dict[str, object]:
        """Keep an object; its descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.objects[digest] = (media_type, data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def put(self, tag: str, layers: tuple[Layer, ...], diff_ids: list[str]) -> None:
        """Offer an image."""
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add(CONFIG, json.dumps(config).encode()),
            "layers": [self.add(LAYER, one.data) for one in layers],
        }
        self.objects[tag] = self.objects[str(self.add(MANIFEST, json.dumps(manifest).encode())["digest"])]


@contextmanager
def serving(content: Content) -> Iterator[str]:
    """Serve over plain HTTP; the registry's address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as every registry has it: else an answer's body waits for the head's receipt

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            media_type, data = content.objects.get(self.path.partition("?")[0].rpartition("/")[2], ("", b""))
            self.send_response(200 if media_type or self.path.endswith("/v2/") else 404)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}" if not body else "")
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@cache
def shapes(number: int, scale: float) -> dict[str, tuple[Layer, ...]]:
    """The images of a round; each round has its own, for nobody pulls twice."""
    files = max(1, int(256 * scale))
    found = {
        "one": (layer(f"one-{number}", files, 256 << 10),),
        "16": tuple(layer(f"16-{number}-{at}", max(1, files // 16), 256 << 10) for at in range(16)),
    }
    if os.environ.get("BENCH_LARGE"):
        found["large"] = (layer(f"large-{number}", 4096, 256 << 10),)
    return found


@cache
def diff_id(one: Layer) -> str:
    """The digest of a layer's tar."""
    import gzip

    return f"sha256:{hashlib.sha256(gzip.decompress(one.data)).hexdigest()}"


def pull(running: Running, number: int, scale: float) -> Values:
    """Seconds of each image."""
    found: Values = {}
    for name, layers in shapes(number, scale).items():
        content = Content()
        content.put(name, layers, [diff_id(one) for one in layers])
        with serving(content) as address:
            reference = f"{address}/bench/{name}-{random.randrange(1 << 30)}:{name}"
            began = time.perf_counter()
            _pull(running.address, reference)
            found[f"pull_{name}_s"] = time.perf_counter() - began
        remove(running.address, reference)
    return found


def _pull(address: str, reference: str) -> None:
    source = registry_pb2.OCIRegistry(
        reference=reference, resolver=registry_pb2.RegistryResolver(default_scheme="http")
    )
    unpack = imagestore_pb2.UnpackConfiguration(platform=LINUX, snapshotter="overlayfs")
    destination = imagestore_pb2.ImageStore(name=reference, unpacks=[unpack])
    with grpc.insecure_channel(f"unix:{address}") as channel:
        request = transfer_pb2.TransferRequest(source=_packed(source), destination=_packed(destination))
        try:
            stub = transfer_pb2_grpc.TransferStub(channel)
            stub.Transfer(request, metadata=[("containerd-namespace", NAMESPACE)], timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        else:
            return
    words = ["-a", address, "-n", NAMESPACE, "images", "pull", "--plain-http", reference]
    subprocess.run([str(shutil.which("ctr")), *words], check=True, stdout=subprocess.DEVNULL)


def _packed(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def remove(address: str, name: str) -> None:
    """Remove an image and all that only it holds."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        request = images_pb2.DeleteImageRequest(name=name, sync=True)
        stub = images_pb2_grpc.ImagesStub(channel)
        stub.Delete(request, metadata=[("containerd-namespace", NAMESPACE)], timeout=SECONDS)


GROUP = Group(pull, needs_root=True)
