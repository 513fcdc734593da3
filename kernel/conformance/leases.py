"""What every `LeaseManager` does; each check takes a fresh object database."""

from __future__ import annotations

import asyncio
import re
import time

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.objects import DIGEST, TOO_LONG, Check, World, told
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.ports.leases import Resource


async def check_lease_is_read_back(world: World) -> None:
    """Any text is an id, and labels have no limit; nobody is told of leases."""
    with bind("one"):
        async with told(world.exchange) as events:
            before = time.time_ns()
            created = await world.leases.create("an id/with: blanks", {"k": "1", "gone": "", **TOO_LONG})
            assert before <= created.created_at <= time.time_ns()
            assert (created.id, created.labels) == ("an id/with: blanks", {"k": "1", **TOO_LONG})
            assert await world.leases.list() == [created]
            assert await world.leases.resources(created.id) == []
            await world.leases.delete(created.id)
    assert events == []


async def check_empty_id_gets_a_new_one(world: World) -> None:
    """Another one each time."""
    with bind("one"):
        made = [await world.leases.create("", {}) for _ in range(10)]
        assert len({lease.id for lease in made}) == 10
        for lease in made:
            assert re.fullmatch(r"[0-9]{1,9}-[A-Za-z0-9_-]{4}", lease.id), f"the id is {lease.id!r}"


async def check_id_is_taken_once(world: World) -> None:
    """AlreadyExists leaves the first one as it was, with what it holds."""
    with bind("one"):
        created = await world.leases.create("l", {"k": "1"})
        await world.leases.add("l", Resource("images", "i"))
        await fails_with(AlreadyExists, world.leases.create("l", {}), 'lease "l"')
        assert await world.leases.list() == [created]
        assert await world.leases.resources("l") == [Resource("images", "i")]


async def check_missing_lease_is_told(world: World) -> None:
    """By every call, before its resource is looked at."""
    with bind("one"):
        for id_ in ("l", ""):
            text = f'lease "{id_}"'
            await fails_with(NotFound, world.leases.delete(id_), text)
            await fails_with(NotFound, world.leases.resources(id_), text)
            await fails_with(NotFound, world.leases.add(id_, Resource("mounts", "m")), text)
            await fails_with(NotFound, world.leases.remove(id_, Resource("mounts", "m")), text)


async def check_resources_are_listed_in_order(world: World) -> None:
    """Content, images, ingests, snapshots by snapshotter; each once; they need not exist."""
    wanted = [
        Resource("content", DIGEST),
        Resource("images", "a"),
        Resource("images", "b"),
        Resource("ingests", "ref with blanks"),
        Resource("snapshots/native", "k"),
        Resource("snapshots/overlayfs", "k"),
    ]
    with bind("one"):
        await world.leases.create("l", {})
        await world.leases.create("other", {})
        for resource in reversed(wanted * 2):
            await world.leases.add("l", resource)
        assert await world.leases.resources("l") == wanted
        await world.leases.remove("l", wanted[1])
        await world.leases.remove("l", wanted[1])
        await world.leases.remove("l", wanted[4])
        assert await world.leases.resources("l") == [wanted[0], *wanted[2:4], wanted[5]]
        await world.leases.remove("other", wanted[0])
        assert await world.leases.resources("other") == []


async def check_bad_resource_is_refused(world: World) -> None:
    """Types that nothing has, types that need or refuse a second part, ids that cannot be."""
    with bind("one"):
        await world.leases.create("l", {})
        for kind in ("mounts", "", "sandboxes", "streams/x"):
            resource = Resource(kind, "i")
            text = f"resource type {kind} not supported yet"
            await fails_with(Unimplemented, world.leases.add("l", resource), text)
            await fails_with(Unimplemented, world.leases.remove("l", resource), text)
        bad = {
            Resource("snapshots", "k"): "invalid snapshot resource type snapshots",
            Resource("snapshots/a/b", "k"): "invalid snapshot resource type snapshots/a/b",
            Resource("content/x", DIGEST): "invalid resource type content/x",
            Resource("content", "x"): "invalid content resource id x: invalid checksum digest format",
        }
        for resource, text in bad.items():
            await fails_with(InvalidArgument, world.leases.add("l", resource), text)
            await fails_with(InvalidArgument, world.leases.remove("l", resource), text)
        await fails_with(Unknown, world.leases.add("l", Resource("images", "")), "key required")
        await fails_with(Unknown, world.leases.add("l", Resource("snapshots/", "k")), "bucket name required")
        assert await world.leases.resources("l") == []


async def check_filters_choose(world: World) -> None:
    """By id and labels."""
    with bind("one"):
        await world.leases.create("b", {"k": "1"})
        await world.leases.create("a", {"d.o/t": "2"})
        wanted = {
            ("id==a",): ["a"],
            ("labels.k",): ["b"],
            ('labels."d.o/t"==2',): ["a"],
            ("labels.k!=1",): ["a"],
            ("name==a",): [],
            ("id==b", "id==a"): ["a", "b"],
            ("",): ["a", "b"],
            (): ["a", "b"],
        }
        for filters, expected in wanted.items():
            found = [lease.id for lease in await world.leases.list(filters)]
            assert found == expected, f"{filters} give {found}, wanted {expected}"


async def check_namespaces_are_apart(world: World) -> None:
    """One id in two namespaces is two leases; a call without a namespace fails."""
    with bind("one"):
        await world.leases.create("l", {})
        await world.leases.add("l", Resource("images", "i"))
    with bind("two"):
        assert await world.leases.list() == []
        await world.leases.create("l", {})
        assert await world.leases.resources("l") == []
        await world.leases.delete("l")
    with bind("one"):
        assert await world.leases.resources("l") == [Resource("images", "i")]
    with bind(""):
        for call in (world.leases.list(), world.leases.create("l", {}), world.leases.delete("l")):
            await fails_with(FailedPrecondition, call, "namespace is required")


async def check_additions_side_by_side_are_all_kept(world: World) -> None:
    """None overwrites another."""
    with bind("one"):
        await world.leases.create("l", {})
        wanted = [Resource("images", f"i{number:02}") for number in range(40)]
        await asyncio.gather(*(world.leases.add("l", resource) for resource in wanted))
        assert await world.leases.resources("l") == wanted


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
