"""Mounts erofs images: as files where the kernel can, through loop devices otherwise."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from moored.kernel.errors import Unimplemented
from moored.kernel.loops import loop_device
from moored.kernel.mounts import mount, unmount_all
from moored.kernel.ports.mounts import INTERNAL_OPTION, ActiveMount, Mount

VERITY: Final = f"{INTERNAL_OPTION}dmverity="


class ErofsHandler:
    """The port's MountHandler for type `erofs`. Further images are named by options `device=FILE`."""

    def __init__(self) -> None:
        self._takes_files = True
        """Until the kernel says otherwise (before Linux 6.12)."""

    async def mount(self, what: Mount, target: Path, earlier: Sequence[ActiveMount]) -> ActiveMount:
        """See the port. Raises Unimplemented for images whose blocks are to be verified."""
        if any(option.startswith(VERITY) for option in what.options):
            raise Unimplemented("erofs with dm-verity is not supported")
        wanted = replace(what, options=tuple(option for option in what.options if option != "loop"))
        await asyncio.to_thread(self._mount, wanted, target)
        return ActiveMount(mount=wanted, mount_point=str(target), mounted_at=time.time_ns())

    def _mount(self, what: Mount, target: Path) -> None:
        target.mkdir(mode=0o700)
        if self._takes_files or Path(what.source).is_block_device():
            try:
                mount(what, target)
            except OSError as error:
                if error.errno != errno.ENOTBLK:
                    raise
                self._takes_files = False
            else:
                return
        with ExitStack() as stack:
            mount(_through_loops(what, stack), target)

    async def unmount(self, target: Path) -> None:
        """See the port."""
        await asyncio.to_thread(unmount_all, target)


def _through_loops(what: Mount, stack: ExitStack) -> Mount:
    """Give the mount with a device for each file; they go with the mount once the stack is left."""

    def device(file: str) -> str:
        return stack.enter_context(loop_device(Path(file), read_only=True))

    options = []
    for option in what.options:
        key, _, file = option.partition("=")
        options.append(f"device={device(file)}" if key == "device" else option)
    return replace(what, source=device(what.source), options=tuple(options))
