"""Everything of the configuration file outside of `[plugins]`, as dataclasses with their documentation."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from moored.kernel.config import setting
from moored.kernel.duration import Duration

DEFAULT_CONFIG = "/etc/moored/config.toml"
DEFAULT_ROOT = "/var/lib/moored"
DEFAULT_STATE = "/run/moored"
DEFAULT_ADDRESS = "/run/moored/moored.sock"
DEFAULT_IMPORTS = ("conf.d/*.toml",)

LEVELS = ("", "trace", "debug", "info", "warn", "warning", "error", "fatal", "panic")

# what `type` of a proxy plugin may say, and the plugin type that it means
PROXY_TYPES = MappingProxyType(
    {
        "snapshot": "io.containerd.snapshotter.v1",
        "content": "io.containerd.content.v1",
        "diff": "io.containerd.differ.v1",
        "sandbox": "io.containerd.sandbox.controller.v1",
    }
)

TIMEOUTS = MappingProxyType(
    {
        "io.containerd.timeout.bolt.open": "0s",
        "io.containerd.timeout.cri.defercleanup": "1m0s",
        "io.containerd.timeout.metrics.shimstats": "2s",
        "io.containerd.timeout.shim.cleanup": "5s",
        "io.containerd.timeout.shim.load": "5s",
        "io.containerd.timeout.shim.shutdown": "3s",
        "io.containerd.timeout.task.state": "2s",
    }
)


@dataclass(frozen=True, kw_only=True)
class Debug:
    """[debug]"""

    level: str = setting("", choices=LEVELS, doc="how much to log, trace to panic; empty is info")
    format: str = setting("", choices=("", "text", "json"), doc="notation of log lines, text or json; empty is text")
    log_trace_id: bool = setting(False, doc="put the trace and span id of a request into its log lines")


@dataclass(frozen=True, kw_only=True)
class Cgroup:
    """[cgroup]"""

    path: str = setting("", doc="cgroup that the daemon moves itself into; empty leaves it where it was started")


@dataclass(frozen=True, kw_only=True)
class ProxyPlugin:
    """[proxy_plugins.NAME]: a plugin in a process of its own, reached through a socket."""

    type: str = setting("", doc="snapshot, content, diff or sandbox, or the plugin type in full")
    address: str = setting("", doc="socket of the process, dialled when it is first used")
    platform: str = setting("", doc="platform that it serves, such as linux/amd64; empty is this host's")
    exports: dict[str, str] = setting(factory=dict, doc="names and values to show with the plugin")
    capabilities: list[str] = setting(factory=list, doc="what the plugin can do, as it says of itself")


@dataclass(frozen=True, kw_only=True)
class StreamProcessor:
    """[stream_processors.NAME]: a program that turns layers of one media type into another."""

    accepts: list[str] = setting(factory=list, doc="media types that it reads")
    returns: str = setting("", doc="media type that it writes")
    path: str = setting("", doc="program, a path or a name on PATH")
    args: list[str] = setting(factory=list, doc="its arguments")
    env: list[str] = setting(factory=list, doc="its environment besides the daemon's, NAME=VALUE")


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """[lifecycle]"""

    start_timeout: Duration = setting(Duration(10), ge=0, doc="time that each plugin has to start")
    stop_timeout: Duration = setting(Duration(10), ge=0, doc="time that each plugin has to stop")


@dataclass(frozen=True, kw_only=True)
class Main:
    """The file's top level."""

    version: int = setting(4, doc="version of this file's layout; without it the file is read as version 1")
    root: str = setting(DEFAULT_ROOT, doc="folder of everything that must last, absolute")
    state: str = setting(DEFAULT_STATE, doc="folder of everything that ends with this boot, absolute")
    temp: str = setting("", doc="folder for temporary files; empty is the system's")
    disabled_plugins: list[str] = setting(factory=list, doc="URIs of plugins not to start")
    required_plugins: list[str] = setting(factory=list, doc="URIs of plugins without which the daemon must not start")
    oom_score: int = setting(0, ge=-1000, le=1000, doc="oom_score_adj of the daemon; 0 leaves it as it is")
    imports: list[str] = setting(
        factory=lambda: list(DEFAULT_IMPORTS), doc="further files, later ones win; relative to this file, * allowed"
    )
    strict: bool = setting(True, doc="whether an unknown key is an error; false makes it a warning. Main file only")
    debug: Debug = setting(factory=Debug, doc="the daemon's log")
    cgroup: Cgroup = setting(factory=Cgroup, doc="the daemon's cgroup")
    lifecycle: Lifecycle = setting(factory=Lifecycle, doc="deadlines of starting and stopping plugins")
    timeouts: dict[str, Duration] = setting(
        factory=lambda: {name: Duration.parse(text) for name, text in TIMEOUTS.items()},
        doc="deadlines by name",
    )
    proxy_plugins: dict[str, ProxyPlugin] = setting(factory=dict, doc="plugins in processes of their own")
    stream_processors: dict[str, StreamProcessor] = setting(
        factory=lambda: {name: StreamProcessor(**values) for name, values in stream_processors().items()},
        doc="programs that layers of unusual media types are piped through",
    )
    plugins: dict[str, Any] = setting(factory=dict, doc="a section for each plugin, named by its URI")


def stream_processors() -> dict[str, dict[str, Any]]:
    """The stream processors that exist unless their names are overwritten: encrypted layers."""
    layer = "application/vnd.oci.image.layer.v1.tar"
    keys = "/etc/moored/ocicrypt"
    return {
        f"io.containerd.ocicrypt.decoder.v1.tar{suffix}": {
            "accepts": [f"{layer}{media}+encrypted"],
            "returns": f"{layer}{media}",
            "path": "ctd-decoder",
            "args": ["--decryption-keys-path", f"{keys}/keys"],
            "env": [f"OCICRYPT_KEYPROVIDER_CONFIG={keys}/ocicrypt_keyprovider.conf"],
        }
        for suffix, media in (("", ""), (".gzip", "+gzip"))
    }


def defaults() -> dict[str, Any]:
    """The entries of tables that a file adds to rather than replaces, as its lowest layer."""
    return {"timeouts": dict(TIMEOUTS), "stream_processors": stream_processors()}
