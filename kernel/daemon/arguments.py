"""The daemon's command line: containerd's flags and `config` verbs, and `config check` of our own."""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/moored/config.toml")
LEVEL_NAMES = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Decode the command line; ends the process with status 2 and a usage line when it makes no sense.

    `command` is None for the daemon itself, or `config` with `verb` default, dump, check or migrate.
    """
    parser = argparse.ArgumentParser(
        prog="moored",
        description="A container daemon that speaks containerd's API. Without a command it runs in the foreground.",
    )
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help=f"config file (default {DEFAULT_CONFIG})")
    parser.add_argument("-l", "--log-level", choices=LEVEL_NAMES, help="overrides debug.level of the config")
    parser.add_argument("-a", "--address", metavar="PATH", help="gRPC socket; ttrpc listens beside it, at PATH.ttrpc")
    parser.add_argument("--root", metavar="DIR", help="folder for lasting state")
    parser.add_argument("--state", metavar="DIR", help="folder for state of this boot")
    parser.add_argument("-v", "--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    config = commands.add_parser("config", help="print, check or migrate the config")
    verbs = config.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("default", help="the default config, with every setting of every installed plugin explained")
    dump = verbs.add_parser("dump", help="the effective config: defaults, files and flags merged")
    dump.add_argument("--origin", action="store_true", help="say for each value where it comes from")
    verbs.add_parser("check", help="find everything wrong with the config files; exit status 1 if there is anything")
    migrate = verbs.add_parser("migrate", help="the config file, rewritten for the newest version")
    migrate.add_argument("file", type=Path, nargs="?", metavar="FILE", help="another file than --config")
    return parser.parse_args(argv)
