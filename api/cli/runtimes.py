"""Runtimes as people name them: `runc`, `crun`, `runsc`, a binary's path, or the name of a shim."""

from __future__ import annotations

from typing import Final

from moored.kernel.ports.containers import TypedBytes

RUNC: Final = "io.containerd.runc.v2"
RUNSC: Final = "io.containerd.runsc.v1"
OPTIONS_TYPE: Final = "containerd.runc.v1.Options"


def runtime(name: str) -> tuple[str, TypedBytes | None]:
    """Give the name and options to ask the daemon for; empty for its default.

    A name that is no shim's is a binary that speaks runc's command line, so that containerd's own shim takes it too.
    """
    match name:
        case "" | "runc":
            return (RUNC if name else ""), None
        case "runsc" | "gvisor":
            return RUNSC, None
        case _ if name.startswith("io.containerd.") or (name.startswith("/") and "containerd-shim-" in name):
            return name, None
        case _:
            from moored.api.types.runc.options.oci_pb2 import Options

            return RUNC, TypedBytes(OPTIONS_TYPE, Options(binary_name=name).SerializeToString())
