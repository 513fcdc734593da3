"""Terminals: handed over by the runtime, joined to the client's FIFOs, and ended with their process."""

import os
import pty
import select
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.plugins.runtime.shim import console
from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from moored.plugins.runtime.shim.stdio import Stdio, Streams, open_streams
from unit.runtime.processes import Client, clean_loop, run, until


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Loop]:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with clean_loop() as made:
        yield made
    assert list(folder.iterdir()) == []


@pytest.fixture
def fifos(tmp_path: Path) -> Stdio:
    for name in ("stdin", "stdout"):
        os.mkfifo(tmp_path / name, 0o700)
    return Stdio(str(tmp_path / "stdin"), str(tmp_path / "stdout"), "", terminal=True)


async def opened(loop: Loop, wanted: Stdio) -> Streams:
    return await open_streams(loop, wanted, "c1", "default")


def hand_over(path: str, *fds: int) -> None:
    """Send descriptors as a runtime does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"/dev/ptmx"], list(fds))


def start(loop: Loop, streams: Streams, script: str) -> Future[ExitStatus]:
    """Do what a runtime does: make a terminal, start a process as the leader of its session, hand it over."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, name, os.O_RDWR, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
    command = ["/bin/sh", "-c", script]
    ended = loop.child(os.posix_spawn(command[0], command, dict(os.environ), file_actions=actions, setsid=True))
    hand_over(streams.console_socket, master)
    os.close(slave)
    os.close(master)
    return ended


def test_terminal_carries_input_output_and_errors(loop: Loop, fifos: Stdio) -> None:
    async def main() -> tuple[bytes, int]:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        ended = start(loop, streams, "tty -s && echo ready; read x; echo got $x >&2; exit 5")
        await streams.started()
        keyboard = Client(loop, Path(fifos.stdin), os.O_WRONLY)
        assert await out.line() == b"ready\r\n"
        await keyboard.write(b"text\n")
        heard = await out.line() + await out.line()
        status = await ended
        streams.exited()
        heard += await out.read_all()
        keyboard.close()
        await streams.close()
        return heard, status

    assert run(loop, main()) == (b"text\r\ngot text\r\n", 5)


def test_size_reaches_the_process(loop: Loop, fifos: Stdio) -> None:
    async def main() -> bytes:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        streams.resize(1, 1)  # nothing is there yet
        ended = start(loop, streams, "read x; stty size")
        await streams.started()
        streams.resize(132, 43)
        keyboard = Client(loop, Path(fifos.stdin), os.O_WRONLY)
        await keyboard.write(b"\n")
        await ended
        assert await streams.drained(5)
        heard = await out.read_all()
        keyboard.close()
        await streams.close()
        streams.resize(1, 1)
        return heard

    assert run(loop, main()) == b"\r\n43 132\r\n"


def test_all_output_arrives_however_much_it_is(loop: Loop, fifos: Stdio) -> None:
    async def main() -> bytes:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        ended = start(loop, streams, "stty -opost; seq 1 200000")
        await streams.started()
        heard = loop.spawn(out.read_all())
        await ended
        assert await streams.drained(15)
        found = await heard
        await streams.close()
        return found

    assert run(loop, main()) == "".join(f"{number}\n" for number in range(1, 200001)).encode()


def test_end_of_the_process_ends_the_output_though_somebody_holds_the_terminal(loop: Loop, fifos: Stdio) -> None:
    async def main() -> bytes:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        master, slave = pty.openpty()  # held by this test until the end, and no hang-up: nobody's controlling terminal
        hand_over(streams.console_socket, master)
        os.close(master)
        await streams.started()
        os.write(slave, b"last\n")
        streams.exited()
        heard = await out.read_all()
        os.close(slave)
        await streams.close()
        return heard

    assert run(loop, main()) == b"last\r\n"


def test_terminal_that_nobody_has_open_for_a_while_goes_on(loop: Loop, fifos: Stdio) -> None:
    async def main() -> list[bytes]:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        master, slave = pty.openpty()
        name = os.ttyname(slave)
        hand_over(streams.console_socket, master)
        os.close(master)
        await streams.started()
        os.write(slave, b"one\n")
        heard = [await out.line()]
        os.close(slave)
        await loop.sleep(0.02)
        again = os.open(name, os.O_RDWR | os.O_NOCTTY)
        os.write(again, b"two\n")
        heard.append(await out.line())
        os.close(again)
        assert await streams.drained(5)
        heard.append(await out.read_all())
        await streams.close()
        return heard

    assert run(loop, main()) == [b"one\r\n", b"two\r\n", b""]


def test_end_of_the_input_hangs_up(loop: Loop, fifos: Stdio) -> None:
    async def main() -> tuple[bytes, int]:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        ended = start(loop, streams, "echo ready; exec sleep 60")
        await streams.started()
        keyboard = Client(loop, Path(fifos.stdin), os.O_WRONLY)
        heard = await out.line()
        keyboard.close()
        streams.close_stdin()
        status = await ended
        heard += await out.read_all()
        await streams.close()
        return heard, status

    assert run(loop, main()) == (b"ready\r\n", 128 + 1)


def test_client_that_does_not_read_can_be_left(loop: Loop, fifos: Stdio) -> None:
    async def main() -> None:
        out = Client(loop, Path(fifos.stdout), os.O_RDONLY)
        streams = await opened(loop, fifos)
        ended = start(loop, streams, "seq 1 200000")
        await streams.started()
        other = Client(loop, Path(fifos.stdout), os.O_WRONLY)
        await until(loop, lambda: not select.select([], [other.fd], [], 0)[1])  # the FIFO is full
        other.close()
        assert not ended.done()
        await streams.close()
        assert await ended == 128 + 1
        out.close()

    run(loop, main())


def test_output_of_a_terminal_may_go_to_a_file_or_nowhere(loop: Loop, tmp_path: Path) -> None:
    async def main() -> None:
        for uri in (f"file://{tmp_path}/log", ""):
            streams = await opened(loop, Stdio(stdout=uri, terminal=True))
            ended = start(loop, streams, "echo text")
            await streams.started()
            await ended
            assert await streams.drained(5)
            await streams.close()

    run(loop, main())
    assert (tmp_path / "log").read_bytes() == b"text\r\n"


def test_output_of_a_terminal_may_go_to_a_program(loop: Loop, tmp_path: Path) -> None:
    program, log = tmp_path / "logger", tmp_path / "log"
    program.write_text(f"#!/bin/sh\nexec 5>&-; /bin/cat <&3 > {log}; /bin/cat <&4 >> {log}; : > {log}.done\n")
    program.chmod(0o755)

    async def main() -> None:
        streams = await opened(loop, Stdio(stdout=f"binary://{program}", terminal=True))
        ended = start(loop, streams, "echo text")
        await streams.started()
        await ended
        assert await streams.drained(5)
        await until(loop, Path(f"{log}.done").exists)
        await streams.close()

    run(loop, main())
    assert log.read_bytes() == b"text\r\n"


def test_something_else_than_a_terminal_is_refused(loop: Loop, fifos: Stdio) -> None:
    async def main() -> None:
        streams = await opened(loop, fifos)
        null = os.open("/dev/null", os.O_RDWR)
        hand_over(streams.console_socket, null, null)
        os.close(null)
        with pytest.raises(Unknown, match="sent 2 descriptors, wanted that of one terminal"):
            await streams.started()
        await streams.close()

    run(loop, main())


def test_runtime_that_hands_nothing_over_is_an_error(loop: Loop, fifos: Stdio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "HANDOVER", 0.02)

    async def main() -> None:
        streams = await opened(loop, fifos)
        with pytest.raises(DeadlineExceeded, match=r"handed no terminal over within 0\.02 s"):
            await streams.started()
        await streams.close()

    run(loop, main())


def test_socket_is_for_its_owner_only(loop: Loop, fifos: Stdio) -> None:
    async def main() -> int:
        streams = await opened(loop, fifos)
        mode = Path(streams.console_socket).parent.stat().st_mode & 0o777
        await streams.close()
        return mode

    assert run(loop, main()) == 0o700
