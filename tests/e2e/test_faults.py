"""The catalogue of config and plugin faults (rows 86 to 100): what the daemon does about each, on a real process."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from daemons import Daemon, outcome


def refused(tmp_path: Path, config: str, *args: str) -> str:
    """The log of a daemon that must end with status 1."""
    daemon = Daemon(tmp_path, config, args=args)
    status, log = daemon.fails_to_start()
    assert status == 1, log
    assert "Traceback" not in log
    assert not daemon.socket.exists()
    return log


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        pytest.param("version = 4\n[debug\n", "config.toml:2", id="syntax"),
        pytest.param('version = 4\nroot = "/a"\nroot = "/b"\n', "config.toml:3", id="duplicate key"),
        pytest.param('version = 4\noom_score = "high"\n', "oom_score", id="wrong type"),
        pytest.param('version = 4\n[lifecycle]\nstart_timeout = "10 parsecs"\n', "10 parsecs", id="bad duration"),
        pytest.param(
            'version = 4\n[timeouts]\n"io.containerd.timeout.task.state" = "soon"\n', "soon", id="bad timeout"
        ),
    ],
)
def test_86_config_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path, config: str, reason: str) -> None:
    log = refused(tmp_path, config)

    assert reason in log
    assert "config.toml" in log


@pytest.mark.parametrize(
    ("config", "suggestion"),
    [
        ("version = 4\nrot = '/x'\n", "root"),
        ("version = 4\n[debgu]\nlevel = 'info'\n", "debug"),
        ("version = 4\n[plugins.'io.containerd.server.v1.grpc']\nmax_recv_message_sise = 5\n", "max_recv_message_size"),
        ("version = 4\n[plugins.'io.containerd.server.v1.grcp']\naddress = '/x'\n", "io.containerd.server.v1.grpc"),
    ],
)
def test_87_unknown_key_is_refused_with_a_suggestion(tmp_path: Path, config: str, suggestion: str) -> None:
    log = refused(tmp_path, config)

    assert "did you mean" in log
    assert suggestion in log


def test_87_unknown_key_is_a_warning_where_the_file_is_not_strict(tmp_path: Path) -> None:
    with Daemon(tmp_path, "version = 4\nstrict = false\nrot = '/x'\n") as daemon:
        log = daemon.text()

    assert "level=warn" in log
    assert "rot" in log


@pytest.mark.parametrize("version", ["99", "-1", "'4'", "5", "true"])
def test_88_unknown_version_is_refused(tmp_path: Path, version: str) -> None:
    log = refused(tmp_path, f"version = {version}\n")

    assert "version" in log
    assert version.strip("'") in log


def test_89_root_that_is_state_is_refused(tmp_path: Path) -> None:
    same = str(tmp_path / "same")

    assert same in refused(tmp_path, "version = 4\n", "--root", same, "--state", same)


def test_89_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert str(tmp_path / "file") in refused(tmp_path, "version = 4\n", "--root", str(tmp_path / "file"))


def test_89_import_that_is_missing_is_refused(tmp_path: Path) -> None:
    log = refused(tmp_path, "version = 4\nimports = ['gone.toml']\n")

    assert str(tmp_path / "gone.toml") in log


@pytest.mark.parametrize("root", ["", "relative/root"])
def test_90_root_that_is_not_absolute_is_refused(tmp_path: Path, root: str) -> None:
    daemon = Daemon(tmp_path, f"version = 4\nroot = '{root}'\n")
    command = [part for part in daemon.command() if part not in ("--root", str(daemon.root))]
    daemon.command = lambda *_more: command  # type: ignore[method-assign]

    status, log = daemon.fails_to_start()

    assert status == 1
    assert "root" in log
    assert "absolute" in log


def test_90_file_that_imports_itself_is_read_once(tmp_path: Path) -> None:
    with Daemon(tmp_path, "version = 4\nimports = ['config.toml']\n") as daemon:
        assert "moored is up" in daemon.text()


def test_91_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    long = str(tmp_path / ("s" * 300))

    log = refused(tmp_path, "version = 4\n", "--address", long)

    assert "104" in log


def test_92_proxy_plugin_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    log = refused(tmp_path, "version = 4\n[proxy_plugins.odd]\ntype = 'teapot'\naddress = '/run/odd.sock'\n")

    assert "odd" in log
    assert "teapot" in log


def test_92_proxy_plugins_that_share_a_uri_are_refused(tmp_path: Path) -> None:
    config = (
        "version = 4\n"
        "[proxy_plugins.twice]\ntype = 'snapshot'\naddress = '/run/a.sock'\n"
        "[proxy_plugins.'twice ']\ntype = 'io.containerd.snapshotter.v1'\naddress = '/run/b.sock'\n"
    )

    assert "twice" in refused(tmp_path, config)


def test_93_proxy_plugin_at_a_dead_address_does_not_delay_the_start(tmp_path: Path) -> None:
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(dead))
    config = f"version = 4\n[proxy_plugins.remote]\ntype = 'snapshot'\naddress = '{dead}'\n"

    with Daemon(tmp_path, config) as daemon:
        remote = daemon.plugins()["io.containerd.snapshotter.v1.remote"]

    assert outcome(remote) == "ok"
    assert remote.exports["address"] == str(dead)


def test_100_daemon_without_what_a_service_needs_says_so_and_is_unhealthy(tmp_path: Path) -> None:
    disabled = "version = 4\ndisabled_plugins = ['io.containerd.metadata.v1.bolt']\n"
    with Daemon(tmp_path, disabled) as daemon:
        log = daemon.text()

    assert "unhealthy" in log
    assert "io.containerd.grpc.v1.images is blocked" in log


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    log = refused(tmp_path, "version = 4\nrot = '/x'\noom_score = 'high'\n[debug]\nlevel = 'loud'\n")

    assert all(name in log for name in ("rot", "oom_score", "loud"))


def test_config_check_reports_the_same_problems_and_fails(tmp_path: Path) -> None:
    import subprocess

    file = tmp_path / "config.toml"
    file.write_text("version = 4\n[debug]\nlevle = 'info'\n")
    command = [sys.executable, "-m", "moored.kernel.daemon.main", "-c", str(file), "config", "check"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"{file}:3: debug.levle: unknown key, did you mean 'level'?" in done.stdout
