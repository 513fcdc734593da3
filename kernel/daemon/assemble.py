"""From the command line to a set of plugins: reads the config, finds and imports plugins, decodes their configs."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moored.config.check import check_plugins
from moored.config.load import Finding, Flags, Loaded, load
from moored.config.main_section import PROXY_TYPES, Lifecycle, ProxyPlugin
from moored.kernel.daemon.arguments import DEFAULT_CONFIG
from moored.kernel.registry import Candidate, Discovery, Fault, discover, entry_points, proxy_candidates
from moored.kernel.registry import Loaded as LoadedPlugin
from moored.kernel.registry import load as load_plugin


@dataclass(frozen=True, slots=True)
class Assembly:
    """All that is known before anything starts.

    `config` holds every finding of the config files; `faults` what makes the set of plugins senseless; `configs` the
    decoded tables by URI, for plugins that have a config class and no error in their table. `installed` are the
    candidates that distributions offer, those of `[proxy_plugins]` left out.
    """

    config: Loaded
    installed: Collection[str]
    candidates: Mapping[str, Candidate]
    plugins: Mapping[str, LoadedPlugin]
    configs: Mapping[str, Any]
    faults: tuple[Fault, ...]

    def classes(self) -> dict[str, type[Any] | None]:
        """URI -> config class of every imported plugin."""
        return config_classes(self.plugins, self.installed)


def flags(args: argparse.Namespace) -> Flags:
    """What the command line says over the config."""
    return Flags(root=args.root, state=args.state, address=args.address, log_level=args.log_level)


def read_config(args: argparse.Namespace) -> Loaded:
    """The config files and flags, merged; problems are in the result."""
    return load(args.config or DEFAULT_CONFIG, explicit=args.config is not None, flags=flags(args))


def assemble(args: argparse.Namespace) -> Assembly:
    """Do everything that needs no event loop. Plugins named in disabled_plugins are not imported."""
    config = read_config(args)
    main = config.main
    disabled = set(main.disabled_plugins) if main else set()
    lifecycle = main.lifecycle if main else Lifecycle()
    found = discover(entry_points(), disabled)
    candidates, faults = _with_proxies(found, config)
    plugins = {
        uri: load_plugin(candidate, seconds=float(lifecycle.start_timeout))
        for uri, candidate in candidates.items()
        if uri not in disabled
    }
    installed = frozenset(found.candidates)
    configs = check_plugins(config, config_classes(plugins, installed), known=installed)
    return Assembly(config, installed, candidates, plugins, configs, faults)


def _typed(proxy: ProxyPlugin) -> tuple[str, ProxyPlugin]:
    """A proxy's plugin type in full, and its settings saying the same."""
    kind = PROXY_TYPES.get(proxy.type, proxy.type)
    return kind, replace(proxy, type=kind)


def config_classes(plugins: Mapping[str, LoadedPlugin], installed: Collection[str]) -> dict[str, type[Any] | None]:
    """URI -> config class of every installed plugin that could be imported."""
    return {
        uri: plugin.registration.config
        for uri, plugin in plugins.items()
        if plugin.registration is not None and uri in installed
    }


def _with_proxies(found: Discovery, config: Loaded) -> tuple[dict[str, Candidate], tuple[Fault, ...]]:
    candidates = dict(found.candidates)
    faults = list(found.faults)
    proxies = config.main.proxy_plugins if config.main else {}
    if proxies:
        made, wrong = proxy_candidates({name: _typed(proxy) for name, proxy in proxies.items()})
        faults += wrong
        for candidate in made:
            if candidate.uri in candidates:
                taken = candidates[candidate.uri].source
                faults.append(
                    Fault(f"proxy_plugins.{candidate.id}: plugin {candidate.uri!r} is offered by {taken} too")
                )
            candidates[candidate.uri] = candidate
    return candidates, tuple(faults)


def errors(config: Loaded) -> list[Finding]:
    """The findings that forbid a start."""
    return [finding for finding in config.problems if finding.level == "error"]
