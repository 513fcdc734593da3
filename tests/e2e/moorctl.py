"""`moorctl` and a daemon to ask, on private paths: an image, a network of its own, and nothing left at the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon
from e2e.containers import Done, Terminal, busybox_image, eventually, short_folder, terminal
from leftovers import Place, nothing_left

IMAGE = "docker.io/test/busybox:latest"
SECONDS = 60.0
PROGRAM = Path(sys.executable).with_name("moorctl")
CONFIG = """version = 4
[plugins."io.containerd.monitor.container.v1.restart"]
interval = "200ms"
"""

needs_moorctl = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("runc") or not shutil.which("busybox") or not PROGRAM.exists(),
        reason="needs root, runc, busybox and moored installed beside python",
    ),
]


@dataclass
class Moorctl:
    """The program on one daemon's socket and one namespace."""

    place: Place
    bridge: str
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str | Path) -> list[str]:
        return [str(PROGRAM), *map(str, words)]

    def environment(self, **more: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MOOR", "CONTAINERD"))}
        return clean | self.env | more

    def run(self, *words: str | Path, data: bytes | None = None, **env: str) -> Done:
        """Run it to its end."""
        done = subprocess.run(
            self.command(*words),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            check=False,
            timeout=SECONDS,
            env=self.environment(**env),
        )
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def does(self, *words: str | Path, data: bytes | None = None, **env: str) -> str:
        """Run it, which must succeed; what it prints."""
        done = self.run(*words, data=data, **env)
        assert done.status == 0, f"moorctl {' '.join(map(str, words))}: {done.status}: {done.err}\n{done.out}"
        return done.out

    def json(self, *words: str | Path) -> Any:
        """What it prints with --json."""
        return json.loads(self.does("--json", *words))

    @contextmanager
    def started(self, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """Run it with pipes, beside what the block does."""
        pipe = subprocess.PIPE
        command = self.command(*words)
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment()) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    @contextmanager
    def in_terminal(self, *words: str | Path, **env: str) -> Iterator[Terminal]:
        """Run it on a terminal of 24 by 80."""
        settings = [f"{key}={value}" for key, value in {**self.env, "TERM": "xterm", **env}.items()]
        with terminal(["env", *settings, *self.command(*words)]) as shown:
            yield shown

    def status(self, name: str) -> str:
        """The word of `ps -a` for one container, empty for none."""
        found = [one for one in self.json("ps", "-a")["containers"] if name in (one["name"], one["id"])]
        return str(found[0]["status"]) if found else ""

    def becomes(self, name: str, status: str) -> None:
        """Wait until `ps` says so."""
        eventually(lambda: self.status(name) == status, lambda: f"{name} is {self.status(name)!r}, not {status!r}")

    def log_has(self, name: str, text: str) -> None:
        """Wait until its log has a text."""
        eventually(lambda: text in self.run("logs", name).out, lambda: f"no {text!r} in {self.run('logs', name)}")

    @contextmanager
    def running(self, *words: str, flags: Sequence[str | Path] = ()) -> Iterator[str]:
        """A container in the background, gone at the end; its name."""
        name = f"c{os.urandom(3).hex()}"
        self.does("run", "-d", "--name", name, "--net", "none", *flags, IMAGE, *(words or ("sleep", "600")))
        try:
            yield name
        finally:
            self.run("rm", "-f", name)


@contextmanager
def moorctl(config: str = CONFIG) -> Iterator[Moorctl]:
    """A daemon with the image; containers of the namespace and the bridge are gone at the end."""
    with short_folder() as folder, Daemon(folder, config) as daemon, client(folder, daemon.socket) as made:
        yield made


@contextmanager
def client(folder: Path, address: Path) -> Iterator[Moorctl]:
    """The program for a daemon that there is."""
    mark = f"{os.getpid() % 10000:04d}{os.urandom(2).hex()}"
    place = Place(folder, f"m{mark}", address)
    bridge = f"mt{mark}"
    _network(folder, bridge)
    env = {
        "MOORED_ADDRESS": str(address),
        "CONTAINERD_NAMESPACE": place.namespace,
        "MOORCTL_ROOT": str(folder / "own"),
        "MOORCTL_RUN": str(folder / "run"),
        "MOORCTL_FIFO_DIR": str(folder / "fifo"),
        "NETCONFPATH": str(folder / "net.d"),
        "DOCKER_CONFIG": str(folder / "docker"),
    }
    made = Moorctl(place, bridge, env)
    made.does("load", "-q", "-i", busybox_image(folder), "--prefix", IMAGE.removesuffix(":latest"))
    before = place.found()
    try:
        yield made
        left = made.does("ps", "-aq").split()
        assert left == [], f"containers are left: {left}"
        nothing_left(place, before, [])
    finally:
        place.cleared(before)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def _network(folder: Path, bridge: str) -> None:
    """A definition of the network `bridge` with a bridge and addresses that nobody else has."""
    plugins = [
        {
            "type": "bridge",
            "bridge": bridge,
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(folder / "ipam"),
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    (folder / "net.d").mkdir()
    document = {"cniVersion": "1.0.0", "name": "bridge", "plugins": plugins}
    (folder / "net.d" / "bridge.conflist").write_text(json.dumps(document))


def free_of(made: Moorctl) -> list[str]:
    """What is left of containers below moorctl's own folders."""
    folders = [Path(made.env["MOORCTL_ROOT"]), Path(made.env["MOORCTL_RUN"]), Path(made.env["MOORCTL_FIFO_DIR"])]
    patterns = ("*/*/containers/*", "netns/*", "*")
    return [str(path) for folder, pattern in zip(folders, patterns, strict=True) for path in folder.glob(pattern)]


def nothing_is_left(made: Moorctl) -> None:
    """Fail if there are containers, or anything of them in moorctl's own folders."""
    listed, files = made.does("ps", "-aq"), free_of(made)
    assert listed == "", f"containers are left: {listed}"
    assert files == [], f"files of containers are left: {files}"
