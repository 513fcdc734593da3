"""A daemon's plugins for the tests of moorctl: a chain of failures, two providers of one type, soft edges."""

from __future__ import annotations

from typing import Any

from moored.api.cli.records import Plugin

CONTENT = "io.containerd.content.v1"
METADATA = "io.containerd.metadata.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
GRPC = "io.containerd.grpc.v1"
EVENT = "io.containerd.event.v1"
TRANSFER = "io.containerd.transfer.v1"

TRACEBACK = """\
Traceback (most recent call last):
  File "bolt.py", line 7, in open_
OSError: [Errno 28] No space left on device
"""


def plugin(type_: str, id_: str, status: str = "ok", **fields: Any) -> Plugin:
    made: dict[str, Any] = {
        "uri": f"{type_}.{id_}",
        "type": type_,
        "id": id_,
        "status": status,
        "distribution": "moored",
        "distribution_version": "0.1.0",
        "entry_point": f"moored.plugins.{id_}.plugin:plugin",
    }
    if status == "ok":
        made |= {"import_seconds": 0.002, "start_seconds": 0.01, "started_at": "2026-01-02T03:04:05Z"}
    return Plugin(**(made | fields))


def plugins() -> list[Plugin]:
    return [
        plugin(CONTENT, "content", summary="Keeps blobs in files.", exports={"root": "/var/lib/moored/c"}, order=0),
        plugin(EVENT, "exchange", essential=True, order=1),
        plugin(
            METADATA,
            "bolt",
            "failed",
            reason="OSError: [Errno 28] No space left on device",
            traceback=TRACEBACK,
            requires=(CONTENT,),
            depends_on=(f"{CONTENT}.content",),
            after=(EVENT,),
            waits_for=(f"{EVENT}.exchange",),
            import_seconds=0.003,
            start_seconds=1.25,
            required=True,
            order=2,
        ),
        plugin(
            SNAPSHOTTER,
            "zfs",
            "skipped",
            reason="/var/lib/moored is no zfs dataset",
            distribution="moored-zfs",
            distribution_version="2.0",
            order=3,
        ),
        plugin(SNAPSHOTTER, "native", order=4, capabilities=("rebase",)),
        plugin(
            GRPC,
            "images",
            "blocked",
            reason=f"requires {METADATA}: {METADATA}.bolt is failed (OSError: [Errno 28] No space left on device)",
            blocked_by=(f"{METADATA}.bolt",),
            requires=(METADATA, SNAPSHOTTER),
            depends_on=(f"{METADATA}.bolt", f"{SNAPSHOTTER}.native", f"{SNAPSHOTTER}.zfs"),
            order=5,
        ),
        plugin(
            GRPC,
            "cri",
            "blocked",
            reason=f"requires {GRPC}: {GRPC}.images is blocked",
            blocked_by=(f"{GRPC}.images", f"{METADATA}.bolt"),
            requires=(GRPC, SNAPSHOTTER),
            depends_on=(f"{GRPC}.images", f"{SNAPSHOTTER}.native"),
            order=6,
        ),
        plugin(
            GRPC,
            "transfer",
            "blocked",
            reason=f"requires {TRANSFER}, which no installed plugin provides",
            blocked_by=(TRANSFER,),
            requires=(TRANSFER,),
            order=7,
        ),
        plugin("io.containerd.nri.v1", "nri", "disabled", reason="named in disabled_plugins", order=8),
    ]
