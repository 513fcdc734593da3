"""Packages that were built apart and installed by pip, on a real daemon process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from daemons import Daemon, outcome
from moored.api.moored.daemon.v1 import daemon_pb2

Environment = Callable[..., str]

WRECK = "io.example.wreck.v1"
CONFIG = """
version = 4
[plugins."io.example.crane.v1.harbour"]
reach = 35
names = ["Anna", "Bea"]
patience = "1m30s"
"""


@pytest.fixture(scope="module")
def harbour(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("m"), CONFIG, python=environment("harbour")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def wrecks(
    environment: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, daemon_pb2.Plugin]]:
    with Daemon(tmp_path_factory.mktemp("m"), python=environment("wrecks", "harbour")) as daemon:
        yield daemon.plugins()


def test_installed_plugin_appears_with_its_distribution(harbour: Daemon) -> None:
    crane = harbour.plugins()["io.example.crane.v1.harbour"]

    assert outcome(crane) == "ok"
    assert (crane.distribution, crane.distribution_version) == ("moored-harbour", "1.2.3")
    assert crane.entry_point == "harbour:crane"
    assert crane.exports["root"] == str(harbour.root / "io.example.crane.v1.harbour")
    assert list(crane.capabilities) == ["lift"]


def test_installed_plugin_gets_its_config_and_serves_on_the_daemon_socket(harbour: Daemon) -> None:
    with harbour.channel() as channel:
        answer = channel.unary_unary("/example.Harbour/Reach")(b"", timeout=10)

    assert json.loads(answer) == [35, ["Anna", "Bea"], 90.0]


def test_plugin_that_skips_itself_is_shown_with_its_reason(harbour: Daemon) -> None:
    dry = harbour.plugins()["io.example.crane.v1.dry"]

    assert (outcome(dry), dry.reason) == ("skipped", "no water in this harbour")


def test_plugin_is_stopped_before_the_daemon_ends(environment: Environment, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, CONFIG, python=environment("harbour")).start()

    assert daemon.stop() == 0
    assert (daemon.root / "io.example.crane.v1.harbour" / "stopped").exists()


def test_disabled_plugin_is_listed_and_its_dependants_are_blocked(environment: Environment, tmp_path: Path) -> None:
    disabled = 'version = 4\ndisabled_plugins = ["io.example.crane.v1.harbour"]\n'
    with Daemon(tmp_path, disabled, python=environment("harbour")) as daemon:
        plugins = daemon.plugins()

    service = plugins["io.containerd.grpc.v1.harbour"]
    assert outcome(plugins["io.example.crane.v1.harbour"]) == "disabled"
    assert outcome(service) == "blocked"
    assert "io.example.crane.v1.harbour is disabled" in service.reason


def test_disabled_plugin_is_never_imported(environment: Environment, tmp_path: Path) -> None:
    names = [f"io.example.crane.v1.{name}" for name in ("harbour", "dry")] + ["io.containerd.grpc.v1.harbour"]
    disabled = f"version = 4\ndisabled_plugins = {json.dumps(names)}\n"
    # Python lists every import on standard error.
    with Daemon(tmp_path, disabled, python=environment("harbour"), env={"PYTHONVERBOSE": "1"}) as daemon:
        imported = "import 'harbour'" in daemon.text()

    assert not imported


@pytest.mark.parametrize(
    ("name", "expected", "reason"),
    [
        (
            "missing-module",
            "failed",
            "import failed: ModuleNotFoundError: No module named 'wrecks_without_this_module'",
        ),
        ("not-a-registration", "failed", "it must be a Registration"),
        ("misnamed", "failed", "its registration calls itself 'io.example.wreck.v1.other-name'"),
        ("raises", "failed", "ValueError: hit a rock"),
        ("exits", "failed", "SystemExit: 3"),
        ("interrupts", "failed", "KeyboardInterrupt"),
        ("panics", "failed", "Panic: all hands"),
        ("hangs", "timed out", "did not start within 0.5s"),
        ("holds-the-loop", "timed out", "held the event loop"),
        ("undeclared", "failed", "without naming it in requires or after"),
        ("lonely", "blocked", "requires io.example.rock.v1, which no installed plugin provides"),
        ("hangs-at-stop", "ok", ""),
    ],
)
def test_fault_is_one_plugins_outcome(
    wrecks: dict[str, daemon_pb2.Plugin], name: str, expected: str, reason: str
) -> None:
    plugin = wrecks[f"{WRECK}.{name}"]

    assert outcome(plugin) == expected
    assert reason in plugin.reason
    assert plugin.distribution == "moored-wrecks"
    assert plugin.entry_point


def test_faults_of_some_plugins_leave_the_others_running(wrecks: dict[str, daemon_pb2.Plugin]) -> None:
    assert outcome(wrecks["io.example.crane.v1.harbour"]) == "ok"
    assert outcome(wrecks["io.containerd.grpc.v1.version"]) == "ok"


def test_chain_of_blocked_plugins_leads_to_the_first_cause(wrecks: dict[str, daemon_pb2.Plugin]) -> None:
    cargo = wrecks["io.example.cargo.v1.behind"]

    assert outcome(cargo) == "blocked"
    assert list(cargo.blocked_by) == ["io.example.hull.v1.behind", "io.example.mast.v1.broken"]
    assert "mast gone" in wrecks["io.example.mast.v1.broken"].traceback


def test_plugin_that_breaks_while_running_is_failed_and_shown(environment: Environment, tmp_path: Path) -> None:
    uri = f"{WRECK}.sinks-later"
    with Daemon(tmp_path, python=environment("wrecks", "harbour")) as daemon:
        (daemon.root / uri / "sink").touch()
        while "plugin failed" not in daemon.text().split("moored is up")[1]:
            assert daemon.process
            assert daemon.process.poll() is None
        plugin = daemon.plugins()[uri]

    assert outcome(plugin) == "failed"
    assert "failed while running" in plugin.reason
    assert "water in the engine room" in plugin.traceback


def test_hanging_plugins_do_not_keep_the_daemon_from_stopping(environment: Environment, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, python=environment("wrecks", "harbour")).start()

    assert daemon.stop(signal.SIGINT) == 0
    assert "did not stop within 0.5s" in daemon.text()


def test_required_plugin_that_fails_ends_the_start(environment: Environment, tmp_path: Path) -> None:
    required = f'version = 4\nrequired_plugins = ["{WRECK}.raises", "{WRECK}.hangs", "io.example.none.v1.x"]\n'

    status, log = Daemon(tmp_path, required, python=environment("wrecks", "harbour")).fails_to_start()

    assert status == 1
    assert "required plugin 'io.example.none.v1.x' is not installed" in log


def test_all_required_plugins_that_fail_are_named(environment: Environment, tmp_path: Path) -> None:
    required = f'version = 4\nrequired_plugins = ["{WRECK}.raises", "{WRECK}.hangs"]\n'

    status, log = Daemon(tmp_path, required, python=environment("wrecks", "harbour")).fails_to_start()

    assert status == 1
    assert f"required plugin '{WRECK}.raises' is failed: ValueError: hit a rock" in log
    assert f"required plugin '{WRECK}.hangs' is timed out" in log


def test_collision_and_cycle_and_missing_type_are_all_reported_at_once(
    environment: Environment, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, python=environment("harbour", "pirate", "knots"))

    status, log = daemon.fails_to_start()

    assert status == 1
    assert "plugin 'io.example.crane.v1.harbour' is offered twice" in log
    assert "moored-harbour 1.2.3" in log
    assert "moored-pirate 6.6.6" in log
    ring = "io.example.bowline.v1.a -> io.example.hitch.v1.b -> io.example.splice.v1.c -> io.example.bowline.v1.a"
    assert ring in log
    assert "knots:a of moored-knots 0.1" in log
    assert "plugin name 'typeless' has no type" in log


def test_collision_is_resolved_by_disabling_the_uri(environment: Environment, tmp_path: Path) -> None:
    disabled = 'version = 4\ndisabled_plugins = ["io.example.crane.v1.harbour"]\n'
    with Daemon(tmp_path, disabled, python=environment("harbour", "pirate")) as daemon:
        assert outcome(daemon.plugins()["io.example.crane.v1.harbour"]) == "disabled"


def test_unknown_key_of_a_third_party_plugin_is_refused_with_a_suggestion(
    environment: Environment, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, CONFIG.replace("patience", "patiense"), python=environment("harbour"))

    status, log = daemon.fails_to_start()

    assert status == 1
    assert "patiense" in log
    assert "patience" in log
    assert f"{daemon.config}:6" in log


def test_essential_service_that_is_blocked_makes_the_daemon_unhealthy(environment: Environment, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    disabled = 'version = 4\ndisabled_plugins = ["io.containerd.metadata.v1.bolt"]\n'
    with Daemon(tmp_path, disabled, python=environment()) as daemon, daemon.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        images = daemon.plugins()["io.containerd.grpc.v1.images"]

    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert outcome(images) == "blocked"


def test_unknown_service_is_unimplemented(harbour: Daemon) -> None:
    with harbour.channel() as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/example.Nowhere/X")(b"", timeout=10)

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.value.details() == "unknown service example.Nowhere"
