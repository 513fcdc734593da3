"""Runs CNI plugins: adds a network namespace to a network, and takes it away again.

    ADD: plugin 1 -> result -> plugin 2 -> result .. -> kept        DEL: the same list backwards, with what was kept

Source: CNI specification 1.0, sections 2 to 4.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unknown

CONFIG_FOLDER: Final = "/etc/cni/net.d"
PLUGIN_FOLDERS: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
DEFAULT_NETWORK: Final = "bridge"
INTERFACE: Final = "eth0"
SECONDS: Final = 60.0
"""How long one plugin may take."""
MAX_CONFIG: Final = 1 << 20
"""Bytes of a network's configuration."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

BUILT_IN: Final[Mapping[str, Any]] = {
    "cniVersion": "1.0.0",
    "name": "bridge",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "moored0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.62.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ],
}
"""The network `bridge` where no file defines one."""


@dataclass(frozen=True, slots=True)
class Network:
    """A list of plugins and where it is from (`built in`, or a file)."""

    name: str
    version: str
    plugins: Sequence[Mapping[str, Any]]
    source: str = "built in"

    def document(self) -> dict[str, Any]:
        """Give it as a configuration list."""
        return {"cniVersion": self.version, "name": self.name, "plugins": list(self.plugins)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The namespace to add, and what its network is to know: capabilities as runtimeConfig has them."""

    container_id: str
    netns: str
    interface: str = INTERFACE
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)


def plugin_folders() -> list[str]:
    """Where plugins are looked for: CNI_PATH, else the usual places."""
    named = [folder for folder in os.environ.get("CNI_PATH", "").split(":") if folder]
    return named or [folder for folder in PLUGIN_FOLDERS if os.path.isdir(folder)]  # noqa: PTH112 - in order, no Paths


def config_folder() -> Path:
    """Where networks are defined: NETCONFPATH, else the usual place."""
    return Path(os.environ.get("NETCONFPATH") or CONFIG_FOLDER)


def networks(folder: Path) -> dict[str, Network]:
    """Read all networks of a folder by name, the first file of a name wins; files that cannot be read are left out."""
    found: dict[str, Network] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix not in {".conflist", ".conf", ".json"}:
            continue
        try:
            network = read_network(path)
        except InvalidArgument:
            continue
        found.setdefault(network.name, network)
    return found


def read_network(path: Path) -> Network:
    """Read a `.conflist`, or a `.conf` with one plugin. Raises InvalidArgument."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_CONFIG + 1)[:MAX_CONFIG])
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"network file '{path}' cannot be read: {error}") from error
    return decoded(found, str(path))


def decoded(found: Any, source: str) -> Network:
    """Check a configuration. Raises InvalidArgument naming its source."""
    if not isinstance(found, dict) or not _NAME.fullmatch(str(found.get("name", ""))):
        raise InvalidArgument(f"network {source} must be an object with a name")
    plugins: Any = found.get("plugins") if "plugins" in found else [found]
    good = (
        isinstance(plugins, list)
        and plugins
        and all(isinstance(p, dict) and _NAME.fullmatch(str(p.get("type", ""))) for p in plugins)
    )
    if not good:
        raise InvalidArgument(f"network {source} must have plugins with a type each")
    return Network(str(found["name"]), str(found.get("cniVersion", "0.2.0")), plugins, source)


def network(name: str, folder: Path | None = None) -> Network:
    """Find a network by name; `bridge` is built in where no file defines it. Raises NotFound naming those there are."""
    found = networks(folder or config_folder())
    if name in found:
        return found[name]
    if name == DEFAULT_NETWORK:
        return decoded(BUILT_IN, "built in")
    known = ", ".join(sorted({DEFAULT_NETWORK, *found}))
    raise NotFound(f"network {name!r} is not defined in {folder or config_folder()}, known are host, none, {known}")


def add(wanted: Network, endpoint: Endpoint) -> dict[str, Any]:
    """Add a namespace to a network and give the result. After an error what was done is undone."""
    result: dict[str, Any] | None = None
    try:
        for plugin in wanted.plugins:
            result = _run("ADD", wanted, plugin, endpoint, result) or result
    except BaseException:
        remove(wanted, endpoint, result)
        raise
    return result or {}


def remove(wanted: Network, endpoint: Endpoint, result: Mapping[str, Any] | None) -> list[str]:
    """Take a namespace from a network, all plugins whatever one of them says; gives what they said."""
    faults = []
    for plugin in reversed(wanted.plugins):
        try:
            _run("DEL", wanted, plugin, endpoint, result)
        except (Unknown, NotFound, FailedPrecondition, DeadlineExceeded) as error:
            faults.append(error.text)
    return faults


def addresses(result: Mapping[str, Any]) -> list[str]:
    """Give the container's addresses, without their prefix lengths."""
    found = [str(ip.get("address", "")).partition("/")[0] for ip in result.get("ips") or [] if isinstance(ip, dict)]
    return [address for address in found if address]


def _run(
    command: str, wanted: Network, plugin: Mapping[str, Any], endpoint: Endpoint, previous: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    kind = str(plugin["type"])
    config: dict[str, Any] = {**plugin, "name": wanted.name, "cniVersion": wanted.version}
    asked = config.pop("capabilities", None) or {}
    if runtime := {key: value for key, value in endpoint.capabilities.items() if asked.get(key) and value}:
        config["runtimeConfig"] = runtime
    if previous is not None:
        config["prevResult"] = previous
    try:
        done = subprocess.run(
            [_program(kind)],
            input=json.dumps(config).encode(),
            capture_output=True,
            check=False,
            timeout=SECONDS,
            env=_environment(command, endpoint),
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"network plugin {kind!r} took more than {SECONDS:g}s for {command}") from None
    except OSError as error:
        raise Unknown(f"network plugin {kind!r} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise Unknown(f"network plugin {kind!r} failed: {_reason(done.stdout, done.stderr)}")
    return _result(kind, done.stdout) if command == "ADD" else None


def _program(kind: str) -> str:
    folders = plugin_folders()
    found = shutil.which(kind, path=":".join(folders))
    if found is None:
        raise NotFound(
            f"network plugin {kind!r} is not in {', '.join(folders or PLUGIN_FOLDERS)}; install the CNI plugins "
            "(package containernetworking-plugins), or use --net host"
        )
    return found


def _environment(command: str, endpoint: Endpoint) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": endpoint.container_id,
        "CNI_NETNS": endpoint.netns,
        "CNI_IFNAME": endpoint.interface,
        "CNI_PATH": ":".join(plugin_folders()),
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in endpoint.args.items()),
    }


def _reason(output: bytes, errors: bytes) -> str:
    try:
        found = json.loads(output)
        return ": ".join(filter(None, (str(found.get("msg", "")), str(found.get("details", "")))))
    except (ValueError, AttributeError):
        return (errors or output).decode(errors="replace").strip()[-500:] or "it did not say why"


def _result(kind: str, output: bytes) -> dict[str, Any] | None:
    if not output.strip():
        return None
    try:
        found = json.loads(output)
    except ValueError:
        raise Unknown(f"network plugin {kind!r} answered what is no JSON") from None
    if not isinstance(found, dict):
        raise Unknown(f"network plugin {kind!r} answered what is no object")
    return found
