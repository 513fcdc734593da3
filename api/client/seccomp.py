"""The default system call filter: what containers may call unless asked otherwise.

The data beside this module (`seccomp.json`) names calls that are always allowed, those of an architecture, and those
that come with a capability. Everything else fails with EPERM.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

_ALLOW: Final = "SCMP_ACT_ALLOW"
_FAIL: Final = "SCMP_ACT_ERRNO"
_ENOSYS: Final = 38
_AF_ALG: Final = 38
_AF_VSOCK: Final = 40
_NEW_NAMESPACES: Final = 0x7E020000
"""Flags of clone(2) that ask for namespaces, but for time namespaces, which it cannot make."""
_PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
}


def default_profile(capabilities: Collection[str], architecture: str) -> dict[str, Any]:
    """Give the filter, as the runtime spec has it, for a process with these capabilities (`CAP_...`) at most."""
    data = _data()
    allowed = set(data["always"]) | set(data["architectures"].get(architecture, ()))
    for capability in capabilities:
        allowed |= set(data["capabilities"].get(capability, ()))
    calls: list[dict[str, Any]] = [{"names": sorted(allowed), "action": _ALLOW}]
    calls += [_only("socket", domain, operator) for domain, operator in _SOCKETS]
    calls += [_only("personality", value, "SCMP_CMP_EQ") for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        # Flags of clone3(2) are behind a pointer; ENOSYS makes programs take clone(2), whose flags can be looked at.
        calls.append({"names": ["clone3"], "action": _FAIL, "errnoRet": _ENOSYS})
        calls.append(_only("clone", _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ"))
    return {
        "defaultAction": _FAIL,
        "architectures": list(_ARCHITECTURES.get(architecture, ())),
        "syscalls": calls,
    }


# Neither AF_ALG nor AF_VSOCK: two `!=` of one rule would be tried as alternatives, so the ranges around them are named.
_SOCKETS: Final = (
    (_AF_ALG, "SCMP_CMP_LT"),
    (_AF_ALG + 1, "SCMP_CMP_EQ"),
    (_AF_VSOCK, "SCMP_CMP_GT"),
)


def _only(name: str, value: int, operator: str) -> dict[str, Any]:
    """Allow a call whose first argument compares so."""
    argument: dict[str, Any] = {"index": 0, "value": value, "op": operator}
    if operator == "SCMP_CMP_MASKED_EQ":
        argument["valueTwo"] = 0
    return {"names": [name], "action": _ALLOW, "args": [argument]}


@cache
def _data() -> Any:
    return json.loads(Path(__file__).with_name("seccomp.json").read_bytes())
