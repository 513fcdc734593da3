"""What must hold of a daemon that was started again: promises kept, nothing made up, records and files one, no litter.

Two passes: first everything is held against the model as the crash left it; then what the crash interrupted is given up
(its leases are deleted), garbage is collected, and the rest must be exactly what can be reached, on disk too.
"""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from daemons import Daemon
from fault.load_images import Image
from fault.load_model import Key, Model
from fault.load_writers import NAMESPACES, Client, ingest_bytes
from moored.api.services.containers.v1 import containers_pb2
from moored.api.services.content.v1 import content_pb2
from moored.api.services.images.v1 import images_pb2
from moored.api.services.leases.v1 import leases_pb2
from moored.api.services.snapshots.v1 import snapshots_pb2
from moored.kernel.mounts import mounted
from moored.kernel.ports.mounts import Mount

FOLDERS = {
    "overlayfs": ("snapshots",),
    "native": ("snapshots",),
    "btrfs": ("active", "view", "snapshots"),
    "blockfile": ("snapshots",),
}
"""Where each snapshotter keeps an entry for each snapshot."""
KINDS = ("image", "container", "lease", "ingest")


@dataclass
class Seen:
    """Everything that one namespace lists."""

    client: Client
    objects: dict[str, dict[str, Any]]
    """Value by name by kind, as the model has them."""
    content: dict[str, dict[str, str]]
    """Labels by digest."""
    snapshots: dict[str, Any]
    held: dict[str, list[tuple[str, str]]]
    """(type, id) of what each lease holds."""


async def look(client: Client, snapshotter: str) -> Seen:
    """List a namespace."""
    images = (await client.call("images", "List", images_pb2.ListImagesRequest())).images
    containers = (await client.call("containers", "List", containers_pb2.ListContainersRequest())).containers
    leases = (await client.call("leases", "List", leases_pb2.ListRequest())).leases
    statuses = (await client.call("content", "ListStatuses", content_pb2.ListStatusesRequest())).statuses
    content = await client.all("content", "List", content_pb2.ListContentRequest())
    snapshots = await client.all("snapshots", "List", snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter))
    held = {
        lease.id: (await client.call("leases", "ListResources", leases_pb2.ListResourcesRequest(id=lease.id))).resources
        for lease in leases
    }
    return Seen(
        client,
        {
            "image": {one.name: (one.target.digest, one.labels.get("n", "")) for one in images},
            "container": {one.id: (one.snapshot_key, one.labels.get("n", "")) for one in containers},
            "lease": {one.id: "there" for one in leases},
            "ingest": {one.ref: one.offset for one in statuses},
        },
        {info.digest: dict(info.labels) for page in content for info in page.info},
        {info.name: info for page in snapshots for info in page.info},
        {id_: [(one.type, one.id) for one in resources] for id_, resources in held.items()},
    )


@dataclass
class Checker:
    """The checks on one daemon and its snapshotter; counts what it looked at."""

    daemon: Daemon
    model: Model
    snapshotter: str
    power_cut: bool = False
    """Whether the page cache was lost: then an ingest, which is durable once it is committed, may have lost its end."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("blobs", "images", "undecided"), 0))

    async def check(self, channel: grpc.aio.Channel, since: int, until: int, *, settle: bool = True) -> None:
        """Both passes. What was acknowledged at moment `since` is promised, what began after `until` is impossible.

        settle makes what is there the past of what follows.
        """
        clients = [Client(channel, namespace) for namespace in NAMESPACES]
        before = [await look(client, self.snapshotter) for client in clients]
        for seen in before:
            self.promises(seen, since, until)
            await self.images(seen)
            await self.ingests(seen)
            for name in set(seen.objects["lease"]) - set(self.blobs(seen)):
                await seen.client.call("leases", "Delete", leases_pb2.DeleteRequest(id=name))
                del seen.objects["lease"][name]
        await collected(clients[0])
        after = [await look(client, self.snapshotter) for client in clients]
        for old, seen in zip(before, after, strict=True):
            self.same(old, seen)
            reachable(seen, self.snapshotter)
            if settle:
                self.settle(seen)
        self.files(after)
        self.leftovers()

    # --- promises -----------------------------------------------------------------------------------------------------

    def blobs(self, seen: Seen) -> dict[str, tuple[str, str]]:
        """The leased blobs that are there, by the names of their leases."""
        found = {}
        for name in self.model.of_kind("blob", seen.client.namespace):
            writes = self.model.writes[Key("blob", seen.client.namespace, name)]
            digest = next(write.value[0] for write in writes if write.value)
            if digest in seen.content and name in seen.objects["lease"]:
                found[name] = (digest, seen.content[digest].get("n", ""))
        return found

    def promises(self, seen: Seen, since: int, until: int) -> None:
        """Each object is what it may be, and none is there that nobody made."""
        for kind, found in (*seen.objects.items(), ("blob", self.blobs(seen))):
            known = set(self.model.of_kind(kind, seen.client.namespace))
            if kind == "ingest":
                # Blobs that were being stored, under a lease.
                found = {ref: offset for ref, offset in found.items() if not ref.startswith("blob-")}  # noqa: PLW2901
            assert set(found) <= known, f"nobody made {kind} {set(found) - known}"
            for name in known:
                allowed = self.model.allowed(Key(kind, seen.client.namespace, name), since, until)
                actual = found.get(name)
                self.counts["undecided"] += len(allowed) > 1
                if kind == "ingest":
                    self.ingest(name, actual, allowed)
                else:
                    assert actual in allowed, f"{kind} {name} is {actual}, wanted one of {allowed}"

    def ingest(self, name: str, actual: int | None, allowed: Sequence[int | None]) -> None:
        """An ingest has what was acknowledged, and no more than was sent."""
        sizes = [size for size in allowed if size is not None]
        if actual is None:
            assert None in allowed or self.power_cut, f"ingest {name} is lost, wanted {allowed}"
            return
        assert sizes, f"ingest {name} is there, it was aborted"
        least = 0 if None in allowed or self.power_cut else min(sizes)
        assert least <= actual <= max(sizes), f"ingest {name} has {actual} bytes, wanted {sizes}"

    async def images(self, seen: Seen) -> None:
        """What an image refers to is there, unpacked, and shows its files; what a container stands on is mountable."""
        # What is looked at is kept from a collection under way.
        await seen.client.call("leases", "Create", leases_pb2.CreateRequest(id="look"))
        for name, (digest, _) in seen.objects["image"].items():
            image = self.model.images[digest]
            missing = {blob.digest for blob in image.blobs} - seen.content.keys()
            assert not missing, f"image {name} has lost {missing}"
            chains = [layer.chain_id for layer in image.layers]
            assert set(chains) <= seen.snapshots.keys(), f"image {name} has lost a snapshot of {chains}"
            assert all(seen.snapshots[chain].kind == snapshots_pb2.COMMITTED for chain in chains)
            await self.shows(seen.client.under("look"), image)
            self.counts["images"] += 1
        await seen.client.call("leases", "Delete", leases_pb2.DeleteRequest(id="look"))
        for name, (key, _) in seen.objects["container"].items():
            assert seen.snapshots[key].kind == snapshots_pb2.ACTIVE, f"container {name} has lost its snapshot"
            request = snapshots_pb2.MountsRequest(snapshotter=self.snapshotter, key=key)
            assert (await seen.client.call("snapshots", "Mounts", request)).mounts

    async def shows(self, client: Client, image: Image) -> None:
        """The unpacked image has its files with their bytes, and no others."""
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=self.snapshotter, key="look", parent=image.chain_id)
        mounts = (await client.call("snapshots", "View", request)).mounts
        with folders_of([Mount(type=m.type, source=m.source, options=tuple(m.options)) for m in mounts]) as folders:
            assert files_in(folders) == image.layers[-1].files, f"image {image.manifest.digest} shows other files"
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key="look")
        await client.call("snapshots", "Remove", remove)

    async def ingests(self, seen: Seen) -> None:
        """No ref is locked, and the bytes of each are a beginning of what was sent."""
        for ref, offset in seen.objects["ingest"].items():
            request = content_pb2.WriteContentRequest(action=content_pb2.STAT, ref=ref)
            # Whoever opens one without its lease gives it a day of its own.
            holders = [lease for lease, held in seen.held.items() if ("ingests", ref) in held]
            answer = await seen.client.under(holders[0] if holders else "").write(request)
            assert answer.offset == offset
            if not ref.startswith("blob-"):
                assert answer.digest == f"sha256:{hashlib.sha256(ingest_bytes(ref, offset)).hexdigest()}"

    # --- after a collection -------------------------------------------------------------------------------------------

    def same(self, old: Seen, new: Seen) -> None:
        """The collection took nothing that has a name."""
        kept = {**old.objects, "ingest": {r: o for r, o in old.objects["ingest"].items() if not r.startswith("blob-")}}
        assert new.objects == kept
        assert self.blobs(new) == self.blobs(old)

    def settle(self, seen: Seen) -> None:
        """Let the model's history begin with what is there."""
        for kind, found in (*seen.objects.items(), ("blob", self.blobs(seen))):
            for name in set(self.model.of_kind(kind, seen.client.namespace)):
                self.model.settle(Key(kind, seen.client.namespace, name), found.get(name))

    def files(self, seen: Sequence[Seen]) -> None:
        """Records and files are the same, in both directions, and every blob has its bytes."""
        content = self.daemon.root / "io.containerd.content.v1.content"
        stored = {f"sha256:{path.name}": path for path in (content / "blobs" / "sha256").glob("*")}
        recorded = {digest for one in seen for digest in one.content}
        assert set(stored) == recorded, f"files only: {set(stored) - recorded}, records only: {recorded - set(stored)}"
        for digest, path in stored.items():
            assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest
            self.counts["blobs"] += 1
        ingests = sum(len(one.objects["ingest"]) for one in seen)
        assert len(list((content / "ingest").iterdir())) == ingests
        root = self.daemon.root / f"io.containerd.snapshotter.v1.{self.snapshotter}"
        entries = [path.name for name in FOLDERS[self.snapshotter] for path in (root / name).iterdir()]
        names = [name for one in seen for name in one.snapshots]
        assert len(entries) == len(names), f"{sorted(entries)} for {sorted(names)}"

    def leftovers(self) -> None:
        """No mount, loop device or folder for mounts is left, and the log tells of no fault."""
        own = (f"{self.daemon.root}/", f"{self.daemon.state}/")
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert [point for point in mounts if point.startswith(own)] == []
        assert [backing for backing in loops() if backing.startswith(own)] == []
        assert list(self.daemon.state.glob("*/tmpmounts/*")) == []
        assert "Traceback" not in self.daemon.text()
        assert "level=error" not in self.daemon.text()


async def collected(client: Client) -> None:
    """Return after a garbage collection that began after the call."""
    await client.call("leases", "Create", leases_pb2.CreateRequest(id="collect"))
    await client.call("leases", "Delete", leases_pb2.DeleteRequest(id="collect", sync=True))


def reachable(seen: Seen, snapshotter: str) -> None:
    """Assert that just what images, containers and leases reach is there."""
    todo = [("content", digest) for digest, _ in seen.objects["image"].values()]
    todo += [("snapshot", key) for key, _ in seen.objects["container"].values()]
    for resources in seen.held.values():
        todo += [("snapshot" if kind.startswith("snapshots/") else kind, id_) for kind, id_ in resources]
    found: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += _edges(seen, snapshotter, *one)
    there = {("content", digest) for digest in seen.content} | {("snapshot", name) for name in seen.snapshots}
    assert {one for one in found if one[0] in ("content", "snapshot")} == there


def _edges(seen: Seen, snapshotter: str, kind: str, name: str) -> Iterable[tuple[str, str]]:
    if kind == "content":
        for label, value in seen.content.get(name, {}).items():
            if label.startswith("containerd.io/gc.ref.content."):
                yield "content", value
            elif label == f"containerd.io/gc.ref.snapshot.{snapshotter}":
                yield "snapshot", value
    elif kind == "snapshot" and name in seen.snapshots and seen.snapshots[name].parent:
        yield "snapshot", seen.snapshots[name].parent


@contextmanager
def folders_of(mounts: Sequence[Mount]) -> Generator[list[Path]]:
    """The folders that mounts show on top of each other, the uppermost first; mounted where there is no other way."""
    (mount,) = mounts
    if mount.type == "overlay":
        (lower,) = [option.removeprefix("lowerdir=") for option in mount.options if option.startswith("lowerdir=")]
        yield [Path(path) for path in lower.split(":")]
    elif mount.type == "bind":
        yield [Path(mount.source)]
    else:
        with mounted(mounts) as folder:
            yield [folder]


def files_in(folders: Sequence[Path]) -> dict[str, bytes]:
    """Contents of all files by path, as an overlay of the folders shows them."""
    found: dict[str, bytes | None] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if name not in found and not stat.S_ISDIR(mode):
                found[name] = None if stat.S_ISCHR(mode) else path.read_bytes()
    return {name: data for name, data in found.items() if data is not None and not name.startswith("lost+found")}


def loops() -> list[str]:
    """The files behind all loop devices."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(backing.read_text().strip())
        except OSError:  # it went meanwhile
            continue
    return found


def children_of(session: int) -> list[int]:
    """The processes of a session, which every process of a daemon belongs to."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # A zombie has ended; whoever started it has not looked yet.
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(session: int, seconds: float = 5.0) -> None:
    """Assert that all processes of a killed daemon end soon."""
    deadline = time.monotonic() + seconds
    while left := children_of(session):
        assert time.monotonic() < deadline, f"processes {left} outlive their daemon"
        time.sleep(0.01)
