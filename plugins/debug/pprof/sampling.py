"""A sampling profile of the main thread, where the event loop runs, as folded stacks."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections import Counter

INTERVAL = 0.01
MAX_DEPTH = 200
MAX_STACKS = 20_000
"""Different stacks that are kept; more are counted as one."""


def profile(seconds: float, stop: threading.Event) -> str:
    """Sample for `seconds`, or until `stop` is set; blocks, so call it in a thread of its own.

    One line a stack: frames from the outside in, joined by `;`, a blank, the number of samples taken in it. That is the
    input of flame graph programs. Waiting for events is a stack like any other (it ends in `select`).
    """
    main = threading.main_thread().ident
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop.wait(INTERVAL):
        frame = sys._current_frames().get(main or 0)
        stack = _folded(frame)
        counts[stack if stack in counts or len(counts) < MAX_STACKS else "(other)"] += 1
    return "".join(f"{stack} {count}\n" for stack, count in counts.most_common())


def _folded(frame: types.FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < MAX_DEPTH:
        code = frame.f_code
        names.append(f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}".replace(";", ":"))
        frame = frame.f_back
    return ";".join(reversed(names)) or "(no frame)"
