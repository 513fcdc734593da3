"""Shims: processes that stand between the daemon and what runs, one for each container or for a group of them.

A shim serves the task API, and perhaps others, on a socket; it outlives the daemon, which finds it again through its
bundle. Several shims, each with a connection of its own, may be one process. Source: `contracts/shim-v2.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from moored.kernel.plugin import PluginType
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import Exit, RuntimeInfo


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a shim serves (`unix:///run/s/..`, or an abstract name), the version of its task API, and the protocol."""

    address: str
    version: int
    protocol: str = "ttrpc"


class Shim(Protocol):
    """One shim and the connection to it.

    Errors of a call: what the shim answers; Unavailable once it is gone; DeadlineExceeded, naming the shim and the
    call, when it is silent for too long, after which it is left alone and later calls may be answered.
    Concurrency: calls may overlap. Cancellation: the caller stops waiting, the shim goes on.
    """

    @property
    def id(self) -> str:
        """The container's or sandbox' id."""

    @property
    def namespace(self) -> str:
        """Its namespace."""

    @property
    def bundle(self) -> Path:
        """Its folder."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it serves."""

    async def call(self, service: str, method: str, request: bytes, *, seconds: float | None) -> bytes:
        """Call a method of any service that it has, with messages in their wire form; None waits for ever."""

    async def retire(self, *, clean: bool = False) -> Exit | None:
        """Close the connection, undo what is left of the container, and remove the bundle.

        clean: the shim has been told to end and has undone everything itself.
        Gives the exit as the cleanup found it, None if it found none. Never raises but for cancellation, after which it
        goes on.
        """


class Shims(Protocol):
    """Starts shims and tells about runtimes."""

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        """Ask a runtime (name, or path of a shim) about itself.

        Raises NotFound if there is none, Unknown with what it said if it fails, DeadlineExceeded.
        """


OPT: Final[PluginType[Path | None]] = PluginType("io.containerd.internal.v1")
"""The id is `opt`: the folder of optional programs, found before those on PATH once it has started; None for none."""
SHIMS: Final[PluginType[Shims]] = PluginType("io.containerd.shim.v1")
"""The id is `manager`."""
