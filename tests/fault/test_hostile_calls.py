"""The catalogue of hostile calls (rows 57 to 85): what a running daemon answers, and that it stays as it was."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from daemons import Daemon
from fault.load_images import base_layer
from moored.api.services.containers.v1 import containers_pb2, containers_pb2_grpc
from moored.api.services.content.v1 import content_pb2, content_pb2_grpc
from moored.api.services.diff.v1 import diff_pb2, diff_pb2_grpc
from moored.api.services.events.v1 import events_pb2, events_pb2_grpc
from moored.api.services.images.v1 import images_pb2, images_pb2_grpc
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.namespaces.v1 import namespace_pb2, namespace_pb2_grpc
from moored.api.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from moored.api.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from moored.api.services.version.v1 import version_pb2_grpc
from moored.api.types.descriptor_pb2 import Descriptor

Answer = tuple[str, str]
"""Code and text of a failed call; OK and nothing of one that worked."""
OK: Answer = ("OK", "")
SNAPSHOTTER = "native"
EXPIRED = "containerd.io/gc.expire"
EMPTY = Descriptor(digest=f"sha256:{hashlib.sha256().hexdigest()}", size=1, media_type="m")


class Client:
    """Stubs and headers of one namespace."""

    def __init__(self, channel: grpc.Channel, namespace: str) -> None:
        self.metadata: Any = (("containerd-namespace", namespace),)
        self.containers: Any = containers_pb2_grpc.ContainersStub(channel)
        self.content: Any = content_pb2_grpc.ContentStub(channel)
        self.diff: Any = diff_pb2_grpc.DiffStub(channel)
        self.events: Any = events_pb2_grpc.EventsStub(channel)
        self.images: Any = images_pb2_grpc.ImagesStub(channel)
        self.leases: Any = leases_pb2_grpc.LeasesStub(channel)
        self.namespaces: Any = namespace_pb2_grpc.NamespacesStub(channel)
        self.snapshots: Any = snapshots_pb2_grpc.SnapshotsStub(channel)
        self.tasks: Any = tasks_pb2_grpc.TasksStub(channel)
        self.version: Any = version_pb2_grpc.VersionStub(channel)

    def ask(self, call: Callable[..., Any], request: Any, metadata: Any = None) -> Any:
        """The answer of a call, or all of a stream's."""
        found = call(request, metadata=self.metadata if metadata is None else metadata, timeout=30)
        return list(found) if isinstance(found, Iterator) else found

    def fails(self, call: Callable[..., Any], request: Any, metadata: Any = None) -> Answer:
        """How a call ends; no text may name a place on this host."""
        try:
            self.ask(call, request, metadata)
        except grpc.RpcError as error:
            found: Any = error
            assert str(Path(__file__).parents[2]) not in found.details()
            assert "/root/io." not in found.details()
            return found.code().name, found.details()
        return OK

    def under(self, lease: str) -> Any:
        return (*self.metadata, ("containerd-lease", lease))

    def write(self, *messages: dict[str, Any], metadata: Any = None) -> Answer:
        """How a Write stream ends."""
        requests = [content_pb2.WriteContentRequest(**message) for message in messages]
        return self.fails(lambda request, **more: self.content.Write(iter(request), **more), requests, metadata)

    def image(self, name: str, **fields: Any) -> Answer:
        image = images_pb2.Image(name=name, target=EMPTY, **fields)
        return self.fails(self.images.Create, images_pb2.CreateImageRequest(image=image))

    def statuses(self) -> dict[str, int]:
        found = self.ask(self.content.ListStatuses, content_pb2.ListStatusesRequest())
        return {one.ref: one.offset for one in found.statuses}

    def prepare(self, key: str, parent: str = "") -> Answer:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent)
        return self.fails(self.snapshots.Prepare, request)

    def collect(self) -> None:
        self.ask(self.leases.Create, leases_pb2.CreateRequest(id="collect"))
        self.ask(self.leases.Delete, leases_pb2.DeleteRequest(id="collect", sync=True))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon, request: pytest.FixtureRequest) -> Generator[Client]:
    """A client of a namespace of the test's own. In the end the daemon is the same, serves others, keeps nothing."""
    namespace = f"n{abs(hash(request.node.nodeid))}"
    process = daemon.process
    assert process is not None
    with daemon.channel() as channel:
        one = Client(channel, namespace)
        yield one
        assert process.poll() is None, daemon.text()
        began = time.monotonic()
        one.ask(
            Client(channel, "other").images.List, images_pb2.ListImagesRequest(), (("containerd-namespace", "other"),)
        )
        assert time.monotonic() - began < 2
        _emptied(one)
    assert "Traceback" not in daemon.text()
    assert list((daemon.root / "io.containerd.content.v1.content" / "ingest").iterdir()) == []


def _emptied(client: Client) -> None:
    for container in client.ask(client.containers.List, containers_pb2.ListContainersRequest()).containers:
        client.ask(client.containers.Delete, containers_pb2.DeleteContainerRequest(id=container.id))
    for image in client.ask(client.images.List, images_pb2.ListImagesRequest()).images:
        client.ask(client.images.Delete, images_pb2.DeleteImageRequest(name=image.name))
    for lease in client.ask(client.leases.List, leases_pb2.ListRequest()).leases:
        client.ask(client.leases.Delete, leases_pb2.DeleteRequest(id=lease.id))
    for ref in client.statuses():
        client.ask(client.content.Abort, content_pb2.AbortRequest(ref=ref))
    client.collect()


def blob_file(daemon: Daemon, digest: str) -> Path:
    return daemon.root / "io.containerd.content.v1.content" / "blobs" / digest.replace(":", "/")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [(), (("containerd-namespace", ""),)], ids=["none", "empty"])
def test_57_call_without_a_namespace_is_refused(client: Client, metadata: Any) -> None:
    found = client.fails(client.images.List, images_pb2.ListImagesRequest(), metadata)

    assert found == ("FAILED_PRECONDITION", "namespace is required: failed precondition")


@pytest.mark.parametrize("name", ["../x", "a..b", "n" * 77, "a/b", "-a", "a b"])
def test_58_namespace_that_is_no_identifier_is_refused(client: Client, name: str) -> None:
    code, _ = client.fails(client.images.List, images_pb2.ListImagesRequest(), (("containerd-namespace", name),))
    made, _ = client.fails(
        client.namespaces.Create,
        namespace_pb2.CreateNamespaceRequest(namespace=namespace_pb2.Namespace(name=name)),
    )

    assert (code, made) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")


def test_60_image_names_are_any_text_up_to_a_length(client: Client, daemon: Daemon) -> None:
    assert client.image("")[0] == "INVALID_ARGUMENT"
    for name in ("a\0b", "a\nb", "../../../etc/passwd", "/", "n" * 100_000, "é" * 1000):
        assert client.image(name) == OK
        found = client.ask(client.images.Get, images_pb2.GetImageRequest(name=name))
        assert found.image.name == name
    code, text = client.image("n" * (2 << 20))
    # The words and the code of containerd's database.
    assert code == "UNKNOWN"
    assert len(text) < 1000
    assert not list(daemon.root.rglob("*passwd*"))


def test_61_snapshot_keys_are_any_text_and_no_paths(client: Client, daemon: Daemon) -> None:
    assert client.prepare("")[0] != "OK"
    keys = ["../../x", "/etc/passwd", "k" * 600, "a\0b", "."]
    for key in keys:
        assert client.prepare(key) == OK
    mounts = snapshots_pb2.MountsRequest(snapshotter=SNAPSHOTTER, key="../../x")
    (mount,) = client.ask(client.snapshots.Mounts, mounts).mounts
    folder = daemon.root / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}" / "snapshots"
    assert Path(mount.source).parent == folder
    assert all(path.name.isdecimal() for path in folder.iterdir())
    for key in keys:
        client.ask(client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key))


def test_62_lease_with_an_odd_id_or_expiry_keeps_what_it_holds(client: Client) -> None:
    for id_, label in (("../x", {}), ("l", {EXPIRED: "soon"}), ("m", {EXPIRED: ""}), ("n", {EXPIRED: "9" * 4000})):
        client.ask(client.leases.Create, leases_pb2.CreateRequest(id=id_, labels=label))
        data = id_.encode()
        assert client.write({"action": 2, "ref": id_, "data": data}, metadata=client.under(id_)) == OK
    client.collect()

    held = {
        info.digest for page in client.ask(client.content.List, content_pb2.ListContentRequest()) for info in page.info
    }

    assert held == {f"sha256:{hashlib.sha256(id_.encode()).hexdigest()}" for id_ in ("../x", "l", "m", "n")}


def test_63_lease_that_is_not_there_is_not_found(client: Client) -> None:
    found = client.write({"action": 2, "ref": "r", "data": b"x"}, metadata=client.under("nope"))

    assert found == ("NOT_FOUND", "lease does not exist: not found")
    assert client.statuses() == {}


# --- labels and filters -----------------------------------------------------------------------------------------------


def test_64_labels_are_checked_before_anything_is_done(client: Client, daemon: Daemon) -> None:
    data = b"labelled"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    long = client.write({"ref": "r"}, {"action": 2, "data": data, "labels": {"k": "v" * 5000}})

    assert long[0] == "INVALID_ARGUMENT"
    assert not blob_file(daemon, digest).exists()
    assert client.image("i", labels={"k" * 4097: ""})[0] == "INVALID_ARGUMENT"
    assert client.fails(client.images.Get, images_pb2.GetImageRequest(name="i"))[0] == "NOT_FOUND"
    code, _ = client.write({"ref": "s"}, {"action": 2, "data": data, "labels": {"": "v"}})
    assert (code == "OK") == blob_file(daemon, digest).exists(), "an empty key is taken, or nothing was done"


def listed(client: Client, *filters: str) -> Answer:
    return client.fails(client.images.List, images_pb2.ListImagesRequest(filters=filters))


def test_65_filter_that_does_not_parse_is_refused(client: Client) -> None:
    for bad in ("name=x", "name==", "labels.", "name==a,", '"', "name~=/a", "\0"):
        assert listed(client, bad)[0] == "INVALID_ARGUMENT", bad


def test_66_expression_that_does_not_compile_matches_nothing(client: Client) -> None:
    client.image("i")

    found = client.ask(client.images.List, images_pb2.ListImagesRequest(filters=["name~=((("]))

    assert list(found.images) == []


def test_67_expression_takes_linear_time(client: Client) -> None:
    client.image("a" * 40 + "b")
    began = time.monotonic()

    client.ask(client.images.List, images_pb2.ListImagesRequest(filters=["name~=(a+)+$"]))

    assert time.monotonic() - began < 2


def test_68_many_and_long_filters_are_bounded(client: Client) -> None:
    client.image("i")
    for filters in (["name==x"] * 20_000, ["name==" + "x" * (1 << 20)]):
        began = time.monotonic()
        assert listed(client, *filters)[0] in ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        assert time.monotonic() - began < 5


def test_69_message_of_20_mib_is_refused(client: Client) -> None:
    code, _ = client.write({"action": 2, "ref": "r", "data": bytes(20 << 20)})

    assert code == "RESOURCE_EXHAUSTED"
    assert client.statuses() == {}


# --- writing content --------------------------------------------------------------------------------------------------


def test_70_write_without_a_ref_is_refused(client: Client) -> None:
    assert client.write({"action": 2, "data": b"x"})[0] == "INVALID_ARGUMENT"


def test_71_commit_of_other_bytes_is_refused_and_keeps_the_ingest(client: Client) -> None:
    other = f"sha256:{'0' * 64}"

    wrong_digest = client.write({"action": 2, "ref": "digest", "data": b"12345", "expected": other})
    wrong_size = client.write({"action": 2, "ref": "size", "data": b"12345", "total": 4})

    assert (wrong_digest[0], wrong_size[0]) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    assert client.statuses() == {"digest": 5, "size": 5}


@pytest.mark.parametrize(
    "expected", ["md5:" + "a" * 32, "sha256:../../../etc", "sha256:" + "A" * 64, "x", "sha256:" + "a" * 63]
)
def test_72_malformed_expected_digest_is_refused_at_once(client: Client, expected: str) -> None:
    assert client.write({"ref": "r", "expected": expected})[0] == "INVALID_ARGUMENT"
    assert client.write({"ref": "s"}, {"action": 2, "data": b"x", "expected": expected})[0] == "INVALID_ARGUMENT"
    assert "r" not in client.statuses()


def test_73_write_at_another_offset_is_out_of_range(client: Client) -> None:
    found = client.write({"action": 1, "ref": "r", "data": b"12345"}, {"action": 1, "offset": 3, "data": b"x"})

    assert found[0] == "OUT_OF_RANGE"
    assert client.statuses() == {"r": 5}


def test_74_offset_0_begins_a_resumed_ref_anew(client: Client) -> None:
    client.write({"action": 1, "ref": "r", "data": b"12345"})
    (_, answer) = client.ask(
        lambda requests, **more: client.content.Write(iter(requests), **more),
        [
            content_pb2.WriteContentRequest(ref="r"),
            content_pb2.WriteContentRequest(action=content_pb2.WRITE, offset=0, data=b"ab"),
        ],
    )

    assert (answer.offset, answer.digest) == (2, f"sha256:{hashlib.sha256(b'ab').hexdigest()}")


def test_75_negative_total_is_refused(client: Client) -> None:
    assert client.write({"ref": "r", "total": -3})[0] == "INVALID_ARGUMENT"
    assert client.write({"ref": "s"}, {"action": 2, "data": b"x", "total": -3})[0] == "INVALID_ARGUMENT"
    # A negative offset means "wherever the end is": clients send it.
    assert client.write({"ref": "t"}, {"action": 1, "offset": -1, "data": b"x"}) == OK
    assert client.statuses() == {"s": 0, "t": 1}


class Stream:
    """A Write stream whose messages are sent one by one."""

    def __init__(self, client: Client) -> None:
        self._going = threading.Event()
        self._next: content_pb2.WriteContentRequest | None = None
        self.call: Any = client.content.Write(self._requests(), metadata=client.metadata, timeout=30)

    def _requests(self) -> Iterator[content_pb2.WriteContentRequest]:
        while True:
            self._going.wait()
            self._going.clear()
            if self._next is None:
                return
            yield self._next

    def send(self, **message: Any) -> Any:
        """Send a message and give its answer."""
        self._next = content_pb2.WriteContentRequest(**message)
        self._going.set()
        return next(self.call)

    def end(self) -> None:
        self._next = None
        self._going.set()


def code_of(work: Callable[[], Any]) -> Answer:
    try:
        work()
    except grpc.RpcError as error:
        found: Any = error
        return found.code().name, found.details()
    return OK


def test_76_second_writer_of_a_ref_is_told_that_it_is_locked(client: Client) -> None:
    first = Stream(client)
    first.send(ref="r")

    code, text = client.write({"ref": "r"})

    first.end()
    assert list(first.call) == []
    assert code == "UNAVAILABLE"
    assert "locked for" in text
    assert client.write({"ref": "r"}) == OK


def test_77_ingest_that_is_aborted_under_its_writer_ends_cleanly(client: Client) -> None:
    stream = Stream(client)
    stream.send(action=1, ref="r", data=b"x")
    client.ask(client.content.Abort, content_pb2.AbortRequest(ref="r"))

    code, text = code_of(lambda: stream.send(action=2))

    stream.end()
    assert code in ("ABORTED", "NOT_FOUND")
    assert "/" not in text.replace("/1/", "")
    assert client.write({"action": 2, "ref": "r", "data": b"y"}) == OK


def test_78_cancelled_write_is_resumed(client: Client) -> None:
    stream = Stream(client)
    stream.send(action=1, ref="r", data=bytes(1000))
    stream.call.cancel()
    stream.end()
    deadline = time.monotonic() + 5
    while client.write({"ref": "r"})[0] == "UNAVAILABLE":
        assert time.monotonic() < deadline, "the ref stays locked"
        time.sleep(0.01)

    assert client.statuses() == {"r": 1000}
    assert client.write({"ref": "r"}, {"action": 2, "offset": 1000, "data": b"x"}) == OK


def test_79_a_thousand_half_open_streams_starve_nobody(client: Client, daemon: Daemon) -> None:
    def silent() -> Iterable[Any]:
        ended.wait(60)
        yield from ()

    ended = threading.Event()
    with daemon.channel(options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        held = Client(channel, "other")
        subscribe = [held.events.Subscribe(events_pb2.SubscribeRequest(), timeout=60) for _ in range(500)]
        # Each client stream costs the client a thread.
        writes = [held.content.Write(silent(), metadata=held.metadata, timeout=60) for _ in range(100)]
        began = time.monotonic()
        for number in range(20):
            client.ask(client.version.Version, Empty())
            assert client.write({"action": 2, "ref": f"r{number}", "data": b"%d" % number}) == OK
        took = time.monotonic() - began
        for call in (*subscribe, *writes):
            call.cancel()
        ended.set()
    assert took < 20


# --- reading content --------------------------------------------------------------------------------------------------


def test_80_reads_beyond_the_end_are_refused_and_negative_numbers_mean_all(client: Client) -> None:
    data = b"0123456789"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    client.write({"action": 2, "ref": "r", "data": data})

    def read(offset: int, size: int) -> bytes:
        request = content_pb2.ReadContentRequest(digest=digest, offset=offset, size=size)
        return b"".join(part.data for part in client.ask(client.content.Read, request))

    beyond = content_pb2.ReadContentRequest(digest=digest, offset=11)
    assert client.fails(client.content.Read, beyond)[0] == "OUT_OF_RANGE"
    assert read(-1, -1) == read(0, 0) == data
    assert read(10, 0) == b""
    assert read(8, 100) == b"89"


# --- events -----------------------------------------------------------------------------------------------------------


def test_81_subscriber_that_does_not_read_is_cut_off_alone(client: Client, daemon: Daemon) -> None:
    with daemon.channel(options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        slow: Any = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(), timeout=120)
        payload = AnyMessage(type_url="t", value=bytes(1 << 20))
        before = resident(daemon)
        for _ in range(300):
            client.ask(client.events.Publish, events_pb2.PublishRequest(topic="/t", event=payload))
        grown = resident(daemon) - before
        code, text = code_of(lambda: list(slow))
    assert code == "RESOURCE_EXHAUSTED", (code, text)
    assert grown < 160 << 20


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    pages = Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# --- objects ----------------------------------------------------------------------------------------------------------


def test_82_what_is_not_empty_or_has_children_stays(client: Client) -> None:
    client.image("i")
    client.prepare("k")
    commit = snapshots_pb2.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name="c", key="k")
    client.ask(client.snapshots.Commit, commit)
    client.prepare("child", "c")
    (name,) = [value for _, value in client.metadata]

    removed = client.fails(
        client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key="c")
    )
    deleted = client.fails(client.namespaces.Delete, namespace_pb2.DeleteNamespaceRequest(name=name))

    assert (removed[0], deleted[0]) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    for key in ("child", "c"):
        client.ask(client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key))


def test_83_runtime_name_that_is_a_path_is_never_run(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    for number, runtime in enumerate((f"../../../../../../../..{program}", "../../bin/sh", "a/../../b", "..")):
        container = containers_pb2.Container(id=f"c{number}", runtime=containers_pb2.Container.Runtime(name=runtime))
        container.spec.CopyFrom(
            AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}")
        )
        made, _ = client.fails(client.containers.Create, containers_pb2.CreateContainerRequest(container=container))
        created, _ = client.fails(client.tasks.Create, tasks_pb2.CreateTaskRequest(container_id=f"c{number}"))
        assert "OK" not in (made, created) or created != "OK"
    assert not canary.exists()


def test_84_blob_whose_file_is_gone_can_be_written_again(client: Client, daemon: Daemon) -> None:
    data = b"lost and found"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    labels = {"containerd.io/gc.root": "x"}
    client.write({"ref": "r"}, {"action": 2, "data": data, "labels": labels})
    blob_file(daemon, digest).unlink()

    code, _ = client.fails(client.content.Read, content_pb2.ReadContentRequest(digest=digest))
    again = client.write({"ref": "r", "expected": digest, "total": len(data)}, {"action": 2, "data": data})

    assert code in ("NOT_FOUND", "DATA_LOSS")
    assert again[0] in ("OK", "ALREADY_EXISTS")
    read = client.ask(client.content.Read, content_pb2.ReadContentRequest(digest=digest))
    assert b"".join(part.data for part in read) == data
    client.ask(client.content.Delete, content_pb2.DeleteContentRequest(digest=digest))


def test_85_blob_with_other_bytes_is_found_before_it_is_unpacked(client: Client, daemon: Daemon) -> None:
    layer = base_layer()
    digest = layer.blob.digest
    client.write({"ref": "r"}, {"action": 2, "data": layer.blob.data, "labels": {"containerd.io/gc.root": "x"}})
    file = blob_file(daemon, digest)
    file.chmod(0o600)
    flipped = bytearray(layer.blob.data)
    flipped[-9] ^= 1
    client.prepare("k")
    mounts = client.ask(client.snapshots.Mounts, snapshots_pb2.MountsRequest(snapshotter=SNAPSHOTTER, key="k")).mounts
    apply = diff_pb2.ApplyRequest(diff=layer.blob.descriptor, mounts=mounts)

    file.write_bytes(flipped)
    code_of_flip, _ = client.fails(client.diff.Apply, apply)
    file.write_bytes(layer.blob.data[:-1])
    code_of_cut, _ = client.fails(client.diff.Apply, apply)
    cut_read, _ = client.fails(client.content.Read, content_pb2.ReadContentRequest(digest=digest))

    assert code_of_flip in ("DATA_LOSS", "UNKNOWN")
    assert code_of_cut in ("DATA_LOSS", "FAILED_PRECONDITION")
    assert cut_read in ("DATA_LOSS", "OK")
    client.ask(client.content.Delete, content_pb2.DeleteContentRequest(digest=digest))
    client.ask(client.snapshots.Remove, snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key="k"))
