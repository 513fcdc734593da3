"""Asks a runtime what it is, `--version` and `features`, once for each version of its file."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Final

from moored.kernel.errors import DeadlineExceeded, Unavailable
from moored.kernel.ports.invocations import RuntimeFacts
from moored.plugins.runtime.manager.program import Finished, run
from moored.plugins.runtime.oci.invocations import located

MAX_KNOWN: Final = 64
"""Binaries remembered; the one asked about longest ago is forgotten first."""
_MAX_TEXT: Final = 200

Identity = tuple[str, int, int, int, int]


class Detector:
    """Facts of runtimes of one name; nothing is remembered of a question that failed.

    seconds  for each of the two questions
    """

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._known: dict[Identity, RuntimeFacts] = {}
        self._asking: dict[Identity, asyncio.Lock] = {}

    async def facts(self, binary: str) -> RuntimeFacts:
        """Ask a binary, a name for PATH or an absolute path, or remember its answer.

        Raises as `located`; Unavailable if it cannot be started, fails, hangs or makes no sense. Calls for the same
        file wait for each other.
        """
        identity = await asyncio.to_thread(_identity, binary)
        binary = identity[0]
        if identity in self._known:
            return self._known[identity]
        lock = self._asking.setdefault(identity, asyncio.Lock())
        async with lock:
            if identity not in self._known:
                try:
                    self._remember(identity, await self._ask(binary))
                finally:
                    self._asking.pop(identity, None)
            return self._known[identity]

    def _remember(self, identity: Identity, facts: RuntimeFacts) -> None:
        while len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[identity] = facts

    async def _ask(self, binary: str) -> RuntimeFacts:
        answer = await self._run(binary, "--version")
        text = answer.output.decode(errors="replace")
        if answer.status:
            said = _first_line(answer.errors.decode(errors="replace") or text)
            raise Unavailable(f'runtime "{binary}" failed "--version" with status {answer.status}: {said}')
        found = _fields(text)
        if "version" not in found:
            raise Unavailable(f'runtime "{binary}" answered "--version" with no version: {_first_line(text)!r}')
        features = await self._features(binary)
        newest = features.get("ociVersionMax")
        return RuntimeFacts(
            name=self._name,
            binary=binary,
            version=found["version"],
            commit=found.get("commit", ""),
            spec_version=newest if isinstance(newest, str) else found.get("spec", ""),
            features=json.dumps(features).encode() if features else b"",
        )

    async def _features(self, binary: str) -> dict[str, object]:
        """The answer to `features`, empty from a runtime that has no such verb."""
        answer = await self._run(binary, "features")
        try:
            found = json.loads(answer.output) if answer.status == 0 else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    async def _run(self, binary: str, word: str) -> Finished:
        try:
            return await run((binary, word), seconds=self._seconds)
        except DeadlineExceeded:
            raise Unavailable(f'runtime "{binary}" did not answer "{word}" within {self._seconds:g} seconds') from None
        except OSError as error:
            raise Unavailable(f'runtime "{binary}" cannot be started: {error.strerror}') from None


def _identity(binary: str) -> Identity:
    binary = located(binary)
    try:
        status = Path(binary).stat()
    except OSError as error:
        raise Unavailable(f'runtime "{binary}" cannot be read: {error.strerror}') from None
    return binary, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _fields(text: str) -> dict[str, str]:
    """The lines of `--version`: `runc version 1.1.5` and `NAME: VALUE`."""
    found: dict[str, str] = {}
    for line in text.splitlines()[:50]:
        if match := re.fullmatch(r"\s*\S+ version:? (\S{1,100})(?: .*)?", line):
            found.setdefault("version", match[1])
        elif match := re.fullmatch(r"\s*(commit|spec): (\S{1,100})\s*", line):
            found.setdefault(match[1], match[2])
    return found


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:_MAX_TEXT]
