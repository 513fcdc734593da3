"""Streams of a process: every byte arrives, nobody waits for ever, nothing is left open."""

import hashlib
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.plugins.runtime.shim import stdio
from moored.plugins.runtime.shim.loop import Loop
from moored.plugins.runtime.shim.settling import settle
from moored.plugins.runtime.shim.stdio import Stdio, Streams, open_streams
from unit.descriptors import descriptors
from unit.runtime.processes import Client, clean_loop, run, shell, spawn, until

MEGABYTE = 1 << 20


@pytest.fixture
def loop() -> Generator[Loop]:
    with clean_loop() as made:
        yield made


@pytest.fixture
def fifos(tmp_path: Path) -> Stdio:
    paths = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
    for path in paths:
        os.mkfifo(path, 0o700)
    return Stdio(*map(str, paths))


def outputs(fifos: Stdio) -> Stdio:
    return fifos._replace(stdin="")


def reader(loop: Loop, path: str) -> Client:
    return Client(loop, Path(path), os.O_RDONLY)


def writer(loop: Loop, path: str) -> Client:
    return Client(loop, Path(path), os.O_WRONLY)


async def opened(loop: Loop, wanted: Stdio) -> Streams:
    return await open_streams(loop, wanted, "c1", "default")


def test_output_and_errors_arrive_apart_and_end_with_the_process(loop: Loop, fifos: Stdio) -> None:
    async def main() -> tuple[bytes, bytes, bool]:
        out, err = reader(loop, fifos.stdout), reader(loop, fifos.stderr)
        streams = await opened(loop, outputs(fifos))
        ended = shell(loop, "echo out; echo err >&2", streams.child_fds)
        await streams.started()
        assert await ended == 0
        found = await out.read_all(), await err.read_all(), await streams.drained(5)
        await streams.close()
        return found

    assert run(loop, main()) == (b"out\n", b"err\n", True)


def test_a_hundred_megabytes_arrive_unchanged(loop: Loop, fifos: Stdio) -> None:
    line = b"0123456789abcdef and so on\n"
    size = 100 * MEGABYTE
    expected = hashlib.sha256((line * (size // len(line) + 1))[:size]).hexdigest()

    async def main() -> str:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, Stdio(stdout=fifos.stdout))
        ended = shell(loop, f"yes '{line.decode().strip()}' | head -c {size}", streams.child_fds)
        await streams.started()
        found = hashlib.sha256()
        while piece := await out.read(MEGABYTE):
            found.update(piece)
        out.close()
        await ended
        await streams.close()
        return found.hexdigest()

    assert run(loop, main()) == expected


def test_slow_reader_gets_every_byte(loop: Loop, fifos: Stdio, tmp_path: Path) -> None:
    data = os.urandom(MEGABYTE // 4)
    (tmp_path / "data").write_bytes(data)

    async def main() -> bytes:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, Stdio(stdout=fifos.stdout))
        ended = spawn(loop, ["cat", str(tmp_path / "data")], streams.child_fds)
        await streams.started()
        pieces: list[bytes] = []
        while piece := await out.read(777):
            pieces.append(piece)
            await loop.sleep(0)
        out.close()
        await ended
        await streams.close()
        return b"".join(pieces)

    assert run(loop, main()) == data


def test_client_may_go_away_and_come_back(loop: Loop, fifos: Stdio, tmp_path: Path) -> None:
    script = f"echo one; read x; echo two; : > {tmp_path}/said; read x; echo three"

    async def main() -> list[bytes]:
        first = reader(loop, fifos.stdout)
        streams = await opened(loop, fifos._replace(stderr=""))
        ended = shell(loop, script, streams.child_fds)
        await streams.started()
        keyboard = writer(loop, fifos.stdin)
        heard = [await first.line()]
        first.close()
        await keyboard.write(b"\n")
        await until(loop, (tmp_path / "said").exists)  # writing to nobody neither fails nor waits
        second = reader(loop, fifos.stdout)
        heard.append(await second.line())
        await keyboard.write(b"\n")
        heard.append(await second.read_all())
        assert await ended == 0
        keyboard.close()
        await streams.close()
        return heard

    assert run(loop, main()) == [b"one\n", b"two\n", b"three\n"]


def test_client_that_opens_late_is_waited_for(loop: Loop, fifos: Stdio) -> None:
    async def open_late() -> bytes:
        await loop.sleep(0.02)
        return await reader(loop, fifos.stdout).read_all()

    async def main() -> bytes:
        streams = await opened(loop, Stdio(stdout=fifos.stdout))
        ended = shell(loop, "echo out", streams.child_fds)
        late = loop.spawn(open_late())
        await streams.started()
        assert not late.done()
        assert await ended == 0
        heard = await late
        await streams.close()
        return heard

    assert run(loop, main()) == b"out\n"


def test_client_is_let_go_while_the_runtime_still_works(loop: Loop, fifos: Stdio) -> None:
    async def main() -> None:
        streams = await opened(loop, outputs(fifos))
        readers = [spawn(loop, ["sh", "-c", ": < $0", path], (0, 1, 2)) for path in (fifos.stdout, fifos.stderr)]
        for over in readers:  # they come back from opening without `started`
            assert await over == 0
        await streams.close()

    run(loop, main())


def test_client_that_never_opens_is_an_error_in_the_end(
    loop: Loop, fifos: Stdio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "TO_OPEN", 0.03)

    async def main() -> None:
        streams = await opened(loop, fifos)
        ended = shell(loop, "echo out", streams.child_fds)
        with pytest.raises(DeadlineExceeded, match=r"stdout' was opened by no reader within 0\.03 s"):
            await streams.started()
        await streams.close()
        await ended

    run(loop, main())


def test_client_that_does_not_read_stops_its_process_only(loop: Loop, fifos: Stdio) -> None:
    async def main() -> bool:
        idle, err = reader(loop, fifos.stdout), reader(loop, fifos.stderr)
        streams = await opened(loop, outputs(fifos))
        ended = shell(loop, "echo other >&2; head -c 1000000 /dev/zero; exit 3", streams.child_fds)
        await streams.started()
        assert await err.line() == b"other\n"  # its other stream goes on
        assert not await streams.drained(0.05)
        assert not ended.done()
        await streams.close()
        idle.close()
        err.close()
        return await ended == 3  # nobody is left to write to, so head has failed and the shell went on

    assert run(loop, main())


def test_input_ends_when_it_is_closed_here_and_by_the_client(loop: Loop, fifos: Stdio) -> None:
    async def main() -> list[bytes]:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, fifos._replace(stderr=""))
        ended = spawn(loop, ["cat"], streams.child_fds)
        await streams.started()
        first = writer(loop, fifos.stdin)
        await first.write(b"one\n")
        heard = [await out.line()]
        first.close()  # a client that goes does not end the input
        second = writer(loop, fifos.stdin)
        streams.close_stdin()
        streams.close_stdin()
        await second.write(b"two\n")  # and closing it here does not while a client is there
        heard.append(await out.line())
        second.close()
        assert await ended == 0
        heard.append(await out.read_all())
        await streams.close()
        return heard

    assert run(loop, main()) == [b"one\n", b"two\n", b""]


def test_input_ends_without_any_client(loop: Loop, fifos: Stdio) -> None:
    async def main() -> bool:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, fifos._replace(stderr=""))
        ended = spawn(loop, ["cat"], streams.child_fds)
        await streams.started()
        streams.close_stdin()
        status = await ended
        out.close()
        await streams.close()
        return status == 0

    assert run(loop, main())


def test_much_input_passes_through_unchanged(loop: Loop, fifos: Stdio) -> None:
    data = os.urandom(8 * MEGABYTE)

    async def feed(keyboard: Client) -> None:
        await keyboard.write(data)
        keyboard.close()

    async def main() -> bytes:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, fifos._replace(stderr=""))
        ended = spawn(loop, ["cat"], streams.child_fds)
        await streams.started()
        feeding = loop.spawn(feed(writer(loop, fifos.stdin)))
        streams.close_stdin()
        heard = await out.read_all()
        await feeding
        await ended
        await streams.close()
        return heard

    assert hashlib.sha256(run(loop, main())).digest() == hashlib.sha256(data).digest()


def test_process_that_reads_no_input_is_no_failure(loop: Loop, fifos: Stdio, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, fifos._replace(stderr=""))
        ended = shell(loop, "exec <&-; echo closed; read x <&1", streams.child_fds)
        await streams.started()
        keyboard = writer(loop, fifos.stdin)
        assert await out.line() == b"closed\n"
        await keyboard.write(b"text nobody wants")
        await out.read_all()
        assert await ended != 0
        keyboard.close()
        await streams.close()

    run(loop, main())
    assert capfd.readouterr().err.count("level=") == 0


def test_grandchild_that_holds_the_output_is_waited_for_no_longer_than_said(loop: Loop, fifos: Stdio) -> None:
    async def main() -> list[bytes]:
        out = reader(loop, fifos.stdout)
        streams = await opened(loop, Stdio(stdout=fifos.stdout))
        ended = shell(loop, "sleep 60 & echo $!", streams.child_fds)
        await streams.started()
        assert await ended == 0
        pid = await out.line()
        assert not await streams.drained(0.05)
        await streams.close()
        rest = await out.read_all()
        os.kill(int(pid), 15)
        return [rest]

    assert run(loop, main()) == [b""]


def test_file_takes_output_and_errors_and_is_appended_to(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "log"
    uri = f"file://{tmp_path}/new%20folder/log"

    async def main() -> None:
        for number in (1, 2):
            streams = await opened(loop, Stdio(stdout=uri, stderr=uri))
            ended = shell(loop, f"echo out{number}; exec >&-; echo err{number} >&2", streams.child_fds)
            await streams.started()
            await ended
            assert await streams.drained(5)
            await streams.close()

    old = os.umask(0o022)
    run(loop, main())
    os.umask(old)
    assert sorted(path.read_text().split()) == ["err1", "err2", "out1", "out2"]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o644, 0o755)


def test_full_disk_does_not_stop_the_process(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> bool:
        streams = await opened(loop, Stdio(stdout="file:///dev/full"))
        ended = shell(loop, "head -c 1000000 /dev/zero", streams.child_fds)
        await streams.started()
        status = await ended
        assert await streams.drained(5)
        await streams.close()
        return status == 0

    assert run(loop, main())
    assert capfd.readouterr().err.count("no space left on device") == 1


def test_plain_file_is_written_to(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_text("before\n")

    async def main() -> None:
        streams = await opened(loop, Stdio(stdout=str(path)))
        ended = shell(loop, "echo out", streams.child_fds)
        await streams.started()
        await ended
        assert await streams.drained(5)
        await streams.close()

    run(loop, main())
    assert path.read_text() == "before\nout\n"


def test_streams_that_are_not_wanted_are_null(loop: Loop) -> None:
    async def main() -> set[str]:
        streams = await opened(loop, Stdio())
        found = {descriptors()[str(fd)] for fd in streams.child_fds}
        await streams.started()
        assert await streams.drained(5)
        await streams.close()
        return found

    assert run(loop, main()) == {"/dev/null"}


@pytest.mark.parametrize("scheme", ["ttrpc+unix", "npipe", "npipe".upper()])
def test_scheme_that_is_not_known_is_refused(loop: Loop, scheme: str) -> None:
    async def main() -> None:
        await opened(loop, Stdio(stdout=f"{scheme}:///x"))

    with pytest.raises(Unknown, match=f"^unknown STDIO scheme {scheme.lower().replace('+', '.')}$"):
        run(loop, main())


@pytest.mark.parametrize("missing", ["stdin", "stdout", "stderr"])
def test_path_that_does_not_exist_is_an_error_and_leaves_nothing_open(loop: Loop, fifos: Stdio, missing: str) -> None:
    async def main() -> None:
        clients = [reader(loop, path) for path in (fifos.stdout, fifos.stderr)]
        streams = await opened(loop, fifos._replace(**{missing: "/nowhere/at/all"}))
        try:
            await streams.started()
        finally:
            await streams.close()
            for client in clients:
                client.close()

    with pytest.raises(Unknown, match="/nowhere/at/all': no such file or directory"):
        run(loop, main())


def test_closing_before_the_start_and_twice_leaves_nothing_open(loop: Loop, fifos: Stdio) -> None:
    async def main() -> None:
        streams = await opened(loop, fifos)
        await streams.close()
        await streams.close()
        streams.close_stdin()
        streams.resize(1, 1)

    run(loop, main())


def test_running_process_holds_the_descriptors_it_needs_only(loop: Loop, fifos: Stdio) -> None:
    async def main() -> list[str]:
        before = descriptors()
        clients = [reader(loop, path) for path in (fifos.stdout, fifos.stderr)]
        streams = await opened(loop, fifos)
        ended = spawn(loop, ["cat"], streams.child_fds)
        await streams.started()
        for client in clients:
            client.close()
        found = [kind for fd, kind in descriptors().items() if before.get(fd) != kind]
        streams.close_stdin()
        await ended
        await streams.close()
        return sorted(kind.split(":")[0].rpartition("/")[2] for kind in found)

    assert run(loop, main()) == ["pipe"] * 3 + ["stderr"] * 2 + ["stdin"] * 2 + ["stdout"] * 2


def test_waiting_for_clients_can_be_given_up(loop: Loop, fifos: Stdio) -> None:
    async def main() -> None:
        streams = await opened(loop, fifos)
        starting = loop.spawn(streams.started())
        with pytest.raises(TimeoutError):
            await loop.within(0.01, starting)
        await settle(loop, starting)
        await streams.close()

    run(loop, main())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_ends_of_the_process_belong_to_its_user(loop: Loop, fifos: Stdio) -> None:
    async def main() -> list[tuple[int, int]]:
        streams = await open_streams(loop, fifos, "c1", "default", uid=1234, gid=5678)
        found = [os.fstat(fd) for fd in streams.child_fds]
        await streams.close()
        return [(one.st_uid, one.st_gid) for one in found]

    assert run(loop, main()) == [(1234, 5678)] * 3
