"""A program that calls OCI runtimes the way shims do: it becomes the parent of what they leave, and reaps it.

Requests come as JSON lines on standard input, one at a time, and are each answered by a line:

    {"call": ["/usr/bin/runc", "start", "x"], "environment": {}, "input": "", "out": "/tmp/o", "seconds": 30}
        -> {"status": 0}           null after `seconds`, and the program is killed; out: takes both outputs, appended
    {"wait": 4711, "seconds": 5}
        -> {"status": 137}         of a child, 128 + N for signal N; null if it is still there

Children are reaped all the while, since gVisor waits for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_STEP_SECONDS: Final = 0.002


class _Children:
    """The exits seen so far."""

    def __init__(self) -> None:
        self._exits: dict[int, int] = {}

    def wait(self, pid: int, seconds: float) -> int | None:
        """The status of a child, once; None after so long."""
        deadline = time.monotonic() + seconds
        while True:
            self._reap()
            if pid in self._exits:
                return self._exits.pop(pid)
            if time.monotonic() > deadline:
                return None
            time.sleep(_STEP_SECONDS)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(found[1])
                self._exits[found[0]] = 128 - code if code < 0 else code


def _called(children: _Children, request: dict[str, Any]) -> int | None:
    argv = request["call"]
    read, write = os.pipe()
    os.write(write, request.get("input", "").encode())
    os.close(write)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_DUP2, read, 0),
        (os.POSIX_SPAWN_OPEN, 1, request["out"], flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        environment = {**os.environ, **request.get("environment", {})}
        pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    finally:
        os.close(read)
    status = children.wait(pid, request["seconds"])
    if status is None:
        os.kill(pid, signal.SIGKILL)
        children.wait(pid, request["seconds"])
    return status


def _awaited(children: _Children, request: dict[str, Any]) -> int | None:
    return children.wait(request["wait"], request["seconds"])


def main() -> None:
    """Answer until standard input ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    children = _Children()
    for line in sys.stdin:
        request = json.loads(line)
        asked = _called if "call" in request else _awaited
        status = asked(children, request)
        sys.stdout.write(json.dumps({"status": status}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
