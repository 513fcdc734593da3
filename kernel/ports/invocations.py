"""Plain data of OCI runtimes: what is asked of one, how a shim calls it, what is known of it.

Part of the port `kernel.ports.oci`; apart from it because shims read it too, and each import weighs in every container.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What a client or the config asks of a runtime, as `containerd.runc.v1.Options` has it; zero values for unset.

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
    """How a shim calls it: `binary *flags --root ROOT --log FILE --log-format json [--systemd-cgroup] VERB ...`.

    driver       the driver's id
    binary       absolute path
    flags        global flags before those that every runtime has
    root         folder of the runtime's state for one namespace; made by whoever calls the runtime first
    verbs        what the runtime can do beyond create, start, exec, kill, delete and state: of `pause`, `resume`, `ps`,
                 `update`, `checkpoint`, `restore`, `events`. A `ps` that gives other pids than the host's is none
    create_flags further flags of `create` (and `restore`), as `--no-pivot`
    exec_flags   further flags of `exec`
    kill_all     whether `kill --all` is known
    exits        how the end of a process is learnt: it is a child of the shim (`child`), or the runtime's `wait` tells
    signals      how a signal reaches an exec: kill(2) on its pid (`pid`), or `kill --pid N ID SIGNAL` (`verb`) with
                 the N that `exec --internal-pid-file FILE` wrote
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
    signals: Literal["pid", "verb"] = "pid"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFacts:
    """What detection found: features is the JSON of the runtime's `features`, empty where it has none.

    binary        absolute path
    version       of the runtime, as it writes it
    spec_version  the newest of the OCI runtime spec that it says it knows
    """

    name: str
    binary: str
    version: str
    commit: str = ""
    spec_version: str
    features: bytes = b""
