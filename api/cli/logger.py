"""`moorctl-log`, the program that writes a detached container's output to files that it rotates.

A shim starts it for `binary:///PATH/moorctl-log?path=FILE&format=json&size=N&count=N` (contracts/shim-v2.md 9):

    container --pipe--> fd 3 stdout, fd 4 stderr --> FILE  --full--> FILE.1 --full--> FILE.2 ..

One of these runs beside every such container, so it imports next to nothing. Its arguments are pairs:

    path      the file; older ones are PATH.1, the youngest, to PATH.COUNT-1
    format    `json` (one object a line: log, stream, time, as Docker's json-file) or `plain` (the bytes as they come)
    size      bytes after which the file is rotated, 0 for never
    count     files that there are at most
    remove    address of a daemon: when the output has ended, the container is removed as `run --rm` promises
    netns     file of the container's network namespace: if that is gone, as after a reboot, it is made again first
    folder    the container's, which tells how
    env:NAME  environment of what removes it, or makes its network again
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping

STDOUT, STDERR, READY = 3, 4, 5
PIECE = 1 << 16
LONGEST_LINE = 1 << 14
"""Bytes of a line that one entry has at most."""
IDLE = 0.05
"""Seconds after which the beginning of a line is written although its end has not come, such as a prompt."""
ESCAPES = str.maketrans(
    {chr(code): f"\\u{code:04x}" for code in (*range(32), 0x7F)}
    | {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


class RotatedFile:
    """A file that is renamed when it is full. A write that fails is dropped and counted, so that nobody is held up."""

    def __init__(self, path: str, size: int, count: int) -> None:
        self._path = path
        self._limit = size
        self._count = max(count, 1)
        self._fd = -1
        self._size = 0
        self.lost = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Append whole lines, to as many files as it takes; only a line that is longer than a file stays together."""
        while self._limit and self._size + len(data) > self._limit:
            cut = data.rfind(b"\n", 0, max(self._limit - self._size, 0)) + 1
            if not cut and not self._size:
                cut = data.find(b"\n") + 1 or len(data)
            self._append(data[:cut])
            data = data[cut:]
            if not data:
                return
            self._rotate()
        self._append(data)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                done = os.write(self._fd, view)
                self._size += done
                view = view[done:]
        except OSError:
            self.lost += len(view)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        try:
            for number in range(self._count - 1, 0, -1):
                older = self._path if number == 1 else f"{self._path}.{number - 1}"
                if os.path.exists(older):  # noqa: PTH110 - pathlib at work is memory in each container
                    os.rename(older, f"{self._path}.{number}")  # noqa: PTH104
            if self._count == 1:
                os.unlink(self._path)  # noqa: PTH108
            os.close(self._fd)
            self._open()
        except OSError:
            # Rather a file that is too large than none.
            self._limit = 0


class Stream:
    """One of the two outputs: cuts what comes into entries, a line each."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept = b""

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._kept)

    def entries(self, data: bytes, now: str, *, everything: bool = False) -> bytes:
        """Give the JSON lines of what has come; with `everything` that of an unfinished line too."""
        return b"".join(self._entry(line, now) for line in self._lines(data, everything=everything))

    def _lines(self, data: bytes, *, everything: bool) -> Iterator[bytes]:
        data = self._kept + data
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            yield from _pieces(data[start : end + 1])
            start = end + 1
        rest = data[start:]
        while len(rest) > LONGEST_LINE:
            cut = _whole_characters(rest[:LONGEST_LINE])
            yield rest[:cut]
            rest = rest[cut:]
        if everything and rest:
            yield rest
            rest = b""
        self._kept = rest

    def _entry(self, line: bytes, now: str) -> bytes:
        text = line.decode("utf-8", "replace").translate(ESCAPES)
        return f'{{"log":"{text}","stream":"{self._name}","time":"{now}"}}\n'.encode("utf-8", "replace")


def _pieces(line: bytes) -> Iterator[bytes]:
    while len(line) > LONGEST_LINE:
        cut = _whole_characters(line[:LONGEST_LINE])
        yield line[:cut]
        line = line[cut:]
    yield line


def _whole_characters(data: bytes) -> int:
    """How many of the bytes are whole UTF-8 characters; all, if the end is none."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if needed > back else len(data)
    return len(data)


class Clock:
    """The time as RFC 3339 with nanoseconds, in UTC."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        """Tell it."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{nanoseconds:09d}Z"


class Copying:
    """Copies both outputs to the file until they end, or SIGTERM comes and nothing more is in them."""

    def __init__(self, file: RotatedFile, *, plain: bool, term: int) -> None:
        self._file = file
        self._plain = plain
        self._term = term
        self._clock = Clock()
        self._open = {STDOUT: Stream("stdout"), STDERR: Stream("stderr")}
        self._told = 0

    def run(self) -> None:
        """Do it."""
        poll = select.poll()
        for fd in (*self._open, self._term):
            os.set_blocking(fd, False)
            poll.register(fd, select.POLLIN)
        while self._open:
            waits = any(stream.unfinished for stream in self._open.values())
            ready = [fd for fd, _ in poll.poll(IDLE * 1000 if waits else None)]
            if not ready:
                self._flush()
            for fd in ready:
                if fd in self._open and not self._copy(fd):
                    poll.unregister(fd)
                    del self._open[fd]
            if ready == [self._term]:
                break
        self._flush()

    def _copy(self, fd: int) -> bool:
        """Copy what there is; False at the end."""
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        stream = self._open[fd]
        if self._plain:
            if data:
                self._file.write(data)
        elif entries := stream.entries(data, self._clock.now(), everything=not data):
            self._file.write(entries)
        self._tell_lost()
        return bool(data)

    def _flush(self) -> None:
        for stream in self._open.values():
            if not self._plain and stream.unfinished:
                self._file.write(stream.entries(b"", self._clock.now(), everything=True))

    def _tell_lost(self) -> None:
        """Note in the log, once it can be written to again, that something is missing from it."""
        if self._file.lost > self._told and not self._plain:
            before = self._file.lost
            note = f"moorctl-log: {before - self._told} bytes of output could not be written and are lost\n"
            self._file.write(Stream("stderr").entries(note.encode(), self._clock.now()))
            if self._file.lost == before:
                self._told = before
            else:
                self._file.lost = before


def _arguments(words: list[str]) -> Mapping[str, str]:
    return dict(zip(words[::2], words[1::2], strict=False))


def _environment(arguments: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix("env:"): value for name, value in arguments.items() if name.startswith("env:")}


def _restore_network(arguments: Mapping[str, str]) -> str:
    """Make the container's network again if its namespace is gone; gives what went wrong, empty for nothing.

    The shim has not started the container yet. The kernel tells namespaces from other files by their device.
    """
    try:
        if os.stat(arguments["netns"]).st_dev == os.stat("/proc/self/ns/net").st_dev:  # noqa: PTH116
            return ""
    except OSError:
        pass
    read, write = os.pipe()
    words = [sys.executable, "-m", "moored.api.cli.network.restoring", arguments["folder"]]
    actions = [(os.POSIX_SPAWN_DUP2, write, 2), *((os.POSIX_SPAWN_CLOSE, fd) for fd in (STDOUT, STDERR, READY))]
    pid = os.posix_spawn(sys.executable, words, _environment(arguments), file_actions=actions)
    os.close(write)
    said = b""
    while len(said) < PIECE and (piece := os.read(read, PIECE)):
        said += piece
    os.close(read)
    _, status = os.waitpid(pid, 0)
    return " ".join(said.decode("utf-8", "replace").split()) or f"status {status}" if status else ""


def _remove(arguments: Mapping[str, str]) -> None:
    """Start what removes the container once it has ended; it outlives this program."""
    environment = _environment(arguments)
    container, namespace = os.environ["CONTAINER_ID"], os.environ["CONTAINER_NAMESPACE"]
    words = ["--address", arguments["remove"], "--namespace", namespace, "rm", "--when-ended", container]
    os.posix_spawn(sys.executable, [sys.executable, "-m", "moored.api.cli.main", *words], environment, setsid=True)


def main() -> None:
    """Write the output of the container whose shim has started this program."""
    arguments = _arguments(sys.argv[1:])
    read, write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(write, b"."))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = RotatedFile(arguments["path"], int(arguments.get("size", "0")), int(arguments.get("count", "1")))
    plain = arguments.get("format") == "plain"
    if arguments.get("netns") and (fault := _restore_network(arguments)):
        note = f"moorctl-log: the network of this container could not be made again: {fault}\n".encode()
        file.write(note if plain else Stream("stderr").entries(note, Clock().now()))
    os.close(READY)
    Copying(file, plain=plain, term=read).run()
    if arguments.get("remove"):
        _remove(arguments)


if __name__ == "__main__":
    main()
