"""What every `SandboxStore` and every `SandboxController` does; each check takes a fresh one, without sandboxes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.events import LAST, publish_last, take_to_last
from moored.kernel.conformance.objects import RE
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from moored.kernel.namespaces import bind, current_namespace
from moored.kernel.payloads import Packed, SandboxExit, unpack
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.sandboxes import (
    EXIT_TOPIC,
    NOT_READY,
    READY,
    NewSandbox,
    Sandbox,
    SandboxController,
    SandboxStore,
)

SECONDS: Final = 20.0
"""Within which everything that is to come must have come."""
SPEC: Final = TypedBytes("types.containerd.io/opencontainers/runtime-spec/1/Spec", b"{}")

# --- stores -----------------------------------------------------------------------------------------------------------

StoreCheck: TypeAlias = Callable[[SandboxStore], Awaitable[None]]


def sandbox(id_: str = "s1", **more: Any) -> Sandbox:
    """Give a sandbox with all that it can have."""
    given: dict[str, Any] = {
        "runtime": "io.containerd.runc.v2",
        "runtime_options": TypedBytes("containerd.runc.v1.Options", b"\x08\x01"),
        "spec": SPEC,
        "sandboxer": "shim",
        "labels": {"k": "1"},
        "extensions": {"x": TypedBytes("example.X", b"\xff\x00"), "empty": TypedBytes("", b"")},
    }
    return Sandbox(id=id_, **{**given, **more})


async def check_sandbox_is_read_back(store: SandboxStore) -> None:
    """As it was given, with both times of the call."""
    with bind("one"):
        before = time.time_ns()
        created = await store.create(replace(sandbox(), created_at=7, updated_at=8))
        assert before <= created.created_at <= time.time_ns()
        assert created == replace(sandbox(), created_at=created.created_at, updated_at=created.created_at)
        assert await store.get("s1") == created
        assert await store.list() == [created]


async def check_an_id_is_enough(store: SandboxStore) -> None:
    """What is not given stays empty, the runtime too."""
    with bind("one"):
        created = await store.create(Sandbox(id="s1"))
        found = await store.get("s1")
        assert found == created
        assert (found.runtime, found.spec, found.runtime_options, found.labels) == ("", None, None, {})


async def check_id_is_taken_once(store: SandboxStore) -> None:
    """AlreadyExists leaves the first one as it was."""
    with bind("one"):
        created = await store.create(sandbox())
        error = await fails_with(AlreadyExists, store.create(sandbox(sandboxer="other")))
        assert error.text.endswith('sandbox bucket "s1" already exists'), error.text
        assert await store.get("s1") == created


async def check_missing_sandbox_is_told(store: SandboxStore) -> None:
    """In other words where the namespace has never had a sandbox."""
    with bind("one"):
        for call in (store.get("s1"), store.delete("s1"), store.update(sandbox())):
            await fails_with(NotFound, call, "no sandbox buckets")
        assert await store.list() == []
        await store.create(sandbox("other"))
        await fails_with(NotFound, store.get("s1"), 'bucket "s1" not found')
        await fails_with(NotFound, store.update(sandbox()), 'bucket "s1" not found')
        await fails_with(NotFound, store.delete("s1"), 'failed to delete sandbox "s1"')


async def check_bad_id_is_refused(store: SandboxStore) -> None:
    """With the text that says what is wrong; nothing is left behind."""
    bad = {"": "identifier must not be empty", "a b": f'identifier "a b" must match {RE}'}
    with bind("one"):
        for id_, text in bad.items():
            wanted = f"failed to validate sandbox: invalid sandbox ID: {text}"
            await fails_with(InvalidArgument, store.create(sandbox(id_)), wanted)
        await fails_with(NotFound, store.get("s1"), "no sandbox buckets")


async def check_update_replaces_what_is_mutable(store: SandboxStore) -> None:
    """Labels, spec, extensions and runtime options; the controller's name and the time of creation stay."""
    with bind("one"):
        created = await store.create(sandbox())
        given = sandbox(
            spec=TypedBytes("other", b"2"),
            runtime_options=TypedBytes("example.O", b"1"),
            labels={"l": "2", "gone": ""},
            extensions={"x": TypedBytes("example.Y", b"y"), "empty": TypedBytes("", b"")},
            sandboxer="other",
        )
        updated = await store.update(given)
        assert updated.updated_at > created.updated_at
        times = {"created_at": created.created_at, "updated_at": updated.updated_at}
        assert updated == replace(given, labels={"l": "2"}, sandboxer="shim", **times)  # type: ignore[arg-type]
        assert await store.get("s1") == updated


async def check_update_by_paths_leaves_the_rest(store: SandboxStore) -> None:
    """A key is all that follows the first dot; an empty label goes."""
    with bind("one"):
        created = await store.create(sandbox(labels={"k": "1", "a.b/c": "2"}))
        given = Sandbox(id="s1", runtime="r2", labels={"a.b/c": "3"}, extensions={"y": TypedBytes("example.Y", b"")})
        updated = await store.update(given, ["labels.a.b/c", "labels.k", "extensions.y", "runtime"])
        assert (updated.labels, updated.runtime) == ({"a.b/c": "3"}, "r2")
        assert updated.extensions == {**created.extensions, "y": TypedBytes("example.Y", b"")}
        assert (updated.spec, updated.runtime_options) == (created.spec, created.runtime_options)
        assert await store.get("s1") == updated


async def check_bad_updates_change_nothing(store: SandboxStore) -> None:
    """Another runtime without paths, and paths that there are not."""
    with bind("one"):
        created = await store.create(sandbox())
        text = "sandbox.Runtime.Name field is immutable"
        await fails_with(InvalidArgument, store.update(sandbox(runtime="other")), text)
        for path in ("sandboxer", "created_at", "runtime.name", ""):
            text = f'cannot update "{path}" field on sandbox "s1"'
            await fails_with(InvalidArgument, store.update(sandbox(labels={}), ["labels", path]), text)
        assert await store.get("s1") == created


async def check_filters_choose(store: SandboxStore) -> None:
    """By id and labels; other fields are absent. The order is that of ids."""
    with bind("one"):
        for id_, labels in (("b", {"tier": "web"}), ("a", {"tier": "db"}), ("c", {})):
            await store.create(sandbox(id_, labels=labels))

        async def ids(*filters: str) -> list[str]:
            return [one.id for one in await store.list(filters)]

        assert await ids() == await ids("") == ["a", "b", "c"]
        assert await ids("id==b", "labels.tier==db") == ["a", "b"]
        assert await ids("labels.tier") == ["a", "b"]
        assert await ids("labels.tier!=web") == ["a", "c"]
        assert await ids("runtime.name==io.containerd.runc.v2") == []
        await fails_with(InvalidArgument, store.list(["id=b"]))


async def check_namespaces_are_apart(store: SandboxStore) -> None:
    """One id in two namespaces is two sandboxes; a call without a namespace fails."""
    with bind("one"):
        await store.create(sandbox())
    with bind("two"):
        await store.create(sandbox(sandboxer="other"))
        await store.delete("s1")
        assert await store.list() == []
    with bind("one"):
        assert (await store.get("s1")).sandboxer == "shim"
    with bind(""):
        for call in (store.list(), store.get("s1"), store.create(sandbox()), store.delete("s1")):
            await fails_with(FailedPrecondition, call, "namespace is required")


def store_checks() -> list[StoreCheck]:
    """Give all checks of stores."""
    return [
        check_sandbox_is_read_back,
        check_an_id_is_enough,
        check_id_is_taken_once,
        check_missing_sandbox_is_told,
        check_bad_id_is_refused,
        check_update_replaces_what_is_mutable,
        check_update_by_paths_leaves_the_rest,
        check_bad_updates_change_nothing,
        check_filters_choose,
        check_namespaces_are_apart,
    ]


# --- controllers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A controller, and what it makes sandboxes of.

    runtime   that sandboxes name
    exchange  where the controller tells of ends, if it does
    prepare   gets a namespace ready to have sandboxes
    verbose   whether a status has something for people
    """

    controller: SandboxController
    runtime: str
    exchange: Exchange
    prepare: Callable[[], Awaitable[None]] | None = None
    verbose: bool = True


ControllerCheck: TypeAlias = Callable[[World], Awaitable[None]]


async def _create(world: World, id_: str, **more: Any) -> None:
    if world.prepare is not None:
        await world.prepare()
    await world.controller.create(NewSandbox(sandbox=Sandbox(id=id_, runtime=world.runtime), **more))


async def check_life_of_a_sandbox(world: World) -> None:
    """It is ready from start to stop, and tells when it began and ended; after its shutdown it is not there."""
    sandboxes, before = world.controller, time.time_ns()
    await _create(world, "s1")
    status = await sandboxes.status("s1")
    assert (status.id, status.state, status.exited_at) == ("s1", NOT_READY, None)

    made = await sandboxes.start("s1")
    assert made.id == "s1"
    assert made.pid > 0
    assert made.created_at is not None
    assert before <= made.created_at <= time.time_ns()
    status = await sandboxes.status("s1", verbose=True)
    assert (status.state, status.pid, status.exited_at) == (READY, made.pid, None)
    assert bool(status.info) == world.verbose
    assert (await sandboxes.platform("s1")).os == "linux"

    await sandboxes.stop("s1")
    ended = await _within(sandboxes.wait("s1"))
    status = await sandboxes.status("s1")
    assert (status.state, status.exited_at) == (NOT_READY, ended.exited_at)
    assert ended.exited_at is not None
    assert made.created_at <= ended.exited_at <= time.time_ns()

    await sandboxes.shutdown("s1")
    await fails_with(NotFound, sandboxes.wait("s1"))


async def check_sandbox_that_is_not_there(world: World) -> None:
    """It has ended, as far as anybody can tell, and there is nothing to stop."""
    sandboxes, before = world.controller, time.time_ns()
    await sandboxes.stop("s1")
    status = await sandboxes.status("s1")
    assert status.id == "s1"
    assert status.exited_at is not None
    assert before <= status.exited_at <= time.time_ns()
    for call in (sandboxes.wait("s1"), sandboxes.shutdown("s1"), sandboxes.metrics("s1"), sandboxes.platform("s1")):
        await fails_with(NotFound, call)
    error = await fails_with(Unknown, sandboxes.start("s1"))
    assert error.text.endswith('unable to find sandbox "s1"'), error.text


async def check_sandbox_id_is_taken_once(world: World) -> None:
    """The second one fails and leaves the first as it was; after a shutdown the id is free."""
    await _create(world, "s1")
    await fails_with(AlreadyExists, _create(world, "s1"))
    await world.controller.start("s1")
    error = await fails_with(AlreadyExists, _create(world, "s1"))
    assert error.text.endswith("sandbox s1 already running"), error.text
    assert (await world.controller.status("s1")).state == READY
    await world.controller.shutdown("s1")
    await _create(world, "s1")
    await world.controller.shutdown("s1")


async def check_bad_sandbox_id_is_refused(world: World) -> None:
    """It names files."""
    for id_ in ("", "a/b", "..", "a" * 77):
        await fails_with(InvalidArgument, _create(world, id_))


async def check_many_wait_at_any_time(world: World) -> None:
    """Before the start, while it runs, and after its end; all learn the same. One that gives up disturbs nobody."""
    sandboxes = world.controller
    await _create(world, "s1")
    waits = [asyncio.ensure_future(sandboxes.wait("s1")) for _ in range(2)]
    await sandboxes.start("s1")
    waits += [asyncio.ensure_future(sandboxes.wait("s1")) for _ in range(2)]
    done, _ = await asyncio.wait(waits, timeout=0.1)
    assert not done
    waits.pop().cancel()
    await sandboxes.stop("s1")
    ends = [await _within(wait) for wait in waits]
    assert ends == [await sandboxes.wait("s1")] * 3
    await sandboxes.shutdown("s1")


async def check_stop_is_done_once(world: World) -> None:
    """More stops are fine, and so is one before the start, after which there is none."""
    sandboxes = world.controller
    await _create(world, "s1")
    await sandboxes.start("s1")
    await sandboxes.stop("s1", 5)
    await sandboxes.stop("s1")
    await sandboxes.shutdown("s1")
    await _create(world, "s2")
    await sandboxes.stop("s2")
    await fails_with(FailedPrecondition, sandboxes.start("s2"))
    await sandboxes.shutdown("s2")


async def check_start_is_done_once(world: World) -> None:
    """A second one fails and leaves the sandbox running."""
    sandboxes = world.controller
    await _create(world, "s1")
    made = await sandboxes.start("s1")
    await fails_with(FailedPrecondition, sandboxes.start("s1"))
    status = await sandboxes.status("s1")
    assert (status.state, status.pid) == (READY, made.pid)
    await sandboxes.shutdown("s1")


async def check_shutdown_in_any_state(world: World) -> None:
    """Whoever waits learns of the end; nothing is there afterwards."""
    sandboxes = world.controller
    await _create(world, "s1")
    await sandboxes.shutdown("s1")
    await _create(world, "s2")
    await sandboxes.start("s2")
    wait = asyncio.ensure_future(sandboxes.wait("s2"))
    await asyncio.wait([wait], timeout=0.1)  # one that is still on its way would find nothing
    await sandboxes.shutdown("s2")
    assert (await _within(wait)).exited_at is not None
    for id_ in ("s1", "s2"):
        await fails_with(NotFound, sandboxes.shutdown(id_))


async def check_sandboxes_of_namespaces_are_apart(world: World) -> None:
    """One id in two namespaces is two sandboxes."""
    sandboxes, other = world.controller, f"{current_namespace()}-2"
    await _create(world, "s1")
    await sandboxes.start("s1")
    with bind(other):
        await fails_with(NotFound, sandboxes.wait("s1"))
        await _create(world, "s1")
        await sandboxes.shutdown("s1")
    assert (await sandboxes.status("s1")).state == READY
    await sandboxes.shutdown("s1")
    with bind(""):
        await fails_with(FailedPrecondition, _create(replace(world, prepare=None), "s1"))


async def check_end_is_told_once(world: World) -> None:
    """By those that tell it, also where nobody waits."""
    sandboxes = world.controller
    if not sandboxes.tells_exits:
        return
    async with world.exchange.subscribe(f'topic=="{EXIT_TOPIC}"', f'topic=="{LAST}"') as events:
        await _create(world, "s1")
        await sandboxes.start("s1")
        await sandboxes.stop("s1")
        ended = await _within(sandboxes.wait("s1"))
        await sandboxes.shutdown("s1")
        await publish_last(world.exchange)
        found = await take_to_last(events)
    wanted = SandboxExit(sandbox_id="s1", exit_status=ended.status, exited_at=ended.exited_at)
    assert [(one.namespace, unpack(Packed(one.type_url, one.payload or b""))) for one in found] == [
        (current_namespace(), wanted)
    ]


async def _within(call: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SECONDS):
        return await call


def controller_checks() -> list[ControllerCheck]:
    """Give all checks of controllers, which run in a namespace of their own."""
    return [
        check_life_of_a_sandbox,
        check_sandbox_that_is_not_there,
        check_sandbox_id_is_taken_once,
        check_bad_sandbox_id_is_refused,
        check_many_wait_at_any_time,
        check_stop_is_done_once,
        check_start_is_done_once,
        check_shutdown_in_any_state,
        check_sandboxes_of_namespaces_are_apart,
        check_end_is_told_once,
    ]
