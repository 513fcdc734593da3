"""Version 2 to 3: sections of plugins that were renamed or split; files of version 3 may still hold them.

The CRI plugin became three: the server's keys stay in `io.containerd.grpc.v1.cri`, images and runtime have sections of
their own. Where containerd forgets a value on the way the result here is the same, with a warning that names the key.
"""

from __future__ import annotations

from moored.config.migrations.draft import Draft, Path

CRI = ("plugins", "io.containerd.grpc.v1.cri")
IMAGES = ("plugins", "io.containerd.cri.v1.images")
RUNTIME = ("plugins", "io.containerd.cri.v1.runtime")
TASK = ("plugins", "io.containerd.runtime.v2.task")
SHIM = ("plugins", "io.containerd.shim.v1.manager")

RENAMED = {
    "io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
    "io.containerd.monitor.v1.cgroups": "io.containerd.monitor.task.v1.cgroups",
}
SERVER_KEYS = frozenset(
    {
        "disable_tcp_service",
        "enable_tls_streaming",
        "stream_idle_timeout",
        "stream_server_address",
        "stream_server_port",
        "x509_key_pair_streaming",
    }
)
_IMAGE_KEYS = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
_SNAPSHOT_KEYS = ("snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers")


def v2_to_v3(draft: Draft) -> None:
    """Move the sections in place."""
    for old, new in RENAMED.items():
        draft.move(("plugins", old), ("plugins", new))
    _sched_core(draft)
    if (cri := draft.get(CRI)) is not None and cri.table is not None:
        _images(draft)
        _runtime(draft)
        draft.prune(CRI)


def _sched_core(draft: Draft) -> None:
    """`sched_core` becomes a variable of the shims; any other section of the shim manager gets lost on the way."""
    if (task := draft.get(TASK)) is None or task.table is None:
        return
    draft.drop(SHIM, "a section io.containerd.runtime.v2.task below version 4 replaces it")
    value = draft.take((*TASK, "sched_core"))
    if value is None:
        return
    if value.value is True:
        draft.put((*SHIM, "env"), ["SCHED_CORE=1"], value.ref)
        draft.note((*TASK, "sched_core"), (*SHIM, "env"), value.ref)
    elif value.value is not False:
        draft.warn((*TASK, "sched_core"), "lost, it is not a boolean", value.ref)


def _images(draft: Draft) -> None:
    draft.move((*CRI, "sandbox_image"), (*IMAGES, "pinned_images", "sandbox"))
    for key in _IMAGE_KEYS:
        draft.move((*CRI, key), (*IMAGES, key))
    containerd = (*CRI, "containerd")
    for key in _SNAPSHOT_KEYS:
        if draft.get((*containerd, "runtimes")) is not None:
            draft.move((*containerd, key), (*IMAGES, key))
        else:
            draft.drop((*containerd, key), "it is only carried over when containerd.runtimes is set")


def _runtime(draft: Draft) -> None:
    for key in draft.table(CRI):
        if key not in SERVER_KEYS and key not in {"cni", "containerd"}:
            draft.move_unless_there((*CRI, key), (*RUNTIME, key))
    _cni(draft)
    _joined(draft, (*CRI, "containerd"), (*RUNTIME, "containerd"))
    runtimes = (*RUNTIME, "containerd", "runtimes")
    for name in draft.table(runtimes):
        if draft.get((*runtimes, name, "sandboxer")) is None:
            draft.move((*runtimes, name, "sandbox_mode"), (*runtimes, name, "sandboxer"))


def _cni(draft: Draft) -> None:
    """`bin_dir` becomes a list of one, which wins over a `bin_dirs` beside it."""
    old, new = (*CRI, "cni"), (*RUNTIME, "cni")
    bin_dir = draft.take((*old, "bin_dir"))
    if bin_dir is not None:
        for dirs in ((*old, "bin_dirs"), (*new, "bin_dirs")):
            draft.drop(dirs, "bin_dir replaces it")
        draft.put((*new, "bin_dirs"), [bin_dir.value], bin_dir.ref)
        draft.note((*old, "bin_dir"), (*new, "bin_dirs"), bin_dir.ref)
    _joined(draft, old, new)


def _joined(draft: Draft, old: Path, new: Path) -> None:
    """Move the keys of a table into another one whose own keys win."""
    for key in draft.table(old):
        draft.move_unless_there((*old, key), (*new, key))
    if (left := draft.get(old)) is not None and not left.value:
        draft.take(old)
