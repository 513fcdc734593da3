"""What every `ImageStore` does; each check takes a fresh object database."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from moored.kernel.conformance import fails_with
from moored.kernel.conformance.objects import (
    DIGEST,
    LONGEST,
    OTHER_DIGEST,
    TOO_LONG,
    TOO_LONG_TEXT,
    Check,
    World,
    told,
)
from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.namespaces import bind
from moored.kernel.payloads import ImageCreate, ImageDelete, ImageUpdate
from moored.kernel.ports.images import Descriptor, Image, ImageStore
from moored.kernel.ports.leases import Resource

EXPIRE: Final = "containerd.io/gc.expire"
FAR: Final = "2999-01-01T00:00:00Z"


def target(digest: str = DIGEST, size: int = 5, media_type: str = "application/x", **annotations: str) -> Descriptor:
    """Give a descriptor."""
    return Descriptor(media_type=media_type, digest=digest, size=size, annotations=annotations)


def image(name: str = "docker.io/library/one:1", at: Descriptor | None = None, **labels: str) -> Image:
    """Give an image with a valid target."""
    return Image(name=name, target=at or target(), labels=labels)


async def names(images: ImageStore, *filters: str) -> list[str]:
    """Give the names that match."""
    return [one.name for one in await images.list(filters)]


async def check_image_is_read_back(world: World) -> None:
    """As it was given, with both times of the call."""
    given = image("any text/with blanks: \N{SNOWMAN}", target(size=1 << 40, note="n"), a="1")
    with bind("one"):
        before = time.time_ns()
        created = await world.images.create(given)
        after = time.time_ns()
        assert before <= created.created_at <= after, f"created at {created.created_at}, wanted {before} to {after}"
        assert created.updated_at == created.created_at
        assert created == replace(given, created_at=created.created_at, updated_at=created.created_at)
        assert await world.images.get(given.name) == created
        assert await world.images.list() == [created]


async def check_given_times_are_ignored(world: World) -> None:
    """The store's clock counts, and where `now` is given that."""
    with bind("one"):
        created = await world.images.create(replace(image("a"), created_at=7, updated_at=8))
        assert created.created_at > 10**18
        old = await world.images.create(image("b"), now=1_000_000_007)
        assert (old.created_at, old.updated_at) == (1_000_000_007, 1_000_000_007)
        newer = await world.images.update(image("b"), now=2_000_000_000)
        assert (newer.created_at, newer.updated_at) == (1_000_000_007, 2_000_000_000)
        assert await world.images.get("b") == newer


async def check_empty_values_are_not_stored(world: World) -> None:
    """Of labels and annotations, in the answer, the event and the record."""
    with bind("one"):
        async with told(world.exchange) as events:
            created = await world.images.create(image("a", target(x="1", y=""), k="v", gone=""))
        assert created.labels == {"k": "v"}
        assert created.target.annotations == {"x": "1"}
        assert await world.images.get("a") == created
    assert events == [("one", "/images/create", ImageCreate(name="a", labels={"k": "v"}))]


async def check_longest_names_work(world: World) -> None:
    """Longer than any key of the stores below, listed in the order of their bytes."""
    long = ["n" * size for size in (510, 511, 512, 3000, 32769)]
    with bind("one"):
        for name in reversed(long):
            await world.images.create(image(name))
        assert await names(world.images) == long
        await world.images.delete(long[-1])
        assert await names(world.images) == long[:-1]


async def check_name_is_taken_once(world: World) -> None:
    """AlreadyExists leaves the first one as it was."""
    with bind("one"):
        created = await world.images.create(image("a", first="1"))
        await fails_with(AlreadyExists, world.images.create(image("a", second="1")), 'image "a"')
        assert await world.images.get("a") == created


async def check_missing_image_is_told(world: World) -> None:
    """By all calls, in a namespace that nobody has written in and in one that has images."""
    for _ in range(2):
        with bind("one"):
            await fails_with(NotFound, world.images.get("a"), 'image "a"')
            await fails_with(NotFound, world.images.update(image("a")), 'image "a"')
            await fails_with(NotFound, world.images.delete("a"), 'image "a"')
            await fails_with(NotFound, world.images.delete("a", digest=DIGEST), 'image "a"')
            await fails_with(NotFound, world.images.get(""), 'image ""')
            await fails_with(NotFound, world.images.delete(""), 'image ""')
            await world.images.create(image(f"b{time.time_ns()}"))


async def check_bad_image_is_refused(world: World) -> None:
    """With the text that says what is wrong; nothing is left behind, not even the namespace."""
    bad = {
        'target.Digest "x" invalid: invalid checksum digest format': image(at=target("x")),
        'target.Digest "" invalid: invalid checksum digest format': image(at=target("")),
        'target.Digest "sha256:ab" invalid: invalid checksum digest length': image(at=target("sha256:ab")),
        'target.Digest "md5:ab" invalid: unsupported digest algorithm': image(at=target("md5:ab")),
        "target.Size must be greater than zero": image(at=target(size=0)),
        "target.MediaType must be set": image(at=target(media_type="")),
        f"image.Labels: {TOO_LONG_TEXT}": replace(image(), labels=TOO_LONG),
    }
    for text, one in bad.items():
        with bind("one"):
            await fails_with(InvalidArgument, world.images.create(one), text)
    assert await world.namespaces.list() == []
    with bind("one"):
        await world.images.create(image())
        for text, one in bad.items():
            await fails_with(InvalidArgument, world.images.update(one), text)
        await world.images.update(replace(image(), labels=LONGEST))


async def check_namespaces_are_apart(world: World) -> None:
    """One name in two namespaces is two images; a call without a namespace fails."""
    with bind("one"):
        await world.images.create(image("a"))
    with bind("two"):
        assert await world.images.list() == []
        await fails_with(NotFound, world.images.get("a"), 'image "a"')
        await world.images.create(image("a", other="1"))
    with bind("one"):
        assert (await world.images.get("a")).labels == {}
    with bind(""):
        for call in (world.images.list(), world.images.get("a"), world.images.create(image("a"))):
            await fails_with(FailedPrecondition, call, "namespace is required")
    with bind("a b"):
        error = await fails_with(InvalidArgument, world.images.list())
        assert error.text.startswith('namespace validation: identifier "a b" must match')


async def check_update_replaces_all(world: World) -> None:
    """Labels, target and annotations; the time of creation stays."""
    with bind("one"):
        created = await world.images.create(image("a", target(x="1"), k="1", l="2"))
        async with told(world.exchange) as events:
            updated = await world.images.update(image("a", target(OTHER_DIGEST, 9, y="1"), k="2", m=""))
        assert updated.created_at == created.created_at
        assert updated.updated_at > created.updated_at
        assert updated.labels == {"k": "2"}
        assert updated.target == target(OTHER_DIGEST, 9, y="1")
        assert await world.images.get("a") == updated
    assert events == [("one", "/images/update", ImageUpdate(name="a", labels={"k": "2"}))]


async def check_update_follows_paths(world: World) -> None:
    """What they do not name stays; a label that is not given is removed; keys are taken as they stand."""
    cases = (
        (["labels.k"], image("a", k="2", l="3"), {"k": "2", "l": "1"}, target(x="1")),
        (["labels.k"], image("a"), {"l": "1"}, target(x="1")),
        (["labels.a.b/c-d"], Image(name="a", target=target(), labels={"a.b/c-d": "e"}), None, target(x="1")),
        (["labels"], image("a", m="1", n=""), {"m": "1"}, target(x="1")),
        (["target"], image("a", target(OTHER_DIGEST, y="1"), m="1"), {"k": "1", "l": "1"}, target(OTHER_DIGEST, y="1")),
        (["annotations"], image("a", target(OTHER_DIGEST, y="1")), {"k": "1", "l": "1"}, target(y="1")),
        (["annotations.y", "annotations.x"], image("a", target(y="1")), {"k": "1", "l": "1"}, target(y="1")),
        (["labels", "labels.l"], image("a", l="9"), {"l": "9"}, target(x="1")),
    )
    with bind("one"):
        for paths, given, labels, wanted in cases:
            await world.images.create(image("a", target(x="1"), k="1", l="1"))
            async with told(world.exchange) as events:
                updated = await world.images.update(given, paths)
            expected = {"k": "1", "l": "1", "a.b/c-d": "e"} if labels is None else labels
            assert (updated.labels, updated.target) == (expected, wanted), f"{paths}: {updated}"
            assert await world.images.get("a") == updated
            assert events == [("one", "/images/update", ImageUpdate(name="a", labels=expected))]
            await world.images.delete("a")


async def check_unknown_path_is_refused(world: World) -> None:
    """Also behind good ones; nothing has changed then."""
    with bind("one"):
        created = await world.images.create(image("a"))
        for path in ("name", "created_at", "target.digest", "label", ""):
            text = f'cannot update "{path}" field on image "a"'
            await fails_with(InvalidArgument, world.images.update(image("a", k="1"), ["labels", path]), text)
        bad = Image(name="a", target=target("bad"), labels=TOO_LONG)
        await fails_with(InvalidArgument, world.images.update(bad, ["target"]))
        await fails_with(InvalidArgument, world.images.update(bad, ["labels"]), f"image.Labels: {TOO_LONG_TEXT}")
        assert await world.images.get("a") == created


async def check_delete_removes(world: World) -> None:
    """The record goes, and whoever listens is told; a second time it is not found."""
    with bind("one"):
        await world.images.create(image("a"))
        async with told(world.exchange) as events:
            await world.images.delete("a")
            await fails_with(NotFound, world.images.delete("a"), 'image "a"')
        await fails_with(NotFound, world.images.get("a"), 'image "a"')
    assert events == [("one", "/images/delete", ImageDelete(name="a"))]


async def check_delete_minds_the_digest(world: World) -> None:
    """An image that points elsewhere by now stays."""
    with bind("one"):
        created = await world.images.create(image("a"))
        text = f'image "a" has target {DIGEST}, not {OTHER_DIGEST}'
        await fails_with(NotFound, world.images.delete("a", digest=OTHER_DIGEST), text)
        assert await world.images.get("a") == created
        await world.images.delete("a", digest=DIGEST)
        assert await world.images.list() == []


async def check_filters_choose(world: World) -> None:
    """By every field; alternatives, conjunctions, absence."""
    with bind("one"):
        await world.images.create(image("b", target(x="1"), k="1"))
        await world.images.create(Image(name="a", target=target(OTHER_DIGEST, media_type="t/y"), labels={"d.o/t": "2"}))
        wanted = {
            ("name==a",): ["a"],
            ("name~=^[ab]$",): ["a", "b"],
            (f'target.digest=="{OTHER_DIGEST}"',): ["a"],
            ("target.mediatype==application/x",): ["b"],
            ("labels.k",): ["b"],
            ('labels."d.o/t"==2',): ["a"],
            ("labels.k!=1",): ["a"],
            ("annotations.x==1",): ["b"],
            ("name==b,labels.k==1",): ["b"],
            ("name==b,labels.k==2",): [],
            ("name==b", "name==a"): ["a", "b"],
            ("nothing",): [],
            ("target.size==5",): [],
            ("",): ["a", "b"],
            (): ["a", "b"],
        }
        for filters, expected in wanted.items():
            found = await names(world.images, *filters)
            assert found == expected, f"{filters} give {found}, wanted {expected}"


async def check_only_images_that_expire_are_leased(world: World) -> None:
    """Made or updated; deleting under the lease takes them out of it; an unknown lease matters to no other image."""
    with bind("one"):
        await world.leases.create("l", {})
        with bind(lease="nothing"):
            await world.images.create(image("plain"))
            expiring = Image(name="x", target=target(), labels={EXPIRE: FAR})
            await fails_with(NotFound, world.images.create(expiring), "lease does not exist")
            changed = replace(expiring, name="plain")
            await fails_with(NotFound, world.images.update(changed, ["labels"]), "lease does not exist")
            assert (await world.images.get("plain")).labels == {}
            await world.images.delete("plain")
        with bind(lease="l"):
            await world.images.create(image("never"))
            await world.images.create(expiring)
            assert await world.leases.resources("l") == [Resource("images", "x")]
            await world.images.update(replace(expiring, name="never"), [f"labels.{EXPIRE}"])
            assert await world.leases.resources("l") == [Resource("images", "never"), Resource("images", "x")]
            await world.images.delete("x")
        await world.images.delete("never")
        assert await world.leases.resources("l") == [Resource("images", "never")]


async def check_many_creates_of_one_name_give_one(world: World) -> None:
    """Of calls side by side one succeeds, and one event is sent."""

    async def create(number: int) -> str:
        try:
            return (await world.images.create(image("a", k=str(number)))).labels["k"]
        except AlreadyExists:
            return ""

    with bind("one"):
        async with told(world.exchange) as events:
            made = [one for one in await asyncio.gather(*map(create, range(20))) if one]
        assert len(made) == 1
        assert (await world.images.get("a")).labels == {"k": made[0]}
    assert [topic for _, topic, _ in events] == ["/images/create"]


async def check_events_come_in_the_order_of_the_changes(world: World) -> None:
    """The last event of an image tells the labels that it has."""

    async def label(number: int) -> None:
        await world.images.update(image("a", k=str(number)), ["labels.k"])

    with bind("one"):
        await world.images.create(image("a"))
        async with told(world.exchange) as events:
            await asyncio.gather(*map(label, range(50)))
        labels = (await world.images.get("a")).labels
    assert len(events) == 50
    assert events[-1] == ("one", "/images/update", ImageUpdate(name="a", labels=labels))


def checks() -> list[Check]:
    """Give every check of this suite, in the order of the file."""
    return [value for name, value in globals().items() if name.startswith("check_")]
