"""Images imported and unpacked from an archive by ctr on PATH: the shapes of `unpack`, as people bring them in.

The whole run of ctr is timed. One of 1.6 makes each call itself; newer ones ask the daemon for all of it.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from functools import cache
from pathlib import Path

from contrib.bench.peers import Running
from contrib.bench.pull import NAMESPACE, Content, diff_id, remove
from contrib.bench.rounds import Group, Values
from contrib.bench.unpack import shape

INDEX = "application/vnd.oci.image.index.v1+json"


@cache
def archive(name: str, number: int, scale: float) -> bytes:
    """An OCI archive with one image, `localhost/bench/NAME:NUMBER`; each round has its own."""
    content = Content()
    layers = shape(name, number, scale)
    content.put("manifest", layers, [diff_id(one) for one in layers])
    manifest = content.add(*content.objects.pop("manifest"))
    manifest["annotations"] = {"io.containerd.image.name": reference(name, number)}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]}
    members = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **{f"blobs/{digest.replace(':', '/')}": data for digest, (_, data) in content.objects.items()},
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def reference(name: str, number: int) -> str:
    """The image's name."""
    return f"localhost/bench/{name}:{number}"


def imports(running: Running, number: int, scale: float) -> Values:
    """Seconds of each image, from ctr's start to its end."""
    found: Values = {}
    for name in ("small", "files", "layers"):
        with tempfile.TemporaryDirectory(prefix="bench-import-") as folder:
            path = Path(folder) / "image.tar"
            path.write_bytes(archive(name, number, scale))
            words = ["-a", running.address, "-n", NAMESPACE, "images", "import", str(path)]
            began = time.perf_counter()
            subprocess.run([str(shutil.which("ctr")), *words], check=True, stdout=subprocess.DEVNULL)
            found[f"ctr_import_{name}_s"] = time.perf_counter() - began
        remove(running.address, reference(name, number))
    return found


GROUP = Group(imports, needs_root=True)
