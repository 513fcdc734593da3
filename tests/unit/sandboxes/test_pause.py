"""Sandboxes as pause containers: what they are made of, what ends with them, and what is known after a restart."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from harness import on_loop
from moored.kernel.conformance import fails_with
from moored.kernel.conformance.events import LAST, publish_last, take_to_last
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound
from moored.kernel.namespaces import bind
from moored.kernel.payloads import Packed, SandboxExit, unpack
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.sandboxes import EXIT_TOPIC, NOT_READY, NewSandbox, Sandbox
from moored.kernel.ports.tasks import CreateTask, Status
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from moored.plugins.sandbox.pause.controller import STATE
from moored.plugins.sandbox.pause.image import PauseImage
from moored.plugins.sandbox.pause.spec import pause_spec
from unit.sandboxes.world import IMAGE, LAYER, NATIVE, PAUSE, Paused, pause_controller, unpack_pause
from unit.tasks.fake import fake_runtime
from unit.tasks.world import opened as tasks_opened

RUNTIME = "io.containerd.runc.v2"
IMAGE_READ = PauseImage("i", LAYER, ("/pause",), ("PATH=/bin",), "/", 65535, 65534)


def new(id_: str = "s1", spec: Any = None, **more: Any) -> NewSandbox:
    given = None if spec is None else TypedBytes("", json.dumps(spec).encode())
    return NewSandbox(sandbox=Sandbox(id=id_, runtime=RUNTIME, spec=given), **more)


async def started(made: Paused, id_: str = "s1", **more: Any) -> int:
    await made.controller.create(new(id_, **more))
    return (await made.controller.start(id_)).pid


# --- the spec ---------------------------------------------------------------------------------------------------------


def written(asked: NewSandbox) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pause_spec(asked, IMAGE_READ, "one").value)
    return found


def test_process_is_the_image_s_and_all_namespaces_are_new() -> None:
    found = written(new())

    assert found["process"]["args"] == ["/pause"]
    assert found["process"]["user"] == {"uid": 65535, "gid": 65534}
    assert found["root"] == {"path": "rootfs", "readonly": True}
    assert found["hostname"] == "s1"
    assert found["linux"]["cgroupsPath"] == "/one/s1"
    assert {one["type"] for one in found["linux"]["namespaces"]} == {"pid", "ipc", "uts", "mount", "network"}
    assert found["annotations"] == {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": "s1",
    }


def test_what_the_sandbox_asks_for_wins() -> None:
    asked = {
        "hostname": "the-pod",
        "process": {"args": ["/other"], "user": {"uid": 1}},
        "linux": {"cgroupsPath": "/pods/a", "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}]},
        "annotations": {"a": "b"},
    }
    found = written(new(spec=asked, netns="/run/netns/x", annotations={"c": "d"}))

    assert (found["hostname"], found["process"]["args"], found["process"]["cwd"]) == ("the-pod", ["/other"], "/")
    assert found["linux"]["cgroupsPath"] == "/pods/a"
    kinds = {one["type"]: one.get("path") for one in found["linux"]["namespaces"]}
    assert kinds == {"mount": None, "uts": None, "network": "/run/netns/x"}
    assert {"a": "b", "c": "d"}.items() <= found["annotations"].items()


def test_host_s_name_is_not_changed() -> None:
    assert "hostname" not in written(new(spec={"linux": {"namespaces": [{"type": "mount"}]}}))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"linux": 1}'])
def test_spec_that_is_none_is_refused(data: bytes) -> None:
    asked = NewSandbox(sandbox=Sandbox(id="s1", spec=TypedBytes("", data)))
    with pytest.raises(InvalidArgument):
        pause_spec(asked, IMAGE_READ, "one")


# --- the plugin -------------------------------------------------------------------------------------------------------


@on_loop
async def test_it_skips_itself_without_an_image_or_snapshotter(tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
    for config, reason in (
        ({}, "no image is configured, a pause container needs one"),
        ({"image": IMAGE, "snapshotter": "overlayfs"}, "snapshotter 'overlayfs' is not there"),
    ):
        async with (
            fake_runtime(exchange) as runtime,
            tasks_opened(tmp_path, NATIVE, PAUSE, runtime=runtime, **{PAUSE: config}) as world,
        ):
            record = world.kernel.record(PAUSE)
            assert (record.outcome, record.reason) == (Outcome.SKIPPED, reason)


@on_loop
async def test_image_of_no_use_leaves_nothing(tmp_path: Path) -> None:
    async with pause_controller(tmp_path) as made:
        objects = made.world.objects
        with bind("one"):
            await fails_with(NotFound, made.controller.create(new()), f"sandbox image {IMAGE!r}")
            await unpack_pause(objects, user="nobody")
            await fails_with(InvalidArgument, made.controller.create(new()))
            await objects.images.delete(IMAGE)
        with bind("two"):
            await unpack_pause(objects, words=())
            await fails_with(FailedPrecondition, made.controller.create(new()))
        with bind("three"):
            await unpack_pause(objects)
            await objects.snapshotter("native").remove(LAYER)
            error = await fails_with(FailedPrecondition, made.controller.create(new()))
            assert error.text.startswith(f"sandbox image {IMAGE!r} is not unpacked for 'native'")
            assert await objects.containers.list() == []
            assert await objects.leases.list() == []


@on_loop
async def test_pause_container_is_a_task_with_its_sandbox_id(tmp_path: Path) -> None:
    async with pause_controller(tmp_path) as made:
        with bind("one"):
            await unpack_pause(made.world.objects)
            pid = await started(made)
            task = await made.world.tasks.get("s1")
            assert (task.pid, task.status) == (pid, Status.RUNNING)
            container = await made.world.objects.containers.get("s1")
            assert (container.image, container.snapshot_key, container.sandbox) == (IMAGE, "s1", "")
            found = await made.controller.metrics("s1")
            assert found.id == "s1"
            await made.world.objects.collect()
            await made.world.objects.snapshotter("native").stat("s1")
            await made.controller.shutdown("s1")
            assert await made.world.objects.containers.list() == []
            await fails_with(NotFound, made.world.objects.snapshotter("native").stat("s1"))


@on_loop
async def test_containers_that_are_no_sandboxes_are_left_alone(tmp_path: Path) -> None:
    async with pause_controller(tmp_path) as made:
        await made.world.container("c1")
        with bind("one"):
            await fails_with(NotFound, made.controller.shutdown("c1"), "not found")
            await made.controller.stop("c1")
            assert (await made.world.objects.containers.get("c1")).id == "c1"


@on_loop
async def test_tasks_of_a_sandbox_end_with_it(tmp_path: Path) -> None:
    async with pause_controller(tmp_path) as made:
        with bind("one"):
            await unpack_pause(made.world.objects)
            await started(made)
            await made.world.container("inside", sandbox="s1")
            await made.world.container("outside")
            for id_ in ("inside", "outside"):
                await made.world.tasks.create(CreateTask(container_id=id_))
                await made.world.tasks.start(id_)
            await made.controller.stop("s1", 1)
            assert (await made.world.tasks.get("inside")).status is Status.STOPPED
            assert (await made.world.tasks.get("outside")).status is Status.RUNNING
            await made.controller.shutdown("s1")
            await fails_with(NotFound, made.world.tasks.get("inside"))
            assert (await made.world.objects.containers.get("inside")).id == "inside"


@on_loop
async def test_pause_container_that_cannot_start_is_gone(tmp_path: Path) -> None:
    async with pause_controller(tmp_path) as made:
        with bind("one"):
            await unpack_pause(made.world.objects, words=("/no/such/program",))
            await made.controller.create(new())
            with suppress(MooredError, OSError):  # or it ends at once
                await made.controller.start("s1")
                assert (await made.controller.wait("s1")).status != 0
            assert (await made.controller.status("s1")).state in ("", NOT_READY)


# --- restarts ---------------------------------------------------------------------------------------------------------


async def ends_told(made: Paused, until: Any) -> list[Any]:
    """The ends told while something happens."""
    exchange = made.world.exchange
    async with exchange.subscribe(f'topic=="{EXIT_TOPIC}"', f'topic=="{LAST}"') as events:
        await until()
        await publish_last(exchange)
        return [unpack(Packed(one.type_url, one.payload or b"")) for one in await take_to_last(events)]


@on_loop
async def test_end_is_known_and_told_once_over_restarts(tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
    async with fake_runtime(exchange) as runtime:
        async with pause_controller(tmp_path, runtime) as made:
            with bind("one"):
                await unpack_pause(made.world.objects)
                await started(made)
                await made.controller.create(new("s2"))
        runtime.exchange = exchange
        with bind("one"):
            await runtime.get("s1").kill(9)
            await runtime.get("s1").wait()
        async with pause_controller(tmp_path, runtime) as made:
            with bind("one"):
                ended = await asyncio.wait_for(made.controller.wait("s1"), 10)
                assert ended.status == 137
                while "exited" not in (await made.world.objects.containers.get("s1")).labels[STATE]:
                    await asyncio.sleep(0)
                assert (await made.controller.status("s2")).exited_at is None
                await made.controller.start("s2")
        async with pause_controller(tmp_path, runtime) as made:
            with bind("one"):

                async def again() -> None:
                    assert await made.controller.wait("s1") == ended

                assert await ends_told(made, again) == []

                async def stop() -> None:
                    await made.controller.stop("s2")

                told = await ends_told(made, stop)
                assert [(type(one), one.sandbox_id) for one in told] == [(SandboxExit, "s2")]
                for id_ in ("s1", "s2"):
                    await made.controller.shutdown(id_)


@on_loop
async def test_pause_task_that_is_lost_has_ended(tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
    async with fake_runtime(exchange) as runtime:
        async with pause_controller(tmp_path, runtime) as made:
            with bind("one"):
                await unpack_pause(made.world.objects)
                await started(made)
        runtime.exchange = exchange
        with bind("one"):
            await runtime.get("s1").kill(9)
            await runtime.get("s1").wait()
            await runtime.get("s1").delete()
        async with pause_controller(tmp_path, runtime) as made:
            with bind("one"):
                assert (await asyncio.wait_for(made.controller.wait("s1"), 10)).status == 255
                await made.controller.shutdown("s1")
