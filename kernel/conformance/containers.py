"""What every `ContainerStore` does; each check takes a fresh object database."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.objects import LONGEST, RE, TOO_LONG, TOO_LONG_TEXT, Check, World, told
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.namespaces import bind
from moored.kernel.payloads import ContainerCreate, ContainerDelete, ContainerUpdate, Packed, Runtime
from moored.kernel.ports.containers import Container, ContainerStore, TypedBytes

SPEC = TypedBytes("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"ociVersion":"1.0.2"}')


def container(id_: str = "c1", **more: Any) -> Container:
    """Give a container with all that it can have."""
    given: dict[str, Any] = {
        "image": "docker.io/library/one:1",
        "runtime": "io.containerd.runc.v2",
        "runtime_options": TypedBytes("containerd.runc.v1.Options", b"\x08\x01"),
        "spec": SPEC,
        "snapshotter": "overlayfs",
        "snapshot_key": "key/with blanks",
        "sandbox": "s1",
        "labels": {"k": "1"},
        "extensions": {"x": TypedBytes("example.X", b"\xff\x00"), "empty": TypedBytes("", b"")},
    }
    return Container(id=id_, **{**given, **more})


async def ids(containers: ContainerStore, *filters: str) -> list[str]:
    """Give the ids that match, by both ways to list."""
    listed = await containers.list(filters)
    async with aclosing(containers.stream(filters)) as stream:
        streamed = [one async for one in stream]
    assert streamed == listed, "stream and list differ"
    return [one.id for one in listed]


async def check_container_is_read_back(world: World) -> None:
    """As it was given, with both times of the call."""
    with bind("one"):
        before = time.time_ns()
        created = await world.containers.create(replace(container(), created_at=7, updated_at=8))
        assert before <= created.created_at <= time.time_ns()
        assert created == replace(container(), created_at=created.created_at, updated_at=created.created_at)
        assert await world.containers.get("c1") == created
        assert await world.containers.list() == [created]


async def check_little_is_enough(world: World) -> None:
    """An id and a runtime; what is not given stays empty."""
    with bind("one"):
        created = await world.containers.create(Container(id="c1", runtime="r"))
        found = await world.containers.get("c1")
        assert found == created
        assert (found.spec, found.runtime_options, found.labels, found.extensions) == (None, None, {}, {})


async def check_events_tell_what_was_done(world: World) -> None:
    """Runtime with options at create, the whole set of labels and the snapshot at update."""
    with bind("one"):
        async with told(world.exchange) as events:
            await world.containers.create(container(labels={"k": "1", "gone": ""}))
            await world.containers.update(container(labels={"l": "2"}, snapshot_key="new"), ["labels.l", "snapshotkey"])
            await world.containers.delete("c1")
            await fails_with(NotFound, world.containers.delete("c1"), "container c1")
    options = Packed("containerd.runc.v1.Options", b"\x08\x01")
    runtime = Runtime(name="io.containerd.runc.v2", options=options)
    image = "docker.io/library/one:1"
    update = ContainerUpdate(id="c1", image=image, labels={"k": "1", "l": "2"}, snapshot_key="new")
    assert events == [
        ("one", "/containers/create", ContainerCreate(id="c1", image=image, runtime=runtime)),
        ("one", "/containers/update", update),
        ("one", "/containers/delete", ContainerDelete(id="c1")),
    ]


async def check_id_is_taken_once(world: World) -> None:
    """AlreadyExists leaves the first one as it was."""
    with bind("one"):
        created = await world.containers.create(container())
        await fails_with(AlreadyExists, world.containers.create(container(image="other")), 'container "c1"')
        assert await world.containers.get("c1") == created


async def check_missing_container_is_told(world: World) -> None:
    """In other words where the namespace has never had a container."""
    with bind("one"):
        await fails_with(NotFound, world.containers.get("c1"), 'container "c1" in namespace "one"')
        text = 'container "c1" in namespace "one"'
        await fails_with(NotFound, world.containers.delete("c1"), f"cannot delete {text}")
        await fails_with(NotFound, world.containers.update(container()), f"cannot update {text}")
        await world.containers.create(container("other"))
        await fails_with(NotFound, world.containers.get("c1"), text)
        await fails_with(NotFound, world.containers.delete("c1"), "container c1")
        await fails_with(NotFound, world.containers.update(container()), 'container "c1"')


async def check_bad_container_is_refused(world: World) -> None:
    """With the text that says what is wrong; nothing is left behind, not even the namespace."""
    long = "a" * 77
    bad = {
        "container.ID: identifier must not be empty": container(""),
        f'container.ID: identifier "a b" must match {RE}': container("a b"),
        f'container.ID: identifier "{long}" greater than maximum length (76 characters)': container(long),
        "container.Extension keys must not be zero-length": container(extensions={"": SPEC}),
        f"containers.Labels: {TOO_LONG_TEXT}": container(labels=TOO_LONG),
        "container.Runtime.Name must be set": container(runtime=""),
        "container.Snapshotter must be set if container.SnapshotKey is set": container(snapshotter=""),
    }
    with bind("one"):
        for text, one in bad.items():
            wanted = f"create container failed validation: {text}"
            await fails_with(InvalidArgument, world.containers.create(one), wanted)
    assert await world.namespaces.list() == []
    with bind("one"):
        created = await world.containers.create(container())
        text = f"update failed validation: containers.Labels: {TOO_LONG_TEXT}"
        await fails_with(InvalidArgument, world.containers.update(container(labels=TOO_LONG)), text)
        assert await world.containers.get("c1") == created
        await world.containers.update(container(labels=LONGEST))


async def check_namespaces_are_apart(world: World) -> None:
    """One id in two namespaces is two containers; a call without a namespace fails."""
    with bind("one"):
        await world.containers.create(container())
    with bind("two"):
        assert await ids(world.containers) == []
        await world.containers.create(container(image="other"))
        await world.containers.delete("c1")
    with bind("one"):
        assert (await world.containers.get("c1")).image == "docker.io/library/one:1"
    with bind(""):
        for call in (world.containers.list(), world.containers.get("c1"), world.containers.create(container())):
            await fails_with(FailedPrecondition, call, "namespace is required")


async def check_update_replaces_what_is_mutable(world: World) -> None:
    """Labels, spec, extensions, image, snapshot key; runtime options and sandbox stay."""
    with bind("one"):
        created = await world.containers.create(container())
        spec = TypedBytes("other", b"2")
        extensions = {"y": TypedBytes("example.Y", b"")}
        given = container(
            image="i2", spec=spec, snapshot_key="k2", labels={"l": "2"}, extensions=extensions, sandbox="s2"
        )
        updated = await world.containers.update(replace(given, runtime_options=None))
        wanted = replace(given, sandbox="s1", created_at=created.created_at, updated_at=updated.updated_at)
        assert updated == wanted
        assert updated.updated_at > created.updated_at
        assert await world.containers.get("c1") == updated


async def check_immutable_fields_are_guarded(world: World) -> None:
    """An update without paths must carry them unchanged."""
    with bind("one"):
        created = await world.containers.create(container())
        text = "container.Snapshotter field is immutable"
        await fails_with(InvalidArgument, world.containers.update(container(snapshotter="native")), text)
        text = "container.Runtime.Name field is immutable"
        await fails_with(InvalidArgument, world.containers.update(container(runtime="other")), text)
        assert await world.containers.get("c1") == created


async def check_update_follows_paths(world: World) -> None:
    """What they do not name stays; a label or extension that is not given is removed; a spec is not."""
    spec = TypedBytes("other", b"2")
    one, x, empty = TypedBytes("one", b"1"), TypedBytes("example.X", b"\xff\x00"), TypedBytes("", b"")
    cases: tuple[tuple[list[str], dict[str, Any], dict[str, Any]], ...] = (
        (["labels.a.b/c"], {"labels": {"a.b/c": "2"}}, {"labels": {"k": "1", "a.b/c": "2"}}),
        (["labels.k"], {"labels": {}}, {"labels": {}}),
        (["labels"], {"labels": {"l": "1", "m": ""}}, {"labels": {"l": "1"}}),
        (["spec"], {"spec": spec}, {"spec": spec}),
        (["spec"], {"spec": None}, {}),
        (["extensions.o.n/e"], {"extensions": {"o.n/e": one}}, {"extensions": {"x": x, "empty": empty, "o.n/e": one}}),
        (["extensions.x"], {"extensions": {}}, {"extensions": {"empty": empty}}),
        (["extensions"], {"extensions": {"y": one}}, {"extensions": {"y": one}}),
        (["image"], {"image": "i2", "snapshot_key": "k2", "labels": {}, "snapshotter": "n"}, {"image": "i2"}),
        (["snapshotkey"], {"image": "i2", "snapshot_key": "k2", "sandbox": "s2"}, {"snapshot_key": "k2"}),
    )
    with bind("one"):
        for paths, given, wanted in cases:
            created = await world.containers.create(container())
            updated = await world.containers.update(container(**given), paths)
            assert updated == replace(created, **wanted, updated_at=updated.updated_at), f"{paths}: {updated}"
            assert await world.containers.get("c1") == updated
            await world.containers.delete("c1")


async def check_unknown_path_is_refused(world: World) -> None:
    """Also behind good ones; nothing has changed then."""
    with bind("one"):
        created = await world.containers.create(container())
        for path in ("snapshotter", "runtime", "snapshot_key", "sandbox", "id", ""):
            text = f'cannot update "{path}" field on "c1"'
            given = container(image="i2")
            await fails_with(InvalidArgument, world.containers.update(given, ["image", path]), text)
        assert await world.containers.get("c1") == created


async def check_filters_choose(world: World) -> None:
    """By every field, listed and streamed, by id."""
    with bind("one"):
        await world.containers.create(container("b"))
        await world.containers.create(container("a", runtime="r", image="", labels={"d.o/t": "2"}))
        wanted = {
            ("id==a",): ["a"],
            ("runtime.name==r",): ["a"],
            ("runtime==r",): [],
            ("image",): ["b"],
            ("image!=x",): ["a", "b"],
            ("labels.k==1",): ["b"],
            ('labels."d.o/t"',): ["a"],
            ("id==b,labels.k==2",): [],
            ("id==b", "id==a"): ["a", "b"],
            ("snapshotter==overlayfs",): [],
            ("",): ["a", "b"],
            (): ["a", "b"],
        }
        for filters, expected in wanted.items():
            found = await ids(world.containers, *filters)
            assert found == expected, f"{filters} give {found}, wanted {expected}"


async def check_stream_shows_one_moment(world: World) -> None:
    """What changes after it began is not seen by it; it can be left half-way."""
    with bind("one"):
        for id_ in ("a", "b", "c"):
            await world.containers.create(container(id_))
        async with aclosing(world.containers.stream()) as stream:
            first = await anext(stream)
            await world.containers.delete("b")
            await world.containers.create(container("d"))
            assert [first.id, *[one.id async for one in stream]] == ["a", "b", "c"]
        async with aclosing(world.containers.stream()) as stream:
            await anext(stream)
        assert await ids(world.containers) == ["a", "c", "d"]


async def check_updates_side_by_side_are_all_kept(world: World) -> None:
    """Each sets a label of its own."""

    async def label(number: int) -> None:
        await world.containers.update(container(labels={f"l{number}": "1"}), [f"labels.l{number}"])

    with bind("one"):
        await world.containers.create(container(labels={}))
        await asyncio.gather(*map(label, range(20)))
        assert (await world.containers.get("c1")).labels == {f"l{number}": "1" for number in range(20)}


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
