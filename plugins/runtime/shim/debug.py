"""What a shim shows of itself on its debug socket, over HTTP: every task with where it waits, and its memory.

    /debug/pprof/goroutine   all tasks (also in the log on SIGUSR1)
    /debug/pprof/heap        memory as the kernel counts it, and objects by type
    /debug/pprof/cmdline     the command line, parts apart by NUL

The paths are those of Go programs, which `ctr shim pprof` asks for. Loaded only where somebody debugs.
"""

from __future__ import annotations

import gc
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim.loop import Loop, Task
from moored.plugins.runtime.shim.service import TaskService
from moored.plugins.runtime.shim.wire import is_own

MAX_REQUEST: Final = 8 << 10
"""Bytes of a request's head."""
_SECONDS: Final = 5.0
"""For one request and its answer."""
_MOST_TYPES: Final = 40

Pages = Mapping[str, Callable[[], bytes]]


def stacks(loop: Loop, tasks: TaskService) -> str:
    """Say which containers there are, and of each task of the loop where it waits, the innermost place last."""
    found = [f"containers: {', '.join(tasks.ids()) or 'none'}"]
    found += [f"\n{_title(task)}\n{_stack(task)}" for task in sorted(loop.tasks, key=_title)]
    return "\n".join(found) + "\n"


def _title(task: Task[Any]) -> str:
    return f"task {getattr(task.coroutine, '__qualname__', task.coroutine)}:"


def _stack(task: Task[Any]) -> str:
    lines = []
    inner: Any = task.coroutine
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            lines.append(f"  {frame.f_code.co_qualname}\n    {frame.f_code.co_filename}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return "\n".join(lines) or "  has not begun"


def _memory() -> bytes:
    kinds = Counter(type(one).__qualname__ for one in gc.get_objects())
    table = "".join(f"{count:8} {name}\n" for name, count in kinds.most_common(_MOST_TYPES))
    return files.read_file("/proc/self/smaps_rollup") + f"\ntracked objects: {kinds.total()}\n{table}".encode()


def pages_of(loop: Loop, tasks: TaskService) -> Pages:
    """Give the pages by their paths."""
    pages: dict[str, Callable[[], bytes]] = {
        "/debug/pprof/goroutine": lambda: stacks(loop, tasks).encode(),
        "/debug/pprof/heap": _memory,
        "/debug/pprof/cmdline": lambda: files.read_file("/proc/self/cmdline").rstrip(b"\0"),
    }
    return {**pages, "/debug/pprof/": lambda: "".join(f"{path}\n" for path in pages).encode()}


async def serve(loop: Loop, listener: socket.socket, pages: Pages) -> None:
    """Answer GET requests, one for each connection, for good; peers must be of our own user and group."""
    listener.setblocking(False)
    while True:
        await loop.readable(listener.fileno())
        try:
            sock, _ = listener.accept()
        except OSError:
            await loop.sleep(0.1)
            continue
        if is_own(sock):
            loop.spawn(_answer(loop, sock, pages))
        else:
            sock.close()


async def _answer(loop: Loop, sock: socket.socket, pages: Pages) -> None:
    sock.setblocking(False)
    with sock, suppress(TimeoutError, OSError):
        await loop.within(_SECONDS, _talk(loop, sock, pages))


async def _talk(loop: Loop, sock: socket.socket, pages: Pages) -> None:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_REQUEST:
        await loop.readable(sock.fileno())
        if not (piece := sock.recv(MAX_REQUEST)):
            return
        head += piece
    words = head.partition(b"\r\n")[0].decode("latin-1").split()
    page = pages.get(words[1].partition("?")[0]) if len(words) == 3 and words[0] == "GET" else None
    status, body = ("200 OK", page()) if page is not None else ("404 Not Found", b"no such page\n")
    kind = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
    rest = memoryview(f"HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    while rest:
        try:
            rest = rest[os.write(sock.fileno(), rest) :]
        except BlockingIOError:
            await loop.writable(sock.fileno())
