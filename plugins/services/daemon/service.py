"""The daemon service on the wire: the daemon's own view of its plugins and config."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

from google.protobuf.duration_pb2 import Duration

from moored.api.convert import timestamp
from moored.api.moored.daemon.v1 import daemon_pb2 as pb
from moored.api.moored.daemon.v1 import daemon_pb2_grpc as rpc
from moored.kernel.errors import Unimplemented
from moored.kernel.ports.daemon import DaemonView, Outcome, PluginRecord
from moored.kernel.ports.databases import Backups
from moored.kernel.ports.services import GrpcRegistrar

PIECE: Final = 1 << 20
"""Bytes of a backup in one message."""
OUTCOMES = {
    Outcome.PENDING: pb.OUTCOME_PENDING,
    Outcome.OK: pb.OUTCOME_OK,
    Outcome.SKIPPED: pb.OUTCOME_SKIPPED,
    Outcome.DISABLED: pb.OUTCOME_DISABLED,
    Outcome.FAILED: pb.OUTCOME_FAILED,
    Outcome.BLOCKED: pb.OUTCOME_BLOCKED,
    Outcome.TIMED_OUT: pb.OUTCOME_TIMED_OUT,
    Outcome.STOPPED: pb.OUTCOME_STOPPED,
}


class DaemonService(rpc.DaemonServicer):
    """moored.daemon.v1.Daemon."""

    def __init__(self, daemon: DaemonView, databases: Backups | None = None) -> None:
        """Copy the metadata by `databases`; None where that cannot be done."""
        self._daemon = daemon
        self._databases = databases

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_DaemonServicer_to_server(self, cast(Any, server))

    async def Plugins(self, request: pb.PluginsRequest, context: Any) -> pb.PluginsResponse:  # noqa: N802
        """Every plugin that was found, disabled ones last."""
        return pb.PluginsResponse(plugins=map(plugin_message, self._daemon.plugins()))

    async def Config(self, request: pb.ConfigRequest, context: Any) -> pb.ConfigResponse:  # noqa: N802
        """The config in force, and whether its files have changed since."""
        config = await self._daemon.config()
        return pb.ConfigResponse(
            toml=config.toml,
            values=[pb.Value(key=one.key, value_json=one.value_json, origin=one.origin) for one in config.values],
            files=config.files,
            drifted=bool(config.drift),
            drift=config.drift,
        )

    async def Check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:  # noqa: N802
        """What the files on disk say, held against what runs."""
        check = await self._daemon.check_config()
        return pb.CheckResponse(
            problems=[
                pb.Problem(level=one.level, key=one.key, message=one.message, file=one.file, line=one.line)
                for one in check.problems
            ],
            changes=[pb.Change(plugin=one.plugin, action=one.action, keys=one.keys) for one in check.changes],
        )

    async def Backup(self, request: pb.BackupRequest, context: Any) -> AsyncGenerator[pb.BackupResponse]:  # noqa: N802
        """All metadata in one file, made whole before the first piece is sent."""
        if self._databases is None:
            raise Unimplemented("this daemon's databases cannot be copied while it runs")
        with await self._databases.backup() as file:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield pb.BackupResponse(data=piece)


def plugin_message(record: PluginRecord) -> pb.Plugin:
    """All that is known of a plugin."""
    return pb.Plugin(
        uri=record.uri,
        type=record.type,
        id=record.id,
        outcome=OUTCOMES[record.outcome],
        reason=record.reason,
        traceback=record.traceback,
        blocked_by=record.blocked_by,
        distribution=record.distribution,
        distribution_version=record.distribution_version,
        entry_point=record.entry_point,
        requires=record.requires,
        after=record.after,
        depends_on=record.depends_on,
        waits_for=record.waits_for,
        import_time=_duration(record.import_seconds),
        start_time=_duration(record.start_seconds),
        started_at=timestamp(record.started_at) if record.started_at else None,
        exports=record.exports,
        capabilities=record.capabilities,
        summary=record.summary,
        required=record.required,
        essential=record.essential,
        order=record.order,
    )


def _duration(seconds: float) -> Duration | None:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)) if seconds else None
