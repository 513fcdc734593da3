"""Images pulled, pushed, exported and tagged by real clients, with a real registry, beside containerd."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.images import BASE, CTRS, NAME, docker_archive, layer, oci_archive, tree, umoci_image, unpacked, unpacking
from e2e.images import needs_image_tools as _needs
from e2e.registries import needs_registry, requests, serving
from peers import collect_garbage, containerd, ctr

pytestmark = [*_needs, needs_registry]

NEWER = [path for path in os.environ.get("MOORED_TEST_CONTAINERDS", "").split(os.pathsep) if path]
every_ctr = pytest.mark.parametrize("binary", CTRS)
needs_transfer = pytest.mark.skipif(len(CTRS) < 2, reason="needs a newer ctr")
PLAIN = "--plain-http"


def told(address: Path, binary: str, *words: str) -> list[str]:
    """What a command shows as its last state of things, without numbers of time."""
    lines = ctr(address, *words, binary=binary).splitlines()
    return [line for line in lines if "elapsed" not in line and "unpacking" not in line]


@every_ctr
def test_pushed_image_comes_back_the_same(tmp_path: Path, binary: str) -> None:
    with serving(tmp_path / "registry") as registry, Daemon(tmp_path) as daemon:
        name = f"{registry}/some/image:v1"
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(umoci_image(tmp_path)), binary=binary)
        with unpacked(daemon.socket, "overlayfs", tmp_path / "before") as folder:
            before = tree(folder)
        ctr(daemon.socket, "images", "tag", NAME, name, binary=binary)
        ctr(daemon.socket, "images", "push", PLAIN, name, binary=binary)
        ctr(daemon.socket, "images", "rm", "--sync", NAME, name, binary=binary)
        collect_garbage(daemon.socket)
        left = ctr(daemon.socket, "content", "ls", "-q", binary=binary).split()
        ctr(daemon.socket, "images", "pull", PLAIN, name, binary=binary)
        ctr(daemon.socket, "images", "tag", name, NAME, binary=binary)
        with unpacked(daemon.socket, "overlayfs", tmp_path / "after") as folder:
            after = tree(folder)
        leases = ctr(daemon.socket, "leases", "ls", "-q", binary=binary).split()

    assert left == []
    assert before
    assert after == before
    assert [lease for lease in leases if not lease.startswith(str(tmp_path))] == []  # mounts have leases of their own


@every_ctr
def test_second_pull_of_an_image_fetches_nothing(tmp_path: Path, binary: str) -> None:
    with serving(tmp_path / "registry") as registry, Daemon(tmp_path) as daemon:
        name = f"{registry}/some/image:v1"
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(umoci_image(tmp_path)), binary=binary)
        ctr(daemon.socket, "images", "push", PLAIN, name, NAME, binary=binary)
        before = len(requests(tmp_path / "registry"))
        ctr(daemon.socket, "images", "pull", PLAIN, name, binary=binary)

        asked = requests(tmp_path / "registry")[before:]
    assert [one.split()[0] for one in asked] == ["HEAD"]


def compared(folder: Path, registry: str, address: Path, binary: str, archive: Path) -> dict[str, object]:
    """All that a client sees of one life of an image."""
    name = f"{registry}/some/image:v1"
    found: dict[str, object] = {
        "imported": told(address, binary, "images", "import", "--base-name", BASE, str(archive)),
        "tagged": told(address, binary, "images", "tag", NAME, name),
        "pushed": sorted(told(address, binary, "images", "push", PLAIN, name))[-1:],
    }
    ctr(address, "images", "export", str(folder / "out.tar"), NAME, name, binary=binary)
    found["exported"] = (folder / "out.tar").read_bytes()
    ctr(address, "images", "rm", "--sync", NAME, name, binary=binary)
    found["pulled"] = sorted(told(address, binary, "images", "pull", PLAIN, name))[-1:]
    collect_garbage(address)
    found["listed"] = ctr(address, "images", "ls", binary=binary)
    content = [line.split("\t") for line in ctr(address, "content", "ls", binary=binary).splitlines()]
    found["content"] = [
        [column for column in line if not column.endswith(("ago", "second", "seconds"))] for line in content
    ]
    found["snapshots"] = ctr(address, "snapshots", "ls", binary=binary)
    return found


@pytest.mark.skipif(len(NEWER) == 0 or len(CTRS) < 2, reason="needs a newer ctr and its containerd")
@pytest.mark.parametrize("make", [umoci_image, docker_archive])
def test_everything_that_a_client_sees_is_as_with_containerd(tmp_path: Path, make: object) -> None:
    assert callable(make)
    archive = make(tmp_path)
    found = []
    with serving(tmp_path / "registry") as registry:
        with containerd(tmp_path / "peer", NEWER[0]) as theirs:
            found.append(compared(tmp_path, registry, theirs, CTRS[1], archive))
        with Daemon(tmp_path) as daemon:
            found.append(compared(tmp_path, registry, daemon.socket, CTRS[1], archive))

    theirs_seen, ours = found
    for key in theirs_seen:
        assert ours[key] == theirs_seen[key], key


@pytest.mark.parametrize("at_once", [1, 4])
def test_layers_unpacked_side_by_side_give_the_same_files(tmp_path: Path, at_once: int) -> None:
    layers = [layer(("gone", b"1"), ("kept", b"1"), ("dir/", None), ("dir/a", b"a"))]
    layers.append(layer((".wh.gone", b""), ("dir/", None), ("dir/b", b"b")))
    layers.append(layer(("dir/", None), ("dir/.wh..wh..opq", b""), ("dir/c", b"c")))
    layers.extend(layer((f"file-{number}", b"x" * number)) for number in range(20))
    config = f'version = 4\n[plugins."io.containerd.transfer.v1.local"]\nmax_concurrent_unpacks = {at_once}\n'
    with Daemon(tmp_path, config) as daemon:
        archive = oci_archive(tmp_path / "image.tar", layers)
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(archive), binary=CTRS[-1])
        with unpacked(daemon.socket, "overlayfs", tmp_path / "files") as folder:
            found = {name: file.content for name, file in tree(folder).items()}
        listed = ctr(daemon.socket, "snapshots", "ls", binary=CTRS[-1]).splitlines()[1:]
        shown = [line for line in listed if line.split()[-1] != "View"]

    assert set(found) == {"kept", "dir", "dir/c", *(f"file-{number}" for number in range(20))}
    assert [line.split()[-1] for line in shown] == ["Committed"] * len(layers)
    assert sum(len(line.split()) == 2 for line in shown) == 1  # all but one have a parent


def with_owners(*entries: tuple[str, int, int]) -> bytes:
    """A layer as a tar: (name, owner, mode), folders end with a slash."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, owner, mode in entries:
            info = tarfile.TarInfo(name)
            info.uid = info.gid = owner
            info.mode, info.mtime = mode, 1_500_000_000 + owner
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info)
    return out.getvalue()


@needs_transfer
def test_layers_of_a_transfer_give_the_files_that_a_client_unpacks_one_by_one(tmp_path: Path) -> None:
    layers = [with_owners(("d/", 7, 0o2750), ("d/e/", 5, 0o700), ("d/e/gone", 1, 0o600), ("f/", 3, 0o1777))]
    layers.append(with_owners(("d/e/new", 2, 0o640)))  # folders are like those two layers below, which it does not name
    layers.append(with_owners(("d/e/.wh.gone", 0, 0o600), ("f/g", 4, 0o644)))
    layers.append(with_owners(("d/", 9, 0o711), ("d/.wh..wh..opq", 0, 0o600), ("d/h", 1, 0o4755)))
    layers.extend(with_owners(("d/e/", number, 0o700 + number), (f"f/x-{number}", 1, 0o600)) for number in range(16))
    archive = oci_archive(tmp_path / "image.tar", layers)
    found = []
    for name, binary in (("client", CTRS[0]), ("transfer", CTRS[-1])):
        (tmp_path / name).mkdir()
        with Daemon(tmp_path / name) as daemon:
            ctr(daemon.socket, "images", "import", "--base-name", BASE, str(archive), binary=binary)
            with unpacked(daemon.socket, "overlayfs", tmp_path / "files") as folder:
                files = tree(folder)
            (tmp_path / "files").rmdir()
            listed = ctr(daemon.socket, "snapshots", "ls").splitlines()
            found.append((files, sorted(line.split() for line in listed if line.split()[-1] == "Committed")))

    assert len(found[0][1]) == len(layers)
    assert found[1] == found[0]


@needs_transfer
def test_layer_that_cannot_be_unpacked_leaves_those_below_it_and_nothing_begun(tmp_path: Path) -> None:
    layers = [with_owners((f"file-{number}", 0, 0o644)) for number in range(20)]
    archive = oci_archive(tmp_path / "image.tar", [*layers[:6], b"no archive" * 100, *layers[6:]])
    with Daemon(tmp_path) as daemon:
        with pytest.raises(AssertionError, match="failed to extract layer"):
            ctr(daemon.socket, "images", "import", "--base-name", BASE, str(archive), binary=CTRS[-1])
        kinds = [line.split()[-1] for line in ctr(daemon.socket, "snapshots", "ls").splitlines()[1:]]
        whole = oci_archive(tmp_path / "image.tar", layers)
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(whole), binary=CTRS[-1])
        after = [line.split()[-1] for line in ctr(daemon.socket, "snapshots", "ls").splitlines()[1:]]

    assert set(kinds) <= {"Committed"}
    assert len(kinds) <= 6
    assert after == ["Committed"] * len(layers)


def test_pull_after_the_daemon_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    big = layer(("big", os.urandom(150 << 20)))
    binary = CTRS[-1]
    with serving(tmp_path / "registry") as registry:
        name = f"{registry}/big/image:v1"
        with Daemon(tmp_path, unpacking("overlayfs")) as daemon:
            archive = oci_archive(tmp_path / "image.tar", [big])
            ctr(daemon.socket, "images", "import", "--base-name", BASE, "--no-unpack", str(archive), binary=binary)
            ctr(daemon.socket, "images", "push", PLAIN, name, NAME, binary=binary)
            ctr(daemon.socket, "images", "rm", "--sync", NAME, binary=binary)
            collect_garbage(daemon.socket)
            pulling = pull_until(daemon, name, binary, 4 << 20)
            daemon.stop(signal.SIGKILL)
            pulling.wait(20)
        daemon.log.unlink()
        with daemon:
            kept = active(daemon.socket, binary)
            before = sent(tmp_path / "registry")
            ctr(daemon.socket, "images", "pull", PLAIN, name, binary=binary)
            after = sent(tmp_path / "registry")

    assert kept[0] >= 4_000_000
    assert after - before <= len(big) - kept[0] + (1 << 16)


def pull_until(daemon: Daemon, name: str, binary: str, size: int) -> subprocess.Popen[bytes]:
    """Begin a pull and wait until so much of a layer has come."""
    words = [binary, "-a", str(daemon.socket), "images", "pull", PLAIN, name]
    pulling = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ingests = daemon.root / "io.containerd.content.v1.content" / "ingest"
    while not any(size_of(path) >= size for path in ingests.glob("*/data")):
        assert pulling.poll() is None, "the pull ended before it could be killed"
    return pulling


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def active(address: Path, binary: str) -> Sequence[int]:
    """Bytes of the ingests that are there."""
    units = {"B": 1, "kB": 1000, "MB": 1000**2}
    lines = [line.split() for line in ctr(address, "content", "active", binary=binary).splitlines()[1:]]
    sizes = [line[1] for line in lines]
    return [int(float(size.rstrip("kMB")) * units[size.lstrip("0123456789.")]) for size in sizes]


def sent(folder: Path) -> int:
    """Bytes that the registry has given out."""
    total = 0
    for line in (folder / "log").read_text().splitlines():
        if '"GET ' in line and line.startswith(("127.0.0.1", "::1", "[::1]")):
            total += int(line.split('"')[2].split()[1])
    return total


@pytest.mark.parametrize("binary", CTRS[-1:])
def test_other_tools_read_what_is_exported(tmp_path: Path, binary: str) -> None:
    with Daemon(tmp_path) as daemon:
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(docker_archive(tmp_path)), binary=binary)
        ctr(daemon.socket, "images", "export", str(tmp_path / "out.tar"), NAME, binary=binary)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "manifest.json" in archive.getnames()
    for form in ("oci-archive", "docker-archive"):
        command = ["skopeo", "inspect", "--raw", f"{form}:{tmp_path}/out.tar"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert '"layers"' in done.stdout
