"""The socket file of a listener: its mode and owner, what it replaces, and what it leaves alone."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from harness import GRPC_SERVER, VERSION, on_loop, outcome_of, running, version
from moored.kernel.ports.daemon import Outcome


@asynccontextmanager
async def listening(folder: Path, *, path: Path | None = None, **config: Any) -> AsyncGenerator[grpc.aio.Channel]:
    """The gRPC listener at a path, and a channel to it."""
    address = str(path or folder / "m.sock")
    configs = {GRPC_SERVER: {"address": address, **config}}
    async with running(folder, GRPC_SERVER, VERSION, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
            yield channel


@on_loop
async def test_socket_is_0660_and_alone_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "deep"
    before = os.umask(0)
    try:
        async with listening(tmp_path, path=folder / "m.sock"):
            found = (folder / "m.sock").stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o660
            assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
            assert [entry.name for entry in folder.iterdir()] == ["m.sock"]
            assert stat.S_IMODE(folder.stat().st_mode) == 0o770
        assert list(folder.iterdir()) == []
    finally:
        os.umask(before)


@on_loop
async def test_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o711)
    async with listening(tmp_path, path=folder / "m.sock"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@on_loop
async def test_socket_belongs_to_whom_the_config_says(tmp_path: Path) -> None:
    async with listening(tmp_path, path=tmp_path / "new" / "m.sock", uid=12, gid=34):
        for place in (tmp_path / "new", tmp_path / "new" / "m.sock"):
            assert (place.stat().st_uid, place.stat().st_gid) == (12, 34)


@on_loop
async def test_path_with_blanks_and_signs_is_listening(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#?é.sock"
    configs = {GRPC_SERVER: {"address": str(path)}}
    async with running(tmp_path, GRPC_SERVER, VERSION, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert (await reader.readexactly(9))[3] == 4
        writer.close()
        await writer.wait_closed()


@on_loop
async def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with listening(tmp_path) as channel:
        assert await version(channel) == "0.0.1-test"


@on_loop
async def test_live_socket_is_never_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        inode = path.stat().st_ino
        outcome, reason = await outcome_of(tmp_path, GRPC_SERVER, VERSION, address=str(path))
        assert path.stat().st_ino == inode
    assert outcome is Outcome.FAILED
    assert str(path) in reason
    assert "in use" in reason


@on_loop
async def test_live_socket_with_a_full_backlog_counts_as_live(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    waiting = []
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen(0)
        try:
            while True:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.append(client)
                client.connect(str(path))
        except BlockingIOError:
            pass
        outcome, reason = await outcome_of(tmp_path, GRPC_SERVER, VERSION, address=str(path))
        for client in waiting:
            client.close()
    assert outcome is Outcome.FAILED
    assert "in use" in reason


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


@on_loop
async def test_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.write_text("precious")
    outcome, reason = await outcome_of(tmp_path, GRPC_SERVER, VERSION, address=str(path))
    assert outcome is Outcome.FAILED
    assert "no socket" in reason
    assert path.read_text() == "precious"
    assert hidden(tmp_path) == []


@on_loop
async def test_socket_that_somebody_else_put_there_survives_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with listening(tmp_path):
            path.unlink()
            other.bind(str(path))
            inode = path.stat().st_ino
        assert path.stat().st_ino == inode


@on_loop
async def test_address_of_104_bytes_is_the_longest(tmp_path: Path) -> None:
    fits = str(tmp_path / "m.sock").ljust(104, "x")
    async with listening(tmp_path, path=Path(fits)) as channel:
        assert await version(channel) == "0.0.1-test"
    outcome, reason = await outcome_of(tmp_path, GRPC_SERVER, VERSION, address=f"{fits}x")
    assert outcome is Outcome.FAILED
    assert "105 bytes, at most 104" in reason


@on_loop
async def test_relative_address_is_refused(tmp_path: Path) -> None:
    outcome, reason = await outcome_of(tmp_path, GRPC_SERVER, VERSION, address="m.sock")
    assert outcome is Outcome.FAILED
    assert "must be an absolute path" in reason


@on_loop
async def test_empty_address_skips_the_listener(tmp_path: Path) -> None:
    assert await outcome_of(tmp_path, GRPC_SERVER, VERSION, address="") == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_listener_that_starts_again_finds_its_place_free(tmp_path: Path) -> None:
    for _ in range(2):
        async with listening(tmp_path) as channel:
            assert await version(channel) == "0.0.1-test"
