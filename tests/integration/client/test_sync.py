"""The sync twin against real daemons: the same mechanism for every kind of call."""

from __future__ import annotations

import threading

import pytest

from integration.client.conftest import NAME
from moored.api.client import Options
from moored.api.client.stdio import PIPES_AND_STDIN
from moored.kernel.errors import FailedPrecondition, NotFound


def test_a_container_without_an_event_loop(peer):
    with peer.sync() as client:
        made = client.containers.create(peer.new(), NAME, Options(args=("sh", "-c", "cat; exit 3")))
        assert made.run(stdin=b"x").exit.status == 3
        with made.create_task(PIPES_AND_STDIN) as task:
            task.start()
            task.stdin.write(b"a\nb\n")
            assert task.stdout.readline() == b"a\n"
            task.stdin.close()
            assert list(task.stdout) == [b"b\n"]
            assert task.wait().status == 3
        made.delete()
        with pytest.raises(NotFound):
            client.containers.get(made.id)


def test_iterations_blocks_and_callbacks(peer, tmp_path):
    with peer.sync() as client:
        with client.events.subscribe('topic=="/namespaces/create"') as events:
            name = peer.new("ns")
            client.namespaces.create(name)
            assert next(event for event in events if event.payload.name == name).timestamp > 0
        with client.lease() as held:
            info = held.content.write("sync", iter([b"one", b"two"]))
            assert held.content.read(info.digest) == b"onetwo"
            assert info.digest in {one.digest for one in client.content.walk()}
        parts = []
        client.export_archive([NAME], parts.append)
        client.export_archive([NAME], tmp_path / "out.tar")
        assert (tmp_path / "out.tar").read_bytes() == b"".join(parts)
        assert client.leases.list() == []


def test_many_threads_share_a_client(peer):
    with peer.sync() as client:
        found = []
        threads = [threading.Thread(target=lambda: found.append(client.images.get(NAME).name)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert found == [NAME] * 8
    with pytest.raises(FailedPrecondition):
        client.images.list()
