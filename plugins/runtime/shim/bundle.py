"""What a shim reads and writes in a bundle. Source: `contracts/shim-v2.md` 3."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from moored.kernel.errors import Unknown
from moored.plugins.runtime.shim.messages import Options

INVOCATION: Final = "runtime.json"
"""How to call the OCI runtime, written by our daemon."""
LOG: Final = "log.json"
"""The OCI runtime's own log."""
PID: Final = "init.pid"
MOUNTED: Final = "mounted"
"""There if our daemon mounts the root file system, and unmounts it."""
DEBUG: Final = "debug-address"
"""Path of the shim's debug socket, if it serves one."""
_CHUNK: Final = 16 << 10


def read(bundle: str, name: str) -> bytes | None:
    """Give a file's content, None if there is none. Raises OSError."""
    try:
        return read_file(f"{bundle}/{name}")
    except FileNotFoundError:
        return None


def read_file(path: str) -> bytes:
    """Give a file's content; file objects would cost each shim memory. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, _CHUNK):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> None:
    """Write a file for ourselves only. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def remove(bundle: str, name: str) -> None:
    """Remove a file, if it is there. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(f"{bundle}/{name}")


def spec_of(bundle: str) -> dict[str, Any]:
    """Give the OCI spec. Raises OSError, ValueError."""
    spec = json.loads(read_file(f"{bundle}/config.json"))
    if not isinstance(spec, dict):
        raise ValueError("config.json holds no object")  # noqa: TRY004  # a fault of the content, as all others
    return spec


def has(bundle: str, name: str) -> bool:
    """Whether there is such a file."""
    return os.access(f"{bundle}/{name}", os.F_OK)


def has_private_pids(bundle: str) -> bool:
    """Whether the kernel ends all processes of the container with init; an unreadable spec promises nothing."""
    try:
        namespaces = (spec_of(bundle).get("linux") or {}).get("namespaces") or []
        return any(one.get("type") == "pid" and not one.get("path") for one in namespaces)
    except (OSError, ValueError, AttributeError):
        return False


def write_options(bundle: str, options: Options) -> None:
    """Keep the options for `delete`, which gets none. Raises OSError."""
    values = {name: getattr(options, name) for name in Options.__slots__}
    write(f"{bundle}/options.json", json.dumps({name: value for name, value in values.items() if value}).encode())
    write(f"{bundle}/runtime", options.binary_name.encode())


def read_options(bundle: str) -> Options:
    """Give the kept options, those of nobody if there are none. Raises OSError, ValueError."""
    values = json.loads(read(bundle, "options.json") or b"{}")
    return Options(**{name: value for name, value in values.items() if name in Options.__slots__})


def served_at(bundle: str) -> str:
    """Give the path of the shim's socket as the daemon or we noted it, empty for none. Raises OSError, ValueError."""
    noted = read(bundle, "bootstrap.json")
    text = json.loads(noted)["address"] if noted is not None else (read(bundle, "address") or b"").decode()
    return str(text).removeprefix("unix://")


def read_pid(bundle: str, name: str = PID) -> int:
    """Give the pid that the runtime wrote to a file. Raises Unknown."""
    data = read(bundle, name)
    if data is None or not data.strip().isdigit():
        raise Unknown(f"file {name!r} holds no pid, the runtime should have written one")
    return int(data)


def log_size(bundle: str) -> int:
    """Give the size of the runtime's log now, so that `last_error` tells only what came later."""
    with suppress(OSError):
        return os.stat(f"{bundle}/{LOG}").st_size
    return 0


def last_error(bundle: str, since: int) -> str:
    """Give the text of the last error in the runtime's log, empty for none."""
    try:
        added = read_file(f"{bundle}/{LOG}")[since:]
    except OSError:
        return ""
    errors = [entry for entry in _objects(added.decode(errors="replace")) if entry.get("level") == "error"]
    return str(errors[-1].get("msg", "")).strip() if errors else ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Find the JSON objects in a text: a line each, as most runtimes write them, or one right after the other."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            entry, at = decoder.raw_decode(text, at)
            yield entry
        except (ValueError, RecursionError):
            at += 1
        at = text.find("{", at)
