"""How a shim is started and how its remains are cleaned up: by its binary, or by nobody where a sandbox owns it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from structlog.typing import FilteringBoundLogger

from moored.api.convert import to_ns
from moored.kernel.errors import MooredError, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.binary import Forms
from moored.plugins.runtime.manager.bootstrap import (
    Daemon,
    command,
    encode_endpoint,
    environment,
    old_parameters,
    parameters,
    parse_answer,
)
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.manager.program import Finished, run


class Kind(Protocol):
    """One shim's way into the world and out of it."""

    @property
    def reports_exits(self) -> bool:
        """Whether an exit while no daemon ran will still be told by the shim itself."""

    @property
    def mounts_itself(self) -> bool:
        """Whether the shim has to mount the root file system; one of ours need not, which spares it two processes."""

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        """Write into a new bundle what has to be there before anything runs; blocks. spec None: it was not read.

        Raises OSError.
        """

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        """Run the shim for a prepared bundle until it listens; bootstrap.json is there afterwards.

        Raises Unknown with what the shim said, DeadlineExceeded, Unimplemented for a too new one. It may run then.
        """

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        """Undo what a shim that is gone left behind; clean: it says that it undid everything itself.

        Gives the container's exit, None if it is not known. Raises as `start`.
        """


class Joined:
    """A shim that a sandbox started and will end."""

    reports_exits = False
    mounts_itself = True

    def __init__(self, sandbox: str, endpoint: Endpoint) -> None:
        self._sandbox = sandbox
        self._endpoint = endpoint

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        """See Kind."""
        bundle.write(files.SANDBOX, self._sandbox.encode())
        bundle.write(files.BOOTSTRAP, encode_endpoint(self._endpoint), 0o644)

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        """It runs already."""
        return self._endpoint

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        """Nothing is ours to undo."""
        return None


class External:
    """A shim binary."""

    reports_exits = False
    mounts_itself = True

    def __init__(self, binary: Path, daemon: Daemon, forms: Forms, log: FilteringBoundLogger) -> None:
        self._binary = binary
        self._daemon = daemon
        self._forms = forms
        self._log = log

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        """See Kind."""
        bundle.write(files.BINARY, os.fsencode(self._binary))

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        """See Kind."""
        answer = await self._call_start(bundle, options, seconds)
        endpoint = parse_answer(answer.output)
        await asyncio.to_thread(bundle.write, files.BOOTSTRAP, encode_endpoint(endpoint), 0o644)
        return endpoint

    async def _call_start(self, bundle: Bundle, options: TypedBytes | None, seconds: float) -> Finished:
        """Call it in the form of its version; one that fails with the new form gets the old one."""
        old = old_parameters(options)
        try:
            new = await self._forms.takes_parameters(self._binary)
            if new:
                data = parameters(self._daemon, bundle.namespace, bundle.id, options)
                answer = await self._run(bundle, "start", data, seconds)
                if answer.status == 0:
                    return answer
            answer = await self._run(bundle, "start", old, seconds)
        except OSError as error:
            raise Unknown(f"shim {str(self._binary)!r} cannot be started: {error.strerror}") from error
        if answer.status:
            raise Unknown(_said(answer.output, answer.status))
        if new:
            self._forms.correct(self._binary)
        return answer

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        """See Kind; the binary is called even after a clean end, as shims expect."""
        from google.protobuf.message import DecodeError

        from moored.api.runtime.task.v2.shim_pb2 import DeleteResponse

        try:
            answer = await self._run(bundle, "delete", b"", seconds)
        except OSError as error:
            raise Unknown(f"shim {str(self._binary)!r} cannot be started: {error.strerror}") from error
        if answer.status:
            raise Unknown(_said(answer.errors, answer.status))
        if warnings := answer.errors.strip():
            told = warnings[:4096].decode("utf-8", "backslashreplace")
            (self._log.debug if clean else self._log.warning)("shim cleaned up", warnings=told)
        try:
            found = DeleteResponse.FromString(answer.output)
        except DecodeError:
            raise Unknown(f"shim answered {answer.output[:200]!r}, wanted a DeleteResponse") from None
        try:
            exited_at = to_ns(found.exited_at)
        except MooredError:
            exited_at = None
        return Exit(pid=found.pid, status=found.exit_status, exited_at=exited_at)

    async def _run(self, bundle: Bundle, action: str, stdin: bytes, seconds: float) -> Finished:
        start = action == "start"
        return await run(
            command(self._binary, self._daemon, bundle, action),
            seconds=seconds,
            folder=bundle.path,
            environment=environment(self._daemon, bundle.namespace, os.environ, start=start),
            stdin=stdin,
            joined=start,
        )


def _said(output: bytes, status: int) -> str:
    text = output[:4096].decode("utf-8", "backslashreplace").strip()
    ending = f"exit status {status}" if status >= 0 else f"signal {-status}"
    return f"{text}: {ending}" if text else ending
