"""A container's resource use as the message that `Stats` answers with.

Source: contracts/shim-v2.md 11.
"""

from __future__ import annotations

import os

from moored.kernel.errors import NotFound
from moored.plugins.runtime.shim import stats_v1, stats_v2
from moored.plugins.runtime.shim.cgroups import Cgroups


def stats_of(cgroups: Cgroups | None) -> tuple[str, bytes]:
    """Give type and bytes of the metrics. Raises NotFound if there is no cgroup, or not any more."""
    if cgroups is not None and cgroups.unified and os.access(cgroups.unified, os.F_OK):
        return stats_v2.NAME, stats_v2.metrics(cgroups.unified)
    if cgroups is not None:
        folders = {name: folder for name, folder in cgroups.controllers.items() if os.access(folder, os.F_OK)}
        if folders:
            return stats_v1.NAME, stats_v1.metrics(folders)
    raise NotFound("cgroup does not exist")
