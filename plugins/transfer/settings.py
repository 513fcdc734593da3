"""What the transfers of a daemon have in common: stores, limits, locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from moored.api.registry.settings import Limits, Policy
from moored.api.transfer.tracker import Tracker
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.transfer import ImageVerifier, StoredImages, Unpack
from moored.kernel.turns import Turns
from moored.plugins.transfer.unpack import Target, Unpacker

DEFAULT_SNAPSHOTTER = "overlayfs"


def slots(number: int) -> Callable[[], AbstractAsyncContextManager[object]]:
    """Give places for so many at once, 0 for any number."""
    if not number:
        return nullcontext
    places = asyncio.Semaphore(number)
    return lambda: places


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """All that one transfer gets from the plugin.

    downloads, uploads, unpacks   places, see `slots`
    limits, policy                of registry clients
    upload_chunk                  of registry clients
    parts, chunk                  how many parts of one layer at once, and their bytes
    """

    objects: Objects
    leases: LeaseManager
    log: FilteringBoundLogger
    verifiers: Mapping[str, ImageVerifier] = field(default_factory=dict)
    targets: Sequence[Target] = ()
    hosts_folders: Sequence[Path] = ()
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    downloads: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    uploads: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    unpacks: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    upload_chunk: int = 0
    parts: int = 1
    chunk: int = 0
    locks: Turns[tuple[str, ...]] = field(default_factory=Turns)

    def unpacker(self, wanted: StoredImages, tracker: Tracker) -> Unpacker | None:
        """Give what unpacks as a client wishes, None if it wishes nothing.

        Raises InvalidArgument `unable to initialize unpacker: no unpack platforms defined` where no wish can be met.
        """
        if not wanted.unpacks:
            return None
        targets = [target for one in wanted.unpacks if (target := self._target(one)) is not None]
        if not targets:
            raise InvalidArgument("unable to initialize unpacker: no unpack platforms defined")
        return Unpacker(self.objects, targets, tracker, self.log, locks=self.locks, slots=self.unpacks)

    def _target(self, wish: Unpack) -> Target | None:
        able = [target for target in self.targets if target.takes(wish.platform)]
        named = [target for target in able if target.snapshotter == (wish.snapshotter or DEFAULT_SNAPSHOTTER)]
        found = named or ([] if wish.snapshotter else able)
        if not found:
            self.log.warning(
                "unpacking as asked for is not configured", platform=str(wish.platform), snapshotter=wish.snapshotter
            )
            return None
        return found[0]
