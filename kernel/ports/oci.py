"""OCI runtimes: what is known of runc, crun, gVisor and others, so that shims can call them all the same way.

A driver runs nothing but its own detection. It turns a client's options into an *invocation*, plain data that the shim
manager stores in the bundle (`runtime.json`) and the shim follows, and adapts specs to what its runtime accepts.
Source: `contracts/shim-v2.md` 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from moored.kernel.plugin import PluginType


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What a client or the config asks of a runtime, as in `containerd.runc.v1.Options`; zero values for unset.

    binary       a name for PATH or an absolute path
    root         parent of the runtime's state folders; empty takes the driver's
    config_path  a file of the runtime's own settings (`runtimeoptions.v1.Options`), or its text in config_body
    """

    binary: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    criu_image_path: str = ""
    criu_work_path: str = ""
    config_path: str = ""
    config_body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """How a shim calls the runtime: `binary *flags --root ROOT --log FILE --log-format json VERB ...`.

    driver       the driver's id
    binary       absolute path
    flags        global flags before those that every runtime has
    root         folder of the runtime's state for one namespace
    verbs        what the runtime can do beyond create, start, exec, kill, delete and state: of `pause`, `resume`, `ps`,
                 `update`, `checkpoint`, `restore`, `events`
    create_flags further flags of `create` (and `restore`), as `--no-pivot`
    exec_flags   further flags of `exec`
    kill_all     whether `kill --all` is known
    exits        how the end of a process is learnt: it is a `child` of the shim, or the runtime's verb `wait` tells
    environment  variables to add
    """

    driver: str
    binary: str
    root: str
    flags: tuple[str, ...] = ()
    systemd_cgroup: bool = False
    verbs: tuple[str, ...] = ("pause", "resume", "ps", "update", "checkpoint", "restore")
    create_flags: tuple[str, ...] = ()
    exec_flags: tuple[str, ...] = ()
    kill_all: bool = True
    exits: Literal["child", "wait"] = "child"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFacts:
    """What detection found: features is the JSON of the runtime's `features`, empty where it has none."""

    name: str
    binary: str
    version: str
    commit: str = ""
    spec_version: str
    features: bytes = b""


class OciRuntime(Protocol):
    """One kind of runtime. Its plugin skips itself with a reason only where it can never work on this host; a missing
    binary is told by `facts` at each use, so that installing it needs no restart.
    """

    async def facts(self, options: RuntimeOptions = RuntimeOptions()) -> RuntimeFacts:
        """Find the binary and ask it, once for each version of the file.

        Raises NotFound `runtime "runc" ..`, Unavailable when it fails or hangs.
        """

    def invocation(self, facts: RuntimeFacts, options: RuntimeOptions, namespace: str) -> Invocation:
        """How to call it for containers of a namespace. InvalidArgument for options that it cannot honour."""

    def adapt(self, facts: RuntimeFacts, spec: dict[str, Any]) -> None:
        """Change a spec in place to what the runtime accepts without changing what it means; in a worker thread.

        Unimplemented for what the runtime cannot do, naming the field.
        """


OCI_RUNTIME: Final[PluginType[OciRuntime]] = PluginType("io.moored.oci-runtime.v1")
"""The id is the driver's name, `runc`."""
