"""Capabilities by name, and the set that containers have unless asked otherwise (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from moored.kernel.errors import InvalidArgument

_NAMES: Final = """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
    net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct
    sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control
    setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore
"""
_USUAL: Final = """
    chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service sys_chroot kill
    audit_write
"""

ALL: Final = tuple(f"CAP_{name.upper()}" for name in _NAMES.split())
"""In the order of their numbers."""
DEFAULT: Final = frozenset(f"CAP_{name.upper()}" for name in _USUAL.split())

_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")


def known() -> Sequence[str]:
    """Give those that the running kernel has."""
    try:
        return ALL[: int(_LAST.read_text()) + 1]
    except (OSError, ValueError):
        return ALL


def chosen(base: Iterable[str], add: Iterable[str], drop: Iterable[str]) -> list[str]:
    """Give a set with some dropped, then some added, in the order of their numbers; `ALL` stands for all of them.

    Raises InvalidArgument for a name that is none.
    """
    kept = set(base) - _named(drop)
    kept |= _named(add)
    return [name for name in ALL if name in kept]


def _named(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        whole = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
        if whole == "CAP_ALL":
            found |= set(known())
        elif whole in ALL:
            found.add(whole)
        else:
            raise InvalidArgument(f"capability {name!r} is not known, wanted a name such as 'CAP_NET_ADMIN'")
    return found
