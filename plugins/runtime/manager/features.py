"""What a shim's runtime must be able to do for a spec: runc would silently leave out what it does not know."""

from __future__ import annotations

import json
from typing import Any

from moored.kernel.errors import MooredError, Unimplemented
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.shims import Shims
from moored.kernel.ports.tasks import RuntimeInfo
from moored.plugins.runtime.manager.bundle import spec_of


def has_mapped_mounts(data: bytes) -> bool:
    """Whether a spec mounts anything with ids mapped. Raises InvalidArgument for what is no spec."""
    if b'"uidMappings"' not in data and b'"gidMappings"' not in data:
        return False
    mounts = spec_of(data).get("mounts")
    return any(
        isinstance(one, dict) and (one.get("uidMappings") or one.get("gidMappings"))
        for one in (mounts if isinstance(mounts, list) else ())
    )


async def require_mapped_mounts(shims: Shims, runtime: str, options: TypedBytes | None) -> None:
    """Raise Unimplemented if a runtime says that it cannot map the ids of mounts, or cannot say.

    One that answers without features is not like runc, and is left alone.
    """
    try:
        info = await shims.info(runtime, options)
    except MooredError as error:
        raise Unimplemented(f"failed to validate OCI runtime features: runtime info: {error.text}") from error
    if info.features is not None and not _maps_mounts(info):
        raise Unimplemented("failed to validate OCI runtime features: idmap mounts not supported")


def _maps_mounts(info: RuntimeInfo) -> bool:
    try:
        found: Any = json.loads(info.features.value if info.features is not None else b"")
        return bool(found["linux"]["mountExtensions"]["idmap"]["enabled"])
    except (ValueError, KeyError, TypeError):
        return False
