"""A shim for tests: it serves the task API over nothing at all, and misbehaves in the way that its folder tells.

Run as `fake_shim.py`'s copy or wrapper `NAME`, it reads the file `NAME.json` beside itself:

    version    the text after `Version:` of `-v`
    answer     `message`, `json`, `bare`, or a text to answer as it is
    speaks     versions of the task service that it has
    service    `task`, or `garbage` for a socket that sends nonsense
    stderr     a text that start writes there
    sleep      seconds before start does anything
    status     exit status of start, which then does nothing else
    hangs      methods that are never answered
    features   what `-info` says of the runtime's features, nothing if empty; it fails without
    logs       lines to write to the log FIFO
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GARBAGE = b"\0\0\0\5garbage garbage"


def flags(words: list[str]) -> tuple[dict[str, str], str]:
    """Go's flags, and the action."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name = rest.pop(0).lstrip("-")
        found[name] = "" if name in {"debug", "v", "info"} else rest.pop(0)
    return found, rest[0] if rest else ""


def piece(number: int, data: bytes) -> bytes:
    """A protobuf field of less than 128 bytes."""
    return bytes((number << 3 | 2, len(data))) + data


def socket_dir(data: bytes) -> str:
    """The folder that BootstrapParams name."""
    from moored.api.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapParams

    return BootstrapParams.FromString(data).socket_dir


def speak_garbage(sock: socket.socket) -> None:
    """Greet every peer with nonsense."""
    peers = []
    while True:
        peer, _ = sock.accept()
        peer.sendall(GARBAGE)
        peers.append(peer)


def start(found: dict[str, str], behaviour: dict[str, Any], me: str) -> None:
    """Listen, start the server, and answer."""
    time.sleep(behaviour.get("sleep", 0))
    data = sys.stdin.buffer.read()
    if behaviour.get("status"):
        sys.stderr.write(behaviour.get("stderr", ""))
        raise SystemExit(behaviour["status"])
    kind = behaviour.get("answer", "json")
    folder = socket_dir(data) if kind == "message" else str(Path(me).parent)
    name = hashlib.sha256(f"{found['address']}/{found['namespace']}/{found['id']}".encode()).hexdigest()
    path = f"{folder}/{name[:20]}"
    Path(folder).mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        subprocess.Popen(
            [sys.executable, "-S", __file__, "serve", me, found["id"], path, str(sock.fileno())],
            pass_fds=(sock.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    sys.stderr.write(behaviour.get("stderr", ""))
    sys.stderr.flush()
    address = f"unix://{path}"
    answers = {
        "message": b"\x08\x03" + piece(2, address.encode()) + piece(3, b"ttrpc"),
        "json": json.dumps({"version": 3, "address": address, "protocol": "ttrpc"}).encode(),
        "bare": address.encode(),
    }
    sys.stdout.buffer.write(answers.get(kind, kind.encode()))


def main(me: str, words: list[str]) -> None:
    """Do what a shim is told to do."""
    behaviour = json.loads(Path(f"{me}.json").read_text())
    found, action = flags(words)
    with Path(behaviour["record"]).open("a") as record:
        record.write(f"{action or '-v'} {' '.join(words)}\n")
    if "v" in found:
        sys.stdout.write(f"{Path(me).name}:\n  Version:  {behaviour.get('version', '1.6.20')}\n  Revision: x\n")
    elif "info" in found:
        if behaviour.get("features") is None:
            raise SystemExit(1)
        features = behaviour["features"].encode()
        sys.stdout.buffer.write(
            piece(1, b"fake") + (piece(4, piece(1, b"F") + piece(2, features)) if features else b"")
        )
    elif action == "start":
        start(found, behaviour, me)
    elif action == "delete":
        # pid 4242, status 137, the first second of 1970
        sys.stdout.buffer.write(b"\x08\x92\x21\x10\x89\x01" + piece(3, b"\x08\x01"))


def run_server(me: str, id_: str, path: str, fd: int) -> None:
    """Be the process that stays."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    behaviour = json.loads(Path(f"{me}.json").read_text())
    if lines := behaviour.get("logs"):
        Path("log").write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    with socket.socket(fileno=fd) as sock:
        if behaviour.get("service") == "garbage":
            speak_garbage(sock)
        else:
            import asyncio

            from fake_shim_service import serve

            asyncio.run(serve(sock, id_, behaviour))
    Path(path).unlink()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run_server(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main(sys.argv[1], sys.argv[2:])
