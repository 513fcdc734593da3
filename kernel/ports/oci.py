"""OCI runtimes: what is known of runc, crun, gVisor and others, so that shims can call them all the same way.

A driver runs nothing but its own detection. It turns a client's options into an *invocation*, plain data that the shim
manager stores in the bundle (`runtime.json`) and the shim follows, and adapts specs to what its runtime accepts.
Source: `contracts/shim-v2.md` 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from moored.kernel.plugin import PluginType
from moored.kernel.ports.invocations import Invocation, RuntimeFacts, RuntimeOptions

__all__ = ["NO_OPTIONS", "OCI_RUNTIME", "Invocation", "OciRuntime", "RuntimeFacts", "RuntimeOptions"]

NO_OPTIONS: Final = RuntimeOptions()
"""Nothing asked: everything is the driver's choice."""


class OciRuntime(Protocol):
    """One kind of runtime. Its plugin skips itself with a reason only where it can never work on this host; a missing
    binary is told by `facts` at each use, so that installing it needs no restart.

    For one task the manager calls `facts`, `adapt`, `invocation`, in this order.
    """

    async def facts(self, options: RuntimeOptions = NO_OPTIONS) -> RuntimeFacts:
        """Find the binary and ask it, once for each version of the file.

        NotFound `runtime "runc" ..` if there is none; Unavailable if it fails, hangs or makes no sense. Calls may
        overlap: one asks, all get its answer.
        """

    def invocation(
        self, facts: RuntimeFacts, options: RuntimeOptions, namespace: str, spec: Mapping[str, Any]
    ) -> Invocation:
        """How to call it for a container of a namespace with that (adapted) spec; in a worker thread.

        InvalidArgument for options that it cannot honour.
        """

    def adapt(self, facts: RuntimeFacts, spec: dict[str, Any]) -> None:
        """Change a spec in place to what the runtime accepts without changing what it means; in a worker thread.

        A spec that is adapted already stays as it is. Unimplemented for what the runtime cannot do, naming the field.
        """


OCI_RUNTIME: Final[PluginType[OciRuntime]] = PluginType("io.moored.oci-runtime.v1")
"""The id is the driver's name, `runc`."""
