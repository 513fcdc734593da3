"""A shim's events reach the daemon in order, survive its absence, and what must be dropped is dropped in order."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.errors import InvalidArgument
from moored.kernel.payloads import Payload, TaskExit, TaskPaused, TaskStart
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim import publisher as module
from moored.plugins.runtime.shim.loop import Loop
from moored.plugins.runtime.shim.publisher import Publisher
from moored.plugins.runtime.shim.wire import Method, Server


class World:
    """A loop, a publisher, and a daemon that comes and goes."""

    def __init__(self, path: str) -> None:
        self.loop = Loop()
        self.path = path
        self.seen: list[m.Envelope] = []
        self.refused: set[str] = set()
        self.publisher = Publisher(self.loop, path, "test")

    async def forward(self, request: m.ForwardRequest) -> m.Empty:
        assert request.envelope is not None
        if request.envelope.topic in self.refused:
            raise InvalidArgument("not this one")
        self.seen.append(request.envelope)
        return m.Empty()

    def daemon(self) -> Callable[[], None]:
        """Start it; the answer ends it."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        methods = {"Forward": Method(m.ForwardRequest, self.forward)}
        server = Server(self.loop, listener, {"containerd.services.events.ttrpc.v1.Events": methods}, lambda: None)
        task = self.loop.spawn(server.run())

        def end() -> None:
            task.cancel()
            listener.close()
            Path(self.path).unlink()

        return end

    def run(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.loop.run(body())
        self.loop.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "d.ttrpc"))


def exit_of(number: int) -> Payload:
    return TaskExit(container_id="c", id="c", pid=number, exit_status=1, exited_at=1)


def test_events_arrive_in_order_with_their_envelope(world: World) -> None:
    async def body() -> None:
        end = world.daemon()
        world.publisher.publish(TaskStart(container_id="c", pid=5))
        world.publisher.publish(exit_of(5))
        assert await world.publisher.flush(5)
        assert [one.topic for one in world.seen] == ["/tasks/start", "/tasks/exit"]
        first = world.seen[0]
        assert first.namespace == "test"
        assert first.timestamp is not None
        assert first.event is not None
        assert first.event.type_url == "containerd.events.TaskStart"
        end()

    world.run(body)


def test_events_wait_for_a_daemon_and_a_nudge_hastens_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 1000.0)

    async def body() -> None:
        world.publisher.publish(exit_of(1))
        await world.loop.sleep(0.02)
        end = world.daemon()
        world.publisher.nudge()
        assert await world.publisher.flush(5)
        assert [one.topic for one in world.seen] == ["/tasks/exit"]
        end()

    world.run(body)


def test_full_queue_drops_the_oldest_that_is_no_exit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUEUE", 2)

    async def body() -> None:
        world.publisher.publish(exit_of(1))
        world.publisher.publish(TaskPaused(container_id="c"))
        world.publisher.publish(exit_of(2))
        end = world.daemon()
        assert await world.publisher.flush(5)
        assert [one.topic for one in world.seen] == ["/tasks/exit", "/tasks/exit"]
        end()

    world.run(body)


def test_refused_event_is_given_up_and_the_next_goes_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.001)

    async def body() -> None:
        end = world.daemon()
        world.refused.add("/tasks/paused")
        world.publisher.publish(TaskPaused(container_id="c"))
        world.publisher.publish(exit_of(1))
        assert await world.publisher.flush(5)
        assert [one.topic for one in world.seen] == ["/tasks/exit"]
        end()

    world.run(body)


def test_idle_publisher_hangs_up_and_dials_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER", 0.005)

    async def body() -> None:
        end = world.daemon()
        world.publisher.publish(exit_of(1))
        assert await world.publisher.flush(5)
        await world.loop.sleep(0.03)
        assert world.publisher._client is None
        world.publisher.publish(exit_of(2))
        assert await world.publisher.flush(5)
        assert len(world.seen) == 2
        end()

    world.run(body)
