"""ctr and the daemons that it talks to: ours, and the containerd that it comes with, on private paths."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.busybox import BUSYBOX, busybox_image

CTRS = [path for path in [shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)] if path]
"""The one on PATH, and further ones (other versions) by their paths, with their containerd and shim beside them."""
PATIENCE = 20.0
OWN_SHIM = "version = 4\n"
EXTERNAL_SHIM = """version = 4
[plugins."io.containerd.runtime.v2.task".runtimes]
"io.containerd.runc.v2" = "shim"
"""

needs_ctr_and_runc = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(
        os.geteuid() != 0 or not CTRS or not BUSYBOX or not shutil.which("runc"),
        reason="needs root, ctr, runc and busybox",
    ),
]
every_ctr = pytest.mark.parametrize("ctr", CTRS or ["ctr"])


@dataclass
class Client:
    """ctr on one socket; answers are (status, standard output, standard error)."""

    ctr: str
    address: Path
    namespace: str
    answers: list[tuple[str, int, str, str]] = field(default_factory=list)

    def command(self, *words: str) -> list[str]:
        return [self.ctr, "-a", str(self.address), "-n", self.namespace, *words]

    @property
    def fifos(self) -> tuple[str, str]:
        """Options for a detached run, whose FIFOs nobody removes."""
        return "--fifo-dir", str(self.address.parent / "fifo")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}

    def run(self, *words: str, data: str = "") -> tuple[int, str, str]:
        """Run it; AssertionError if it hangs."""
        done = subprocess.run(
            self.command(*words),
            input=data,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env=self.environment,
        )
        answer = done.returncode, done.stdout, done.stderr
        self.answers.append((str(self.normal(" ".join(words))), *map(self.normal, answer)))  # type: ignore[arg-type]
        return answer

    def in_terminal(self, *words: str) -> str:
        """Run it in a terminal of 30 by 100; what that shows."""
        control, terminal = pty.openpty()
        try:
            subprocess.run(["stty", "rows", "30", "cols", "100"], stdin=terminal, check=True)
            process = subprocess.Popen(
                self.command(*words), stdin=terminal, stdout=terminal, stderr=terminal, env=self.environment
            )
            os.close(terminal)
            shown = bytearray()
            reader = threading.Thread(target=_read_all, args=(control, shown))
            reader.start()
            status = process.wait(PATIENCE)
            reader.join(PATIENCE)
        finally:
            os.close(control)
        text = shown.decode()
        self.answers.append((" ".join(words), status, str(self.normal(text)), ""))
        return text

    def until(self, wanted: str, *words: str) -> None:
        """Ask again until the answer has a text; the asking is not noted."""
        deadline = time.monotonic() + PATIENCE
        while (
            wanted
            not in subprocess.run(
                self.command(*words), capture_output=True, text=True, check=False, env=self.environment
            ).stdout
        ):
            assert time.monotonic() < deadline, f"{words} does not show {wanted!r}"
            time.sleep(0.02)

    def normal(self, value: int | str) -> int | str:
        """Leave out what changes from run to run."""
        if isinstance(value, int):
            return value
        text = value.replace(str(self.address.parent), "FOLDER").replace(self.namespace, "NAMESPACE")
        text = "\n".join(line for line in text.splitlines() if "DEPRECATION" not in line)
        text = re.sub(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9:.]*( [+]0000 UTC|Z)( m=\S*)?", "TIME", text)
        text = re.sub(r"(io\.containerd\.runtime\.v2\.task|/run/containerd/fifo)/\S*", "PATH", text)
        text = re.sub(r"\b[0-9]{2,}\b", "NUMBER", text)
        return re.sub(r"[ \t]+", " ", text)


def _read_all(fd: int, into: bytearray) -> None:
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:  # nobody has it open any more
            return
        if not data:
            return
        into += data


@contextmanager
def moored(folder: Path, ctr: str, config: str = OWN_SHIM) -> Generator[Client]:
    """A daemon of ours with the image imported; nothing that ran is left when it ends."""
    with daemon_of(folder, ctr, config) as daemon, namespace() as name:
        client = Client(ctr, daemon.socket, name)
        import_image(client, folder)
        yield client
    assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line] == []
    assert processes_in(folder) == []


def daemon_of(folder: Path, ctr: str, config: str = OWN_SHIM) -> Daemon:
    """A daemon that finds the shim beside a ctr first."""
    folder.mkdir(exist_ok=True)
    return Daemon(folder, config, env={"PATH": path_for(ctr)})


@contextmanager
def namespace() -> Generator[str]:
    """A name that nobody else has; what daemons leave under it once they have ended goes too."""
    name = f"t{os.getpid()}-{time.monotonic_ns() % 10**6}"
    try:
        yield name
    except BaseException:
        for processes in Path("/sys/fs/cgroup").glob(f"*/{name}/*/cgroup.procs"):
            for pid in processes.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        raise
    for left in (*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/run/containerd/runc", name)):
        # Only what is empty: cgroups of tasks are theirs to remove.
        with suppress(FileNotFoundError):
            left.rmdir()


@contextmanager
def containerd_of(folder: Path, ctr: str, more: str = "") -> Generator[Client]:
    """The containerd that is beside a ctr, with its own shim."""
    place = Path(ctr).parent
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{folder}/opt"\n{more}'
    )
    address = folder / "m.sock"
    paths = ["-c", folder / "config.toml", "--root", folder / "root", "--state", folder / "state", "-a", address]
    environment = {**os.environ, "PATH": path_for(ctr)}
    with (folder / "log").open("ab") as log:
        command = [str(place / "containerd"), *map(str, paths)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        with namespace() as name:
            client = Client(ctr, address, name)
            client.until("Server", "version")
            import_image(client, folder)
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE)


def path_for(ctr: str) -> str:
    return f"{Path(ctr).parent}{os.pathsep}{os.environ['PATH']}"


def import_image(client: Client, folder: Path) -> None:
    status, _, error = client.run("images", "import", str(busybox_image(folder / "busybox.tar")))
    assert status == 0, error
    client.answers.clear()


def processes_in(folder: Path) -> list[str]:
    """Those that still work in the folder, once they had time to end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str((entry / "cwd").readlink()).startswith(str(folder)):
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


@contextmanager
def short_folder() -> Generator[Path]:
    """Short enough for sockets; whatever a failed test leaves in it is ended."""
    with tempfile.TemporaryDirectory(prefix="mt") as path:
        try:
            yield Path(path)
        finally:
            for entry in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if str((entry / "cwd").readlink()).startswith(path):
                        os.kill(int(entry.name), signal.SIGKILL)
            mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if path in line]
            for mount in reversed(mounts):
                subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def peer_of(ctr: str) -> None:
    """Skip where a ctr has no containerd beside it."""
    if not (Path(ctr).parent / "containerd").exists():
        pytest.skip("no containerd beside ctr")
