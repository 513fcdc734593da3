"""A snapshotter in a process of its own, as others write them: `python tests/remote_snapshotter.py FOLDER SOCKET`.

It serves containerd's snapshots service over copies of folders, knows no namespaces, and prints a line when it listens.
`serving` runs it for a test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.errors import to_status
from moored.api.services.snapshots.v1 import snapshots_pb2 as pb
from moored.api.services.snapshots.v1 import snapshots_pb2_grpc as rpc
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Info, Kind, Snapshotter
from moored.plugins.metadata.lmdb.opener import LmdbOpener
from moored.plugins.snapshots.native.layers import NativeLayers
from moored.plugins.snapshots.snapshotter import open_snapshotter

KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


async def answered(context: Any, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except Exception as error:
        code, text = to_status(error)
        await context.abort(next(one for one in grpc.StatusCode if one.value[0] == code), text)


class Service(rpc.SnapshotsServicer):
    def __init__(self, snapshotter: Snapshotter) -> None:
        self.snapshotter = snapshotter

    async def Prepare(self, request: Any, context: Any) -> Any:
        made = self.snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=mounts(await answered(context, made)))

    async def View(self, request: Any, context: Any) -> Any:
        made = self.snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=mounts(await answered(context, made)))

    async def Mounts(self, request: Any, context: Any) -> Any:
        return pb.MountsResponse(mounts=mounts(await answered(context, self.snapshotter.mounts(request.key))))

    async def Commit(self, request: Any, context: Any) -> Any:
        done = self.snapshotter.commit(request.name, request.key, dict(request.labels), request.parent)
        await answered(context, done)
        return Empty()

    async def Remove(self, request: Any, context: Any) -> Any:
        await answered(context, self.snapshotter.remove(request.key))
        return Empty()

    async def Stat(self, request: Any, context: Any) -> Any:
        return pb.StatSnapshotResponse(info=message(await answered(context, self.snapshotter.stat(request.key))))

    async def Update(self, request: Any, context: Any) -> Any:
        paths = list(request.update_mask.paths)
        done = self.snapshotter.update(request.info.name, dict(request.info.labels), paths)
        return pb.UpdateSnapshotResponse(info=message(await answered(context, done)))

    async def List(self, request: Any, context: Any) -> AsyncGenerator[Any]:
        async for info in self.snapshotter.walk(*request.filters):
            yield pb.ListSnapshotsResponse(info=[message(info)])

    async def Usage(self, request: Any, context: Any) -> Any:
        usage = await answered(context, self.snapshotter.usage(request.key))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(self, request: Any, context: Any) -> Any:
        await answered(context, self.snapshotter.cleanup())
        return Empty()


def message(info: Info) -> Any:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=KINDS[info.kind],
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def mounts(found: list[Mount]) -> list[Any]:
    return [MountMessage(type=one.type, source=one.source, target=one.target, options=one.options) for one in found]


async def serve(folder: Path, socket: str) -> None:
    log = structlog.get_logger()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with open_snapshotter(NativeLayers(folder), LmdbOpener(log), log) as snapshotter:
        server = grpc.aio.server()
        rpc.add_SnapshotsServicer_to_server(Service(snapshotter), server)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        await stop.wait()
        await server.stop(1)


@contextmanager
def serving(folder: Path, socket: Path) -> Generator[subprocess.Popen[bytes]]:
    """The process for the block, listening; what is in the folder is there again the next time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (folder.parent / "remote.log").open("ab") as log:
        command = [sys.executable, __file__, str(folder), str(socket)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n", (folder.parent / "remote.log").read_text()
        yield process
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
