"""A daemon that goes and comes back, under a client that stays."""

from __future__ import annotations

import asyncio
import os

import pytest

from daemons import Daemon
from e2e.containers import busybox_image, short_folder
from harness import on_loop
from leftovers import Place
from moored.api.client import Client, Options
from moored.api.client.connection import ConnectionLost
from moored.api.client.stdio import PIPES_AND_STDIN
from peers import needs_containerd

pytestmark = needs_containerd[1:]


@on_loop
async def test_a_wait_outlives_the_daemon_it_began_with():
    with short_folder() as folder:
        archive = busybox_image(folder)
        namespace = f"restart{os.getpid()}"
        with Daemon(folder) as daemon:
            place = Place(folder, namespace, daemon.socket)
            client = Client(str(daemon.socket), namespace=namespace, fifo_folder=folder / "fifos")
            async with client:
                (image,) = await client.import_archive(archive, prefix="docker.io/test/busybox")
                container = await client.containers.create(f"r{os.getpid()}", image, Options(args=("cat",)))
                before = place.found()
                task = await container.create_task(PIPES_AND_STDIN)
                try:
                    await task.start()
                    waiting = asyncio.ensure_future(task.wait())
                    await asyncio.to_thread(daemon.stop)
                    with pytest.raises(ConnectionLost, match="is the daemon running"):
                        await client.images.list()
                    daemon.log.write_text("")
                    await asyncio.to_thread(daemon.start)
                    await task.stdin.write(b"still here\n")
                    assert await task.stdout.readline() == b"still here\n"
                    await task.stdin.close()

                    assert (await waiting).status == 0

                    await task.delete()
                    await container.delete()
                finally:
                    place.cleared(before)
