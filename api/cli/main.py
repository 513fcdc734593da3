"""Entry point of `moorctl`: the root command, and errors as one line with exit status 1 (2 for wrong usage).

Commands are imported when they are called, and slow modules (grpc, rich) by the commands that need them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import Any, Final

import click

from moored.api.cli.failing import Failed
from moored.api.cli.lazy import Entry, LazyGroup
from moored.api.cli.settings import global_options
from moored.kernel.errors import MooredError

_CLI: Final = "moored.api.cli"
_CONTAINERS: Final = "Containers"
_IMAGES: Final = "Images"
_STORES: Final = "Namespaces and stores"
_DAEMON: Final = "Daemon"
_HELP: Final = "Help"

COMMANDS: Final[Mapping[str, Entry]] = {
    "run": Entry(f"{_CLI}.run:run", "Make a container and run it.", _CONTAINERS),
    "create": Entry(f"{_CLI}.run:create", "Make a container without starting it.", _CONTAINERS),
    "start": Entry(f"{_CLI}.start:start", "Start containers that were made or have ended.", _CONTAINERS),
    "exec": Entry(f"{_CLI}.exec:exec_", "Run one more process in a container.", _CONTAINERS),
    "attach": Entry(f"{_CLI}.attach:attach", "Join the terminal or output of a running container.", _CONTAINERS),
    "ps": Entry(f"{_CLI}.ps:ps", "List containers.", _CONTAINERS),
    "logs": Entry(f"{_CLI}.logs:logs", "Show what a detached container has written.", _CONTAINERS),
    "top": Entry(f"{_CLI}.top:top", "List the processes of a container.", _CONTAINERS),
    "stats": Entry(f"{_CLI}.stats:stats", "Watch what containers use.", _CONTAINERS),
    "inspect": Entry(f"{_CLI}.inspect:inspect", "Show all that is known of containers or images.", _CONTAINERS),
    "stop": Entry(f"{_CLI}.ending:stop", "End containers, in good order if they let themselves be asked.", _CONTAINERS),
    "restart": Entry(f"{_CLI}.ending:restart", "Stop containers and start them again.", _CONTAINERS),
    "kill": Entry(f"{_CLI}.ending:kill", "Send a signal to containers.", _CONTAINERS),
    "pause": Entry(f"{_CLI}.ending:pause", "Freeze containers.", _CONTAINERS),
    "unpause": Entry(f"{_CLI}.ending:unpause", "Let frozen containers go on.", _CONTAINERS),
    "wait": Entry(f"{_CLI}.ending:wait", "Wait until containers have ended and tell how.", _CONTAINERS),
    "rm": Entry(f"{_CLI}.rm:rm", "Remove containers.", _CONTAINERS),
    "cp": Entry(f"{_CLI}.cp:cp", "Copy files into and out of containers.", _CONTAINERS),
    "diff": Entry(f"{_CLI}.diff:diff", "List what a container has changed in its image's files.", _CONTAINERS),
    "images": Entry(f"{_CLI}.images:images", "List images.", _IMAGES),
    "pull": Entry(f"{_CLI}.pull:pull", "Fetch images from registries.", _IMAGES),
    "push": Entry(f"{_CLI}.pull:push", "Send an image to its registry.", _IMAGES),
    "load": Entry(f"{_CLI}.archives:load", "Read images from an archive.", _IMAGES),
    "save": Entry(f"{_CLI}.archives:save", "Write images to an archive.", _IMAGES),
    "tag": Entry(f"{_CLI}.images:tag", "Give an image a further name.", _IMAGES),
    "rmi": Entry(f"{_CLI}.images:rmi", "Remove images.", _IMAGES),
    "commit": Entry(f"{_CLI}.commit:commit", "Make an image of a container's changes.", _IMAGES),
    "namespace": Entry(f"{_CLI}.namespaces:namespace", "List, make and remove namespaces.", _STORES),
    "content": Entry(f"{_CLI}.content:content", "Look into the content store.", _STORES),
    "snapshot": Entry(f"{_CLI}.snapshots:snapshot", "Look into a snapshotter.", _STORES),
    "lease": Entry(f"{_CLI}.leases:lease", "List, make and remove leases.", _STORES),
    "metadata": Entry(f"{_CLI}.metadata:metadata", "Copy the daemon's metadata.", _STORES),
    "df": Entry(f"{_CLI}.df:df", "Tell what takes how much disk.", _STORES),
    "prune": Entry(f"{_CLI}.prune:prune", "Remove what is not in use.", _STORES),
    "info": Entry(f"{_CLI}.info:info", "Tell about the daemon and its host.", _DAEMON),
    "version": Entry(f"{_CLI}.info:version", "Print the versions of moorctl and of the daemon.", _DAEMON),
    "events": Entry(f"{_CLI}.events:events", "Watch what happens.", _DAEMON),
    "plugins": Entry(f"{_CLI}.plugins:plugins", "Show the daemon's plugins and what became of them.", _DAEMON),
    "config": Entry(f"{_CLI}.config:config", "Show the running daemon's configuration.", _DAEMON),
    "doctor": Entry(f"{_CLI}.doctor.command:doctor", "Check the host, and say how to mend what is wrong.", _DAEMON),
    "completion": Entry(f"{_CLI}.completion:completion", "Print a completion script for a shell.", _HELP),
    "man": Entry(f"{_CLI}.man:man", "Write the manual pages.", _HELP),
}
"""Every command, in the order of the help."""


class _Root(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MooredError as error:
            raise Failed(str(error)) from error


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from moored.api.cli.info import client_version

        click.echo(f"moorctl {client_version()}")
        ctx.exit()


@click.group(
    cls=_Root,
    entries=COMMANDS,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="""\b
Examples:
  moorctl run -it --rm alpine sh
  moorctl run -d --name web -p 8080:80 nginx
  moorctl -n k8s.io ps
  moorctl plugins why overlayfs
  moorctl -a /run/containerd/containerd.sock version""",
)
@global_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print moorctl's version.",
)
def root() -> None:
    """Run containers with a moored daemon, or any other daemon of containerd's API, and look after it.

    The options of this command may also stand after the name of any other. Exit status: 0, 1 for an error, 2 for wrong
    usage; run, exec, start and attach pass on that of the process, and give 125 for an error of their own, 126 for a
    program that cannot be run and 127 for one that is not there.
    """


def main() -> None:
    """Run `moorctl` with the arguments of the process; ends in SystemExit."""
    # What imports leave in memory stays to the end; looking through it again and again takes a tenth of their time.
    gc.disable()
    # Read when grpc is imported: its own log lines would stand beside the one line that an error gets.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    root.main(prog_name="moorctl")


if __name__ == "__main__":
    main()
