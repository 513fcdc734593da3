"""What every `MountManager` does; each check takes a fresh one, and `CHECKS` lists them all.

    with bind("ns"):                       # kernel.namespaces: the namespace of the calls
        async with open_it() as manager:
            await check(manager)

The plain asserts need no test tool, but the right to mount a tmpfs. Errors must be of the port's classes, texts are
compared where the port states one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from moored.kernel.conformance import fails_with
from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
    Unknown,
)
from moored.kernel.namespaces import bind
from moored.kernel.ports.mounts import Activation, Mount, MountManager

Check: TypeAlias = Callable[[MountManager], Awaitable[None]]

TMPFS: Final = Mount(type="tmpfs", source="tmpfs", options=("size=1m",))
ROOT: Final = Mount(type="bind", source="/", options=("rbind",))
NAMES: Final = ("a", "b/c", "../x", "/run/user/mnt", "n" * 600, "\N{GREEK SMALL LETTER MU}", " ")
"""Texts that are good names, whatever they would be as paths."""


async def temporary(manager: MountManager, name: str, *mounts: Mount) -> Activation:
    """Have mounts carried out, a tmpfs if none is given."""
    return await manager.activate(name, mounts or (TMPFS,), temporary=True)


def is_mounted(place: str) -> bool:
    """Tell whether something is mounted on a folder."""
    return os.path.ismount(place)


def standing(activations: Sequence[Activation]) -> list[bool]:
    """Tell of every active mount whether it is mounted."""
    return [is_mounted(one.mount_point) for activation in activations for one in activation.active]


async def check_what_needs_nothing_is_the_callers(manager: MountManager) -> None:
    """Also a type with a prefix that is unknown; the caller finds out."""
    for mounts in ([], [TMPFS], [ROOT, TMPFS], [replace(TMPFS, type="odd/tmpfs")]):
        await fails_with(Unimplemented, manager.activate("a", mounts), "not implemented")
    assert await manager.list() == []
    async with manager.activated([ROOT]) as left:
        assert list(left) == [ROOT]


async def check_temporary_activation_is_whole_and_goes_whole(manager: MountManager) -> None:
    """Everything is mounted and told of, then nothing is."""
    before = time.time_ns()
    done = await manager.activate("a", [TMPFS, TMPFS], labels={"l": "v"}, temporary=True)
    assert (done.name, dict(done.labels), [one.mount for one in done.active]) == ("a", {"l": "v"}, [TMPFS, TMPFS])
    assert standing([done]) == [True, True]
    times = [one.mounted_at or 0 for one in done.active]
    assert before <= times[0] <= times[1] <= time.time_ns()
    assert done.system == (Mount(type="bind", source=done.active[-1].mount_point, options=("rbind",)),)
    await manager.deactivate("a")
    assert standing([done]) == [False, False]
    assert await manager.list() == []


async def check_activations_are_known_by_name(manager: MountManager) -> None:
    """Of what is active the type, the place and the time; of labels those that are not empty; filters do nothing."""
    done = [await manager.activate(name, [TMPFS], labels={"of": name, "empty": ""}, temporary=True) for name in NAMES]
    known = [await manager.info(name) for name in NAMES]
    for made, found in zip(done, known, strict=True):
        active = tuple(replace(one, mount=Mount(type="tmpfs", source="")) for one in made.active)
        assert found == Activation(name=made.name, active=active, system=made.system, labels={"of": made.name})
    assert await manager.list() == sorted(known, key=lambda one: one.name.encode())
    assert await manager.list(["name==none"]) == await manager.list()
    for name in NAMES:
        await manager.deactivate(name)
    assert not any(standing(done))


async def check_names_are_taken_within_a_namespace(manager: MountManager) -> None:
    """And free again after the end."""
    done = await temporary(manager, "a")
    await fails_with(AlreadyExists, temporary(manager, "a"), 'mount "a"')
    with bind("another"):
        assert await manager.list() == []
        await fails_with(NotFound, manager.info("a"), 'mount "a" not found')
        await temporary(manager, "a")
        await manager.deactivate("a")
    assert standing([done]) == [True]
    await manager.deactivate("a")
    await temporary(manager, "a")
    await manager.deactivate("a")


async def check_missing_names(manager: MountManager) -> None:
    """Unknown ones, the empty one, and calls without a namespace."""
    for name in ("b", ""):
        await fails_with(NotFound, manager.info(name), f'mount "{name}" not found')
        await fails_with(NotFound, manager.deactivate(name))
    await fails_with(Unknown, temporary(manager, ""), "bucket name required")
    with bind(""):
        await fails_with(FailedPrecondition, temporary(manager, "a"))
        await fails_with(FailedPrecondition, manager.info("a"))
        await fails_with(FailedPrecondition, manager.list())
        await fails_with(FailedPrecondition, manager.deactivate("a"))


async def check_activations_never_change(manager: MountManager) -> None:
    """Update is there to be refused."""
    done = await temporary(manager, "a")
    await fails_with(Unimplemented, manager.update(done, ["labels.x"]), "not implemented")
    await manager.deactivate("a")


async def check_texts_are_filled_in(manager: MountManager) -> None:
    """From the mounts before, which are carried out for that; the rest is left."""
    option = "lowerdir={{ overlay 0 1 }}:{{mount 0}}"
    formatted = Mount(type="format/overlay", source="{{ source 0 }}", target="{{ target 1 }}", options=(option, "ro"))
    done = await manager.activate("a", [TMPFS, TMPFS, formatted, ROOT])
    first, second = (one.mount_point for one in done.active)
    filled = Mount(type="overlay", source="tmpfs", options=(f"lowerdir={first}:{second}:{first}", "ro"))
    assert done.system == (filled, ROOT)
    await manager.deactivate("a")
    for text in ("{{ mount 2 }}", "{{ mount -1 }}", "{{ overlay 0 2 }}", "{{ env 0 }}", "{{}}"):
        await fails_with(InvalidArgument, manager.activate("a", [TMPFS, TMPFS, replace(formatted, source=text)]))
    assert await manager.list() == []


async def check_what_the_caller_handles_is_left_to_it(manager: MountManager) -> None:
    """A prefix that it knows is no reason to carry out what comes before."""
    formatted = Mount(type="format/tmpfs", source="{{ mount 0 }}")
    await fails_with(Unimplemented, manager.activate("a", [TMPFS, formatted], handled={"format/*"}))
    await fails_with(Unimplemented, manager.activate("a", [TMPFS, formatted], handled={"format/tmpfs"}))
    done = await manager.activate("a", [TMPFS, formatted], handled={"mkdir/*"})
    await manager.deactivate("a")
    assert len(done.active) == 1


async def check_failed_activation_leaves_nothing(manager: MountManager) -> None:
    """Neither a mount nor the name."""
    async with manager.activated([TMPFS, Mount(type="format/bind", source="{{ mount 0 }}")]) as left:
        place = left[0].source
    wrong = Mount(type="no-such-type", source="x")
    await fails_with(Unknown, temporary(manager, "a", TMPFS, wrong))
    assert await manager.list() == []
    assert not is_mounted(place)
    await temporary(manager, "a")
    await manager.deactivate("a")


async def check_one_of_many_wins_a_name(manager: MountManager) -> None:
    """The others are told, and one end is enough."""
    outcomes = await asyncio.gather(*(temporary(manager, "a") for _ in range(6)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in outcomes) == ["Activation", *["AlreadyExists"] * 5]
    ends = await asyncio.gather(*(manager.deactivate("a") for _ in range(6)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ends) == [*["NoneType"], *["NotFound"] * 5]
    assert standing([one for one in outcomes if isinstance(one, Activation)]) == [False]


async def check_cancelled_activation_is_whole(manager: MountManager) -> None:
    """It happened or it did not, and the name can be used."""
    for rounds in range(8):
        call = asyncio.ensure_future(temporary(manager, "a", TMPFS, TMPFS))
        for _ in range(rounds * rounds):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        found = await manager.list()
        if found:
            assert standing(found) == [True, True]
            await manager.deactivate("a")
        assert not any(standing(found))


async def check_block_of_mounts_ends_with_them(manager: MountManager) -> None:
    """They have no name; where nothing would be left, one bind mount of the last is."""
    formatted = Mount(type="format/bind", source="{{ mount 0 }}", options=("rbind",))
    async with manager.activated([TMPFS, formatted]) as left:
        place = left[0].source
        assert list(left) == [Mount(type="bind", source=place, options=("rbind",))]
        assert is_mounted(place)
        assert await manager.list() == []
    assert not is_mounted(place)


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(fresh_manager)`."""
