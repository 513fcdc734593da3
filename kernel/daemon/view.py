"""The daemon as plugins see it: joins the kernel's records with the config that it runs with."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from moored.config.check import check_plugins
from moored.config.dump import dump, values
from moored.config.load import Finding, Loaded
from moored.config.main_section import Main
from moored.config.origin import dotted
from moored.kernel.daemon.assemble import Assembly, read_config
from moored.kernel.daemon.version import full_version
from moored.kernel.lifecycle import Kernel
from moored.kernel.ports.daemon import (
    ConfigChange,
    ConfigCheck,
    ConfigProblem,
    ConfigValue,
    EffectiveConfig,
    PluginRecord,
    StreamProcessor,
)

log = structlog.get_logger("moored.daemon")


class View:
    """Implements kernel.ports.daemon.DaemonView for one running daemon."""

    revision = ""

    def __init__(self, assembly: Assembly, main: Main, kernel: Kernel, args: argparse.Namespace) -> None:
        self.version = full_version()
        self.started_at = datetime.now(UTC)
        self.root = Path(main.root)
        self.state = Path(main.state)
        self._assembly = assembly
        self._main = main
        self._kernel = kernel
        self._args = args
        self.given_up = asyncio.Event()

    def plugins(self) -> Sequence[PluginRecord]:
        """All plugins in start order, disabled ones last."""
        return self._kernel.records()

    def unhealthy(self) -> Sequence[str]:
        """Essential and required plugins that do not run."""
        return self._kernel.unhealthy()

    def give_up(self, reason: str) -> None:
        """Log why, and let `serve` stop."""
        log.error("giving up", reason=reason)
        self.given_up.set()

    def timeout(self, name: str) -> float | None:
        """Seconds of `[timeouts]."name"`."""
        found = self._main.timeouts.get(name)
        return None if found is None else float(found)

    def stream_processors(self) -> Sequence[StreamProcessor]:
        """`[stream_processors]` of the config."""
        return tuple(
            StreamProcessor(
                id=name,
                accepts=tuple(found.accepts),
                returns=found.returns,
                path=found.path,
                args=tuple(found.args),
                env=tuple(found.env),
            )
            for name, found in self._main.stream_processors.items()
        )

    async def config(self) -> EffectiveConfig:
        """The effective config; hashing its files again happens in a thread."""
        return await asyncio.to_thread(self._config)

    async def check_config(self) -> ConfigCheck:
        """Read and check the files as a start would, in a thread."""
        return await asyncio.to_thread(self._check)

    def _config(self) -> EffectiveConfig:
        config, classes = self._assembly.config, self._assembly.classes()
        return EffectiveConfig(
            toml=dump(config, classes),
            values=tuple(
                ConfigValue(key, json.dumps(value), str(origin)) for key, value, origin in values(config, classes)
            ),
            files=tuple(str(file.path) for file in config.files),
            drift=tuple(str(file.path) for file in config.files if _sha256(file.path) != file.sha256),
        )

    def _check(self) -> ConfigCheck:
        fresh = read_config(self._args)
        classes = self._assembly.classes()
        check_plugins(fresh, classes, known=self._assembly.installed)
        return ConfigCheck(
            problems=tuple(_problem(finding) for finding in fresh.problems),
            changes=tuple(self._changes(fresh, classes)) if fresh.ok else (),
        )

    def _changes(self, fresh: Loaded, classes: Mapping[str, type[Any] | None]) -> list[ConfigChange]:
        old = {key: value for key, value, _ in values(self._assembly.config, classes)}
        new = {key: value for key, value, _ in values(fresh, classes)}
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        by_plugin: dict[str, list[str]] = {}
        for key in changed:
            by_plugin.setdefault(_owner(key, classes), []).append(key)
        return [ConfigChange(owner, "restart", tuple(keys)) for owner, keys in by_plugin.items()]


def _owner(key: str, classes: Mapping[str, object]) -> str:
    """The URI of the plugin that a dotted key belongs to, "" for the daemon itself."""
    return next((uri for uri in classes if key.startswith(f"{dotted(('plugins', uri))}.")), "")


def _problem(finding: Finding) -> ConfigProblem:
    return ConfigProblem(finding.level, dotted(finding.key), finding.message, finding.origin.file, finding.origin.line)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
