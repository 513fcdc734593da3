"""Containers through the API: made, run, deleted; the steps that measurements and the soak are made of.

An image with busybox and nothing else is brought in by ctr. Both daemons are asked for the same OCI runtime: runc under
the name of its shim, any other one as the binary in that shim's options.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from contrib.bench.http2 import Client, Link, run
from contrib.bench.peers import Running
from google.protobuf.any_pb2 import Any

from moored.api.services.containers.v1 import containers_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.types.runc.options.oci_pb2 import Options

NAMESPACE = "bench"
LEASE = "bench"
IMAGE = "docker.io/bench/busybox:latest"
SNAPSHOTTER = "overlayfs"
RUNTIME = "io.containerd.runc.v2"
PROGRAMS = ("sh", "sleep", "true", "cat")
OCI = "types.containerd.io/opencontainers/runtime-spec/1"
CGROUPS = Path("/sys/fs/cgroup")
TASKS = "/containerd.services.tasks.v1.Tasks"
CONTAINERS = "/containerd.services.containers.v1.Containers"
SNAPSHOTS = "/containerd.services.snapshots.v1.Snapshots"
PROCESS = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


def installed(*programs: str) -> bool:
    """Whether everything is there that measurements of containers need."""
    return os.geteuid() == 0 and all(map(shutil.which, ("ctr", "busybox", *programs)))


def runtimes() -> list[str]:
    """The OCI runtimes to measure."""
    return [name for name in ("runc", "crun") if shutil.which(name)]


def ctr(address: str, *words: str) -> list[str]:
    """A command line of ctr."""
    return ["ctr", "-a", address, "-n", NAMESPACE, *words]


def bring_image(address: str, folder: Path) -> None:
    """Have the image in the daemon, unpacked, and the lease of `work`."""
    archive = folder / "image.tar"
    archive.write_bytes(_archive())
    words = ["images", "import", *_local(), "--base-name", IMAGE.removesuffix(":latest"), str(archive)]
    done = subprocess.run(ctr(address, *words), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"image was not imported: {done.stderr}")

    def client(link: Link) -> Client:
        request = leases_pb2.CreateRequest(id=LEASE).SerializeToString()
        yield link.unary("/containerd.services.leases.v1.Leases/Create", request)

    run(address, [client], namespace=NAMESPACE)


def work(address: str, clients: Sequence[Callable[[Link], Client]]) -> float:
    """Run clients side by side, under a lease that keeps snapshots until a container does; the seconds."""
    return run(address, clients, namespace=NAMESPACE, lease=LEASE)[0]


@cache
def _local() -> list[str]:
    """A flag of newer versions of ctr, without which others are asked for another service."""
    usage = subprocess.run(["ctr", "images", "import", "--help"], capture_output=True, text=True, check=False).stdout
    return ["--local"] if "--local" in usage else []


@cache
def _layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        archive.add(str(shutil.which("busybox")), "bin/busybox")
        for name in PROGRAMS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return out.getvalue()


def _archive() -> bytes:
    """An OCI layout as a tar."""
    blobs: dict[str, bytes] = {}

    def add(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [chain_id()]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add("config.v1+json", json.dumps(config).encode()),
        "layers": [add("layer.v1.tar", _layer())],
    }
    described = add("manifest.v1+json", json.dumps(manifest).encode())
    described["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in blobs.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@cache
def chain_id() -> str:
    """The name of the image's snapshot."""
    return f"sha256:{hashlib.sha256(_layer()).hexdigest()}"


# --- steps, to be used with `yield from` in a client ------------------------------------------------------------------


def create(link: Link, id_: str, runtime: str, *args: str) -> Client:
    """Make a snapshot, a container and its task."""
    prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=id_, parent=chain_id())
    answer = yield link.unary(f"{SNAPSHOTS}/Prepare", prepare.SerializeToString())
    container = containers_pb2.CreateContainerRequest()
    made = container.container
    made.id, made.image, made.snapshotter, made.snapshot_key = id_, IMAGE, SNAPSHOTTER, id_
    made.spec.CopyFrom(_spec(id_, args))
    made.runtime.name = RUNTIME
    if runtime != "runc":
        made.runtime.options.type_url = "containerd.runc.v1.Options"
        made.runtime.options.value = Options(binary_name=runtime).SerializeToString()
    yield link.unary(f"{CONTAINERS}/Create", container.SerializeToString())
    mounts = snapshots_pb2.PrepareSnapshotResponse.FromString(answer).mounts
    yield link.unary(f"{TASKS}/Create", pb.CreateTaskRequest(container_id=id_, rootfs=mounts).SerializeToString())


def start(link: Link, id_: str) -> Client:
    """Start a task."""
    yield link.unary(f"{TASKS}/Start", pb.StartRequest(container_id=id_).SerializeToString())


def wait(link: Link, id_: str, status: int) -> Client:
    """Wait for a task's end; RuntimeError unless it ends with that status."""
    answer = yield link.unary(f"{TASKS}/Wait", pb.WaitRequest(container_id=id_).SerializeToString())
    if (found := pb.WaitResponse.FromString(answer).exit_status) != status:
        raise RuntimeError(f"{id_} ended with {found}, not {status}")


def execute(link: Link, id_: str, exec_id: str) -> Client:
    """Run `true` in a container, to its end; RuntimeError if it fails."""
    wanted = pb.ExecProcessRequest(container_id=id_, exec_id=exec_id)
    wanted.spec.CopyFrom(_typed("Process", {**PROCESS, "args": ["true"]}))
    yield link.unary(f"{TASKS}/Exec", wanted.SerializeToString())
    yield link.unary(f"{TASKS}/Start", pb.StartRequest(container_id=id_, exec_id=exec_id).SerializeToString())
    waiting = pb.WaitRequest(container_id=id_, exec_id=exec_id).SerializeToString()
    answer = yield link.unary(f"{TASKS}/Wait", waiting)
    if found := pb.WaitResponse.FromString(answer).exit_status:
        raise RuntimeError(f"exec {exec_id} of {id_} ended with {found}")
    gone = pb.DeleteProcessRequest(container_id=id_, exec_id=exec_id)
    yield link.unary(f"{TASKS}/DeleteProcess", gone.SerializeToString())


def kill(link: Link, id_: str) -> Client:
    """Kill a task and wait for its end."""
    yield link.unary(f"{TASKS}/Kill", pb.KillRequest(container_id=id_, signal=9).SerializeToString())
    yield from wait(link, id_, 137)


def delete(link: Link, id_: str) -> Client:
    """Delete a task that ended, its container and snapshot."""
    yield link.unary(f"{TASKS}/Delete", pb.DeleteTaskRequest(container_id=id_).SerializeToString())
    yield link.unary(f"{CONTAINERS}/Delete", containers_pb2.DeleteContainerRequest(id=id_).SerializeToString())
    gone = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=id_)
    yield link.unary(f"{SNAPSHOTS}/Remove", gone.SerializeToString())


def statuses(address: str) -> list[int]:
    """The status of every task."""
    found: list[int] = []

    def client(link: Link) -> Client:
        answer = yield link.unary(f"{TASKS}/List", b"")
        found.extend(one.status for one in pb.ListTasksResponse.FromString(answer).tasks)

    run(address, [client], namespace=NAMESPACE)
    return found


def _spec(id_: str, args: Sequence[str]) -> Any:
    mounts = [
        {"destination": place, "type": kind, "source": source, "options": options}
        for place, kind, source, options in MOUNTS
    ]
    return _typed(
        "Spec",
        {
            "ociVersion": "1.0.2",
            "process": {**PROCESS, "args": args, "noNewPrivileges": True},
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "linux": {
                "cgroupsPath": f"/{NAMESPACE}/{id_}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            },
        },
    )


def _typed(kind: str, value: dict[str, object]) -> Any:
    return Any(type_url=f"{OCI}/{kind}", value=json.dumps(value).encode())


# --- what is left -----------------------------------------------------------------------------------------------------


def shims(address: str) -> list[int]:
    """The shims of a daemon, by its address in their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"shim" in words[0] and address.encode() in words:
                found.append(int(entry.name))
    return found


@contextmanager
def swept(running: Running) -> Iterator[None]:
    """Leave nothing on the host after the block, whatever has failed in it: no shim, container, mount or cgroup."""
    try:
        yield
    finally:
        for pid in shims(running.address):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for procs in CGROUPS.glob(f"*/{NAMESPACE}/*/cgroup.procs"):
            for pid in map(int, procs.read_text().split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        folder = str(Path(running.address).parent)
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([path for path in mounted if path.startswith(folder)]):
            subprocess.run(["umount", "--lazy", mount], check=False)
        states = Path("/run/containerd/runc", NAMESPACE)
        for empty in (*CGROUPS.glob(f"*/{NAMESPACE}/*/"), *CGROUPS.glob(f"*/{NAMESPACE}/"), states):
            with suppress(OSError):
                empty.rmdir()
