"""Our own shim as a Kind: the zygote forks it, at an address that is known, and written down, before it exists."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moored.kernel.errors import FailedPrecondition
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.bootstrap import NEWEST, Daemon, debugging, encode_endpoint
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.manager.choice import Choice
from moored.plugins.runtime.oci.invocations import to_json
from moored.plugins.runtime.shim.address import group_of, make_folder

if TYPE_CHECKING:
    from moored.plugins.runtime.shim.launcher import Zygote

PROGRAM: Final = "containerd-shim-moored-v2"
"""Our shim as a program, which a containerd that takes over our bundles calls to clean up."""


class Own:
    """A shim of ours. choice is None for one of an earlier daemon, which is only cleaned up after."""

    reports_exits = True
    mounts_itself = False

    def __init__(self, zygote: Callable[[], Zygote], daemon: Daemon, choice: Choice | None = None) -> None:
        self._zygote = zygote
        self._daemon = daemon
        self._choice = choice
        self._endpoint: Endpoint | None = None
        self._debug_socket = ""

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        """See Kind."""
        if self._choice is None:
            raise FailedPrecondition(f"task {bundle.id!r} has no runtime")
        spec = spec or {}  # a sandbox may have none
        group = group_of(spec, bundle.id)
        socket = self._daemon.socket(bundle.namespace, group)
        self._debug_socket = self._daemon.socket(bundle.namespace, f"{group}/debug") if debugging() else ""
        self._endpoint = Endpoint(f"unix://{socket}", NEWEST)
        make_folder(str(self._daemon.socket_dir))
        write_invocation(bundle, self._choice, spec)
        bundle.write(files.BOOTSTRAP, encode_endpoint(self._endpoint), 0o644)

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        """See Kind; the zygote has a deadline of its own."""
        from moored.plugins.runtime.shim.spawn import Spawn

        if self._endpoint is None or self._choice is None:
            raise FailedPrecondition(f"shim of {bundle.id!r} is not prepared")
        await self._zygote().spawn(
            Spawn(
                namespace=bundle.namespace,
                id=bundle.id,
                bundle=str(bundle.path),
                address=self._endpoint.address,
                ttrpc_address=self._daemon.ttrpc,
                grpc_address=self._daemon.grpc,
                debug_socket=self._debug_socket,
                shim_cgroup=self._choice.options.shim_cgroup,
            )
        )
        return self._endpoint

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        """See Kind; nothing is left to do after a clean end."""
        return None if clean else await undo(bundle)


class Housed:
    """A container in a sandbox, or beside another one, that a shim of ours runs already.

    choice is None for one of an earlier daemon.
    """

    reports_exits = True
    mounts_itself = False

    def __init__(self, sandbox: str, endpoint: Endpoint, choice: Choice | None = None) -> None:
        self._sandbox = sandbox
        self._endpoint = endpoint
        self._choice = choice

    def prepare(self, bundle: Bundle, spec: Mapping[str, Any] | None) -> None:
        """See Kind."""
        if self._choice is None or spec is None:
            raise FailedPrecondition(f"task {bundle.id!r} has no spec to run")
        write_invocation(bundle, self._choice, spec)
        bundle.write(files.SANDBOX, self._sandbox.encode())
        bundle.write(files.BOOTSTRAP, encode_endpoint(self._endpoint), 0o644)

    async def start(self, bundle: Bundle, options: TypedBytes | None, *, seconds: float) -> Endpoint:
        """It runs already."""
        return self._endpoint

    async def cleanup(self, bundle: Bundle, *, clean: bool, seconds: float) -> Exit | None:
        """See Kind; the runtime's container outlives a shim that dies."""
        return None if clean else await undo(bundle)


def write_invocation(bundle: Bundle, choice: Choice, spec: Mapping[str, Any]) -> None:
    """Write how the OCI runtime is called, and by which program others may have it cleaned up after; blocks."""
    bundle.write(files.INVOCATION, to_json(choice.invocation(bundle.namespace, spec)))
    bundle.write(files.BINARY, str(Path(sys.executable).with_name(PROGRAM)).encode())


async def undo(bundle: Bundle) -> Exit:
    """Undo by the OCI runtime what a shim of ours that is gone left behind."""
    from moored.plugins.runtime.shim.launcher import cleanup

    return await cleanup(bundle.path, bundle.namespace, bundle.id)
