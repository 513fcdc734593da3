"""The doctor's questions to the daemon: does it answer, do its plugins work, are its configuration files right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moored.api.cli.doctor.findings import Finding, Server, failed, ok, warning
from moored.api.cli.settings import Settings
from moored.kernel.errors import MooredError, Unimplemented

if TYPE_CHECKING:
    from moored.api.client.client import Client

CONFIG: Final = "/etc/moored/config.toml"
"""The configuration of a daemon that cannot be asked for its own."""
CHECK_SECONDS: Final = 30.0
_ADVICE: Final = ("start it with", "run moorctl as root", "wait longer with")


def ask(settings: Settings) -> Server:
    """Ask the daemon; a failure is part of the answer, and then its configuration is looked at without it."""
    from moored.api.cli.session import run

    try:
        return run(settings, _asked)
    except MooredError as error:
        what, advice = _parted(error.text.removesuffix("; moorctl doctor tells more"))
        return Server(error=what, advice=advice, problems=_problems(CONFIG), config=CONFIG)


async def _asked(client: Client) -> Server:
    version = (await client.server.version()).version
    plugins = await client.server.plugins()
    broken = [(plugin.uri, plugin.error) for plugin in plugins if plugin.error and not plugin.skipped]
    working = [plugin.id for plugin in plugins if not plugin.error and plugin.type == "io.containerd.snapshotter.v1"]
    try:
        values = {value.key: value.value_json for value in (await client.daemon.config()).values}
        files = (await client.daemon.config()).files
        problems = [
            f"{one.file}:{one.line}: {one.key}: {one.message}"
            for one in (await client.daemon.check()).problems
            if one.level == "error"
        ]
    except Unimplemented:
        return Server(version, broken, working)
    root = values.get("root", "").strip('"')
    return Server(version, broken, working, root=root, problems=problems, config=next(iter(files), CONFIG))


def _parted(text: str) -> tuple[str, str]:
    """Part an error from what it says to do next."""
    at = min((at for words in _ADVICE if (at := text.find(words)) > 0), default=len(text))
    return text[:at].rstrip(" ,;?").removesuffix(", is the daemon running"), text[at:] or "see the daemon's log"


def _problems(config: str) -> Sequence[str]:
    """What the daemon's program says of a configuration file; nothing where either is not there."""
    beside = Path(sys.executable).with_name("moored")
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which("moored")
    if program is None or not Path(config).exists():
        return ()
    words = [program, "-c", config, "config", "check"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=CHECK_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"{config} cannot be checked: {error}"]
    if done.returncode == 0:
        return ()
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line]
    return lines[1:] or lines


def reachable(server: Server) -> Finding:
    """It answers."""
    if server.error:
        return failed(f"the daemon cannot be asked: {server.error}", server.advice)
    return ok(f"daemon {server.version} answers")


def config(server: Server) -> Finding:
    """Its configuration files have no mistakes, so that it can start again."""
    if server.problems:
        more = f" and {len(server.problems) - 1} more" if len(server.problems) > 1 else ""
        return failed(
            f"{server.problems[0]}{more}; the daemon does not start so",
            f"correct it; moored -c {server.config} config check tells when all is right",
        )
    return ok("no mistakes in the configuration")


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


CHECKS = {"daemon": reachable, "config": config, "plugins": plugins, "snapshotters": snapshotters}
"""Every question, by its name."""
