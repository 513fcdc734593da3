"""The OCI spec of a pause container: what the sandbox asks for, completed with what its image and this host say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.sandboxes import NewSandbox
from moored.plugins.sandbox.pause.image import PauseImage

SPEC: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_OOM_SCORE: Final = -998
"""As CRI has it: of a pod, the process that holds it together is killed last."""
_ANNOTATIONS: Final = "io.kubernetes.cri."
"""Shims group the containers of a pod, and tell its first, by annotations of this name."""
_MASKED: Final = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                  "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware")  # fmt: skip
_READONLY: Final = ("/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MOUNTS: Final = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


def pause_spec(new: NewSandbox, image: PauseImage, namespace: str) -> TypedBytes:
    """Give the whole spec; what the sandbox' own spec has wins.

    Raises InvalidArgument for one that is none, FailedPrecondition where nothing says what to run.
    """
    asked = _asked(new)
    made: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": True},
        "hostname": new.sandbox.id,
        "mounts": [
            {"destination": place, "type": kind, "source": source, "options": list(options)}
            for place, kind, source, options in _MOUNTS
        ],
        **{key: value for key, value in asked.items() if key not in ("process", "linux", "annotations")},
        "process": {**_process(image), **_below(asked, "process")},
        "linux": _linux(new, _below(asked, "linux"), f"/{namespace}/{new.sandbox.id}"),
        "annotations": {
            f"{_ANNOTATIONS}container-type": "sandbox",
            f"{_ANNOTATIONS}sandbox-id": new.sandbox.id,
            **_below(asked, "annotations"),
            **new.annotations,
        },
    }
    if not made["process"]["args"]:
        raise FailedPrecondition(f"sandbox image {image.name!r} has nothing to run, and neither has the sandbox' spec")
    kinds = {one.get("type") for one in made["linux"]["namespaces"]}
    if "uts" not in kinds:
        made.pop("hostname")
    return TypedBytes(SPEC, json.dumps(made, separators=(",", ":")).encode())


def _asked(new: NewSandbox) -> Mapping[str, Any]:
    if new.sandbox.spec is None or not new.sandbox.spec.value:
        return {}
    try:
        found = json.loads(new.sandbox.spec.value)
    except ValueError as error:
        raise InvalidArgument(f"spec of sandbox {new.sandbox.id!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"spec of sandbox {new.sandbox.id!r} is no JSON object")
    return found


def _below(asked: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = asked.get(key) or {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"spec has {key!r} as a JSON {type(found).__name__}, wanted an object")
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def _process(image: PauseImage) -> dict[str, Any]:
    return {
        "args": list(image.args),
        "env": list(image.env),
        "cwd": image.cwd,
        "user": {"uid": image.uid, "gid": image.gid},
        "noNewPrivileges": True,
        "oomScoreAdj": _OOM_SCORE,
    }


def _linux(new: NewSandbox, asked: dict[str, Any], cgroup: str) -> dict[str, Any]:
    """Give the part for Linux: all namespaces are new unless the sandbox names its own, the network is as told."""
    listed = asked.get("namespaces") or [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    if new.netns:
        listed = [one for one in listed if one.get("type") != "network"]
        listed.append({"type": "network", "path": new.netns})
    return {
        "cgroupsPath": cgroup,
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        **asked,
        "namespaces": listed,
    }
