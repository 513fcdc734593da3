"""What every `StreamManager` does; each check takes a fresh one, and `CHECKS` lists them all.

    async with open_it() as manager:
        await check(manager)

The plain asserts need no test tool. Errors must be of the port's classes, texts are compared where the port states one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from moored.kernel.conformance import fails_with, refuses
from moored.kernel.errors import NotFound, Unavailable, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.payloads import Packed
from moored.kernel.ports.streaming import StreamManager

Check: TypeAlias = Callable[[StreamManager], Awaitable[None]]

NAMES: Final = ("s", "a/b", "../s", "", "n" * 600, "\N{GREEK SMALL LETTER MU}")
"""Any text is a name."""


def packed(text: str) -> Packed:
    """Give a message."""
    return Packed("text", text.encode())


class Line:
    """One client's stream, at whose other end the check sits: `said` by the client, `heard` by it."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Packed | None] = asyncio.Queue()
        self.heard: list[Packed] = []
        self.closed = 0

    async def send(self, message: Packed) -> None:
        """See Stream."""
        if self.closed:
            raise Unavailable("the stream is closed")
        self.heard.append(message)

    async def receive(self) -> Packed | None:
        """See Stream."""
        return await self.said.get()

    async def close(self) -> None:
        """See Stream."""
        self.closed += 1


async def check_found_stream_reaches_its_client(manager: StreamManager) -> None:
    """In both directions, in order, until the client has no more."""
    line = Line()
    with bind("one"):
        await manager.register("s", line)
        stream = manager.get("s")
    for text in "ab":
        await stream.send(packed(text))
        line.said.put_nowait(packed(text))
    line.said.put_nowait(None)
    assert line.heard == [packed("a"), packed("b")]
    assert [await stream.receive() for _ in range(3)] == [packed("a"), packed("b"), None]
    await stream.close()


async def check_any_text_is_a_name(manager: StreamManager) -> None:
    """And only that very text."""
    with bind("one"):
        lines = {name: Line() for name in NAMES}
        for name, line in lines.items():
            await manager.register(name, line)
        for name, line in lines.items():
            await manager.get(name).send(packed(name))
            assert line.heard == [packed(name)]
        for name in NAMES:
            await manager.get(name).close()
            refuses(NotFound, lambda name=name: manager.get(name))  # type: ignore[misc]


async def check_name_is_taken_once_in_a_namespace(manager: StreamManager) -> None:
    """The first one keeps it; in another namespace it is free."""
    first = Line()
    with bind("one"):
        await manager.register("s", first)
        await fails_with(Unknown, manager.register("s", Line()), "already exists")
        await manager.get("s").send(packed("x"))
        assert first.heard == [packed("x")]
    with bind("two"):
        refuses(NotFound, lambda: manager.get("s"))
        await manager.register("s", Line())
        await manager.get("s").close()
    with bind("one"):
        await manager.get("s").close()


async def check_closing_frees_the_name_and_ends_the_client(manager: StreamManager) -> None:
    """Once is enough; a late second close leaves the next of that name alone."""
    with bind("one"):
        line, following = Line(), Line()
        stream = await manager.register("s", line)
        await stream.close()
        assert line.closed
        refuses(NotFound, lambda: manager.get("s"))
        await manager.register("s", following)
        await stream.close()
        await manager.get("s").send(packed("x"))
        assert (following.heard, following.closed) == ([packed("x")], 0)
        await manager.get("s").close()


async def check_client_that_is_gone_keeps_its_name(manager: StreamManager) -> None:
    """Until its consumer has closed the stream, who can still read what was said."""
    line = Line()
    line.said.put_nowait(packed("last"))
    with bind("one"):
        stream = await manager.register("s", line)
        manager.abandoned("s", stream)
        await fails_with(Unknown, manager.register("s", Line()), "already exists")
        assert await manager.get("s").receive() == packed("last")
        await manager.get("s").close()
        await manager.register("s", Line())
        await manager.get("s").close()


async def check_cancelled_receive_has_lost_nothing(manager: StreamManager) -> None:
    """The message comes with the next call."""
    line = Line()
    with bind("one"):
        stream = await manager.register("s", line)
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    line.said.put_nowait(packed("x"))
    assert await stream.receive() == packed("x")
    await stream.close()


CHECKS: Final[tuple[Check, ...]] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_") and callable(value)
)
"""All checks, for `for check in CHECKS: await check(fresh_manager)`."""
