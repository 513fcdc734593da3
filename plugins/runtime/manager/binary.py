"""Finds the shim of a runtime's name, and asks it how old it is. Source: `contracts/shim-v2.md` 1."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from moored.kernel.errors import InvalidArgument, MooredError, NotFound
from moored.plugins.runtime.manager.program import run

_VERSION: Final = re.compile(rb"^\s*Version:\s+v?([0-9]{1,5})\.([0-9]{1,5})\.", re.MULTILINE)
_PARAMS_SINCE: Final = (2, 3)
_ASK_SECONDS: Final = 5.0


def program_name(runtime: str) -> str:
    """Give the file name of a runtime's shim: `io.containerd.runc.v2` has `containerd-shim-runc-v2`.

    Raises InvalidArgument for what is no name.
    """
    parts = runtime.split(".")
    if "/" in runtime or len(parts) < 2 or not parts[0]:
        raise InvalidArgument(
            f"invalid runtime name {runtime}, correct runtime name should be either format like "
            "`io.containerd.runc.v2` or a full path to the binary"
        )
    return f"containerd-shim-{parts[-2]}-{parts[-1]}"


def find(runtime: str) -> Path:
    """Give the shim of a runtime, a name or an absolute path; blocks.

    Raises InvalidArgument for what is neither, NotFound if there is no such file.
    """
    if not runtime:
        raise InvalidArgument("no runtime name")
    if runtime.startswith("/"):
        if not Path(runtime).is_file():
            raise NotFound(f"invalid custom binary path {runtime!r}: no such file")
        return Path(runtime)
    name = program_name(runtime)
    places = (os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise NotFound(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    # absolute, since it is started in another folder
    return Path(found).absolute()


class Forms:
    """Which shims are told their parameters the way of 2.3; older ones are told the task's options only.

    A program is asked for its version once, and again when its file has changed. What does not answer like a shim of
    containerd's is taken for an old one, whose form all understand.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], bool] = {}

    async def takes_parameters(self, binary: Path) -> bool:
        """Whether the program reads BootstrapParams. Raises OSError if there is no such file."""
        key = _identity(binary)
        if key not in self._known:
            self._known[key] = await _asked(binary)
        return self._known[key]

    def correct(self, binary: Path) -> None:
        """Note that the program does not, whatever its version says."""
        self._known[_identity(binary)] = False


def _identity(binary: Path) -> tuple[str, int, int, int]:
    status = binary.stat()
    return str(binary), status.st_ino, status.st_size, status.st_mtime_ns


async def _asked(binary: Path) -> bool:
    try:
        answer = await run((str(binary), "-v"), seconds=_ASK_SECONDS)
    except (OSError, MooredError):
        return False  # the start that follows tells what is wrong with it
    found = _VERSION.search(answer.output)
    return answer.status == 0 and found is not None and (int(found[1]), int(found[2])) >= _PARAMS_SINCE
