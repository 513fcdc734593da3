"""`moorctl plugins`: the running daemon's plugins as a list, one explained, all as a graph."""

from __future__ import annotations

import click

from moored.api.cli import output, records
from moored.api.cli.settings import Settings, global_options, pass_settings


@click.group(
    "plugins",
    epilog="""\b
Examples:
  moorctl plugins ls
  moorctl plugins why overlayfs
  moorctl plugins graph --format dot | dot -Tsvg > plugins.svg""",
)
@global_options
def plugins() -> None:
    """Show the daemon's plugins and what became of them."""


@plugins.command(
    "ls",
    epilog="""\b
JSON: {"plugins": [{"uri", "type", "id", "status", "reason", "traceback",
  "blocked_by", "distribution", "distribution_version", "entry_point",
  "requires", "after", "depends_on", "waits_for", "import_seconds",
  "start_seconds", "started_at", "exports", "capabilities", "summary",
  "required", "essential", "order"}], "counts": {STATUS: NUMBER}}

\b
Examples:
  moorctl plugins ls
  moorctl plugins ls --status failed --status timed-out -v
  moorctl plugins ls --type snapshotter
  moorctl --json plugins ls | jq -r '.plugins[].uri'""",
)
@click.option("--status", "statuses", multiple=True, type=click.Choice(records.STATUSES, case_sensitive=False))
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Type, or a word of it such as snapshotter.")
@click.option("--verbose", "-v", is_flag=True, help="All that is known of each plugin.")
@global_options
@pass_settings
def ls(settings: Settings, statuses: tuple[str, ...], types: tuple[str, ...], verbose: bool) -> None:
    """List all plugins, those that do not run included, in the order of start.

    TIME is that of import and start together.
    """
    found = records.select(_ask(settings), statuses, types)
    from moored.api.cli import render, why

    if settings.json:
        output.write_json(
            {"plugins": [plugin.document() for plugin in found], "counts": records.counts(found)},
        )
        return
    screen = render.output(settings)
    if verbose:
        output.write("\n".join(screen.text(*why.description(plugin)) for plugin in found))
    elif found:
        output.write(screen.text(render.listing(found, screen.width)))
    click.echo(render.summary(records.counts(found)), err=True)


@plugins.command(
    "why",
    epilog="""\b
JSON: {"plugin": as in ls, "requires": [{"type", "providers": [{"uri",
  "status", "reason"}]}], "after": as requires, "causes": [{"name", "status",
  "reason", "because": as causes}], "root_causes": [NAME], "dependents":
  [{"uri", "status", "reason"}], "blocks": as dependents}

\b
Examples:
  moorctl plugins why overlayfs
  moorctl plugins why io.containerd.grpc.v1.images""",
)
@click.argument("name", metavar="ID")
@global_options
@pass_settings
def why(settings: Settings, name: str) -> None:
    """Explain what became of one plugin, down to the cause.

    ID is its full name or the end of it, if only one plugin ends so.
    """
    found = _ask(settings)
    from moored.api.cli import render
    from moored.api.cli import why as reasons

    explanation = reasons.explain(records.find(found, name), found)
    if settings.json:
        output.write_json(explanation.document())
    else:
        output.write(render.output(settings).text(*reasons.shown(explanation)))


@plugins.command(
    "graph",
    epilog="""\b
JSON: {"nodes": [{"name", "status"}], "edges": [{"from", "to", "soft"}]}

\b
Examples:
  moorctl plugins graph
  moorctl plugins graph native
  moorctl plugins graph --format mermaid > plugins.mmd
  moorctl plugins graph --format dot | dot -Tsvg > plugins.svg""",
)
@click.argument("name", metavar="[ID]", required=False)
@click.option(
    "--format", "form", type=click.Choice(["tree", "mermaid", "dot"]), default="tree", show_default=True, help="Output."
)
@global_options
@pass_settings
def graph(settings: Settings, name: str | None, form: str) -> None:
    """Draw which plugins need which; with an ID only what it needs and what needs it.

    An edge leads to what is needed. A dashed edge means: starts after it, does not require it.
    """
    found = _ask(settings)
    from moored.api.cli import graph as drawing
    from moored.api.cli import render

    focus = None if name is None else records.find(found, name).uri
    whole = drawing.build(found)
    shown = whole if focus is None else whole.around(focus)
    if settings.json:
        output.write_json(shown.document())
    elif form == "mermaid":
        output.write(drawing.mermaid(shown, focus))
    elif form == "dot":
        output.write(drawing.dot(shown, focus))
    else:
        text = render.output(settings).text(*drawing.tree(shown, focus))
        output.write(text)
        if marks := drawing.legend(text):
            click.echo(marks, err=True)


def _ask(settings: Settings) -> list[records.Plugin]:
    from moored.api.cli.connection import connect

    with connect(settings) as daemon:
        return daemon.plugins()
