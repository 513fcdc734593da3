"""An image with busybox and nothing else, made on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

BUSYBOX = shutil.which("busybox")
NAME = "docker.io/test/busybox:latest"
APPLETS = ("cat", "dd", "echo", "env", "false", "head", "id", "kill", "ls", "ps", "sh", "sleep", "stty", "true", "tty")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def busybox_image(target: Path) -> Path:
    """Write an OCI layout as a tar, to be imported as NAME."""
    blobs: dict[str, bytes] = {}

    def add(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = add("layer.v1.tar", _layer())
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "GREETING=hello"], "WorkingDir": "/root"},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    described = add("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "config": described, "layers": [layer]}
    top = add("manifest.v1+json", json.dumps(manifest).encode())
    top["annotations"] = {"io.containerd.image.name": NAME}
    index = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    files |= {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    with tarfile.open(target, "w") as archive:
        for name, data in files.items():
            _add_file(archive, name, data)
    return target


def _layer() -> bytes:
    assert BUSYBOX is not None
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        _add_file(archive, "bin/busybox", Path(BUSYBOX).read_bytes())
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        _add_file(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add_file(archive, "etc/group", b"root:x:0:\n")
    return out.getvalue()


def _add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o755
    archive.addfile(info, io.BytesIO(data))
