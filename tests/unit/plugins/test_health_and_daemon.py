"""The health service and the daemon service over the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import (
    GRPC_SERVER,
    THING,
    VERSION,
    basics,
    fails,
    on_loop,
    plug,
)
from moored.api.moored.daemon.v1 import daemon_pb2, daemon_pb2_grpc
from moored.kernel.plugin import Skip
from moored.kernel.ports.daemon import (
    ConfigChange,
    ConfigCheck,
    ConfigProblem,
    ConfigValue,
    EffectiveConfig,
)

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


@on_loop
async def test_health_knows_the_daemon_its_services_and_its_plugins(tmp_path: Path) -> None:
    plugins = (plug(THING, "lame", error=Skip("no legs")),)
    async with basics(tmp_path, *plugins) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        listed = {
            name: one.status for name, one in (await health.List(health_pb2.HealthListRequest())).statuses.items()
        }
        for name, status in listed.items():
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == status
        unknown = await fails(health.Check(health_pb2.HealthCheckRequest(service="no.such.Service")))
    assert unknown == ("NOT_FOUND", "unknown service")
    wanted = {
        "": SERVING,
        "containerd.services.version.v1.Version": SERVING,
        "grpc.health.v1.Health": SERVING,
        "moored.daemon.v1.Daemon": SERVING,
        "io.containerd.grpc.v1.version": SERVING,
        "io.moored.thing.v1.lame": NOT_SERVING,
    }
    assert wanted.items() <= listed.items()


@on_loop
async def test_health_of_the_daemon_is_what_the_daemon_says(tmp_path: Path) -> None:
    essential = plug(THING, "vital", error=RuntimeError("gone"), essential=True)
    async with basics(tmp_path, essential) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING


@on_loop
async def test_health_watch_tells_changes_only(tmp_path: Path) -> None:
    async with basics(tmp_path) as (world, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        whole = health.Watch(health_pb2.HealthCheckRequest())
        nobody = health.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert (await whole.read()).status == SERVING
        assert (await nobody.read()).status == UNKNOWN
        settled = world.hooks.hook.moored_plugin_settled
        settled(record=world.record(VERSION))
        # Answered after the watchers have looked again.
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        world.daemon.faults.append("the disk is full")
        settled(record=world.record(VERSION))
        assert (await whole.read()).status == NOT_SERVING
        world.daemon.faults.clear()
        settled(record=world.record(VERSION))
        assert (await whole.read()).status == SERVING
        whole.cancel()
        nobody.cancel()


@on_loop
async def test_daemon_service_tells_every_plugin_disabled_ones_too(tmp_path: Path) -> None:
    plugins = (plug(THING, "broken", error=RuntimeError("no luck")), plug(THING, "off", object()))
    async with basics(tmp_path, *plugins, disabled=("io.moored.thing.v1.off",)) as (world, channel):
        answer = await daemon_pb2_grpc.DaemonStub(channel).Plugins(daemon_pb2.PluginsRequest())  # type: ignore[misc]
        assert [one.uri for one in answer.plugins] == [record.uri for record in world.kernel.records()]
    by_uri = {one.uri: one for one in answer.plugins}
    broken, server = by_uri["io.moored.thing.v1.broken"], by_uri[GRPC_SERVER]
    assert broken.outcome == daemon_pb2.OUTCOME_FAILED
    assert "raise error" in broken.traceback
    assert not broken.HasField("started_at")
    assert by_uri["io.moored.thing.v1.off"].outcome == daemon_pb2.OUTCOME_DISABLED
    assert server.outcome == daemon_pb2.OUTCOME_OK
    assert server.essential
    assert server.HasField("started_at")
    assert server.start_time.ToNanoseconds() > 0
    assert server.summary == "serves every gRPC service on a unix socket"
    assert VERSION in server.depends_on


@on_loop
async def test_daemon_service_tells_config_and_check(tmp_path: Path) -> None:
    async with basics(tmp_path) as (world, channel):
        stub: Any = daemon_pb2_grpc.DaemonStub(channel)
        assert not (await stub.Config(daemon_pb2.ConfigRequest())).drifted
        world.daemon.effective = EffectiveConfig(
            "root = '/r'\n", (ConfigValue("root", '"/r"', "/etc/c.toml:3"),), ("/etc/c.toml",), ("/etc/c.toml is gone",)
        )
        world.daemon.check = ConfigCheck(
            (ConfigProblem("error", "grpc.x", "unknown key", "/etc/c.toml", 4),),
            (ConfigChange(VERSION, "restart", ("a.b",)),),
        )
        config = await stub.Config(daemon_pb2.ConfigRequest())
        check = await stub.Check(daemon_pb2.CheckRequest())
    assert config.drifted
    assert list(config.drift) == ["/etc/c.toml is gone"]
    assert (config.values[0].key, config.values[0].value_json, config.values[0].origin) == (
        "root",
        '"/r"',
        "/etc/c.toml:3",
    )
    assert (check.problems[0].level, check.problems[0].line) == ("error", 4)
    assert (check.changes[0].plugin, check.changes[0].action, list(check.changes[0].keys)) == (
        VERSION,
        "restart",
        ["a.b"],
    )


@on_loop
async def test_backup_is_unimplemented_where_databases_cannot_be_copied(tmp_path: Path) -> None:
    async with basics(tmp_path) as (_, channel):
        call = daemon_pb2_grpc.DaemonStub(channel).Backup(daemon_pb2.BackupRequest())
        code, text = await fails(call.read())

    assert (code, "cannot be copied" in text) == ("UNIMPLEMENTED", True)
