"""Daemons that are killed, stopped and started again over running containers: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from daemons import Daemon
from leftovers import Place, nothing_left
from moored.api.convert import to_ns
from shims import needs_runc, wait_for_end
from taskclient import RUNNING, STOPPED, UNKNOWN, TaskClient, rootfs, side_by_side

pytestmark = [*needs_runc, pytest.mark.timeout(300)]

CONTAINERS = 50
PATIENCE = 20.0
TRAP = ("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
"""Ends with 7 on SIGTERM."""


@dataclass
class House:
    """A daemon that comes and goes, and what it left on its host before any container."""

    daemon: Daemon
    place: Place
    root: Path

    def client(self) -> TaskClient:
        """A client; it stands only as long as its daemon."""
        return TaskClient(self.daemon.socket, self.daemon.state, self.place.namespace, self.root)

    def restart(self, number: signal.Signals) -> TaskClient:
        """End the daemon and start it again."""
        self.daemon.stop(number)
        return self.start()

    def start(self) -> TaskClient:
        """Start the daemon."""
        self.daemon.log.unlink()
        self.daemon.start()
        return self.client()

    def shim(self, id_: str) -> int:
        """The process of a container's shim."""
        words = f"-id\0{id_}\0"
        folder = str(self.place.folder)
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                found = (entry / "cmdline").read_text()
                if words in found and folder in found:
                    return int(entry.name)
        raise AssertionError(f"container {id_} has no shim")


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="mt") as path:
        folder = Path(path)
        folder.chmod(0o711)
        root = rootfs(folder / "rootfs")
        with Daemon(folder) as daemon:
            place = Place(folder, f"rec-{os.getpid()}-{time.monotonic_ns() % 10**6}", daemon.socket)
            # its zygote is another one after a restart
            before = {line for line in place.found() if not line.startswith("process ")}
            yield House(daemon, place, root)
        try:
            nothing_left(place, before, ())
        finally:
            place.cleared(before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_containers_go_on_over_a_restart_and_exits_meanwhile_are_known(house: House, number: signal.Signals) -> None:
    ids = [f"c{index}" for index in range(CONTAINERS)]
    ended, told = ids[:3], ids[3:5]
    client = house.client()
    pids = dict(zip(ids, side_by_side(lambda id_: client.run(id_, *TRAP), ids), strict=True))
    assert client.execute("c9", "first", "sh", "-c", "exit 3") == 3
    for id_ in told:  # known before the daemon ends
        client.kill(id_)
        assert client.wait(id_).exit_status == 137
    before = client.list()

    house.daemon.stop(number)
    began = time.time_ns()
    for id_ in ended:
        os.kill(pids[id_], signal.SIGTERM)
        wait_for_end(pids[id_])
    client = house.start()

    found = client.list()
    assert {id_: one.pid for id_, one in found.items()} == pids
    assert {id_ for id_, one in found.items() if one.status == RUNNING} == set(ids[5:])
    assert {id_: found[id_] for id_ in ids[3:]} == {id_: before[id_] for id_ in ids[3:]}
    for id_ in ended:
        assert (found[id_].status, found[id_].exit_status) == (STOPPED, 7)
        assert began <= to_ns(found[id_].exited_at) <= time.time_ns()
        assert client.wait(id_).exit_status == 7
        assert told_exit(house, client, id_) == [pids[id_], 7, to_ns(found[id_].exited_at)]
    assert side_by_side(lambda id_: client.execute(id_, "e", "sh", "-c", "exit 5"), ids[5:15]) == [5] * 10
    assert side_by_side(client.remove, ids) == [7] * 3 + [137] * 47
    assert client.list() == {}


def told_exit(house: House, client: TaskClient, id_: str) -> object:
    """The exit of a container as its event had it, noted once that was published."""
    noted = client.bundle(id_) / "exited"
    deadline = time.monotonic() + PATIENCE
    while not noted.exists():
        assert time.monotonic() < deadline, house.daemon.text()
        time.sleep(0.02)
    return json.loads(noted.read_text())


def test_hung_shim_is_unknown_over_restarts_and_serves_again_once_it_goes_on(house: House) -> None:
    client = house.client()
    pids = {id_: client.run(id_, "sleep", "1000") for id_ in ("c0", "c1", "c2")}
    hung = house.shim("c0")
    os.kill(hung, signal.SIGSTOP)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            client = house.restart(number)
            began = time.monotonic()
            found = client.list()
            assert time.monotonic() - began < 5
            assert {id_: one.pid for id_, one in found.items()} == pids
            assert {id_: one.status for id_, one in found.items()} == {"c0": UNKNOWN, "c1": RUNNING, "c2": RUNNING}
            assert client.execute("c1", "e", "sh", "-c", "exit 4") == 4
            assert Path(f"/proc/{pids['c0']}").exists()
    finally:
        os.kill(hung, signal.SIGCONT)

    client.becomes("c0", RUNNING)
    assert house.shim("c0") == hung
    assert client.execute("c0", "e", "sh", "-c", "exit 6") == 6
    assert [client.remove(id_) for id_ in pids] == [137] * 3


def test_daemon_killed_at_any_moment_of_much_work_leaves_nothing_half_done(house: House) -> None:
    for round_ in range(5):
        client = house.client()
        over = threading.Event()
        busy = threading.Barrier(5)
        threads = [threading.Thread(target=work, args=(client, f"r{round_}w{n}", over, busy)) for n in range(4)]
        for thread in threads:
            thread.start()
        busy.wait()
        over.wait(0.2 + 0.13 * round_)  # not set yet: a moment that is another one in every round
        house.daemon.stop(signal.SIGKILL)
        over.set()
        for thread in threads:
            thread.join()
        client.close()
        client = house.start()
        for id_, one in client.list().items():
            assert one.status != UNKNOWN
            client.becomes(id_, client.get(id_).status)
            client.remove(id_)
        assert client.list() == {}
        # what was under way for a name does not keep it
        client.run(f"r{round_}again", "sleep", "1000")
        client.remove(f"r{round_}again")


def work(client: TaskClient, name: str, over: threading.Event, busy: threading.Barrier) -> None:
    """Make, use and delete containers until the daemon is gone."""
    busy.wait()
    with suppress(grpc.RpcError):
        for number in range(10_000):
            client.run(f"{name}-{number}", "sleep", "1000")
            client.remove(f"{name}-{number}")
            if over.is_set():
                return


def test_wait_on_a_shim_that_dies_fails_as_containerds_does_and_its_task_goes(house: House) -> None:
    client = house.client()
    pid = client.run("c0", "sleep", "1000")
    waiting = client.waiting("c0")
    client.get("c0")  # the wait is on its way before
    os.kill(house.shim("c0"), signal.SIGKILL)

    error = waiting.exception(PATIENCE)

    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "ttrpc: closed")
    wait_for_end(pid)
    deadline = time.monotonic() + PATIENCE
    while client.list():
        assert time.monotonic() < deadline
