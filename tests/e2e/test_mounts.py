"""The mounts service of a real daemon: as containerd answers, and with nothing left mounted whatever happens."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import grpc
import pytest

from conformance.remote import CONTAINERDS, is_old, started
from daemons import Daemon
from e2e.images import BASE, NAME, needs_image_tools, run, tree, umoci_image, unpacking
from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.mounts.v1 import mounts_pb2 as pb
from moored.api.services.mounts.v1 import mounts_pb2_grpc as rpc
from moored.api.types.mount_pb2 import ActivationInfo, Mount
from moored.kernel.mounts import unmount_all
from peers import collect_garbage, ctr
from unit.mounts.world import erofs_image

pytestmark = pytest.mark.root

NS = (("containerd-namespace", "t"),)
PLACES = "io.containerd.mount-manager.v1.bolt/t"


def below(folder: Path) -> list[str]:
    """What is mounted below a folder."""
    points = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return sorted(point for point in points if point.startswith(f"{folder}/"))


def tmpfs(*options: str) -> Mount:
    return Mount(type="tmpfs", source="tmpfs", options=options)


class Client:
    """Calls of the service, with answers and errors as plain values, in which the state folder is `S`."""

    def __init__(self, channel: grpc.Channel, state: Path) -> None:
        self.stub = rpc.MountsStub(channel)
        self.state = state

    def activate(self, name: str, *mounts: Mount, temporary: bool = False, **labels: str) -> Any:
        request = pb.ActivateRequest(name=name, mounts=mounts, temporary=temporary, labels=labels)
        return self._call(lambda: self._plain(self.stub.Activate(request, metadata=NS).info))

    def deactivate(self, name: str) -> Any:
        return self._call(lambda: str(self.stub.Deactivate(pb.DeactivateRequest(name=name), metadata=NS)))

    def info(self, name: str) -> Any:
        return self._call(lambda: self._plain(self.stub.Info(pb.InfoRequest(name=name), metadata=NS).info))

    def update(self, name: str) -> Any:
        request = pb.UpdateRequest(info=ActivationInfo(name=name))
        return self._call(lambda: self._plain(self.stub.Update(request, metadata=NS).info))

    def list(self, *filters: str, metadata: Any = NS) -> Any:
        request = pb.ListRequest(filters=filters)
        return self._call(lambda: [self._plain(one.info) for one in self.stub.List(request, metadata=metadata)])

    def _call(self, call: Any) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            return error.code().name, error.details()  # type: ignore[attr-defined]

    def _plain(self, info: ActivationInfo) -> Any:
        assert all(active.mounted_at.seconds > 1_600_000_000 for active in info.active)
        for active in info.active:
            active.ClearField("mounted_at")
        return str(info).replace(str(self.state), "S")


def script(client: Client, image: Path) -> Generator[Any]:
    """Calls whose outcomes must be the same everywhere."""
    erofs = Mount(type="erofs", source=str(image), options=["ro", "loop"])
    overlay = Mount(type="format/overlay", source="overlay", options=["lowerdir={{ overlay 0 1 }}", "index=off"])
    yield client.list()
    yield client.activate("none", tmpfs())
    yield client.activate("none")
    yield client.activate("odd", Mount(type="odd/tmpfs", source="x"))
    yield client.info("a")
    yield client.activate("a b/c", tmpfs("size=1m"), temporary=True, l="v")
    yield client.activate("a b/c", tmpfs(), temporary=True)
    yield client.info("a b/c")
    yield client.activate("z", tmpfs(), tmpfs(), temporary=True)
    yield client.list("name==z")
    yield client.deactivate("missing")
    yield client.update("z")
    yield client.deactivate("a b/c")
    yield client.list(metadata=(("containerd-namespace", "other"),))
    yield client.list(metadata=())
    yield client.list(metadata=(("containerd-namespace", "?"),))
    yield client.activate("", tmpfs(), temporary=True)
    yield client.activate("e", erofs)
    yield client.info("e")
    yield client.activate("o", erofs, erofs, overlay)
    yield client.info("o")
    for name in ("z", "e", "o"):
        yield client.deactivate(name)
    yield client.list()


@pytest.mark.peer
@pytest.mark.parametrize("binary", CONTAINERDS or [pytest.param("", marks=pytest.mark.skip("needs containerd"))])
def test_service_answers_as_containerd(tmp_path: Path, binary: str) -> None:
    peer = tmp_path / "peer"
    peer.mkdir()
    image = erofs_image(tmp_path / "image")
    with started(binary, peer) as address:
        if is_old(address):
            pytest.skip("containerd has no mounts service before 2.2")
        with grpc.insecure_channel(f"unix:{address}") as channel:
            theirs = list(script(Client(channel, peer / "state"), image))
    with Daemon(tmp_path) as daemon, daemon.channel() as channel:
        client = Client(channel, daemon.state)
        ours = list(itertools.islice(script(client, image), len(theirs)))

    assert [one for one in zip(ours, theirs, strict=True) if one[0] != one[1]] == []
    assert below(tmp_path) == []


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Generator[None]:
    """A failing test leaves nothing for the next."""
    yield
    unmount_all(tmp_path, lazy=True)


@pytest.fixture(name="daemon")
def _daemon(tmp_path: Path) -> Generator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon
    assert below(tmp_path) == []


def test_lease_in_the_header_holds_a_mount(daemon: Daemon) -> None:
    with daemon.channel() as channel:
        leases, client = leases_pb2_grpc.LeasesStub(channel), Client(channel, daemon.state)
        leases.Create(leases_pb2.CreateRequest(id="l"), metadata=NS)
        leases.Create(leases_pb2.CreateRequest(id="collect"), metadata=NS)
        request = pb.ActivateRequest(name="held", mounts=[tmpfs()], temporary=True)
        client.stub.Activate(request, metadata=(*NS, ("containerd-lease", "l")))
        client.activate("loose", tmpfs(), temporary=True)
        leases.Delete(leases_pb2.DeleteRequest(id="collect", sync=True), metadata=NS)
        assert below(daemon.state) == [f"{daemon.state}/{PLACES}/1/1"]
        leases.Delete(leases_pb2.DeleteRequest(id="l", sync=True), metadata=NS)
        assert below(daemon.state) == []


@pytest.mark.parametrize("round_", range(3))
def test_killed_daemon_leaves_nothing_half_made(tmp_path: Path, round_: int) -> None:
    daemon = Daemon(tmp_path)
    with daemon, daemon.channel() as channel:
        leases, client = leases_pb2_grpc.LeasesStub(channel), Client(channel, daemon.state)
        leases.Create(leases_pb2.CreateRequest(id="l"), metadata=NS)
        enough = threading.Event()

        def busy(worker: int) -> None:
            for number in itertools.count():
                request = pb.ActivateRequest(name=f"{worker}-{number}", mounts=[tmpfs()] * 4, temporary=True)
                try:
                    client.stub.Activate(request, metadata=(*NS, ("containerd-lease", "l")))
                    if number % 2:
                        client.stub.Deactivate(pb.DeactivateRequest(name=f"{worker}-{number}"), metadata=NS)
                except grpc.RpcError:
                    return
                if number > 3 + round_:
                    enough.set()

        threads = [threading.Thread(target=busy, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        enough.wait(30)
        daemon.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert len(below(daemon.state)) > 4
    daemon.log.unlink()  # or its old word that it is up would do
    with daemon, daemon.channel() as channel:
        client = Client(channel, daemon.state)
        whole = [one.info for one in client.stub.List(pb.ListRequest(), metadata=NS)]
        places = [active.mount_point for info in whole for active in info.active]
        assert whole
        assert {len(info.active) for info in whole} == {4}
        assert below(daemon.state) == sorted(places)
        assert len(list((daemon.state / PLACES).iterdir())) == len(whole)
        leases_pb2_grpc.LeasesStub(channel).Delete(leases_pb2.DeleteRequest(id="l", sync=True), metadata=NS)
        assert below(daemon.state) == []
        assert list((daemon.state / PLACES).iterdir()) == []


NEWER_CTRS = [path for path in os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep) if path]


@pytest.mark.parametrize("binary", NEWER_CTRS or [pytest.param("", marks=pytest.mark.skip("needs a ctr of 2.2"))])
@needs_image_tools[-1]
def test_ctr_mounts_an_image_through_the_daemon(tmp_path: Path, binary: str) -> None:
    archive, place = umoci_image(tmp_path), tmp_path / "mnt"
    place.mkdir()
    with Daemon(tmp_path, unpacking("native")) as daemon:
        words = ["images", "import", "--base-name", BASE, "--snapshotter", "native", str(archive)]
        ctr(daemon.socket, *words, binary=binary)
        ctr(daemon.socket, "images", "mount", "--snapshotter", "native", NAME, str(place), binary=binary)
        try:
            found = tree(place)
            inside = below(daemon.state)
        finally:
            run("umount", place)
        ctr(daemon.socket, "leases", "delete", str(place), binary=binary)
        collect_garbage(daemon.socket)
        left = below(tmp_path)

    assert "tree/dir/version" in found
    assert inside == [f"{daemon.state}/{PLACES}/1/1"]
    assert left == []
