"""Checks a loaded configuration: the top level by itself, the plugins' sections against the plugins installed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from moored.config.load import GRPC_ADDRESS, TTRPC_ADDRESS, Finding, Loaded
from moored.config.main_section import PROXY_TYPES, TIMEOUTS, Main
from moored.config.origin import Origin, Ref, dotted
from moored.kernel.config import KeyPath, Level, Problem, decode, did_you_mean

# sockaddr_un holds 108 bytes, of which containerd keeps 4
MAX_SOCKET_PATH = 104
DEBUG_ADDRESS = ("plugins", "io.containerd.server.v1.debug", "address")


def check_main(loaded: Loaded) -> None:
    """Decode everything outside of `[plugins]` into `loaded.main` and report what is wrong with it."""
    before = len(loaded.problems)
    value, problems = decode(Main, loaded.tree, strict=loaded.strict)
    for problem in problems:
        _report_decoded(loaded, problem)
    _check_folders(loaded)
    _check_sockets(loaded)
    _check_plugin_names(loaded)
    _check_proxies(loaded)
    _check_timeouts(loaded)
    if all(problem.level != "error" for problem in loaded.problems[before:]):
        loaded.main = value


def check_plugins(
    loaded: Loaded, classes: Mapping[str, type[Any] | None], known: Collection[str] = ()
) -> dict[str, Any]:
    """Decode every plugin's section; gives the configs by URI, without those that have an error.

    `classes` maps the URIs of plugins to their config class, None for a plugin without configuration. `known` names
    further installed plugins whose sections are not looked into (disabled ones, which are never imported).
    """
    configs: dict[str, Any] = {}
    installed = {*classes, *known}
    for uri, cls in classes.items():
        if cls is not None:
            value, findings = loaded.decode_plugin(uri, cls)
            loaded.problems += [_inherited(uri, finding) for finding in findings]
            if value is not None:
                configs[uri] = value
    proxies = _proxy_uris(loaded)
    for uri in _keys(loaded, "plugins"):
        if uri not in installed and uri not in proxies.values():
            _report_unknown_plugin(loaded, uri, installed)
        elif classes.get(uri) is None and uri in classes:
            for key in loaded.section(uri):
                _report_no_settings(loaded, uri, key)
    _check_duplicates(loaded, proxies, installed)
    _check_disabled(loaded, {*installed, *proxies.values()})
    return configs


# --- top level -------------------------------------------------------------------------------------------------------


def _report_decoded(loaded: Loaded, problem: Problem) -> None:
    from moored.config.known import is_top_level
    from moored.config.migrations.v3_to_v4 import OLD_SECTIONS, SUCCESSORS

    if problem.kind != "unknown":
        loaded.report(problem.level, problem.key, problem.message, problem.kind)
    elif problem.key[0] in OLD_SECTIONS:
        for key in _keys(loaded, str(problem.key[0])):
            _report_old(loaded, problem.level, (str(problem.key[0]), key))
    elif problem.key in SUCCESSORS:
        _report_old(loaded, problem.level, (str(problem.key[0]), str(problem.key[1])))
    elif is_top_level(problem.key):
        loaded.report("warning", problem.key, "not used, newer versions of containerd do without it", "unknown")
    else:
        loaded.report(problem.level, problem.key, problem.message, "unknown")


def _report_old(loaded: Loaded, level: Level, key: tuple[str, str]) -> None:
    """A key of a section that exists only below version 4."""
    from moored.config.migrations.v3_to_v4 import SUCCESSORS

    if successors := SUCCESSORS.get(key):
        message = f"not used at version 4, did you mean {dotted(successors[0])}?"
    else:
        names = [name for section, name in SUCCESSORS if section == key[0]]
        message = f"unknown key{did_you_mean(key[1], names)}"
    loaded.report(level, key, message, "unknown")


def _check_folders(loaded: Loaded) -> None:
    paths = {key: _text(loaded, (key,), getattr(Main(), key)) for key in ("root", "state", "temp")}
    for key, path in paths.items():
        if path is None or (key == "temp" and not path):
            continue
        if not path:
            loaded.report("error", (key,), f"{key} is empty, wanted an absolute path")
        elif not path.startswith("/"):
            loaded.report("error", (key,), f"{key} {path!r} is relative, wanted an absolute path")
        elif os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - hot path
            loaded.report("error", (key,), f"{key} {path!r} is a file, wanted a folder")
    root, state = paths["root"], paths["state"]
    if root and state and os.path.normpath(root) == os.path.normpath(state):
        key = "state" if loaded.origin(("state",)).file or loaded.node.at("state") else "root"
        loaded.report("error", (key,), f"root and state are both {root!r}, wanted different folders")


def _check_sockets(loaded: Loaded) -> None:
    too_long = False
    for key in (GRPC_ADDRESS, TTRPC_ADDRESS, DEBUG_ADDRESS):
        address = _text(loaded, key, "")
        if address is None or not address.startswith("/"):
            continue
        size = len(os.fsencode(address))
        # the ttrpc address made from a faulty gRPC one is no fault of its own
        if size > MAX_SOCKET_PATH and not (key == TTRPC_ADDRESS and too_long and _same_place(loaded)):
            loaded.report(
                "error", key, f"socket path is {size} bytes long, wanted at most {MAX_SOCKET_PATH}: {address!r}"
            )
            too_long = key == GRPC_ADDRESS


def _same_place(loaded: Loaded) -> bool:
    return loaded.origin(GRPC_ADDRESS) == loaded.origin(TTRPC_ADDRESS)


def _check_plugin_names(loaded: Loaded) -> None:
    """Names without a dot: version 1 files have had theirs renamed, so others do nothing at all."""
    from moored.config.migrations.v1_to_v2 import plugin_uri

    for key in ("disabled_plugins", "required_plugins"):
        for name in _names(loaded, key):
            if "." not in name:
                uri, guessed = plugin_uri(name)
                hint = "" if guessed else f", did you mean {uri!r}?"
                message = f"plugin {name!r} is not a URI, wanted one like 'io.containerd.grpc.v1.cri'{hint}"
                loaded.problems.append(Finding("error", (key,), message, _entry_origin(loaded, key, name)))


def _check_proxies(loaded: Loaded) -> None:
    wanted = ", ".join(repr(name) for name in PROXY_TYPES)
    for name, proxy in _proxies(loaded).items():
        key = ("proxy_plugins", name)
        kind = proxy.get("type", "")
        if isinstance(kind, str) and kind not in PROXY_TYPES and kind not in PROXY_TYPES.values():
            hint = did_you_mean(kind, [*PROXY_TYPES, *PROXY_TYPES.values()])
            loaded.report(
                "error", (*key, "type"), f"proxy plugin {name!r} has type {kind!r}, wanted one of {wanted}{hint}"
            )
        if not proxy.get("address", ""):
            loaded.report("error", (*key, "address"), f"proxy plugin {name!r} has no address", "missing")
    uris: dict[str, str] = {}
    for name, uri in _proxy_uris(loaded).items():
        if (first := uris.setdefault(uri, name)) != name:
            loaded.report("error", ("proxy_plugins", name), f"proxy plugins {first!r} and {name!r} are both {uri!r}")


def _check_timeouts(loaded: Loaded) -> None:
    """Any name is allowed, but one that looks like containerd's and is not has no effect."""
    for name in _keys(loaded, "timeouts"):
        if name.startswith("io.containerd.timeout.") and name not in TIMEOUTS:
            hint = did_you_mean(name, TIMEOUTS)
            loaded.report("warning", ("timeouts", name), f"no timeout of that name is used{hint}", "unknown")


# --- plugins ---------------------------------------------------------------------------------------------------------


def _inherited(uri: str, finding: Finding) -> Finding:
    """A key that containerd has and the plugin here has not is no mistake of the operator."""
    from moored.config.known import is_key

    if finding.kind != "unknown" or not is_key(uri, finding.key[2:]):
        return finding
    message = "a setting of containerd that is not used here"
    return Finding("warning", finding.key, message, finding.origin, "unknown")


def _report_unknown_plugin(loaded: Loaded, uri: str, installed: Iterable[str]) -> None:
    from moored.config.known import is_plugin

    key = ("plugins", uri)
    if is_plugin(uri):
        loaded.report("warning", key, "not provided by any installed plugin", "unknown")
        return
    hint = did_you_mean(uri, installed)
    if not hint and "." not in uri:
        from moored.config.migrations.v1_to_v2 import plugin_uri

        found, guessed = plugin_uri(uri)
        hint = "" if guessed else f", did you mean {found!r}?"
    loaded.report("error" if loaded.strict else "warning", key, f"no plugin of that name is installed{hint}", "unknown")


def _report_no_settings(loaded: Loaded, uri: str, key: str) -> None:
    from moored.config.known import is_key

    path: KeyPath = ("plugins", uri, key)
    if is_key(uri, (key,)):
        loaded.report("warning", path, "a setting of containerd that is not used here", "unknown")
    else:
        level: Level = "error" if loaded.strict else "warning"
        loaded.report(level, path, f"unknown key, plugin {uri!r} has no settings", "unknown")


def _check_duplicates(loaded: Loaded, proxies: Mapping[str, str], installed: Collection[str]) -> None:
    disabled = set(_names(loaded, "disabled_plugins"))
    for name, uri in proxies.items():
        if uri in installed and uri not in disabled:
            message = f"proxy plugin {name!r} would be {uri!r}, which an installed plugin is already"
            loaded.report("error", ("proxy_plugins", name), message)


def _check_disabled(loaded: Loaded, installed: Collection[str]) -> None:
    """Disabling what does not exist does nothing; say so unless containerd has it."""
    from moored.config.known import is_plugin
    from moored.config.migrations.v2_to_v3 import RENAMED

    for name in _names(loaded, "disabled_plugins"):
        if "." in name and name not in installed and not is_plugin(name):
            hint = f", did you mean {RENAMED[name]!r}?" if name in RENAMED else did_you_mean(name, installed)
            message = f"plugin {name!r} is not installed{hint}"
            origin = _entry_origin(loaded, "disabled_plugins", name)
            loaded.problems.append(Finding("warning", ("disabled_plugins",), message, origin, "unknown"))


# --- looking into the tree -------------------------------------------------------------------------------------------


def _text(loaded: Loaded, key: tuple[str, ...], default: str) -> str | None:
    """A string that may be absent; None when it is something else, which decoding reports."""
    node = loaded.node.at(*key)
    if node is None:
        return default
    return node.value if isinstance(node.value, str) else None


def _names(loaded: Loaded, key: str) -> list[str]:
    node = loaded.node.at(key)
    value = node.value if node is not None else []
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _proxies(loaded: Loaded) -> dict[str, dict[str, Any]]:
    node = loaded.node.at("proxy_plugins")
    table = node.plain() if node is not None else {}
    if not isinstance(table, dict):
        return {}
    return {name: proxy for name, proxy in table.items() if isinstance(proxy, dict)}


def _proxy_uris(loaded: Loaded) -> dict[str, str]:
    """The plugin URI of each proxy plugin whose type is known, by its name."""
    found = {}
    for name, proxy in _proxies(loaded).items():
        kind = proxy.get("type")
        if isinstance(kind, str) and (kind in PROXY_TYPES or kind in PROXY_TYPES.values()):
            found[name] = f"{PROXY_TYPES.get(kind, kind)}.{name}"
    return found


def _keys(loaded: Loaded, section: str) -> list[str]:
    node = loaded.node.at(section)
    return list(node.table or {}) if node is not None else []


def _entry_origin(loaded: Loaded, key: str, name: str) -> Origin:
    """The place of one entry of a list that several files may have added to."""
    for file in loaded.files:
        entries = file.document.values.get(key)
        if isinstance(entries, list) and name in entries:
            return Ref(file.document, (key, entries.index(name))).origin()
    return loaded.place((key,))
