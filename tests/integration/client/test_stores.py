"""Images, content, snapshots, leases, namespaces and events, against real daemons."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace

import pytest

from harness import on_loop
from integration.client.conftest import NAME
from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.payloads import NamespaceCreate, Packed
from moored.kernel.ports.leases import Resource
from moored.kernel.ports.snapshots import Kind


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def pieces(*parts: bytes):
    for part in parts:
        yield part


@on_loop
async def test_a_daemon_tells_who_it_is(peer):
    async with peer.client() as client:
        assert ("moored" in (await client.server.version()).version) is peer.own
        assert (await client.server.identity()).uuid
        assert await client.server.healthy()
        assert await client.server.works("io.containerd.snapshotter.v1", "overlayfs")
        assert not await client.server.works("io.containerd.snapshotter.v1", "none")
        (plugin,) = await client.server.plugins("type==io.containerd.snapshotter.v1,id==overlayfs")
        assert plugin.uri == "io.containerd.snapshotter.v1.overlayfs"
        assert plugin.exports["root"]


@on_loop
async def test_images_say_what_they_are_made_of(peer):
    async with peer.client() as client:
        image = await client.images.get(NAME)
        described, manifest = await client.images.manifest(image)
        complete = await client.images.check(NAME)

        assert described.digest == image.target.digest
        assert (await client.images.config(image)).architecture == "amd64"
        assert await client.images.platforms(image) == [Platform("linux", "amd64")]
        assert complete.complete
        assert complete.size == await client.images.size(image) > sum(one.size for one in manifest.layers)
        assert await client.images.chain_id(image) == (await client.images.config(image)).rootfs.diff_ids[0]
        with pytest.raises(NotFound, match="linux/s390x"):
            await client.images.config(image, Platform("linux", "s390x"))


@on_loop
async def test_names_come_change_and_go(peer):
    async with peer.client() as client:
        made = await client.images.tag(NAME, "docker.io/test/other:1")
        assert made.target == (await client.images.get(NAME)).target
        with pytest.raises(AlreadyExists):
            await client.images.tag(NAME, made.name)
        await client.images.tag(NAME, made.name, force=True)
        assert (await client.images.label(made.name, {"a": "1", "b": "2"})).labels == {"a": "1", "b": "2"}
        assert (await client.images.label(made.name, {"a": ""})).labels == {"b": "2"}
        assert [one.name for one in await client.images.list(f'name=="{made.name}"')] == [made.name]
        await client.images.put(replace(made, labels={}))
        assert (await client.images.get(made.name)).labels == {}
        await client.images.delete(made.name, sync=True)
        with pytest.raises(NotFound, match="test/other:1"):
            await client.images.get(made.name)


@on_loop
async def test_unpacking_is_done_once_and_held_by_the_image(peer):
    async with peer.client() as client:
        top = await client.unpack(NAME, snapshotter="native")
        assert await client.is_unpacked(NAME, snapshotter="native")
        assert await client.unpack(NAME, snapshotter="native") == top
        info = await client.snapshots("native").stat(top)
        assert info.kind is Kind.COMMITTED
        assert [one.name async for one in client.snapshots("native").walk()] == [top]  # nothing half made is left
        lease = await client.leases.create()
        await client.leases.delete(lease.id, sync=True)  # a collection
        assert await client.snapshots("native").exists(top)


@on_loop
async def test_two_unpack_side_by_side(peer):
    async with peer.client() as client, client.lease() as held:
        await client.snapshots("native").remove(await client.unpack(NAME, snapshotter="native"))

        tops = await asyncio.gather(*(held.unpack(NAME, snapshotter="native") for _ in range(3)))

        assert len(set(tops)) == 1
        assert [one.name async for one in held.snapshots("native").walk()] == [tops[0]]


@on_loop
async def test_blobs_are_written_read_and_removed(peer):
    data = os.urandom(3_000_000)
    async with peer.client() as client, client.lease() as held:
        info = await held.content.write("ref", pieces(data[:5], data[5:]), total=len(data), labels={"k": "v"})
        assert (info.digest, info.size, info.labels) == (digest_of(data), len(data), {"k": "v"})
        assert await held.content.write("ref", data, expected=digest_of(data)) == info  # there already
        async with await held.content.reader(info.digest) as reader:
            assert reader.size == len(data)
            assert await reader.read_at(10, 5) == data[10:15]
            assert b"".join([part async for part in reader.chunks(2_000_000, 500_000)]) == data[2_000_000:2_500_000]
            assert await reader.read(4) == data[:4]
            assert reader.seek(-4, os.SEEK_END) == len(data) - 4
            assert await reader.read() == data[-4:]
            assert await reader.read() == b""
            with pytest.raises(OutOfRange):
                await reader.read_at(len(data) + 1)
            with pytest.raises(InvalidArgument):
                reader.seek(-1)
        with pytest.raises(FailedPrecondition, match="closed"):
            await reader.read()
        with pytest.raises(ResourceExhausted):
            await held.content.read(info.digest, limit=10)
        assert (await held.content.verify(info.digest)).size == len(data)
        assert (await held.content.label(info.digest, {"k": "", "n": "m"})).labels == {"n": "m"}
        assert [one.digest async for one in held.content.walk('labels."n"==m')] == [info.digest]
        await held.content.delete(info.digest)
        with pytest.raises(NotFound, match=info.digest):
            await held.content.info(info.digest)


@on_loop
async def test_a_write_that_broke_off_goes_on(peer):
    data = os.urandom(100_000)
    async with peer.client() as client, client.lease() as held:
        async with await held.content.writer("broken", len(data), digest_of(data)) as writer:
            await writer.write(data[:60_000])
            with pytest.raises(Unavailable, match="locked"):
                await held.content.writer("broken")
        assert [(one.ref, one.offset) for one in await held.content.list_statuses()] == [("broken", 60_000)]

        async with await held.content.writer("broken", len(data), digest_of(data)) as writer:
            assert writer.offset == 60_000
            assert writer.digest == digest_of(data[:60_000])
            await writer.write(data[60_000:])
            await writer.commit(len(data), digest_of(data))

        assert await held.content.read(digest_of(data)) == data
        assert await held.content.list_statuses() == []


@on_loop
async def test_wrong_bytes_do_not_become_a_blob(peer):
    async with peer.client() as client, client.lease() as held:
        with pytest.raises(FailedPrecondition, match="unexpected commit digest"):
            await held.content.write("wrong", b"one", expected=digest_of(b"two"))
        await held.content.abort("wrong")
        with pytest.raises(NotFound):
            await held.content.status("wrong")


@on_loop
async def test_a_lease_holds_what_is_made_under_it_and_no_longer(peer):
    async with peer.client() as client:
        async with client.lease(labels={"why": "test"}) as held:
            info = await held.content.write("leased", b"held by a lease")
            assert Resource("content", info.digest) in await client.leases.resources(held.lease_id)
            (lease,) = await client.leases.list(f"id=={held.lease_id}")
            assert lease.labels["why"] == "test"
            other = await client.leases.create("other", seconds=60)
            await client.leases.add(other.id, Resource("content", info.digest))
            await client.leases.remove(other.id, Resource("content", info.digest))
            await client.leases.delete(other.id, sync=True)
            assert await client.content.exists(info.digest)
        gone = await client.leases.create()
        await client.leases.delete(gone.id, sync=True)

        assert not await client.content.exists(info.digest)
        assert await client.leases.list() == []


@on_loop
async def test_snapshots_and_differences(peer):
    async with peer.client() as client, client.lease() as held:
        snapshots, top = held.snapshots(), await held.unpack(NAME)
        key = peer.new("key")
        mounts = await snapshots.prepare(key, top, {"containerd.io/snapshot/x": "1"})
        assert mounts == await snapshots.mounts(key)
        assert (await snapshots.stat(key)).parent == top
        lower = await snapshots.view(f"{key}-lower", top)
        layer = await held.diffs.compare(lower, mounts)
        assert await held.content.exists(layer.digest)
        await snapshots.commit(f"{key}-done", key)
        assert (await snapshots.update(f"{key}-done", {"a": "b"}, ["labels.a"])).labels["a"] == "b"
        assert (await snapshots.usage(f"{key}-done")).inodes >= 0
        assert {one.name async for one in snapshots.walk("kind==view")} == {f"{key}-lower"}
        for name in (f"{key}-lower", f"{key}-done"):
            await snapshots.remove(name)


@on_loop
async def test_namespaces_are_apart(peer):
    async with peer.client() as client:
        name = peer.new("ns")
        await client.namespaces.create(name, {"a": "1"})
        other = client.in_namespace(name)
        assert other.namespace == name
        assert await other.images.list() == []
        await client.namespaces.label(name, {"a": "", "containerd.io/defaults/snapshotter": "native"})
        assert (await client.namespaces.get(name)).labels == {"containerd.io/defaults/snapshotter": "native"}
        assert await other.default_snapshotter() == "native"
        assert name in {one.name for one in await client.namespaces.list()}
        await client.namespaces.delete(name)
        with pytest.raises(NotFound):
            await client.namespaces.delete(name)


@on_loop
async def test_events_come_as_they_happen_and_as_they_are_wanted(peer):
    async with peer.client() as client:
        name = peer.new("ns")
        async with client.events.subscribe(f'topic=="/namespaces/create",event.name=="{name}"') as events:
            await client.namespaces.create(peer.new("ns"))
            await client.namespaces.create(name)
            event = await anext(events)
        assert event.payload == NamespaceCreate(name=name)
        assert event.timestamp > 0
        async with client.events.subscribe(f'topic=="/test/own",namespace=="{client.namespace}"') as events:
            await client.events.publish("/test/own", Packed("test.Own", b"bytes"))
            event = await anext(events)
        assert (event.packed, event.payload) == (Packed("test.Own", b"bytes"), None)


@on_loop
async def test_a_filter_that_is_none_is_refused(peer):
    async with peer.client() as client:
        with pytest.raises(InvalidArgument):
            await client.images.list("name===")
