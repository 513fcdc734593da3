"""Files as block devices for mounts that follow: what is at the mount point is a symbolic link to the device."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from moored.kernel import loops
from moored.kernel.ports.mounts import ActiveMount, Mount


class LoopHandler:
    """The port's MountHandler for type `loop`; options `ro` and `direct-io`.

    The device has a label by which it is told apart from one that others made later under the same number.
    """

    async def mount(self, what: Mount, target: Path, earlier: Sequence[ActiveMount]) -> ActiveMount:
        """See the port."""
        await asyncio.to_thread(_attach, what, target)
        return ActiveMount(mount=what, mount_point=str(target), mounted_at=time.time_ns())

    async def unmount(self, target: Path) -> None:
        """See the port."""
        await asyncio.to_thread(_detach, target)


def _attach(what: Mount, target: Path) -> None:
    direct = "direct-io" in what.options
    with loops.loop_device(Path(what.source), read_only=what.read_only, direct=direct, label=_label(target)) as device:
        # In this order: after a crash in between the device goes by itself.
        target.symlink_to(device)
        loops.keep(Path(device))


def _detach(target: Path) -> None:
    try:
        device = target.readlink()
    except FileNotFoundError:
        return
    loops.release(device, _label(target))
    target.unlink()


def _label(target: Path) -> str:
    return f"moored {hashlib.sha256(bytes(target)).hexdigest()[:48]}"
