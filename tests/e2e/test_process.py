"""The daemon as a process: folders, locks, sockets, signals, readiness, what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import empty_pb2

from daemons import Daemon, connects
from moored.api.services.version.v1 import version_pb2_grpc


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def version(daemon: Daemon) -> str:
    with daemon.channel() as channel:
        answer = version_pb2_grpc.VersionStub(channel).Version(empty_pb2.Empty(), timeout=10)
    return str(answer.version)


def wait_for(daemon: Daemon, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in daemon.text():
        assert time.monotonic() < deadline, daemon.text()
        time.sleep(0.01)


def test_folders_and_sockets_have_containerds_modes(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        ttrpc = daemon.socket.with_name("m.sock.ttrpc")

        assert mode(daemon.root) == 0o700
        assert mode(daemon.state) == 0o711
        assert mode(daemon.socket) == 0o660
        assert mode(ttrpc) == 0o660
        assert connects(ttrpc)


def test_root_that_is_open_to_others_is_closed_at_start(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    (tmp_path / "state").mkdir(mode=0o755)

    with Daemon(tmp_path) as daemon:
        assert mode(daemon.root) == 0o700
        assert mode(daemon.state) == 0o755


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_ends_it_with_status_0_and_no_sockets(tmp_path: Path, number: signal.Signals) -> None:
    daemon = Daemon(tmp_path).start()

    assert daemon.stop(number) == 0
    assert not list(tmp_path.glob("m.sock*"))


def test_second_daemon_on_the_same_root_ends_at_once_naming_the_first(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with Daemon(tmp_path) as first:
        second = Daemon(tmp_path / "second")
        second.root = first.root

        status, log = second.fails_to_start()

        assert status == 1
        assert first.process
        assert str(first.root) in log
        assert f"pid {first.process.pid}" in log
        assert version(first)


def test_second_daemon_on_the_same_socket_leaves_the_first_alone(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with Daemon(tmp_path) as first:
        second = Daemon(tmp_path / "second", "version = 4\nrequired_plugins = ['io.containerd.server.v1.grpc']\n")
        second.socket = first.socket

        status, log = second.fails_to_start()

        assert status == 1
        assert str(first.socket) in log
        assert version(first)


def test_killed_daemon_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert daemon.socket.exists()
    daemon.log.unlink()

    with daemon:
        assert version(daemon)


def test_sighup_checks_the_config_and_kills_nobody(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert daemon.process
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_for(daemon, "config files and running config agree")
        daemon.config.write_text(
            "version = 4\n[plugins.'io.containerd.server.v1.grpc']\nmax_recv_message_size = 5000000\n"
        )
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_for(daemon, "config changed on disk")
        daemon.config.write_text("version = 4\n[debgu]\n")
        os.kill(daemon.process.pid, signal.SIGHUP)
        wait_for(daemon, "debgu")

        assert version(daemon)


def test_sigusr1_dumps_stacks_and_tasks_to_log_and_file(tmp_path: Path) -> None:
    with Daemon(tmp_path, env={"TMPDIR": str(tmp_path)}) as daemon:
        assert daemon.process
        os.kill(daemon.process.pid, signal.SIGUSR1)
        wait_for(daemon, "stack dump")
        dump = (tmp_path / f"moored.{daemon.process.pid}.stacks.log").read_text()

        assert version(daemon)
    assert "MainThread" in dump
    assert "plugin io.containerd.server.v1.grpc" in dump


def test_service_manager_hears_ready_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Daemon(tmp_path, env=env) as daemon:
            heard = [manager.recv(4096).decode() for _ in range(4)]
            daemon.stop()
            manager.setblocking(False)
            while True:
                try:
                    heard.append(manager.recv(4096).decode())
                except BlockingIOError:
                    break

    assert any(message.startswith("READY=1") for message in heard)
    assert "WATCHDOG=1" in heard
    assert heard[-1] == "STOPPING=1"


def test_unix_clients_cut_off_by_a_stop_get_unavailable(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, daemon.channel() as channel:
        stub = version_pb2_grpc.VersionStub(channel)
        stub.Version(empty_pb2.Empty(), timeout=10)
        daemon.stop()

        with pytest.raises(grpc.RpcError) as error:
            stub.Version(empty_pb2.Empty(), timeout=5)

    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_json_log_has_one_object_a_line(tmp_path: Path) -> None:
    import json

    with Daemon(tmp_path, "version = 4\n[debug]\nlevel = 'debug'\nformat = 'json'\n") as daemon:
        daemon.stop()
    lines = [json.loads(line) for line in daemon.text().splitlines()]

    assert {"time", "level", "msg"} <= set(lines[0])
    assert any(line["msg"] == "plugin started" and line["plugin"] for line in lines)


def test_stop_while_starting_is_clean(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    process = daemon.spawn()
    while not daemon.root.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    status = process.wait(20)

    # Before the handlers are in place the signal's default ends the process.
    assert status in (0, -signal.SIGTERM)
    assert not connects(daemon.socket)


def test_nothing_of_the_daemon_is_left_after_a_stop(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    assert daemon.process
    session = daemon.process.pid
    daemon.stop()

    left = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    assert left.stdout.strip() == ""
