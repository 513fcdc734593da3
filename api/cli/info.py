"""`moorctl version` and `moorctl info`: who answers, and on what."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings
from moored.kernel.errors import MooredError, NotFound, Unimplemented

if TYPE_CHECKING:
    from moored.api.client import Client


def client_version() -> str:
    """The version of the installed distribution, `unknown` where moored runs from a checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("moored")
    except PackageNotFoundError:
        return "unknown"


@click.command(
    "version",
    epilog="""\b
JSON: {"client": {"version"}, "server": {"version", "revision"} or null}

\b
Examples:
  moorctl version
  moorctl -a /run/containerd/containerd.sock version""",
)
@global_options
@pass_settings
def version(settings: Settings) -> None:
    """Print the versions of moorctl and of the daemon; containerd's is told too."""
    from moored.api.cli.connection import connect

    mine = client_version()
    try:
        with connect(settings) as daemon:
            theirs = daemon.version()
    except MooredError:
        if settings.json:
            output.write_json({"client": {"version": mine}, "server": None})
        else:
            output.write(f"client  {mine}\n")
        raise
    if settings.json:
        server = {"version": theirs.version, "revision": theirs.revision}
        output.write_json({"client": {"version": mine}, "server": server})
        return
    revision = f" (revision {theirs.revision})" if theirs.revision else ""
    output.write(f"client  {mine}\nserver  {output.printable(theirs.version + revision)}\n")


@click.command(
    "info",
    epilog="""\b
JSON: {"client": {"version"}, "server": {"version", "revision", "uuid", "pid",
  "address", "namespace"}, "counts": {"containers", "running", "images"},
  "snapshotters": [NAME], "default_snapshotter", "runtime": {"name",
  "version", "revision"} or null, "plugins": {"ok", "failed", "skipped"},
  "deprecations": [{"id", "message"}], "host": {"kernel", "architecture",
  "cpus", "memory", "cgroups"}}

\b
Examples:
  moorctl info
  moorctl --json info | jq .snapshotters""",
)
@global_options
@pass_settings
def info(settings: Settings) -> None:
    """Tell about the daemon, the namespace and the host."""
    from moored.api.cli.session import run

    async def body(client: Client) -> dict[str, Any]:
        return await _asked(client)

    found = run(settings, body)
    if settings.json:
        output.write_json(found)
    else:
        output.write("".join(f"{name + ':':<22}{output.printable(value)}\n" for name, value in _rows(found) if value))


async def _asked(client: Client) -> dict[str, Any]:
    from moored.api.cli.states import is_up, states

    theirs = await client.server.version()
    identity = await client.server.identity()
    plugins = await client.server.plugins()
    containers = await client.containers.list()
    known = await states(client)
    working = [plugin for plugin in plugins if not plugin.error]
    return {
        "client": {"version": client_version()},
        "server": {
            "version": theirs.version,
            "revision": theirs.revision,
            "uuid": identity.uuid,
            "pid": identity.pid,
            "address": client.address,
            "namespace": client.namespace,
        },
        "counts": {
            "containers": len(containers),
            "running": sum(is_up(known.get(one.id)) for one in containers),
            "images": len(await client.images.list()),
        },
        "snapshotters": [one.id for one in working if one.type == "io.containerd.snapshotter.v1"],
        "default_snapshotter": await _default(client),
        "runtime": await _runtime(client),
        "plugins": {
            "ok": len(working),
            "failed": sum(bool(one.error) and not one.skipped for one in plugins),
            "skipped": sum(one.skipped for one in plugins),
        },
        "deprecations": [{"id": one.id, "message": one.message} for one in identity.deprecations],
        "host": host(),
    }


async def _default(client: Client) -> str:
    try:
        return await client.default_snapshotter()
    except NotFound:
        return ""


async def _runtime(client: Client) -> dict[str, str] | None:
    try:
        found = await client.server.runtime()
    except (Unimplemented, MooredError):
        return None
    return {"name": found.name, "version": found.version, "revision": found.revision}


def host() -> dict[str, Any]:
    """Tell about the host that moorctl runs on."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count() or 0,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cgroups": 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,  # noqa: PTH110
    }


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    from moored.api.cli.quantities import size

    server, counts, plugins, about = found["server"], found["counts"], found["plugins"], found["host"]
    runtime = found["runtime"] or {}
    warnings = "; ".join(f"{one['id']}: {one['message']}" for one in found["deprecations"])
    return [
        ("client", found["client"]["version"]),
        ("server", f"{server['version']} {server['revision']}".strip()),
        ("address", server["address"]),
        ("namespace", server["namespace"]),
        ("uuid", server["uuid"]),
        ("pid", str(server["pid"] or "")),
        ("containers", f"{counts['containers']}, {counts['running']} running"),
        ("images", str(counts["images"])),
        ("snapshotters", ", ".join(found["snapshotters"])),
        ("default snapshotter", found["default_snapshotter"]),
        (
            "runtime",
            " ".join(
                filter(
                    None,
                    (
                        runtime.get("name", ""),
                        runtime.get("version", "").splitlines()[0] if runtime.get("version") else "",
                    ),
                )
            ),
        ),
        ("plugins", f"{plugins['ok']} ok, {plugins['failed']} failed, {plugins['skipped']} skipped"),
        ("deprecated in use", warnings),
        ("kernel", about["kernel"]),
        ("architecture", about["architecture"]),
        ("processors", str(about["cpus"])),
        ("memory", size(about["memory"])),
        ("cgroups", f"version {about['cgroups']}"),
    ]
