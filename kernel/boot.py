"""Which run of the machine this is: what was not durable when another one ended may be lost or half there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Give the kernel's name of this boot; the same until the machine starts anew. Blocking; raises OSError."""
    return BOOT_ID.read_text("ascii").strip()
