"""Containers driven by real clients: a daemon, a client and a runtime as one thing to test, and an image to run."""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import struct
import subprocess
import tarfile
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

from e2e.images import oci_archive
from leftovers import Place, nothing_left

IMAGE = "docker.io/test/busybox:latest"
COMMANDS = (
    "cat cut echo env grep head hostname id ip kill ls mkdir mount ps pwd rm sh sleep stty sync tail touch tr tty wc"
)
SECONDS = 20.0


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for sockets; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def busybox_image(folder: Path) -> Path:
    """An archive of an image with one program under many names, some users, and little else."""
    return oci_archive(folder / "busybox.tar", [busybox_layer()])


def busybox_layer() -> bytes:
    """The tar of its root file system."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            _member(archive, name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755)
        _member(archive, "bin/busybox", tarfile.REGTYPE, 0o755, Path(str(shutil.which("busybox"))).read_bytes())
        for name in COMMANDS.split():
            _member(archive, f"bin/{name}", tarfile.SYMTYPE, 0o777, b"busybox")
        _member(
            archive, "etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0::/root:/bin/sh\nanna:x:1000:1001::/:/bin/sh\n"
        )
        _member(archive, "etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nanna:x:1001:\n")
    return out.getvalue()


def _member(archive: tarfile.TarFile, name: str, type_: bytes, mode: int, data: bytes = b"") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = type_, mode, 1_600_000_000
    if type_ == tarfile.SYMTYPE:
        info.linkname, data = data.decode(), b""
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass
class World:
    """A client of a daemon, and the runtime to ask it for.

    kind    which runtime is behind it: `runc`, `crun`, `runsc`
    flags   of `run`, that choose the runtime
    log     where the daemon logs
    """

    binary: str
    place: Place
    kind: str
    flags: Sequence[str]
    log: Path
    used: list[str] = field(default_factory=list)

    def command(self, *words: str | Path) -> list[str]:
        """The client's command line."""
        return [self.binary, "-a", str(self.place.address), "-n", self.place.namespace, *map(str, words)]

    def ctr(self, *words: str | Path, data: bytes | None = None, prefix: Sequence[str] = ()) -> Done:
        """Run the client to its end."""
        done = subprocess.run(
            [*prefix, *self.command(*words)],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def does(self, *words: str | Path, **more: bytes) -> str:
        """Run the client, which must succeed; what it prints."""
        done = self.ctr(*words, **more)  # type: ignore[arg-type]
        assert done.status == 0, f"ctr {' '.join(map(str, words))}: {done.status}: {done.err}\n{done.out}"
        return done.out

    def new(self) -> str:
        """The id of a new container."""
        self.used.append(f"c{len(self.used)}-{os.getpid()}")
        return self.used[-1]

    def words(self, id_: str, *args: str, flags: Sequence[str | Path] = (), image: str = IMAGE) -> list[str | Path]:
        """The words of `run`."""
        return ["run", *self.flags, *flags, image, id_, *args]

    def run(
        self, *args: str, flags: Sequence[str | Path] = (), data: bytes | None = None, prefix: Sequence[str] = ()
    ) -> Done:
        """Run a container to its end and remove it."""
        return self.ctr(*self.words(self.new(), *args, flags=("--rm", *flags)), data=data, prefix=prefix)

    @contextmanager
    def running(self, *args: str, flags: Sequence[str | Path] = ()) -> Iterator[str]:
        """A container that runs in the background, gone at the end whatever its state; its id."""
        id_ = self.new()
        fifos = self.place.folder / "fifos"
        self.does(*self.words(id_, *(args or ("sleep", "600")), flags=("-d", "--fifo-dir", fifos, *flags)))
        try:
            yield id_
        finally:
            self.remove(id_)
            shutil.rmtree(fifos, ignore_errors=True)

    def remove(self, id_: str) -> None:
        """End a container and remove it, whatever its state."""
        self.ctr("task", "rm", "--force", id_)
        self.ctr("c", "rm", id_)

    def status(self, id_: str) -> str:
        """What `task ls` says of a container."""
        lines = [line.split() for line in self.does("task", "ls").splitlines()[1:]]
        return next((line[2] for line in lines if line[0] == id_), "")

    def pid(self, id_: str) -> int:
        """The pid of a task."""
        return int(next(line.split()[1] for line in self.does("task", "ls").splitlines() if line.startswith(f"{id_} ")))

    def becomes(self, id_: str, status: str) -> None:
        """Wait until `task ls` says so."""
        eventually(lambda: self.status(id_) == status, lambda: f"{id_} is {self.status(id_)!r}, not {status!r}")

    def cgroup(self, controller: str, id_: str, file: str) -> str:
        """What a file of the container's cgroup says, on version 1 or 2."""
        base = Path("/sys/fs/cgroup")
        folder = base / controller if (base / controller).is_dir() else base
        return (folder / self.place.namespace / id_ / file).read_text().strip()


def eventually(condition: Callable[[], bool], told: Callable[[], str], seconds: float = SECONDS) -> None:
    """Wait for a condition that comes true by itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


@contextmanager
def imported(world: World) -> Iterator[World]:
    """The image, in the world's namespace; in the end nothing of the namespace is left."""
    archive = busybox_image(world.place.folder)
    world.does("images", "import", "--base-name", IMAGE.removesuffix(":latest"), str(archive))
    before = world.place.found()
    try:
        yield world
        nothing_left(world.place, before, world.used)
    finally:
        world.place.cleared(before)


class Terminal:
    """A program on a terminal of its own, of 24 lines and 80 columns."""

    def __init__(self, command: Sequence[str]) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.text = ""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - tests with terminals have no threads
        )
        os.close(slave)

    def resize(self, lines: int, columns: int) -> None:
        """Set its size; the program is told by SIGWINCH."""
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        """Write as the keyboard does."""
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        """Read until a text was seen."""
        deadline = time.monotonic() + SECONDS
        while text not in self.text:
            assert self._read(deadline), f"{text!r} did not come: {self.text!r}"

    def end(self) -> int:
        """Read until the program ends; its status."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing comes any more: {self.text!r}"
        try:
            data = os.read(self.master, 4096)
        except OSError:  # the last holder of the other end has closed it
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        """End the program if it has not ended, and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(command: Sequence[str]) -> Iterator[Terminal]:
    """Run a program on a terminal."""
    made = Terminal(command)
    try:
        yield made
    finally:
        made.close()
