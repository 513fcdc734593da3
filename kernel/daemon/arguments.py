"""The daemon's command line: containerd's flags and `config` verbs, `config check` of our own, and installed commands.

An installed command is an entry point in the group `moored.commands`: its name is the command, its value a function
that takes the decoded command line and returns the exit status. It is imported only when it is called for. Besides what
`parse` gives, the command line has `folders`, a function that gives the daemon's root and state, and `socket`, one that
gives the path of its gRPC socket, "" where that is the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/moored/config.toml")
COMMAND_ENTRY_POINT_GROUP = "moored.commands"
LEVEL_NAMES = ("trace", "debug", "info", "warn", "error", "fatal", "panic")


def parse(argv: list[str] | None, installed: Mapping[str, str] | None = None) -> argparse.Namespace:
    """Decode the command line; ends the process with status 2 and a usage line when it makes no sense.

    `command` is None for the daemon itself, `config` with `verb` default, dump, check or migrate, or one of the
    `installed` commands (name -> a word on it for the help) with `rest`, all that follows its name.
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
    for name, summary in sorted((installed or {}).items()):
        # With a prefix that no argument has, everything is the command's to decode, options too.
        command = commands.add_parser(name, help=summary, add_help=False, prefix_chars="\0")
        command.add_argument("rest", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)
