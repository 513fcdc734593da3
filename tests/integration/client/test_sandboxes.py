"""Sandboxes and the mounts that a daemon carries out, through the client library."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from harness import on_loop
from integration.client.conftest import NAME
from moored.api.client import Options
from moored.api.client.stdio import log_to
from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, NotFound, Unimplemented
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.sandboxes import READY

HOLDS = {"hostname": "the-pod", "linux": {"namespaces": [{"type": kind} for kind in ("ipc", "uts", "network")]}}
SPEC = TypedBytes("types.containerd.io/opencontainers/runtime-spec/1/Spec", json.dumps(HOLDS).encode())


@on_loop
async def test_a_daemon_without_sandboxes_says_so(peer):
    if peer.own:
        pytest.skip("moored has sandboxes")
    async with peer.client() as client:
        with pytest.raises(Unimplemented):
            await client.sandboxes.list()
        with pytest.raises(Unimplemented):
            await client.mounts.list()


@on_loop
async def test_a_sandbox_is_made_started_stopped_and_gone(peer):
    if not peer.own:
        pytest.skip("needs sandboxes")
    id_ = peer.new("pod")
    async with peer.client() as client:
        async with await client.sandboxes.create(id_, spec=SPEC, labels={"a": "b"}) as sandbox:
            started = await sandbox.start()

            assert started.endpoint.address
            assert (await sandbox.status()).state == READY
            assert (await sandbox.platform()).os == "linux"
            assert [one.id for one in await client.sandboxes.list('labels.a=="b"')] == [id_]
            changed = await sandbox.update(replace(sandbox.record, labels={"a": "c"}), ["labels.a"])
            assert changed.labels == {"a": "c"}
            assert (await client.sandboxes.get(id_)).record.labels == {"a": "c"}
            with pytest.raises(AlreadyExists):
                await client.sandboxes.create(id_)
            await sandbox.stop()
            await sandbox.wait()
            assert (await sandbox.status()).state != READY
        with pytest.raises(NotFound):
            await client.sandboxes.get(id_)


@on_loop
async def test_a_container_runs_in_a_sandbox(peer):
    if not peer.own:
        pytest.skip("needs sandboxes")
    pod, id_ = peer.new("pod"), peer.new()
    async with peer.client() as client, await client.sandboxes.create(pod, spec=SPEC) as sandbox:
        await sandbox.start()
        container = await client.containers.create(id_, NAME, Options(args=("echo", "in it")), sandbox=pod)
        try:
            result = await container.run()
        finally:
            await container.delete(force=True)

        assert result.stdout == b"in it\n"
        assert container.record.sandbox == pod


@on_loop
async def test_a_sandbox_that_no_controller_makes_leaves_no_record(peer):
    if not peer.own:
        pytest.skip("needs sandboxes")
    id_ = peer.new("pod")
    async with peer.client() as client:
        with pytest.raises(MooredError):
            await client.sandboxes.create(id_, sandboxer="nosuch")

        assert await client.sandboxes.list(f"id=={id_}") == []


@on_loop
async def test_mounts_are_carried_out_by_the_daemon(peer, tmp_path):
    if not peer.own:
        pytest.skip("needs a mount manager")
    name = peer.new("mount")
    (tmp_path / "shown").touch()
    bind = Mount(type="bind", source=str(tmp_path), options=("rbind", "ro"))
    # Under a lease, or a collection that another test set off takes it away.
    async with peer.client() as bare, bare.lease() as client:
        found = await client.mounts.activate(name, [bind], temporary=True, labels={"a": "b"})
        try:
            assert (await client.mounts.info(name)).name == name
            assert [one.name for one in await client.mounts.list()] == [name]
            assert [one.type for one in found.system] == ["bind"]
            with pytest.raises(AlreadyExists):
                await client.mounts.activate(name, [bind], temporary=True)
        finally:
            await client.mounts.deactivate(name)
        with pytest.raises(NotFound):
            await client.mounts.info(name)


@on_loop
async def test_mounts_that_need_nothing_are_left_to_the_caller(peer):
    bind = Mount(type="bind", source="/", options=("rbind", "ro"))
    async with peer.client() as client, client.mounts.activated(peer.new("mount"), [bind]) as left:
        assert list(left) == [bind]


@on_loop
async def test_the_states_and_counters_of_all_tasks_come_at_once(peer):
    first, second = peer.new(), peer.new()
    async with peer.client() as client:
        asleep = Options(args=("sleep", "600"))
        containers = [await client.containers.create(id_, NAME, asleep) for id_ in (first, second)]
        try:
            async with await containers[0].create_task() as task:
                await task.start()

                states = await client.containers.states()
                assert states[first].pid == task.pid
                assert second not in states
                assert [one.id for one in await client.containers.metrics(first)] == [first]
                assert first in {one.id for one in await client.containers.metrics()}
        finally:
            for container in containers:
                await container.delete(force=True)


@on_loop
async def test_a_process_that_logs_can_read_from_a_fifo_of_the_callers(peer, tmp_path):
    fifo, log = tmp_path / "in", tmp_path / "log"
    os.mkfifo(fifo, 0o600)
    async with peer.client() as client:
        container = await client.containers.create(peer.new(), NAME, Options(args=("cat",)))
        try:
            task = await container.create_task(log_to(f"file://{log}", stdin=str(fifo)))
            await task.start()
            assert task.stdin is not None
            await task.stdin.write(b"through the fifo\n")
            await task.stdin.close()
            await task.wait()
            assert log.read_bytes() == b"through the fifo\n"
            await task.delete()
        finally:
            await container.delete(force=True)


def test_a_fifo_has_an_absolute_path():
    with pytest.raises(InvalidArgument, match="absolute path of a FIFO"):
        log_to("file:///x", stdin="in")
