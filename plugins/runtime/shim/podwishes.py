"""What namespaces a sandbox is to hold, as its spec, its CRI config and its network say.

    asked for by                     held
    nothing                          none: the sandbox is the shim itself
    a spec's linux.namespaces        ipc, uts, network, pid: new ones, or those at the paths given
    CRI's PodSandboxConfig           ipc and pid where their mode is POD, uts unless the network is the host's
    a path of a network namespace    that one

Other kinds of namespaces are each container's own matter; user namespaces are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from moored.kernel.errors import InvalidArgument, Unimplemented
from moored.kernel.payloads import Packed
from moored.kernel.protowire import decode
from moored.plugins.runtime.shim import sandboxmessages as m

FLAGS: Final = {"network": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000, "pid": 0x20000000}
"""The kinds that a sandbox can hold, as clone(2) numbers them."""
_NAMESPACED: Final = re.compile(r"net\.[a-zA-Z0-9_.\-/]+|kernel\.(?:shm\w+|msg\w+|sem)|fs\.mqueue\.\w+")
"""Kernel settings that belong to a namespace; any other is the host's."""


class Wishes(NamedTuple):
    """What is to be held.

    namespaces  paths by kind, empty for a new one
    hostname    of a new uts namespace, empty for the host's
    sysctls     settings by name, all of them of the namespaces held
    cgroup      path of the one that all of the sandbox is in, empty for none
    """

    namespaces: Mapping[str, str]
    hostname: str = ""
    sysctls: Mapping[str, str] = {}
    cgroup: str = ""


def wishes_of(spec: Mapping[str, Any], options: Packed | None, netns: str) -> Wishes:
    """Put together what is asked for. Raises InvalidArgument, Unimplemented; TypeError for a spec that is none."""
    wishes = _of_spec(spec)
    if options is not None and options.type_url.rpartition("/")[2] == m.POD_CONFIG_URL:
        wishes = _of_pod(options.value, wishes)
    if netns:
        wishes = wishes._replace(namespaces={**wishes.namespaces, "network": netns})
    for name in wishes.sysctls:
        _check_sysctl(name, wishes.namespaces)
    return wishes


def _of_spec(spec: Mapping[str, Any]) -> Wishes:
    linux = spec.get("linux") or {}
    listed = {str(one.get("type")): str(one.get("path") or "") for one in linux.get("namespaces") or ()}
    if "user" in listed:
        raise Unimplemented("sandboxes with a user namespace are not supported")
    return Wishes(
        namespaces={kind: path for kind, path in listed.items() if kind in FLAGS},
        hostname=str(spec.get("hostname") or "") if "uts" in listed else "",
        sysctls={str(name): str(value) for name, value in (linux.get("sysctl") or {}).items()},
    )


def _of_pod(data: bytes, wishes: Wishes) -> Wishes:
    try:
        pod = decode(m.PodConfig, data)
    except ValueError as error:
        raise InvalidArgument(f"options of type {m.POD_CONFIG_URL!r} cannot be read: {error}") from error
    linux = pod.linux or m.LinuxPod()
    modes = (linux.security_context or m.SecurityContext()).namespace_options or m.NamespaceOption()
    if modes.userns_options is not None and modes.userns_options.mode == m.POD:
        raise Unimplemented("sandboxes with a user namespace are not supported")
    wanted = {"ipc": modes.ipc == m.POD, "pid": modes.pid == m.POD, "uts": modes.network != m.NODE}
    return Wishes(
        namespaces={**wishes.namespaces, **{kind: "" for kind, wants in wanted.items() if wants}},
        hostname=pod.hostname if wanted["uts"] else "",
        sysctls={**wishes.sysctls, **linux.sysctls},
        cgroup=cgroup_of(linux.cgroup_parent),
    )


def cgroup_of(parent: str) -> str:
    """Give the path of a pod's cgroup: CRI names it by its path, or where systemd makes cgroups by its slice.

    The slice `a-b.slice` lies in `a.slice`, wherever it is said to be.
    """
    name = parent.rpartition("/")[2]
    if not name.endswith(".slice"):
        return parent
    parts = [part for part in name.removesuffix(".slice").split("-") if part]
    return "/" + "/".join(f"{'-'.join(parts[:count])}.slice" for count in range(1, len(parts) + 1))


def _check_sysctl(name: str, namespaces: Mapping[str, str]) -> None:
    """Refuse what would change the host."""
    if not _NAMESPACED.fullmatch(name) or ".." in name:
        raise InvalidArgument(f"sysctl {name!r} is not of a namespace, wanted one of net.*, kernel.shm*, fs.mqueue.*")
    if (kind := "network" if name.startswith("net.") else "ipc") not in namespaces:
        raise InvalidArgument(f"sysctl {name!r} is of the host, which the sandbox shares: it has no {kind} namespace")
