"""The program that writes logs, and what reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.api.cli import logger
from moored.api.cli.logfiles import Reader, files
from moored.api.cli.logger import LONGEST_LINE, RotatedFile, Stream

NOW = "2026-01-02T03:04:05.000000006Z"


def texts(entries: bytes) -> list[str]:
    return [json.loads(line)["log"] for line in entries.splitlines()]


def test_a_line_is_an_entry_and_its_beginning_waits_for_its_end():
    stream = Stream("stdout")

    first = stream.entries(b"one\ntw", NOW)

    assert [json.loads(line) for line in first.splitlines()] == [{"log": "one\n", "stream": "stdout", "time": NOW}]
    assert stream.unfinished
    assert texts(stream.entries(b"o\n", NOW)) == ["two\n"]
    assert not stream.unfinished


def test_long_lines_are_cut_between_characters():
    stream = Stream("stdout")

    found = texts(stream.entries(("x" + "船" * LONGEST_LINE + "\n").encode(), NOW))

    assert "".join(found) == "x" + "船" * LONGEST_LINE + "\n"
    assert max(len(text.encode()) for text in found) <= LONGEST_LINE


@given(st.lists(st.text()))
def test_what_is_written_in_pieces_comes_back_whole(pieces):
    stream = Stream("stderr")
    text = "".join(pieces)

    found = [stream.entries(piece.encode("utf-8", "replace"), NOW) for piece in pieces]
    found.append(stream.entries(b"", NOW, everything=True))

    assert "".join(texts(b"".join(found))) == text.encode("utf-8", "replace").decode()


def test_a_full_file_is_renamed_and_the_oldest_goes(tmp_path):
    file = RotatedFile(str(tmp_path / "log"), 10, 3)

    for number in range(6):
        file.write(b"line %d\n" % number)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log": "line 5\n",
        "log.1": "line 4\n",
        "log.2": "line 3\n",
    }


def test_one_write_fills_as_many_files_as_it_takes(tmp_path):
    RotatedFile(str(tmp_path / "log"), 10, 10).write(b"".join(b"line %d\n" % number for number in range(4)))

    assert [path.read_text() for path in files(tmp_path / "log")] == [f"line {number}\n" for number in range(4)]


def test_a_line_longer_than_a_file_stays_together(tmp_path):
    RotatedFile(str(tmp_path / "log"), 5, 10).write(b"0123456789\nx\n")

    assert [path.read_text() for path in files(tmp_path / "log")] == ["0123456789\n", "x\n"]


def test_what_cannot_be_written_is_counted(tmp_path):
    file = RotatedFile("/dev/full", 0, 1)

    file.write(b"lost")

    assert file.lost == 4


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        RotatedFile(str(tmp_path / "log"), 0, 1)


def run(tmp_path: Path, out: bytes, err: bytes, **arguments: str) -> int:
    """Run the program as a shim does."""
    pairs = [word for pair in {"path": str(tmp_path / "log"), **arguments}.items() for word in pair]
    pipes = [os.pipe() for _ in range(3)]
    env = {"CONTAINER_ID": "c", "CONTAINER_NAMESPACE": "n"}
    places = [(pipes[0][0], 3), (pipes[1][0], 4), (pipes[2][1], 5)]
    copies = [(os.dup(fd), target) for fd, target in places]
    high = [(os.dup2(fd, 40 + target, inheritable=False), target) for fd, target in copies]
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in high]
    words = [sys.executable, str(logger.__file__), *pairs]
    pid = os.posix_spawn(sys.executable, words, env, file_actions=actions)
    for fd in (*(fd for fd, _ in copies), *(fd for fd, _ in high), pipes[0][0], pipes[1][0], pipes[2][1]):
        os.close(fd)
    assert os.read(pipes[2][0], 1) == b""
    for fd, data in ((pipes[0][1], out), (pipes[1][1], err)):
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(data)
    os.close(pipes[2][0])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_program_writes_both_outputs_and_ends_with_them(tmp_path):
    assert run(tmp_path, b"out\n", b"err\nrest") == 0

    found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(one["log"], one["stream"]) for one in found if one["stream"] == "stdout"] == [("out\n", "stdout")]
    assert "".join(one["log"] for one in found if one["stream"] == "stderr") == "err\nrest"


def test_a_plain_log_has_the_bytes(tmp_path):
    assert run(tmp_path, b"\xff\x00\n", b"", format="plain") == 0

    assert (tmp_path / "log").read_bytes() == b"\xff\x00\n"


def test_the_program_imports_next_to_nothing():
    code = (
        "import sys; before = set(sys.modules); "
        f"exec(compile(open({logger.__file__!r}).read(), 'x', 'exec'), {{'__name__': 'x'}}); "
        "print(*set(sys.modules) - before)"
    )

    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"json", "re", "typing", "asyncio", "logging", "subprocess", "datetime"}


# --- reading ----------------------------------------------------------------------------------------------------------


def written(folder: Path, numbers: range, size: int = 0) -> Path:
    path = folder / "log"
    file, stream = RotatedFile(str(path), size, 100), Stream("stdout")
    for number in numbers:
        file.write(stream.entries(b"%d\n" % number, NOW))
    return path


@pytest.mark.parametrize("size", [0, 500])
@pytest.mark.parametrize("tail", [None, 0, 1, 7, 50, 1000])
def test_all_files_are_read_in_order_or_their_last_lines(tmp_path, size, tail):
    path = written(tmp_path, range(50), size)
    reader = Reader(path, "json", tail)

    found = [int(entry.data) for entry in reader.entries()]
    reader.close()

    assert found == list(range(50))[50 - min(50 if tail is None else tail, 50) :]


def test_what_is_added_is_read_over_rotations(tmp_path):
    path = written(tmp_path, range(3))
    reader = Reader(path, "json", None)
    found = [int(entry.data) for entry in reader.entries()]

    file, stream = RotatedFile(str(path), 300, 100), Stream("stdout")
    for number in range(3, 40):
        file.write(stream.entries(b"%d\n" % number, NOW))
    found += [int(entry.data) for entry in reader.more()]
    reader.close()

    assert len(files(path)) > 3
    assert found == list(range(40))


def test_half_a_line_of_a_file_waits_for_its_end(tmp_path):
    path = tmp_path / "log"
    line = Stream("stdout").entries(b"x\n", NOW)
    path.write_bytes(line[:10])
    reader = Reader(path, "json", None)

    assert list(reader.entries()) == []
    with path.open("ab") as file:
        file.write(line[10:])
    assert [entry.data for entry in reader.more()] == [b"x\n"]
    reader.close()


def test_pieces_of_one_line_count_as_one_for_tail(tmp_path):
    path = tmp_path / "log"
    stream = Stream("stdout")
    pieces = [stream.entries(data, NOW, everything=True) for data in (b"a\n", b"b1", b"b2\n", b"c")]
    path.write_bytes(b"".join(pieces))
    reader = Reader(path, "json", 2)

    assert [entry.data for entry in reader.entries()] == [b"b1", b"b2\n", b"c"]
    reader.close()


def test_a_line_that_is_no_entry_is_left_out(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"garbage\n" + Stream("stdout").entries(b"x\n", NOW))
    reader = Reader(path, "json", None)

    assert [entry.data for entry in reader.entries()] == [b"x\n"]
    reader.close()
