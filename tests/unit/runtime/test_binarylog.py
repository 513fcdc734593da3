"""Logging programs get what they are promised, are waited for as promised, and end."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.plugins.runtime.shim import binarylog
from moored.plugins.runtime.shim.loop import Loop
from moored.plugins.runtime.shim.stdio import Stdio, Streams, open_streams
from unit.runtime.processes import clean_loop, run, shell, until


@pytest.fixture
def loop() -> Generator[Loop]:
    with clean_loop() as made:
        yield made


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A place for a program; with this PATH, since it is given none."""
    return tmp_path / "logger"


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\nout={path}\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)


async def opened(loop: Loop, program: Path, scheme: str = "binary", query: str = "") -> Streams:
    uri = f"{scheme}://{program}{query}"
    return await open_streams(loop, Stdio(stdout=uri, stderr=uri), "e1", "default")


def test_program_gets_arguments_environment_and_both_streams(loop: Loop, program: Path) -> None:
    write_program(
        program,
        'tr "\\0" "\\n" < /proc/self/environ > $out.env; echo "$@" > $out.args; readlink /proc/$$/fd/0 > $out.stdin\n'
        "exec 5>&-; cat <&3 > $out.1; cat <&4 > $out.2; : > $out.done; sleep 60",
    )

    async def main() -> None:
        streams = await opened(loop, program, query="?tag=x%20y&level=3")
        ended = shell(loop, "echo said; echo wrong >&2", streams.child_fds)
        await streams.started()
        assert await ended == 0
        await until(loop, Path(f"{program}.done").exists)  # it has seen the end of both
        assert await streams.drained(5)
        await streams.close()

    run(loop, main())
    read = {name: Path(f"{program}.{name}").read_text() for name in ("env", "args", "stdin", "1", "2")}
    set_by_the_shell = {"PWD", "PATH", "OLDPWD", "SHLVL", "_"}
    environment = {line for line in read.pop("env").split() if line.split("=")[0] not in set_by_the_shell}
    assert environment == {"CONTAINER_ID=e1", "CONTAINER_NAMESPACE=default"}
    assert read == {"args": "tag x y level 3\n", "stdin": "/dev/null\n", "1": "said\n", "2": "wrong\n"}


def test_program_inherits_nothing_else(loop: Loop, program: Path, tmp_path: Path) -> None:
    write_program(program, "ls /proc/$$/fd > $out.fds; exec 5>&-; cat <&3")

    async def main() -> None:
        held = os.open(tmp_path, os.O_RDONLY)
        streams = await opened(loop, program)
        await streams.close()
        os.close(held)

    run(loop, main())
    # 10 and above are the shell's own, its script among them.
    assert {int(name) for name in Path(f"{program}.fds").read_text().split() if int(name) < 10} == {0, 1, 2, 3, 4, 5}


def test_program_is_waited_for_until_it_is_ready(loop: Loop, program: Path) -> None:
    os.mkfifo(f"{program}.go")
    write_program(program, "read x < $out.go; printf r >&5; exec 5>&-; cat <&3")

    async def main() -> None:
        opening = loop.spawn(opened(loop, program, "binary-v2"))
        with pytest.raises(TimeoutError):
            await loop.within(0.05, opening)
        go = os.open(f"{program}.go", os.O_RDWR | os.O_NONBLOCK)
        os.write(go, b"\n")
        streams = await opening
        os.close(go)
        await streams.close()

    run(loop, main())


def test_second_version_has_to_say_that_it_is_ready(loop: Loop, program: Path) -> None:
    write_program(program, "exec 5>&-; sleep 60")

    async def main() -> None:
        with pytest.raises(Unknown, match="did not say that it is ready"):
            await opened(loop, program, "binary-v2")
        await loop.sleep(0.05)  # the end of what was killed

    run(loop, main())


def test_program_that_hangs_is_killed(loop: Loop, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binarylog, "READY", 0.05)
    write_program(program, "exec sleep 60")

    async def main() -> None:
        with pytest.raises(DeadlineExceeded, match=r"was not ready within 0\.05 s"):
            await opened(loop, program)
        await loop.sleep(0.05)

    run(loop, main())


def test_program_that_does_not_exist_is_an_error(loop: Loop, program: Path) -> None:
    with pytest.raises(Unknown, match="logger': no such file or directory"):
        run(loop, opened(loop, program))


def test_program_is_asked_to_end_and_may_finish_first(loop: Loop, program: Path) -> None:
    write_program(program, "trap 'cat <&3 > $out.rest; exit 0' TERM; exec 5>&-; while :; do sleep 0.01; done")

    async def main() -> None:
        streams = await opened(loop, program)
        ended = shell(loop, "echo last words", streams.child_fds)
        await streams.started()
        await ended
        await streams.close()

    run(loop, main())
    assert Path(f"{program}.rest").read_text() == "last words\n"


def test_program_that_does_not_end_is_killed(
    loop: Loop, program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(binarylog, "TO_END", 0.05)
    write_program(program, "trap '' TERM; exec 5>&-; exec cat <&3 4<&- >/dev/null; ")

    async def main() -> None:
        streams = await opened(loop, program)
        ended = shell(loop, "exec sleep 60", streams.child_fds)  # holds the pipe, so that it sees no end
        await streams.started()
        await streams.close()
        assert not ended.done()
        os.kill(next(iter(loop._children)), 9)
        await ended

    run(loop, main())
    assert "did not end within 0.05 s of SIGTERM and is killed" in capfd.readouterr().err


def test_program_that_ended_before_does_no_harm(loop: Loop, program: Path) -> None:
    write_program(program, "exit 0")

    async def main() -> int:
        streams = await opened(loop, program)
        ended = shell(loop, "echo to nobody; exit 4", streams.child_fds)
        await streams.started()
        status = await ended
        await streams.close()
        return status

    assert run(loop, main()) == 4
