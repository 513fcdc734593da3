"""A real dockerd runs its containers by moored: their whole life, and that of both daemons; nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemons import Daemon, connects
from e2e.containers import busybox_layer, eventually, short_folder, terminal
from leftovers import Place, nothing_left

# One of that name further in front on PATH may be of another make.
DOCKER = "/usr/bin/docker"
MISSING = [name for name in ("dockerd", "busybox", "runc", "crun", DOCKER) if not shutil.which(name)]
SECONDS = 40.0
IMAGE = "busybox"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or bool(MISSING), reason=f"needs root, {' '.join(MISSING)}"),
]


@dataclass
class Docker:
    """Both daemons and the client."""

    daemon: Daemon
    place: Place
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.place.folder / "dockerd.log"

    def start(self) -> None:
        """Start dockerd, without networks of its own."""
        folder = self.place.folder
        paths = ["--data-root", folder / "docker", "--exec-root", folder / "exec", "-p", folder / "dockerd.pid"]
        moored = ["--containerd", self.daemon.socket, "--containerd-namespace", self.place.namespace]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        runtimes = ["--add-runtime", f"crun={shutil.which('crun')}", "--cgroup-parent", f"/{self.place.namespace}"]
        command = ["dockerd", "-H", f"unix://{folder / 'd.sock'}", *paths, *moored, *network, *runtimes]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--live-restore"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        eventually(lambda: connects(folder / "d.sock"), lambda: self.log.read_text()[-3000:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End dockerd; its containers go on."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(SECONDS)

    def own(self) -> set[str]:
        """What of all that is found belongs to the daemons, which may be others than at first."""
        pids = {f"process {process.pid} " for process in (self.process, self.daemon.process) if process is not None}
        return {line for line in self.place.found() if line.startswith(tuple(pids)) or "/libnetwork/" in line}

    def command(self, *words: str | Path) -> list[str]:
        return [DOCKER, "-H", f"unix://{self.place.folder / 'd.sock'}", *map(str, words)]

    def run(self, *words: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the client to its end."""
        return subprocess.run(self.command(*words), input=data, capture_output=True, check=False, timeout=SECONDS)

    def does(self, *words: str | Path, data: bytes = b"") -> str:
        """Run the client, which must succeed; what it prints."""
        done = self.run(*words, data=data)
        assert done.returncode == 0, (
            f"docker {words}: {done.returncode}: {done.stderr.decode()}\n{done.stdout.decode()}"
        )
        return done.stdout.decode()

    def state(self, name: str) -> dict[str, object]:
        """The state of a container, as `inspect` shows it."""
        found: dict[str, object] = json.loads(self.does("inspect", name))[0]["State"]
        return found

    @contextmanager
    def running(self, *args: str, flags: Sequence[str] = ()) -> Iterator[str]:
        """A container that runs in the background, gone at the end; its id."""
        id_ = self.does("run", "-d", "--network", "none", *flags, IMAGE, *(args or ("sleep", "600"))).strip()
        try:
            yield id_
        finally:
            self.does("rm", "-f", id_)


def program_runs(docker: Docker, id_: str) -> bool:
    """Whether a process is in the cgroup of a container, without any daemon's help."""
    found = Path("/sys/fs/cgroup").glob(f"**/{docker.place.namespace}/{id_}/cgroup.procs")
    return any(path.read_text() for path in found)


@pytest.fixture(scope="module")
def shared() -> Iterator[Docker]:
    with short_folder() as folder, Daemon(folder, "version = 4\n") as daemon:
        docker = Docker(daemon, Place(folder, f"docker-{os.getpid()}", daemon.socket))
        before = docker.place.found()
        try:
            docker.start()
            docker.does("import", "-", IMAGE, data=busybox_layer())
            yield docker
        finally:
            with suppress(ProcessLookupError):
                docker.stop()
            docker.place.cleared(before)


@pytest.fixture
def docker(shared: Docker) -> Iterator[Docker]:
    before = shared.place.found()
    yield shared
    nothing_left(shared.place, before | shared.own(), ())


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_container_is_run_with_its_streams_and_its_status_passed_on(docker: Docker, runtime: str) -> None:
    words = ("run", "--rm", "-i", "--network", "none", "--runtime", runtime, IMAGE)

    done = docker.run(*words, "sh", "-c", "cat; echo problem >&2; exit 7", data=b"given")

    assert (done.returncode, done.stdout, done.stderr) == (7, b"given", b"problem\n")


def test_terminal_is_one(docker: Docker) -> None:
    with terminal(docker.command("run", "--rm", "-it", "--network", "none", IMAGE, "sh")) as screen:
        screen.expect("#")
        screen.resize(33, 101)
        screen.type("while [ \"$(stty size)\" != '33 101' ]; do sleep 0.05; done; exit 4\n")
        assert screen.end() == 4


def test_running_container_is_listed_measured_paused_changed_and_stopped(docker: Docker) -> None:
    with docker.running() as id_:
        assert docker.does("exec", id_, "echo", "inside") == "inside\n"
        assert docker.run("exec", id_, "sh", "-c", "exit 5").returncode == 5
        assert "sleep 600" in docker.does("top", id_)
        assert json.loads(docker.does("stats", "--no-stream", "--format", "{{json .}}", id_))["PIDs"] == "1"
        docker.does("pause", id_)
        assert docker.state(id_)["Status"] == "paused"
        docker.does("unpause", id_)
        docker.does("update", "--memory", "64m", "--memory-swap", "64m", id_)
        assert docker.does("stats", "--no-stream", "--format", "{{.MemUsage}}", id_).strip().endswith("64MiB")
        first = docker.state(id_)["Pid"]
        docker.does("restart", "-t", "0", id_)
        assert docker.state(id_)["Pid"] not in (0, first)
        docker.does("kill", id_)
        assert docker.does("wait", id_) == "137\n"


def test_container_that_is_out_of_memory_is_said_to_be(docker: Docker) -> None:
    with docker.running("tail", "/dev/zero", flags=("-m", "16m", "--memory-swap", "16m")) as id_:
        assert docker.does("wait", id_) == "137\n"
        eventually(lambda: bool(docker.state(id_)["OOMKilled"]), lambda: str(docker.state(id_)))


def test_health_checks_and_restarts_go_on(docker: Docker) -> None:
    flags = ("--restart", "always", "--health-cmd", "echo well", "--health-interval", "500ms")
    with docker.running(flags=flags) as id_:
        first = docker.state(id_)["Pid"]
        os.kill(int(str(first)), signal.SIGKILL)

        eventually(lambda: docker.state(id_)["Pid"] not in (0, first), lambda: str(docker.state(id_)))
        eventually(lambda: '"healthy"' in json.dumps(docker.state(id_)), lambda: str(docker.state(id_)))


def test_program_that_is_not_there_is_an_error_that_names_it(docker: Docker) -> None:
    done = docker.run("run", "--rm", "--network", "none", IMAGE, "/no/such/program")

    assert done.returncode == 127
    assert b"/no/such/program" in done.stderr


def test_containers_outlive_both_daemons_and_their_ends_are_known(docker: Docker) -> None:
    with docker.running() as lasting, docker.running("sh", "-c", "sleep 2; exit 3") as ending:
        docker.stop(signal.SIGKILL)
        docker.daemon.stop(signal.SIGKILL)
        eventually(lambda: not program_runs(docker, ending), lambda: "the container did not end")
        docker.daemon.log.unlink()
        docker.daemon.start()
        docker.start()

        assert docker.does("exec", lasting, "echo", "still here") == "still here\n"
        eventually(lambda: docker.state(ending)["Status"] == "exited", lambda: str(docker.state(ending)))
        assert docker.state(ending)["ExitCode"] == 3
