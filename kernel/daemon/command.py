"""The `moored` command line: decodes arguments, refuses what cannot work with every reason at once, runs the daemon."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import structlog

from moored.config.main_section import Main
from moored.config.report import line
from moored.kernel.daemon import logs
from moored.kernel.daemon.arguments import COMMAND_ENTRY_POINT_GROUP, parse
from moored.kernel.daemon.assemble import Assembly, assemble, errors, read_config
from moored.kernel.daemon.process import join_cgroup, prepare_folders, set_oom_score
from moored.kernel.daemon.version import full_version
from moored.kernel.errors import InvalidArgument, MooredError
from moored.kernel.folderlock import FolderLock
from moored.kernel.hooks import new_manager
from moored.kernel.lifecycle import Kernel, Settings
from moored.kernel.registry import Source, describe, entry_points

log = structlog.get_logger("moored.daemon")


def run(argv: list[str] | None, began: float) -> int:
    """Run the command; returns the exit status: 0, 1 for what the operator must mend, 2 for a senseless call.

    `began` is the time.monotonic() of the process's start.
    """
    installed = _Commands()
    args = parse(argv, installed.summaries())
    if args.version:
        sys.stdout.write(f"moored {full_version()}\n")
        return 0
    try:
        if args.command is None:
            return _daemon(args, began)
        return _config_verb(args) if args.command == "config" else installed.run(args)
    except KeyboardInterrupt:
        return 130


class _Commands:
    """The commands that distributions offer; of several offers of one name none is taken."""

    def __init__(self) -> None:
        self._offers: dict[str, list[tuple[Source, Callable[[], object]]]] = {}
        for name, source, get in entry_points(COMMAND_ENTRY_POINT_GROUP):
            if name != "config":
                self._offers.setdefault(name, []).append((source, get))

    def summaries(self) -> dict[str, str]:
        """Name -> who offers it."""
        return {
            name: "command of " + " and ".join(source.distribution for source, _ in offers)
            for name, offers in self._offers.items()
        }

    def run(self, args: argparse.Namespace) -> int:
        """Carry one out; 1 with a line on standard error if it cannot be imported."""
        offers = self._offers[args.command]
        if len(offers) > 1:
            told = " and by ".join(str(source) for source, _ in offers)
            sys.stderr.write(f"moored: command {args.command!r} is offered by {told}\n")
            return 1
        try:
            command = cast(Callable[[argparse.Namespace], int], offers[0][1]())
        except Exception as error:  # noqa: BLE001 - the import of somebody else's code ends here
            sys.stderr.write(f"moored: command {args.command!r} cannot be imported: {describe(error)}\n")
            return 1
        args.folders = lambda: _folders(args)
        args.socket = lambda: _socket(args)
        return command(args)


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    """Root and state as a daemon with this command line has them. Raises InvalidArgument for a config with errors."""
    config = read_config(args)
    if config.main is None:
        raise InvalidArgument("the config has errors, `moored config check` lists them")
    return Path(config.main.root), Path(config.main.state)


def _socket(args: argparse.Namespace) -> str:
    """The gRPC socket that files and flags name; "" where they leave it at its default."""
    listener = read_config(args).tree.get("plugins", {}).get("io.containerd.server.v1.grpc", {})
    return str(listener.get("address", ""))


def _config_verb(args: argparse.Namespace) -> int:
    from moored.config import commands

    if args.verb == "migrate":
        args.config = args.file or args.config
        return commands.migrate(args, sys.stdout.write, {})
    assembly = assemble(args)
    classes, known = assembly.classes(), assembly.installed
    try:
        if args.verb == "default":
            return commands.default(args, sys.stdout.write, classes)
        verb = commands.dump if args.verb == "dump" else commands.check
        return verb(args, sys.stdout.write, classes, known)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _daemon(args: argparse.Namespace, began: float) -> int:
    assembly = assemble(args)
    config, main_section = assembly.config, assembly.config.main
    logs.configure(main_section.debug.level if main_section else "", main_section.debug.format if main_section else "")
    for finding in config.problems:
        (log.error if finding.level == "error" else log.warning)("config", problem=line(finding))
    if errors(config) or main_section is None:
        return _refuse(["the config has errors, `moored config check` lists them"])
    kernel = _kernel(assembly, main_section)
    if faults := (*assembly.faults, *kernel.faults()):
        return _refuse(fault.text for fault in faults)
    try:
        locks = _take_over(main_section)
    except MooredError as error:
        return _refuse([error.text])
    from moored.kernel.daemon.serve import serve
    from moored.kernel.daemon.view import View

    try:
        return serve(kernel, View(assembly, main_section, kernel, args), began)
    finally:
        for lock in locks:
            lock.release()


def _kernel(assembly: Assembly, main_section: Main) -> Kernel:
    settings = Settings(
        root=Path(main_section.root),
        state=Path(main_section.state),
        start_timeout=float(main_section.lifecycle.start_timeout),
        stop_timeout=float(main_section.lifecycle.stop_timeout),
        configs=assembly.configs,
        disabled=frozenset(main_section.disabled_plugins),
        required=tuple(main_section.required_plugins),
    )
    return Kernel(assembly.candidates, assembly.plugins, settings, new_manager())


def _take_over(main_section: Main) -> list[FolderLock]:
    """Make the folders the daemon's own and set up its process; two daemons may share neither root nor state."""
    os.umask(0o022)
    root, state = Path(main_section.root), Path(main_section.state)
    prepare_folders(root, state, main_section.temp)
    locks = [FolderLock(root), FolderLock(state)]
    set_oom_score(main_section.oom_score)
    join_cgroup(main_section.cgroup.path)
    return locks


def _refuse(reasons: Iterable[str]) -> int:
    for reason in reasons:
        log.error("cannot start", reason=reason)
    return 1
