"""The pages under /debug: stacks, memory, a CPU profile, and the process in short; all of them plain text or JSON."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from moored.kernel.ports.daemon import DaemonView
from moored.kernel.ports.http import Page
from moored.kernel.stacks import dump
from moored.plugins.debug.pprof.sampling import profile

PREFIX = "/debug/pprof/"
TEXT = "text/plain; charset=utf-8"
MIN_SECONDS = 1.0
MAX_SECONDS = 120.0
DEFAULT_SECONDS = 30.0
TOP_TYPES = 50

Query = Mapping[str, str]


class PprofPages:
    """The DebugPages of the process."""

    def __init__(self, daemon: DaemonView) -> None:
        self._daemon = daemon
        self._profiling = asyncio.Lock()

    def pages(self) -> Mapping[str, Callable[[Query], Awaitable[Page]]]:
        """See DebugPages. `profile` takes as long as its query says, the others less than a second."""
        return {
            PREFIX.removesuffix("/"): self._index,
            PREFIX: self._index,
            f"{PREFIX}cmdline": self._cmdline,
            f"{PREFIX}goroutine": self._stacks,
            f"{PREFIX}heap": self._heap,
            f"{PREFIX}profile": self._profile,
            f"{PREFIX}threadcreate": self._threads,
            "/debug/vars": self._vars,
        }

    async def _index(self, _query: Query) -> Page:
        return _text(
            f"{PREFIX}cmdline       the command line, its words ended by zero bytes\n"
            f"{PREFIX}goroutine     stacks of all threads and asyncio tasks\n"
            f"{PREFIX}heap          memory, garbage collector, most frequent types\n"
            f"{PREFIX}profile       samples of the main thread as folded stacks; ?seconds=30\n"
            f"{PREFIX}threadcreate  threads\n"
            "/debug/vars                command line, memory and plugins as JSON\n"
        )

    async def _cmdline(self, _query: Query) -> Page:
        return _text("\0".join(sys.orig_argv))

    async def _stacks(self, _query: Query) -> Page:
        return _text(dump())

    async def _heap(self, _query: Query) -> Page:
        return _text(await asyncio.to_thread(_heap_text))

    async def _threads(self, _query: Query) -> Page:
        threads = threading.enumerate()
        lines = [f"{t.native_id}\t{t.name}\t{'daemon' if t.daemon else 'joined'}\n" for t in threads]
        return _text(f"{len(threads)} threads\n{''.join(lines)}")

    async def _profile(self, query: Query) -> Page:
        text = query.get("seconds", "")
        try:
            seconds = float(text) if text else DEFAULT_SECONDS
        except ValueError:
            seconds = 0.0
        if not MIN_SECONDS <= seconds <= MAX_SECONDS:
            return _text(f"seconds={text!r} must be a number from {MIN_SECONDS:g} to {MAX_SECONDS:g}\n", 400)
        if self._profiling.locked():
            return _text("another profile is being taken, try again when it has ended\n", 409)
        async with self._profiling:
            stop = threading.Event()
            try:
                return _text(await asyncio.to_thread(profile, seconds, stop))
            finally:
                stop.set()

    async def _vars(self, _query: Query) -> Page:
        told = {
            "cmdline": sys.orig_argv,
            "version": self._daemon.version,
            "revision": self._daemon.revision,
            "python": sys.version,
            "memory": memory(),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "plugins": {record.uri: record.outcome.value for record in self._daemon.plugins()},
        }
        return Page(200, "application/json; charset=utf-8", json.dumps(told, indent=2).encode() + b"\n")


def memory() -> dict[str, int]:
    """Bytes of memory of this process by name: `rss`, `max_rss`, and `pss`, `private` where the kernel tells them."""
    found = {"max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    found["rss"] = pages * resource.getpagesize()
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return found
    sizes = {words[0]: int(words[1]) * 1024 for line in rollup.splitlines()[1:] if len(words := line.split()) == 3}
    found["pss"] = sizes.get("Pss:", 0)
    found["private"] = sizes.get("Private_Clean:", 0) + sizes.get("Private_Dirty:", 0)
    return found


def _heap_text() -> str:
    objects = gc.get_objects()
    types = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in objects)
    sizes = [f"{name}\t{size}\n" for name, size in sorted(memory().items())]
    generations = [f"generation {number}\t{stats}\n" for number, stats in enumerate(gc.get_stats())]
    top = [f"{count}\t{name}\n" for name, count in types.most_common(TOP_TYPES)]
    return "".join(
        [
            "memory in bytes\n",
            *sizes,
            "\ngarbage collector\n",
            *generations,
            f"\n{len(objects)} tracked objects, most frequent types\n",
            *top,
        ]
    )


def _text(text: str, status: int = 200) -> Page:
    return Page(status, TEXT, text.encode("utf-8", "backslashreplace"))
