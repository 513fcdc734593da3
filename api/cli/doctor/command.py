"""`moorctl doctor`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moored.api.cli import output
from moored.api.cli.settings import Settings, global_options, pass_settings

if TYPE_CHECKING:
    from moored.api.cli.doctor.findings import Finding

MARKS = {"ok": "ok  ", "warning": "warn", "failed": "FAIL"}
STYLES = {"ok": "32", "warning": "33", "failed": "1;31"}


@click.command(
    "doctor",
    epilog="""\b
JSON: {"ok", "findings": [{"check", "verdict", "what", "remedy"}]}
verdict: ok, warning, failed; ok: nothing failed

\b
Examples:
  moorctl doctor
  moorctl doctor cni forwarding
  moorctl --json doctor | jq '.findings[] | select(.verdict != "ok")'""",
)
@click.argument("checks", nargs=-1, metavar="[CHECK]...")
@click.option("--quiet", "-q", is_flag=True, help="Only what is not ok.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too.")
@global_options
@pass_settings
@click.pass_context
def doctor(ctx: click.Context, settings: Settings, checks: tuple[str, ...], quiet: bool, strict: bool) -> None:
    """Check the kernel, cgroups, runtimes, network plugins, permissions, disks and the daemon.

    Exits with 1 if a check failed, so that containers cannot run; warnings are about what not everybody needs,
    and count as well with --strict.
    """
    found = examined(settings, checks)
    failures = any(finding.verdict == "failed" for _, finding in found)
    bad = failures or (strict and any(finding.verdict == "warning" for _, finding in found))
    if settings.json:
        rows = [
            {"check": name, "verdict": finding.verdict, "what": finding.what, "remedy": finding.remedy}
            for name, finding in found
        ]
        output.write_json({"ok": not failures, "findings": rows})
    else:
        from moored.api.cli.tables import colours

        colour = colours(sys.stdout.isatty(), no_color=settings.no_color)
        shown = [(name, finding) for name, finding in found if not (quiet and finding.verdict == "ok")]
        output.write("".join(_lines(name, finding, colour=colour) for name, finding in shown))
    if bad:
        ctx.exit(1)


def examined(settings: Settings, wanted: tuple[str, ...]) -> list[tuple[str, Finding]]:
    """Carry out the checks, those that are named or all. Raises InvalidArgument for a name that is none."""
    from moored.api.cli.doctor import checks, daemon
    from moored.api.cli.doctor.findings import Host, Server
    from moored.api.cli.home import home
    from moored.api.cli.network.cni import PLUGIN_FOLDERS, plugin_folders
    from moored.kernel.errors import InvalidArgument

    known = [*checks.HOST, *daemon.CHECKS]
    if unknown := next((name for name in wanted if name not in known), None):
        raise InvalidArgument(f"there is no check {unknown!r}, wanted some of {', '.join(known)}")
    chosen = wanted or tuple(known)
    own = home(settings.address, settings.namespace).root.parent.parent
    host = Host(address=settings.address, cni_folders=plugin_folders() or PLUGIN_FOLDERS, own_root=own)
    server = Server()
    if any(name in daemon.CHECKS or name == "disk" for name in chosen):
        server = daemon.ask(settings)
        host = replace(host, daemon_root=Path(server.root)) if server.root else host
    found = [(name, check(host)) for name, check in checks.HOST.items() if name in chosen]
    return found + [(name, check(server)) for name, check in daemon.CHECKS.items() if name in chosen]


def _lines(name: str, finding: Finding, *, colour: bool) -> str:
    mark = MARKS[finding.verdict]
    mark = f"\x1b[{STYLES[finding.verdict]}m{mark}\x1b[0m" if colour else mark
    lines = f"{mark}  {name:<13} {output.printable(finding.what)}\n"
    if finding.remedy:
        lines += f"{'':<20}mend: {output.printable(finding.remedy)}\n"
    return lines
