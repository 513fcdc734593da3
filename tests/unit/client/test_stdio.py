"""The client's ends of streams, with a shim's part played by the test."""

from __future__ import annotations

import asyncio
import os

import pytest

from harness import on_loop
from moored.api.client.stdio import NULL, PIPES, PIPES_AND_STDIN, TERMINAL, Streams, log_to, made
from moored.kernel.errors import FailedPrecondition, InvalidArgument


class Told:
    """Counts how often an end of input was told."""

    def __init__(self):
        self.times = 0

    async def __call__(self):
        self.times += 1


def test_streams_that_are_not_wanted_have_no_name(tmp_path):
    assert made(NULL, "x", tmp_path, Told()).stdio.stdout == ""
    streams = made(log_to("file:///log"), "x", tmp_path, Told())
    assert (streams.stdio.stdin, streams.stdio.stdout, streams.stdio.stderr) == ("", "file:///log", "file:///log")
    terminal = made(TERMINAL, "x", tmp_path / "fifos", Told())
    assert terminal.stdio.terminal
    assert terminal.stdio.stderr == ""
    terminal.close()
    assert list((tmp_path / "fifos").iterdir()) == []


def test_logs_have_a_scheme_that_shims_know():
    with pytest.raises(InvalidArgument, match="'http://x'"):
        log_to("http://x")


@on_loop
async def test_output_waits_for_its_writer_and_ends_with_it(tmp_path):
    streams = made(PIPES, "x", tmp_path, Told())
    assert streams.stdout is not None
    reading = asyncio.ensure_future(streams.stdout.read())
    await asyncio.sleep(0)
    assert not reading.done()

    fd = os.open(streams.stdio.stdout, os.O_WRONLY)
    os.write(fd, b"one\ntwo")
    await asyncio.sleep(0)
    os.close(fd)

    assert await reading == b"one\ntwo"
    streams.close()


@on_loop
async def test_output_gives_lines_and_what_is_left_of_them(tmp_path):
    streams = made(PIPES, "x", tmp_path, Told())
    assert streams.stdout is not None
    fd = os.open(streams.stdio.stdout, os.O_WRONLY)
    os.write(fd, b"one\ntwo\nthree")
    os.close(fd)

    assert [await streams.stdout.readline() for _ in range(4)] == [b"one\n", b"two\n", b"three", b""]
    streams.close()


@on_loop
async def test_closing_output_wakes_its_reader(tmp_path):
    streams = made(PIPES, "x", tmp_path, Told())
    assert streams.stdout is not None
    reading = asyncio.ensure_future(streams.stdout.read(10))
    await asyncio.sleep(0)

    streams.close()

    assert await reading == b""


@on_loop
async def test_more_than_a_pipe_holds_is_written_as_it_is_read(tmp_path):
    told = Told()
    streams = made(PIPES_AND_STDIN, "x", tmp_path, told)
    assert streams.stdin is not None
    reader = os.open(streams.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK)
    data = os.urandom(300_000)
    writing = asyncio.ensure_future(streams.stdin.write(data))
    got = b""
    while len(got) < len(data):
        await asyncio.sleep(0)
        try:
            got += os.read(reader, 1 << 16)
        except BlockingIOError:
            continue
    await writing
    await streams.stdin.close()
    await streams.stdin.close()

    assert got == data
    assert os.read(reader, 1) == b""
    assert told.times == 1
    os.close(reader)
    streams.close()


@on_loop
async def test_input_waits_for_its_reader(tmp_path):
    streams = made(PIPES_AND_STDIN, "x", tmp_path, Told())
    assert streams.stdin is not None
    writing = asyncio.ensure_future(streams.stdin.write(b"early"))
    await asyncio.sleep(0)
    reader = os.open(streams.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK)

    await writing
    await streams.stdin.close()

    assert os.read(reader, 10) == b"early"
    os.close(reader)
    streams.close()


@on_loop
async def test_a_reader_that_has_gone_is_told(tmp_path):
    streams = made(PIPES_AND_STDIN, "x", tmp_path, Told())
    assert streams.stdin is not None
    reader = os.open(streams.stdio.stdin, os.O_RDONLY | os.O_NONBLOCK)
    await streams.stdin.write(b"x")
    os.close(reader)

    with pytest.raises(FailedPrecondition, match="reads no more"):
        await streams.stdin.write(b"y")
    streams.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        await streams.stdin.write(b"z")


def test_streams_that_are_gone_cannot_be_attached_to(tmp_path):
    from moored.kernel.ports.tasks import Stdio

    with pytest.raises(FailedPrecondition, match="cannot be opened"):
        Streams(Stdio(stdout=str(tmp_path / "none")), Told())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(FailedPrecondition, match="no folder for streams"):
        made(PIPES, "x", tmp_path / "file", Told())
