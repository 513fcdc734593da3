"""Starts a daemon to be measured, on private paths, and stops it by pid."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from contrib.bench.memory import family
from google.protobuf import empty_pb2

from moored.api.services.version.v1 import version_pb2

VERSION = "/containerd.services.version.v1.Version/Version"
CONTAINERD_CONFIG = """version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""


@dataclass(frozen=True)
class Peer:
    """A daemon that can be started: `command` gets --config --root --state --address."""

    name: str
    command: Sequence[str]
    config: str
    env: dict[str, str]

    def environment(self) -> dict[str, str]:
        """The environment that it runs in."""
        return {**os.environ, **self.env}


@dataclass(frozen=True)
class Running:
    """A started daemon: `seconds` from exec to the first answered Version call."""

    pid: int
    address: str
    seconds: float


def moored(plugins: int, folder: Path) -> Peer:
    """This checkout's daemon, padded with do-nothing plugins until that many are registered."""
    from importlib.metadata import entry_points

    own = len(entry_points(group="moored.plugins"))
    path = [_padding(folder, max(0, plugins - own)), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    command = (sys.executable, "-m", "moored.kernel.daemon.main")
    # As installed by pip: byte code is there from the first start on, which is not counted.
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "pycache")}
    return Peer("moored", command, "version = 4\n", {**env, "PYTHONPATH": os.pathsep.join(map(str, path))})


def containerd() -> Peer | None:
    """Debian's containerd, if it is installed."""
    binary = shutil.which("containerd")
    return Peer("containerd", (binary,), CONTAINERD_CONFIG, {}) if binary else None


def _padding(folder: Path, count: int) -> Path:
    info = folder / "bench_padding-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-padding\nVersion: 1\n")
    names = "\n".join(f"io.example.padding.v1.p{n} = bench_padding:p{n}" for n in range(count))
    (info / "entry_points.txt").write_text(f"[moored.plugins]\n{names}\n")
    made = "\n".join(f'p{n} = Registration(kind=KIND, id="p{n}", open=open_)' for n in range(count))
    (folder / "bench_padding.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from moored.kernel.plugin import PluginType, Registration\n"
        'KIND = PluginType("io.example.padding.v1")\n'
        "@asynccontextmanager\nasync def open_(ctx):\n    yield None\n" + made + "\n"
    )
    return folder


@contextmanager
def running(peer: Peer, folder: Path) -> Iterator[Running]:
    """Start the peer below a new folder, wait for its first answer; SIGTERM at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    config, address = folder / "config.toml", folder / "d.sock"
    config.write_text(peer.config.replace("{folder}", str(folder)))
    paths = ["--config", str(config), "--root", str(folder / "root"), "--state", str(folder / "state")]
    began = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*peer.command, *paths, "--address", str(address)], stdout=log, stderr=log, env=peer.environment()
        )
    try:
        asyncio.run(_first_answer(address, process))
        yield Running(process.pid, str(address), time.perf_counter() - began)
    finally:
        children = family(process.pid)[1:]
        process.terminate()
        process.wait(30)
        _await_end(children)


def _await_end(pids: Sequence[int]) -> None:
    """Wait for helpers that end after their daemon, up to 10 s: they must not write where all is being removed."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)


async def _first_answer(address: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not address.exists():
        await asyncio.sleep(0.001)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"daemon is not up, see {address.parent / 'log'}")
    # A channel backs off for a second after a refused connection, so a fresh one is made for every try.
    while time.monotonic() < deadline:
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            try:
                await version_call(channel)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.002)
            else:
                return
    raise RuntimeError("daemon accepts connections and does not answer")


async def version_call(channel: grpc.aio.Channel) -> version_pb2.VersionResponse:
    """One Version call."""
    call = channel.unary_unary(
        VERSION,
        request_serializer=empty_pb2.Empty.SerializeToString,
        response_deserializer=version_pb2.VersionResponse.FromString,
    )
    answer: version_pb2.VersionResponse = await call(empty_pb2.Empty(), timeout=10)
    return answer


def memory_mb(pid: int) -> dict[str, float]:
    """Resident, proportional and private memory of a process, in MB (10^6 bytes)."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"rss": fields["Rss"] / 1e6, "pss": fields["Pss"] / 1e6, "private": private / 1e6}
