"""What every `Snapshotter` does; each check takes a fresh one and a way to mount, and `CHECKS` lists them all.

    async with open_it() as snapshotter:
        await check(snapshotter, mounted)      # mounted(mounts): an async context manager giving the mounted folder

The plain asserts need no test tool, but root. Errors must be of the port's classes, texts are compared where the port
states one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Final, TypeAlias

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.filetrees import LAYERS, file, tree
from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import REBASE, Info, Kind, Snapshotter, Usage

Mounted: TypeAlias = Callable[[Sequence[Mount]], AbstractAsyncContextManager[Path]]
Check: TypeAlias = Callable[[Snapshotter, Mounted], Awaitable[None]]
Change: TypeAlias = Callable[[Path], object]
"""Changes what is in a mounted snapshot."""

MANY_LAYERS: Final = 128
KEYS: Final = (
    "../../x",
    "/",
    ".",
    "a/b/c",
    "ns/7/sha256:ab",
    "k" * 600,
    "snapshots",
    "1",
    "\N{GREEK SMALL LETTER MU}",
    " ",
)
"""Texts that are good keys, whatever they would be as paths."""


def nothing(_: Path) -> None:
    """Change nothing."""


async def layer(s: Snapshotter, mounted: Mounted, name: str, parent: str = "", change: Change = nothing) -> None:
    """Make the committed snapshot `name` of its parent and a change."""
    async with mounted(await s.prepare(f"{name} active", parent)) as folder:
        change(folder)
    await s.commit(name, f"{name} active")


async def seen(s: Snapshotter, mounted: Mounted, parent: str) -> dict[str, object]:
    """Give what a view of a committed snapshot shows."""
    async with mounted(await s.view(f"{parent} seen", parent)) as folder:
        found = tree(folder)
    await s.remove(f"{parent} seen")
    return found


async def walked(s: Snapshotter, *filters: str) -> list[Info]:
    """Give all that a walk gives."""
    return [info async for info in s.walk(*filters)]


async def names(s: Snapshotter, *filters: str) -> list[str]:
    """Give the names that a walk gives."""
    return [info.name for info in await walked(s, *filters)]


# --- files through layers ---------------------------------------------------------------------------------------------


async def check_layers_show_what_was_done(s: Snapshotter, mounted: Mounted) -> None:
    """A chain of layers shows just what the same changes make of one folder, before and after each commit."""
    for title, change in LAYERS.items():
        with tempfile.TemporaryDirectory() as flat:
            parent = ""
            for at in range(3):
                key = f"{title} {at} active"
                async with mounted(await s.prepare(key, parent)) as top:
                    assert tree(top) == tree(Path(flat)), f"{title}: before step {at}"
                    change(at, top)
                    change(at, Path(flat))
                    assert tree(top) == tree(Path(flat)), f"{title}: after step {at}"
                parent = f"{title} {at}"
                await s.commit(parent, key)
                assert await seen(s, mounted, parent) == tree(Path(flat)), f"{title}: committed step {at}"


async def check_many_layers(s: Snapshotter, mounted: Mounted) -> None:
    """A chain of MANY_LAYERS, mounted as a view and as an active snapshot."""
    parent = ""
    for at in range(MANY_LAYERS):
        async with mounted(await s.prepare("next", parent)) as top:
            file(top / "over", str(at))
            file(top / f"add/{at}", "same")
            shutil.rmtree(top / "only", ignore_errors=True)
            file(top / f"only/{at}")
        await s.commit(f"layer {at}", "next")
        parent = f"layer {at}"
    for mounts in (await s.view("view", parent), await s.prepare("active", parent)):
        async with mounted(mounts) as top:
            assert (top / "over").read_text() == str(MANY_LAYERS - 1)
            assert {one.name for one in (top / "add").iterdir()} == {str(at) for at in range(MANY_LAYERS)}
            assert [one.name for one in (top / "only").iterdir()] == [str(MANY_LAYERS - 1)]


async def check_times_and_hard_links_stay(s: Snapshotter, mounted: Mounted) -> None:
    """A layer above that does not touch them changes neither."""
    moment = 1_000_000_000_123_456_789

    def change(top: Path) -> None:
        file(top / "sub/a")
        os.link(top / "sub/a", top / "b")
        for path in (top / "b", top / "sub"):
            os.utime(path, ns=(moment, moment))

    await layer(s, mounted, "base", change=change)
    await layer(s, mounted, "above", "base", lambda top: file(top / "other"))
    async with mounted(await s.view("look", "above")) as top:
        assert (top / "b").stat().st_mtime_ns == moment
        assert (top / "sub").stat().st_mtime_ns == moment
        assert (top / "b").stat().st_ino == (top / "sub/a").stat().st_ino
        assert (top / "b").stat().st_nlink == 2


async def check_root_is_open_to_all(s: Snapshotter, mounted: Mounted) -> None:
    """The root of a new snapshot has the mode 0755, whatever the umask, and its parent's owner."""
    umask = os.umask(0o077)
    try:
        mounts = await s.prepare("new")
    finally:
        os.umask(umask)
    async with mounted(mounts) as top:
        assert stat.S_IMODE(top.stat().st_mode) == 0o755
        os.chown(top, 11, 12)
    await s.commit("owned", "new")
    async with mounted(await s.prepare("child", "owned")) as top:
        assert (top.stat().st_uid, top.stat().st_gid) == (11, 12)


# --- kinds ------------------------------------------------------------------------------------------------------------


async def check_new_snapshotter_is_empty(s: Snapshotter, mounted: Mounted) -> None:
    """There is nothing to walk, and an active snapshot without parent shows nothing."""
    assert await walked(s) == []
    async with mounted(await s.prepare("k")) as top:
        assert tree(top) == {}


async def check_commit_ends_the_key(s: Snapshotter, mounted: Mounted) -> None:
    """What was written is under the name, the key is free again."""
    await layer(s, mounted, "c", change=lambda top: file(top / "f", "content"))
    await fails_with(NotFound, s.stat("c active"), "snapshot c active does not exist")
    async with mounted(await s.prepare("c active", "c")) as top:
        assert (top / "f").read_text() == "content"
    assert await names(s) == ["c", "c active"]


async def check_mounts_are_given_again(s: Snapshotter, mounted: Mounted) -> None:
    """By prepare or view and by mounts, the same; what was written is there after a remount."""
    await layer(s, mounted, "base", change=lambda top: file(top / "f"))
    await layer(s, mounted, "above", "base", lambda top: file(top / "g"))
    for parent in ("", "base", "above"):
        made = await s.prepare(f"a {parent}", parent)
        assert await s.mounts(f"a {parent}") == made
        async with mounted(made) as top:
            file(top / "h", parent)
        async with mounted(await s.mounts(f"a {parent}")) as top:
            assert (top / "h").read_text() == parent
        assert await s.view(f"v {parent}", parent) == await s.mounts(f"v {parent}")


async def check_committed_never_changes(s: Snapshotter, mounted: Mounted) -> None:
    """Whatever children do, also several at once, each sees only its own."""
    await layer(s, mounted, "base", change=lambda top: (file(top / "f", "old"), file(top / "gone")))
    before = await seen(s, mounted, "base")
    first, second = await s.prepare("first", "base"), await s.prepare("second", "base")
    async with mounted(first) as one, mounted(second) as two:
        file(one / "f", "first")
        (one / "gone").unlink()
        assert (two / "f").read_text() == "old"
        assert (two / "gone").exists()
        file(two / "f", "second")
        assert (one / "f").read_text() == "first"
    assert await seen(s, mounted, "base") == before
    await s.remove("first")
    await s.commit("after", "second")
    assert await seen(s, mounted, "base") == before


async def check_views_are_read_only(s: Snapshotter, mounted: Mounted) -> None:
    """Of nothing, of one layer and of several."""
    await layer(s, mounted, "one", change=lambda top: file(top / "f"))
    await layer(s, mounted, "two", "one", lambda top: file(top / "g"))
    for parent, shown in (("", []), ("one", ["f"]), ("two", ["f", "g"])):
        mounts = await s.view(f"view of {parent}", parent)
        assert all(mount.read_only for mount in mounts) or mounts[-1].type == "overlay"
        async with mounted(mounts) as top:
            assert list(tree(top)) == shown
            try:
                file(top / "new")
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
            else:
                raise AssertionError("a view was written to")


async def check_stat_of_each_kind(s: Snapshotter, mounted: Mounted) -> None:
    """Name, kind, nearest parent, labels and times."""
    before = time.time_ns()
    await layer(s, mounted, "c1")
    await layer(s, mounted, "c2", "c1")
    await s.prepare("a1", "c2", {"l": "1", "empty": ""})
    await s.prepare("a2")
    await s.view("v1", "c2", {"l": "2"})
    await s.view("v2")
    after = time.time_ns()
    for name, kind, parent, labels in (
        ("c1", Kind.COMMITTED, "", {}),
        ("c2", Kind.COMMITTED, "c1", {}),
        ("a1", Kind.ACTIVE, "c2", {"l": "1"}),
        ("a2", Kind.ACTIVE, "", {}),
        ("v1", Kind.VIEW, "c2", {"l": "2"}),
        ("v2", Kind.VIEW, "", {}),
    ):
        info = await s.stat(name)
        assert (info.name, info.kind, info.parent, _own(info)) == (name, kind, parent, labels)
        assert before <= info.created_at == info.updated_at <= after
    assert {info.name for info in await walked(s)} == {"c1", "c2", "a1", "a2", "v1", "v2"}


def _own(info: Info) -> dict[str, str]:
    """Give the labels but for those that snapshotters add by themselves."""
    return {key: value for key, value in info.labels.items() if not key.startswith("containerd.io/snapshot/")}


async def check_any_text_is_a_key(s: Snapshotter, mounted: Mounted) -> None:
    """Keys are no paths."""
    for key in KEYS:
        async with mounted(await s.prepare(key)) as top:
            file(top / "f", key)
    for key in KEYS:
        async with mounted(await s.mounts(key)) as top:
            assert (top / "f").read_text() == key
    assert await names(s) == sorted(KEYS, key=str.encode)
    for key in KEYS:
        await s.commit(f"{key}!", key)
        await s.remove(f"{key}!")
    assert await names(s) == []


# --- labels and walks -------------------------------------------------------------------------------------------------


async def check_labels_are_updated(s: Snapshotter, mounted: Mounted) -> None:
    """All of them, some of them, none; nothing else changes but the time."""
    await layer(s, mounted, "c")
    await s.prepare("a", "c", {"old": "1"})
    await s.view("v", "c")
    for name in ("c", "a", "v"):
        made = await s.stat(name)
        info = await s.update(name, {"l1": "v1", "l2": "v2", "a.b/c-d": "dots"})
        assert _own(info) == {"l1": "v1", "l2": "v2", "a.b/c-d": "dots"}
        assert (info.name, info.kind, info.parent, info.created_at) == (name, made.kind, made.parent, made.created_at)
        assert made.updated_at < info.updated_at <= time.time_ns()
        assert await s.stat(name) == info
        info = await s.update(name, {"l1": "new", "l9": "not named"}, ["labels.l1", "labels.l2", "labels.a.b/c-d"])
        assert _own(info) == {"l1": "new"}
        info = await s.update(name, {"l4": "v4", "none": ""}, ["labels"])
        assert _own(info) == {"l4": "v4"}
        text = f'cannot update "parent" field on snapshot "{name}"'
        await fails_with(InvalidArgument, s.update(name, {"x": "y"}, ["labels.x", "parent"]), text)
        assert _own(await s.stat(name)) == {"l4": "v4"}
        assert _own(await s.update(name, {})) == {}


async def check_commit_replaces_labels(s: Snapshotter, mounted: Mounted) -> None:
    """The old ones go, and the times are those of the commit."""
    await s.prepare("a", labels={"old": "1", "both": "old"})
    began = await s.stat("a")
    await s.commit("c", "a", {"both": "new"})
    info = await s.stat("c")
    assert _own(info) == {"both": "new"}
    assert began.created_at < info.created_at == info.updated_at


async def check_walk_is_ordered_and_filtered(s: Snapshotter, mounted: Mounted) -> None:
    """By kind, name, parent and labels; several filters are alternatives."""
    await layer(s, mounted, "p")
    await s.prepare("p-wl-tmp", "", {"l": "gone"})
    await s.commit("p-wl", "p-wl-tmp", {"l": "1"})
    for key, parent, labels in (
        ("a-np", "", {}),
        ("a", "p", {}),
        ("a-wl", "p-wl", {"l": "2"}),
        ("a-np-wl", "", {"l": "2"}),
    ):
        await s.prepare(key, parent, labels)
    await s.view("v", "p")
    await s.view("v-wl", "p-wl", {"l": "3"})
    everything = ["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"]
    assert await names(s) == everything
    assert await names(s, "") == everything
    assert await names(s, "kind==active") == ["a", "a-np", "a-np-wl", "a-wl"]
    assert await names(s, "kind==view") == ["v", "v-wl"]
    assert await names(s, "kind==committed") == ["p", "p-wl"]
    assert await names(s, "name==p", "name==a-np-wl") == ["a-np-wl", "p"]
    assert await names(s, "name==a-wl,labels.l") == ["a-wl"]
    assert await names(s, "parent==p") == ["a", "v"]
    assert await names(s, 'parent!=""') == ["a", "a-wl", "v", "v-wl"]
    assert await names(s, "labels.l") == ["a-np-wl", "a-wl", "p-wl", "v-wl"]
    assert await names(s, "labels.l==2") == ["a-np-wl", "a-wl"]
    assert await names(s, 'labels.l!="2",kind==view') == ["v", "v-wl"]
    assert await names(s, "name~=^p") == ["p", "p-wl"]
    await fails_with(InvalidArgument, walked(s, "name="))


async def check_calls_work_during_a_walk(s: Snapshotter, mounted: Mounted) -> None:
    """Also such as remove what is yet to come."""
    for number in range(5):
        await s.prepare(f"k{number}")
    found = []
    async with aclosing(s.walk()) as infos:
        async for info in infos:
            found.append(info.name)
            if info.name in {"k0", "k2"}:
                assert await s.stat(info.name) == info
                await s.remove(info.name)
            if info.name == "k1":
                await s.prepare("zz")
    assert found[:3] == ["k0", "k1", "k2"]
    assert await names(s) == ["k1", "k3", "k4", "zz"]


# --- usage, removal, rebase -------------------------------------------------------------------------------------------


async def check_usage_is_its_own(s: Snapshotter, mounted: Mounted) -> None:
    """It grows with what is written, stays at the commit, and parents do not count where they are shared."""
    size = 4 << 20
    mounts = await s.prepare("a")
    empty = await s.usage("a")
    async with mounted(mounts) as top:
        (top / "f").write_bytes(os.urandom(size))
        os.sync()
    grown = await s.usage("a")
    assert grown.size >= empty.size + size
    assert grown.inodes >= empty.inodes
    await s.commit("c", "a")
    committed = await s.usage("c")
    assert committed.size >= size
    assert committed.inodes >= 1
    await s.view("v", "c")
    assert await s.usage("v") == Usage(0, 0)
    await layer(s, mounted, "above", "c", lambda top: file(top / "g"))
    assert await s.usage("c") == committed
    assert (await s.usage("above")).size < committed.size + size


async def check_remove_frees_the_name(s: Snapshotter, mounted: Mounted) -> None:
    """For any kind of snapshot, with nothing of the old one in it."""
    await layer(s, mounted, "c", change=lambda top: file(top / "f"))
    await s.prepare("k", "c")
    await s.remove("k")
    await s.view("k", "c")
    await s.remove("k")
    async with mounted(await s.prepare("k")) as top:
        assert tree(top) == {}
        file(top / "g")
    await s.remove("c")
    await s.commit("c", "k")
    assert list(await seen(s, mounted, "c")) == ["g"]
    await s.remove("c")
    await fails_with(NotFound, s.remove("c"), "snapshot c does not exist")
    assert await names(s) == []


async def check_parents_stay(s: Snapshotter, mounted: Mounted) -> None:
    """A snapshot with a child of any kind cannot be removed; from the top down all can."""
    text = "cannot remove snapshot with child"
    await layer(s, mounted, "base")
    await layer(s, mounted, "middle", "base")
    await s.prepare("active", "middle")
    await s.view("view", "middle")
    await fails_with(FailedPrecondition, s.remove("base"), text)
    await fails_with(FailedPrecondition, s.remove("middle"), text)
    await s.remove("active")
    await fails_with(FailedPrecondition, s.remove("middle"), text)
    await s.remove("view")
    await s.remove("middle")
    await s.remove("base")
    assert await names(s) == []


async def check_cleanup_keeps_what_is_there(s: Snapshotter, mounted: Mounted) -> None:
    """Only what belongs to removed snapshots goes, also while others are made."""
    await layer(s, mounted, "base", change=lambda top: file(top / "f"))
    await s.prepare("gone", "base")
    async with mounted(await s.prepare("kept", "base")) as top:
        file(top / "g")
    await s.remove("gone")
    await asyncio.gather(s.cleanup(), *(s.prepare(f"new {number}", "base") for number in range(8)), s.cleanup())
    await s.cleanup()
    for key in ("kept", *(f"new {number}" for number in range(8))):
        async with mounted(await s.mounts(key)) as top:
            assert list(tree(top)) == (["f", "g"] if key == "kept" else ["f"])


async def check_rebase(s: Snapshotter, mounted: Mounted) -> None:
    """A layer made without its parent gets it at the commit, if the snapshotter can do that."""
    await layer(s, mounted, "base", change=lambda top: (file(top / "f", "base"), file(top / "g", "base")))
    async with mounted(await s.prepare("a")) as top:
        file(top / "g", "above")
    if REBASE not in s.capabilities:
        await fails_with(Unimplemented, s.commit("c", "a", {}, "base"))
        await s.commit("c", "a")
        assert (await s.stat("c")).parent == ""
        return
    await s.prepare("b", "base")
    await fails_with(NotFound, s.commit("c", "a", {}, "missing"), "parent snapshot missing does not exist")
    await fails_with(
        FailedPrecondition, s.commit("c", "a", {}, "b"), "parent 'b' is active, a parent must be committed"
    )
    await s.commit("c", "a", {}, "base")
    assert (await s.stat("c")).parent == "base"
    await fails_with(FailedPrecondition, s.remove("base"), "cannot remove snapshot with child")
    async with mounted(await s.view("look", "c")) as top:
        assert {path.name: path.read_text() for path in top.iterdir()} == {"f": "base", "g": "above"}


async def check_parent_cannot_change(s: Snapshotter, mounted: Mounted) -> None:
    """At the commit the parent may be named again, but no other one."""
    await layer(s, mounted, "base")
    await layer(s, mounted, "other")
    await s.prepare("a", "base")
    text = "snapshot 'a' has the parent 'base', it cannot become 'other'"
    await fails_with(InvalidArgument, s.commit("c", "a", {}, "other"), text)
    await s.commit("c", "a", {}, "base")
    assert (await s.stat("c")).parent == "base"


# --- errors, concurrency, cancellation --------------------------------------------------------------------------------


async def check_missing_snapshots(s: Snapshotter, mounted: Mounted) -> None:
    """Every call says NotFound, and InvalidArgument for no key at all."""
    text = "snapshot nope does not exist"
    for call in (s.stat, s.mounts, s.usage, s.remove):
        await fails_with(NotFound, call("nope"), text)
        await fails_with(InvalidArgument, call(""))
    await fails_with(NotFound, s.update("nope", {}), text)
    await fails_with(NotFound, s.commit("c", "nope"), text)
    await fails_with(InvalidArgument, s.update("", {}))
    for make in (s.prepare, s.view):
        await fails_with(NotFound, make("k", "nope"), "parent snapshot nope does not exist")
        await fails_with(InvalidArgument, make(""))
    await s.prepare("a")
    await fails_with(InvalidArgument, s.commit("", "a"))
    await fails_with(InvalidArgument, s.commit("c", ""))
    assert await names(s) == ["a"]


async def check_taken_names(s: Snapshotter, mounted: Mounted) -> None:
    """Keys and names share one space."""
    await layer(s, mounted, "c")
    await s.prepare("a", "c")
    await s.view("v", "c")
    before = await walked(s)
    for taken in ("c", "a", "v"):
        text = f'snapshot "{taken}"'
        await fails_with(AlreadyExists, s.prepare(taken), text)
        await fails_with(AlreadyExists, s.view(taken, "c"), text)
        await fails_with(AlreadyExists, s.commit(taken, "a"), text)
    assert await walked(s) == before


async def check_only_committed_are_parents(s: Snapshotter, mounted: Mounted) -> None:
    """And a failed call leaves nothing behind."""
    await s.prepare("a")
    await s.view("v")
    for make in (s.prepare, s.view):
        await fails_with(InvalidArgument, make("k", "a"), "parent 'a' is active, a parent must be committed")
        await fails_with(InvalidArgument, make("k", "v"), "parent 'v' is a view, a parent must be committed")
    await fails_with(NotFound, s.remove("k"))
    assert await names(s) == ["a", "v"]


async def check_only_active_are_committed(s: Snapshotter, mounted: Mounted) -> None:
    """Nor has a committed one mounts."""
    await layer(s, mounted, "c")
    await s.view("v", "c")
    await fails_with(FailedPrecondition, s.commit("n", "v"), "snapshot 'v' is a view, wanted an active one")
    await fails_with(FailedPrecondition, s.commit("n", "c"), "snapshot 'c' is committed, wanted an active one")
    await fails_with(FailedPrecondition, s.mounts("c"), "snapshot 'c' is committed, wanted an active one or a view")
    assert await names(s) == ["c", "v"]


async def check_one_of_many_wins_a_key(s: Snapshotter, mounted: Mounted) -> None:
    """Prepares and views of one key, then commits to one name."""
    await layer(s, mounted, "c")
    makes = (s.prepare, s.view)
    won = await _won(*(makes[number % 2]("k", "c" if number % 3 else "") for number in range(12)))
    assert won == [AlreadyExists] * 11
    await s.remove("k")
    for number in range(8):
        await s.prepare(f"a{number}", "c")
    assert await _won(*(s.commit("name", f"a{number}") for number in range(8))) == [AlreadyExists] * 7
    assert len(await names(s, "kind==active")) == 7


async def _won(*calls: Awaitable[object]) -> list[type[BaseException]]:
    """Run calls at once and give the classes of the errors."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]


async def check_many_are_made_at_once(s: Snapshotter, mounted: Mounted) -> None:
    """Each is a snapshot of its own."""
    await layer(s, mounted, "base", change=lambda top: file(top / "f"))
    made = await asyncio.gather(*(s.prepare(f"k{number}", "base") for number in range(24)))
    assert len({str(mounts) for mounts in made}) == 24
    for number in (0, 23):
        async with mounted(made[number]) as top:
            file(top / "own", str(number))
    async with mounted(made[1]) as top:
        assert list(tree(top)) == ["f"]


async def check_parent_is_held_while_a_child_is_made(s: Snapshotter, mounted: Mounted) -> None:
    """Either the child is there or its parent is gone, never both or neither; large enough to meet half-way."""
    files = 400
    for number in range(6):
        await layer(s, mounted, "p", change=lambda top: [file(top / f"{at}/f") for at in range(files)])
        making = asyncio.ensure_future(s.prepare(f"k{number}", "p"))
        for _ in range(number * 20):
            await asyncio.sleep(0)
        errors = await _won(making, s.remove("p"))
        assert errors in ([NotFound], [FailedPrecondition]), errors
        if errors == [FailedPrecondition]:
            async with mounted(await s.mounts(f"k{number}")) as top:
                assert len([one for one in top.iterdir() if one.name.isdecimal()]) == files
            await s.remove(f"k{number}")
            await s.remove("p")
        assert await names(s) == []


async def check_cancelled_call_is_whole(s: Snapshotter, mounted: Mounted) -> None:
    """It happened or it did not, and the key can be used."""
    await layer(s, mounted, "base", change=lambda top: file(top / "f"))
    for rounds in range(8):
        tasks = [asyncio.ensure_future(s.prepare(f"k{number}", "base")) for number in range(8)]
        for _ in range(rounds * rounds):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key in await names(s, "kind==active"):
            async with mounted(await s.mounts(key)) as top:
                assert list(tree(top)) == ["f"]
            await s.remove(key)
        await s.prepare("k0", "base")
        await s.remove("k0")


async def check_closed_snapshotter_is_unavailable(s: Snapshotter, mounted: Mounted) -> None:
    """Every call; closing again is harmless, and calls under way end well or are refused."""
    await layer(s, mounted, "c")
    calls = [asyncio.ensure_future(s.prepare(f"k{number}", "c")) for number in range(8)]
    await asyncio.sleep(0)
    await s.close()
    await s.close()
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, list | Unavailable) for outcome in outcomes), outcomes
    for call in (s.stat, s.mounts, s.usage, s.remove, s.prepare, s.view):
        await fails_with(Unavailable, call("c"))
    await fails_with(Unavailable, s.commit("n", "c"))
    await fails_with(Unavailable, s.update("c", {}))
    await fails_with(Unavailable, s.cleanup())
    await fails_with(Unavailable, walked(s))


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(fresh_snapshotter, mounted)`."""
