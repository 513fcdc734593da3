"""Where a shim listens: one socket for each daemon, namespace and group. Source: `contracts/shim-v2.md` 4."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

DEFAULT_FOLDER: Final = "/run/containerd/s"
GROUP_ANNOTATIONS: Final = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
"""Containers with the same value of the first one that is there share a shim."""

_BACKLOG: Final = 128


def group_of(spec: Mapping[str, Any], container_id: str) -> str:
    """Give the group of a container by its OCI spec; one without is its own group."""
    annotations = spec.get("annotations") or {}
    return next((str(annotations[name]) for name in GROUP_ANNOTATIONS if name in annotations), container_id)


def socket_path(folder: str, grpc_address: str, namespace: str, group: str) -> str:
    """Give the path of a shim's socket."""
    import hashlib

    # The three are joined as paths are: what names a parent folder is resolved, double slashes are one.
    text = os.path.normpath(f"{grpc_address}/{namespace}/{group}")
    return f"{folder}/{hashlib.sha256(text.encode()).hexdigest()}"


def listen(path: str) -> socket.socket | None:
    """Listen on a path, whose folder exists, or give None if a living shim does; a dead one's socket is replaced.

    Raises OSError.
    """
    for _ in range(2):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)  # becomes the mode of what bind makes
            sock.bind(path)
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            if not os.path.lexists(path):
                raise
        else:
            return sock
        if _answers(path):
            return None
        with suppress(FileNotFoundError):
            os.unlink(path)
    raise OSError(f"socket {path!r} is made by somebody else all the time")


def drop_dead(path: str) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError."""
    if not _answers(path):
        with suppress(FileNotFoundError):
            os.unlink(path)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # alive, and too busy to take it
            return True
        except OSError:
            return False
        return True


def make_folder(path: str) -> None:
    """Make the folder of sockets, for ourselves only. Raises OSError."""
    os.makedirs(path, mode=0o700, exist_ok=True)
