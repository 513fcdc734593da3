"""The doctor's questions to the daemon: does it answer, and do its plugins work."""

from __future__ import annotations

from moored.api.cli.doctor.findings import Finding, Server, failed, ok, warning
from moored.api.cli.settings import Settings
from moored.kernel.errors import MooredError


def ask(settings: Settings) -> Server:
    """Ask the daemon; a failure is part of the answer."""
    from moored.api.cli.session import run
    from moored.api.client import Client

    async def body(client: Client) -> Server:
        version = (await client.server.version()).version
        plugins = await client.server.plugins()
        broken = [(plugin.uri, plugin.error) for plugin in plugins if plugin.error and not plugin.skipped]
        working = [
            plugin.id for plugin in plugins if not plugin.error and plugin.type == "io.containerd.snapshotter.v1"
        ]
        return Server(version, broken, working)

    try:
        return run(settings, body)
    except MooredError as error:
        return Server(error=error.text)


def reachable(server: Server) -> Finding:
    """It answers."""
    if server.error:
        return failed("the daemon cannot be asked", server.error)
    return ok(f"daemon {server.version} answers")


def plugins(server: Server) -> Finding:
    """None of its plugins has failed."""
    if server.error:
        return warning("plugins are not known", "see the daemon's own finding")
    if server.broken:
        first, reason = server.broken[0]
        more = f" and {len(server.broken) - 1} more" if len(server.broken) > 1 else ""
        return warning(f"plugin {first}{more} failed: {reason}", f"moorctl plugins why {first}")
    return ok("no plugin failed")


def snapshotters(server: Server) -> Finding:
    """There is a snapshotter."""
    if server.error:
        return warning("snapshotters are not known", "see the daemon's own finding")
    if not server.snapshotters:
        return failed("no snapshotter works", "moorctl plugins ls --type snapshotter tells why")
    return ok(f"snapshotters: {', '.join(server.snapshotters)}")


CHECKS = {"daemon": reachable, "plugins": plugins, "snapshotters": snapshotters}
"""Every question, by its name."""
