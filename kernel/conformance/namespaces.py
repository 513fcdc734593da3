"""What every `NamespaceStore` does; each check takes a fresh object database."""

from __future__ import annotations

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.containers import container
from moored.kernel.conformance.images import image
from moored.kernel.conformance.objects import LONGEST, RE, TOO_LONG, TOO_LONG_TEXT, Check, World, told
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.payloads import NamespaceCreate, NamespaceDelete, NamespaceUpdate


async def check_namespace_is_read_back(world: World) -> None:
    """By name, with its labels; the calls need no namespace of their own."""
    await world.namespaces.create("b", {"k": "1", "a.b/c": "2", "gone": ""})
    await world.namespaces.create("a", {})
    assert await world.namespaces.list() == [("a", {}), ("b", {"k": "1", "a.b/c": "2"})]
    assert await world.namespaces.labels("b") == {"k": "1", "a.b/c": "2"}
    assert await world.namespaces.labels("a") == {}
    assert await world.namespaces.labels("never there") == {}


async def check_name_is_taken_once(world: World) -> None:
    """AlreadyExists, also for one that a first write has made."""
    await world.namespaces.create("a", {"k": "1"})
    await fails_with(AlreadyExists, world.namespaces.create("a", {}), 'namespace "a"')
    assert await world.namespaces.labels("a") == {"k": "1"}
    with bind("b"):
        await world.leases.create("l", {})
    await fails_with(AlreadyExists, world.namespaces.create("b", {}), 'namespace "b"')


async def check_bad_namespace_is_refused(world: World) -> None:
    """Names that are no identifiers, labels that are too long, and the one name that the schema needs itself."""
    long = "a" * 77
    await fails_with(InvalidArgument, world.namespaces.create("", {}), "identifier must not be empty")
    await fails_with(InvalidArgument, world.namespaces.create("a b", {}), f'identifier "a b" must match {RE}')
    text = f'identifier "{long}" greater than maximum length (76 characters)'
    await fails_with(InvalidArgument, world.namespaces.create(long, {}), text)
    await fails_with(InvalidArgument, world.namespaces.update("a b", {"k": "1"}))
    await fails_with(InvalidArgument, world.namespaces.create("a", TOO_LONG), f"namespace.Labels: {TOO_LONG_TEXT}")
    await fails_with(Unknown, world.namespaces.create("version", {}), "incompatible value")
    assert await world.namespaces.list() == []
    await world.namespaces.create("a" * 76, LONGEST)
    await world.namespaces.create("labels", {})


async def check_first_write_makes_a_namespace(world: World) -> None:
    """Without an event; reads and writes that fail make none."""
    async with told(world.exchange) as events:
        with bind("one"):
            await world.images.list()
            await fails_with(NotFound, world.leases.delete("l"), 'lease "l"')
            assert await world.namespaces.list() == []
            await world.leases.create("l", {})
    assert await world.namespaces.list() == [("one", {})]
    assert events == []


async def check_update_sets_labels(world: World) -> None:
    """All of them, or those that paths name; a namespace that is not there is made."""
    await world.namespaces.update("a", {"k": "1", "l": "2", "gone": ""})
    assert await world.namespaces.labels("a") == {"k": "1", "l": "2"}
    await world.namespaces.update("a", {"l": "3", "m.n/o": "4", "p": "5"}, ["labels.l", "labels.m.n/o", "labels.k"])
    assert await world.namespaces.labels("a") == {"l": "3", "m.n/o": "4"}
    await world.namespaces.update("a", {"q": "1"})
    assert await world.namespaces.labels("a") == {"q": "1"}
    await world.namespaces.update("a", {})
    assert await world.namespaces.list() == [("a", {})]


async def check_only_labels_can_be_updated(world: World) -> None:
    """Each by its key."""
    await world.namespaces.create("a", {"k": "1"})
    for path in ("labels", "name", ""):
        text = f'cannot update "{path}" field'
        await fails_with(InvalidArgument, world.namespaces.update("a", {"k": "2"}, ["labels.k", path]), text)
    assert await world.namespaces.labels("a") == {"k": "1"}


async def check_events_tell_what_was_asked(world: World) -> None:
    """In the namespace that they are about."""
    async with told(world.exchange) as events:
        await world.namespaces.create("a", {"k": "1"})
        await world.namespaces.update("a", {"l": "2"}, ["labels.l"])
        await fails_with(AlreadyExists, world.namespaces.create("a", {}))
        await world.namespaces.delete("a")
    assert events == [
        ("a", "/namespaces/create", NamespaceCreate(name="a", labels={"k": "1"})),
        ("a", "/namespaces/update", NamespaceUpdate(name="a", labels={"l": "2"})),
        ("a", "/namespaces/delete", NamespaceDelete(name="a")),
    ]


async def check_namespace_must_be_empty(world: World) -> None:
    """Images and containers keep it, all kinds that are left are named; leases go with it."""
    with bind("a"):
        await world.images.create(image("i"))
        await world.containers.create(container("c"))
        await world.leases.create("l", {})
    start = 'namespace "a" must be empty, but it still has '
    await fails_with(FailedPrecondition, world.namespaces.delete("a"), f"{start}images, containers")
    with bind("a"):
        await world.images.delete("i")
    await fails_with(FailedPrecondition, world.namespaces.delete("a"), f"{start}containers")
    with bind("a"):
        await world.containers.delete("c")
    await world.namespaces.delete("a")
    assert await world.namespaces.list() == []
    with bind("a"):
        assert await world.leases.list() == []


async def check_missing_namespace_is_told(world: World) -> None:
    """Deleting it twice too."""
    await fails_with(NotFound, world.namespaces.delete("a"), 'namespace "a"')
    await world.namespaces.create("a", {})
    await world.namespaces.delete("a")
    await fails_with(NotFound, world.namespaces.delete("a"), 'namespace "a"')
    await fails_with(NotFound, world.namespaces.delete(""), 'namespace ""')


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
