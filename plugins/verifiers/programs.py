"""Image verifiers as programs: `PROGRAM -name REF -digest D -stdin-media-type T`, the descriptor on stdin.

Status 0 lets the image be pulled; what a program prints is its reason. Source: contracts/semantics.md 7.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.kernel.imagespec.archives.plain import described, go_json
from moored.kernel.imagespec.documents import Entry
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.transfer import Judgement

MAX_OUTPUT: Final = 32 << 10
"""Bytes of what a program prints that are kept."""
MEDIA_TYPE: Final = "application/vnd.oci.descriptor.v1+json"


class FolderVerifier:
    """The ImageVerifier that asks the programs of a folder, in the order of their names.

    most      how many, -1 for all
    seconds   for each
    """

    def __init__(self, folder: Path, *, most: int, seconds: float, log: FilteringBoundLogger) -> None:
        self._folder = folder
        self._most = most
        self._seconds = seconds
        self._log = log

    async def verify(self, name: str, target: Descriptor) -> Judgement:
        """See ImageVerifier. Raises Unknown for a program that cannot be run, DeadlineExceeded."""
        try:
            names = await asyncio.to_thread(lambda: sorted(path.name for path in self._folder.iterdir()))
        except FileNotFoundError:
            return Judgement(True, f"image verifier directory {self._folder} does not exist")
        except OSError as error:
            raise Unknown(f"failed to list directory contents: {error.strerror}") from error
        if not names:
            return Judgement(True, f"no image verifier binaries found in {self._folder}")
        if 0 <= self._most < len(names):
            self._log.warning("image verifiers are left out", folder=str(self._folder), left_out=names[self._most :])
            names = names[: self._most]
        return await self._asked(names, name, target)

    async def _asked(self, programs: Sequence[str], name: str, target: Descriptor) -> Judgement:
        reasons = []
        for program in programs:
            status, said = await self._ask(program, name, target)
            if status:
                return Judgement(False, f"verifier {program} rejected image (exit code {status}): {said}")
            reasons.append(f"{program} => {said}")
        return Judgement(True, ", ".join(reasons))

    async def _ask(self, program: str, name: str, target: Descriptor) -> tuple[int, str]:
        words = ["-name", name, "-digest", target.digest, "-stdin-media-type", MEDIA_TYPE]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                self._folder / program, *words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise Unknown(f"failed to call verifier {program}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._seconds):
                said, complained = await _talk(process, _input(target))
                status = await process.wait()
        except BaseException as error:
            with suppress(ProcessLookupError):  # what it has started goes too
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"verifier {program} did not answer within {self._seconds:g}s") from None
            raise
        if complained:
            self._log.debug("image verifier says", program=program, stderr=complained)
        if status < 0:
            raise Unknown(f"failed to call verifier {program}: ended by signal {-status}")
        return status, said


def _input(target: Descriptor) -> bytes:
    entry = Entry(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        annotations=dict(target.annotations) or None,
    )
    return go_json(described(entry)) + b"\n"


async def _talk(process: asyncio.subprocess.Process, data: bytes) -> tuple[str, str]:
    """Give it its input, and take what it prints, both at once."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    _, said, complained = await asyncio.gather(
        _tell(process.stdin, data), _printed(process.stdout), _printed(process.stderr)
    )
    return said, complained


async def _tell(stdin: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not read
        stdin.write(data)
        await stdin.drain()
    stdin.close()


async def _printed(stream: asyncio.StreamReader) -> str:
    kept = bytearray()
    cut = False
    while data := await stream.read(MAX_OUTPUT):
        cut = cut or len(kept) + len(data) > MAX_OUTPUT
        kept += data[: MAX_OUTPUT - len(kept)]
    return kept.decode(errors="replace").strip() + ("(stdout truncated)" if cut else "")
