"""What the daemon tells the zygote of a shim to fork, and what it is told: JSON, one message each.

Nothing here imports more than the shim needs anyway; both sides use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

MAX_MESSAGE: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """A shim to fork.

    id             of the container that it is forked for
    bundle         absolute path, where config.json and the `log` FIFO are
    address        socket to serve, `unix://PATH` or PATH; its folder exists
    ttrpc_address  path of the daemon's ttrpc socket, where events go
    grpc_address   path of the daemon's gRPC socket, shown to log readers of binary:// streams only
    debug_socket   path of the socket to show the shim's state on, empty for none
    shim_cgroup    cgroup to join, as runc's Options have it; empty for the daemon's own
    """

    namespace: str
    id: str
    bundle: str
    address: str
    ttrpc_address: str
    grpc_address: str = ""
    shim_cgroup: str = ""
    debug_socket: str = ""

    @property
    def socket_path(self) -> str:
        """The address as a path."""
        return self.address.removeprefix("unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A shim that listens. `joined` tells that one did already (a group's), whose pid is 0 here: Connect tells it."""

    pid: int = 0
    joined: bool = False


def pack(message: Spawn | Spawned) -> bytes:
    """Write either message."""
    return json.dumps(asdict(message)).encode()


def pack_fault(text: str) -> bytes:
    """Write why there is no shim."""
    return json.dumps({"fault": text}).encode()


def unpack_spawn(data: bytes) -> Spawn:
    """Read a request. Raises ValueError, TypeError for what is none."""
    return Spawn(**json.loads(data))


def unpack_spawned(data: bytes) -> Spawned | str:
    """Read an answer; a text is why there is no shim. Raises ValueError, TypeError for what is none."""
    values = json.loads(data)
    return str(values["fault"]) if "fault" in values else Spawned(**values)
