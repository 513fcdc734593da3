"""The daemon's side of the workers' zygote, which is kept while there is work and forks the workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from moored.kernel import zygotes
from moored.kernel.errors import Internal

PATIENCE: Final = 10.0
"""Seconds for an answer of the zygote, its start included."""
_MODULE: Final = "moored.plugins.diff.zygote"


class Zygote:
    """A process that has loaded the workers' code; ending it ends no worker.

    linger   seconds without requests after which it ends itself
    """

    def __init__(self, linger: float, patience: float = PATIENCE) -> None:
        self._linger = linger
        # killed where it is not wanted: nothing of it is worth waiting for
        self._process = zygotes.Zygote("the zygote of worker processes", self._program, patience=patience)

    @property
    def pid(self) -> int:
        """The zygote's pid, 0 while there is none."""
        return self._process.pid

    async def fork(self, module: str, descriptors: Sequence[int]) -> int:
        """Have a worker forked, with copies of its descriptors; its pid, a child of this process for which to wait.

        Not to be cancelled: the worker would be nobody's. Raises Internal for what the zygote met or if it cannot be
        started, DeadlineExceeded if it hangs twice, Unavailable if it dies twice.
        """
        try:
            answer = json.loads(await self._process.ask(module.encode(), descriptors, wanted="a worker process"))
        except OSError as error:
            raise Internal(f"cannot start the zygote of worker processes: {error.strerror}") from error
        if "fault" in answer:
            raise Internal(f"cannot start a worker process: {answer['fault']}")
        return int(answer["pid"])

    async def close(self) -> None:
        """End the zygote; workers go on, and a further request starts another."""
        await self._process.close()

    def _program(self) -> zygotes.Program:
        return zygotes.Program(
            command=(sys.executable, "-S", "-P", "-m", _MODULE, str(os.getpid()), str(self._linger)),
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
            folder="/",
        )
