"""`moorctl completion`: scripts by which shells complete commands, options and the names of containers and images."""

from __future__ import annotations

import click

from moored.api.cli import output
from moored.api.cli.settings import global_options

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog="""\b
Examples:
  source <(moorctl completion bash)
  moorctl completion zsh > "${fpath[1]}/_moorctl"
  moorctl completion fish > ~/.config/fish/completions/moorctl.fish""",
)
@click.argument("shell", type=click.Choice(SHELLS))
@global_options
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    output.write(script(shell))


def script(shell: str) -> str:
    """Give the script; it asks `moorctl` itself, which asks the daemon for names."""
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    from moored.api.cli.main import root

    kinds = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    made = kinds[shell](root, {}, "moorctl", "_MOORCTL_COMPLETE")
    # `source` of click's own asks bash for its version first, which need not be there where the script is made.
    return str(made.source_template % made.source_vars()).strip() + "\n"
