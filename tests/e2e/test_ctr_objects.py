"""What ctr shows of all objects of a real daemon, and that it shows the same of Debian's containerd."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemons import Daemon

CONTAINERD = shutil.which("containerd")
CTRS = [path for path in [shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)] if path]
"""The one on PATH, and further ones (other versions) by their paths."""

pytestmark = pytest.mark.peer
ctr_of_any_age = pytest.mark.parametrize("ctr", CTRS or [pytest.param("ctr", marks=pytest.mark.skip("needs ctr"))])

X, Y = "docker.io/library/x:1", "docker.io/library/y:2"


class Client:
    """ctr on one socket."""

    def __init__(self, ctr: str, address: Path) -> None:
        self._command = [ctr, "-a", str(address)]

    def run(self, *words: str) -> tuple[int, str]:
        """Status and output, without what changes from run to run."""
        environment = {**os.environ, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}
        done = subprocess.run(
            [*self._command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
            env=environment,
        )
        output = re.sub(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]*Z", "TIME", done.stdout)
        output = "\n".join(line for line in output.splitlines() if "DEPRECATION" not in line)
        return done.returncode, output


def archive(path: Path) -> str:
    """Write an image without layers to be imported as X; gives its digest."""
    config = b"{}"
    blobs = {f"sha256:{hashlib.sha256(config).hexdigest()}": config}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": next(iter(blobs)), "size": 2},
            "layers": [],
        }
    ).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": X},
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    members = {f"blobs/{name.replace(':', '/')}": data for name, data in {**blobs, digest: manifest}.items()}
    members |= {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return digest


def script(image: Path) -> Iterator[list[str]]:
    """A life of all four kinds of objects; no answer depends on when a collection happens to run."""
    one = ["-n", "one"]
    yield ["namespaces", "ls"]
    yield ["namespaces", "create", "one", "a=1", "b=2"]
    yield ["namespaces", "create", "one"]
    yield ["namespaces", "create", "bad name"]
    yield ["namespaces", "label", "one", "a=", "c=3"]
    yield ["namespaces", "ls"]
    yield [*one, "images", "ls"]
    yield [*one, "images", "import", "--local", "--no-unpack", str(image)]
    yield [*one, "images", "tag", "--local", X, Y]
    yield [*one, "images", "label", Y, "k=v"]
    yield [*one, "images", "ls"]
    yield [*one, "images", "ls", f"name=={Y}"]
    yield [*one, "images", "ls", "name=y"]
    yield [*one, "images", "ls", "-q"]
    yield [*one, "containers", "create", "--rootfs", "/none", "c1"]
    yield [*one, "containers", "create", "--rootfs", "/none", "c1"]
    yield [*one, "containers", "label", "c1", "a=b"]
    yield [*one, "containers", "ls"]
    yield [*one, "containers", "ls", "-q"]
    yield [*one, "containers", "ls", "id==c2"]
    yield [*one, "containers", "info", "c1"]
    yield [*one, "containers", "info", "c2"]
    yield [*one, "leases", "create", "--id", "l1", "x=y"]
    yield [*one, "leases", "create", "--id", "l1"]
    yield [*one, "leases", "ls", "-q"]
    yield [*one, "leases", "delete", "l2"]
    yield [*one, "leases", "delete", "--sync", "l1"]
    yield [*one, "leases", "ls"]
    yield ["namespaces", "rm", "one"]
    yield [*one, "containers", "rm", "c1"]
    yield [*one, "containers", "rm", "c1"]
    yield [*one, "images", "rm", X]
    yield [*one, "images", "rm", "nothing"]
    yield [*one, "images", "rm", "--sync", Y]
    yield [*one, "images", "ls", "-q"]
    yield [*one, "content", "ls", "-q"]
    yield ["namespaces", "rm", "one"]
    yield ["namespaces", "ls"]


def without_local(words: list[str], ctr: str) -> list[str]:
    """Leave out a flag that ctr of containerd 1.6 does not have: there all is local."""
    usage = subprocess.run([ctr, "images", words[3], "--help"], capture_output=True, text=True, check=False).stdout
    return words if "--local" in usage else [word for word in words if word != "--local"]


def lived(client: Client, ctr: str, image: Path) -> list[tuple[list[str], int, str]]:
    """Run the script."""
    told = []
    for words in script(image):
        command = without_local(words, ctr) if "--local" in words else words
        told.append((command, *client.run(*command)))
    return told


@contextmanager
def containerd(folder: Path) -> Generator[Path]:
    """Debian's, on paths of its own; gives its socket."""
    folder.mkdir()
    (folder / "config.toml").write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    address = folder / "c.sock"
    paths = ["-c", folder / "config.toml", "--root", folder / "root", "--state", folder / "state", "-a", address]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(CONTAINERD), *map(str, paths)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while subprocess.run([CTRS[0], "-a", address, "version"], capture_output=True, check=False).returncode:
            assert process.poll() is None
            assert time.monotonic() < deadline
        yield address
    finally:
        process.terminate()
        process.wait(30)


@ctr_of_any_age
def test_ctr_lives_through_all_objects(tmp_path: Path, ctr: str) -> None:
    digest = archive(tmp_path / "x.tar")
    with Daemon(tmp_path) as daemon:
        told = lived(Client(ctr, daemon.socket), ctr, tmp_path / "x.tar")

    answers = {" ".join(words): (status, output) for words, status, output in told}
    assert answers["namespaces create one"] == (1, 'ctr: namespace "one": already exists')
    status, images = answers[f"-n one images ls name=={Y}"]
    assert status == 0
    assert [line.split()[0] for line in images.splitlines()[1:]] == [Y]
    assert digest in images
    assert "k=v" in images
    assert answers["-n one containers ls -q"] == (0, "c1")
    assert answers["-n one leases ls -q"] == (0, "l1")
    assert json.loads(answers["-n one containers info c1"][1])["Labels"] == {"a": "b"}
    assert answers[f"-n one images rm --sync {Y}"] == (0, Y)
    assert answers["-n one content ls -q"] == (0, "")
    refusals = [output for words, _, output in told if words == ["namespaces", "rm", "one"]]
    assert 'namespace "one" must be empty, but it still has images, blobs, containers: failed' in refusals[0]
    assert refusals[1] == "one"
    assert told[-1][1:] == told[0][1:]


@pytest.mark.root
@pytest.mark.skipif(not CONTAINERD or os.geteuid() != 0, reason="needs root and Debian's containerd")
@ctr_of_any_age
def test_ctr_shows_the_same_of_containerd(tmp_path: Path, ctr: str) -> None:
    archive(tmp_path / "x.tar")
    with Daemon(tmp_path) as daemon:
        ours = lived(Client(ctr, daemon.socket), ctr, tmp_path / "x.tar")
    with containerd(tmp_path / "peer") as address:
        theirs = lived(Client(ctr, address), ctr, tmp_path / "x.tar")

    for our, their in zip(ours, theirs, strict=True):
        assert our == their
