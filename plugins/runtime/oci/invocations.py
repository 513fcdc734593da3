"""How each runtime is called: pure functions that need no daemon, so that a shim under a real containerd has them too.

What the runtimes do was found by running runc 1.1.5, crun 1.8.1 and runsc 20221219 below a subreaper:

- All take `FLAGS --root DIR --log FILE --log-format json VERB ..`, and `create`, `start`, `exec --process --detach`,
  `kill [--all]`, `delete [--force]`, `pause`, `resume`, `state` with the same arguments. Pid files hold a decimal
  number without a newline.
- The init of each, and each exec, is re-parented to the subreaper, which so learns its exit; for runsc that is the
  sandbox process (it ends with init's status, 137 for SIGKILL) and a helper for each exec. runsc re-parents its gofer
  and stubs too, and its `delete` fails after 5 s if nobody reaps the sandbox meanwhile.
- `log.json`: a JSON object a line, from runsc without anything between the objects; `level` error is the text to show,
  runc may write a `fatal` one before it. Exit statuses mean nothing (runc 1 or 255, crun 1 or 255, runsc 128 or 2).
- crun's `ps --format json` spans lines. runsc's gives pids of inside the sandbox, so it counts as having none; it has
  no `update`, no `features`, no `--no-pivot`; `checkpoint` wants `--network=none` and cannot leave the container
  running, so it counts as having none; signal 0 and a kill before `start` are refused; a missing executable fails
  `start`, not `create`.
- kill(2) on the pid of a runsc exec ends only its helper: `kill --pid N` takes the sandbox's own number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, cast

from moored.kernel.errors import InvalidArgument, NotFound
from moored.kernel.ports.invocations import Invocation, RuntimeFacts, RuntimeOptions

if TYPE_CHECKING:
    from moored.plugins.runtime.oci.host import Host

DRIVERS: Final = ("runc", "crun", "runsc")
DEFAULT_ROOT: Final = "/run/containerd"
"""Without a daemon's config the state of runtimes is where containerd has it, in a folder for each."""
MAX_CONFIG_BYTES: Final = 1 << 20
_VERBS: Final = ("pause", "resume", "ps", "update", "checkpoint", "restore")
_NETNS_SYSCTL: Final = (6, 11)
_NETNS_SYSCTL_KNOWN: Final = 2024_08_12


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A driver's config; options of a container come before it.

    driver          one of DRIVERS, whose flags the binary takes
    id              of the driver plugin
    binary          a name for PATH or an absolute path
    root            parent of the state folders of namespaces
    platform, network, ignore_cgroups   of runsc only: "" and None find out what the host and the spec need
    """

    driver: str = "runc"
    id: str = ""
    binary: str = ""
    flags: tuple[str, ...] = ()
    root: str = ""
    systemd_cgroup: bool = False
    platform: str = ""
    network: str = ""
    ignore_cgroups: bool | None = None


def driver_of(binary: str) -> str:
    """Which driver's flags a binary takes, by its file name; runc's for any unknown one."""
    name = os.path.basename(binary)  # noqa: PTH119 - pathlib weighs in shims
    return name if name in DRIVERS else "runc"


def located(binary: str, path: str | None = None) -> str:
    """The absolute path of a program that can be run: looked for on PATH, or as given.

    Errors: NotFound `runtime "X" ..`; InvalidArgument for a relative path.
    """
    if binary.startswith("/"):
        places = [binary]
    elif "/" in binary or not binary:
        raise InvalidArgument(f'runtime "{binary}" must be a name or an absolute path')
    else:
        folders = (os.environ.get("PATH", os.defpath) if path is None else path).split(os.pathsep)
        places = [f"{folder}/{binary}" for folder in folders if folder.startswith("/")]
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113 - pathlib weighs in shims
            return place
    where = "there is no such program" if binary.startswith("/") else "no such program on PATH"
    raise NotFound(f'runtime "{binary}" is not installed: {where}')


def default_invocation(
    options: RuntimeOptions, namespace: str, spec: Mapping[str, Any] | None = None, *, host: Host | None = None
) -> Invocation:
    """How to call a runtime without a daemon that knows it: the driver is chosen by the binary's name.

    Errors: NotFound if the binary is not there; InvalidArgument for options that the driver cannot honour.
    """
    from moored.plugins.runtime.oci.host import look  # shims read most invocations ready made

    driver = driver_of(options.binary)
    settings = Settings(driver=driver, binary=driver, root=f"{DEFAULT_ROOT}/{driver}")
    facts = RuntimeFacts(name=driver, binary=located(options.binary or driver), version="", spec_version="")
    return invocation_of(settings, facts, options, namespace, spec or {}, host=host or look())


def invocation_of(
    settings: Settings,
    facts: RuntimeFacts,
    options: RuntimeOptions,
    namespace: str,
    spec: Mapping[str, Any],
    *,
    host: Host,
) -> Invocation:
    """How to call the runtime that the facts are of, for a container with that spec.

    InvalidArgument for options that it cannot honour.
    """
    systemd = options.systemd_cgroup or settings.systemd_cgroup
    if systemd and not host.systemd:
        raise InvalidArgument("systemd_cgroup is set, but systemd does not run this host")
    common: dict[str, Any] = {
        "driver": settings.id or settings.driver,
        "binary": facts.binary,
        "root": f"{options.root or settings.root}/{namespace}",
        "systemd_cgroup": systemd,
    }
    if settings.driver == "runsc":
        flags = _runsc_flags(settings, facts, options, spec, host)
        return Invocation(flags=flags, verbs=("pause", "resume", "events"), signals="verb", **common)
    if options.config_path or options.config_body:
        raise InvalidArgument(f'runtime "{settings.driver}" has no config file')
    create = (*_flag("--no-pivot", options.no_pivot_root), *_flag("--no-new-keyring", options.no_new_keyring))
    verbs = (*_VERBS, "events") if settings.driver == "runc" else _VERBS
    return Invocation(flags=settings.flags, create_flags=create, verbs=verbs, **common)


def to_json(invocation: Invocation) -> bytes:
    """Write it as `runtime.json`."""
    table = {one.name: getattr(invocation, one.name) for one in fields(invocation)}
    return json.dumps({**table, "environment": dict(invocation.environment)}).encode()


def from_json(data: bytes) -> Invocation:
    """Read what `to_json` wrote. InvalidArgument for anything else."""
    try:
        table = json.loads(data)
    except ValueError as error:
        raise InvalidArgument(f"the invocation is no JSON: {error}") from None
    if not isinstance(table, dict):
        raise InvalidArgument(f"the invocation must be a JSON object, it is {type(table).__name__}")
    known = {one.name: _checked(one.name, table[one.name]) for one in fields(Invocation) if one.name in table}
    if missing := {"driver", "binary", "root"} - known.keys():
        raise InvalidArgument(f"the invocation has no {min(missing)!r}")
    return Invocation(**known)


_LISTS: Final = frozenset({"flags", "verbs", "create_flags", "exec_flags"})
_SWITCHES: Final = frozenset({"systemd_cgroup", "kill_all"})
_CHOICES: Final = {"exits": ("child", "wait"), "signals": ("pid", "verb")}


def _checked(name: str, value: Any) -> Any:
    """One field of an invocation, of its type."""
    if name in _LISTS:
        right = isinstance(value, list) and all(isinstance(one, str) for one in value)
        value = tuple(value) if right else value
    elif name in _SWITCHES:
        right = isinstance(value, bool)
    elif name == "environment":
        right = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    else:
        right = isinstance(value, str) and value in _CHOICES.get(name, (value,))
    if not right:
        raise InvalidArgument(f"{name!r} of the invocation is {value!r}")
    return value


def _flag(name: str, wanted: bool) -> tuple[str, ...]:
    return (name,) if wanted else ()


def _runsc_flags(
    settings: Settings, facts: RuntimeFacts, options: RuntimeOptions, spec: Mapping[str, Any], host: Host
) -> tuple[str, ...]:
    if options.no_pivot_root:
        raise InvalidArgument('runtime "runsc" cannot honour no_pivot_root')
    if options.criu_image_path or options.criu_work_path:
        raise InvalidArgument('runtime "runsc" has no CRIU images')
    chosen = _runsc_config(options)
    ignored = settings.ignore_cgroups
    if ignored is None:
        ignored = not host.gvisor_cgroups
    found = {
        "platform": settings.platform,
        "network": settings.network or _network(facts, spec, host),
        "ignore-cgroups": "true" if ignored else "",
    }
    table = {**{name: value for name, value in found.items() if value}, **chosen}
    return (*(f"--{name}={value}" for name, value in table.items()), *settings.flags)


def _network(facts: RuntimeFacts, spec: Mapping[str, Any], host: Host) -> str:
    """What runsc's `--network` must be for a spec; "" for its default, a network stack of its own in the sandbox.

    That default refuses to work in the host's network namespace, which runsc knew until August 2024 by a file that
    kernels since 6.11 show in every namespace. Where it is fooled so, a given namespace is used as the host would, and
    a new one, in which there is nothing to reach, is given up for a loopback.
    """
    linux = spec.get("linux")
    spaces = linux.get("namespaces") if isinstance(linux, dict) else None
    network = [one for one in spaces or () if isinstance(one, dict) and one.get("type") == "network"]
    if not network:
        return "host" if spec else ""
    if host.kernel < _NETNS_SYSCTL or _runsc_date(facts.version) >= _NETNS_SYSCTL_KNOWN:
        return ""
    return "host" if network[0].get("path") else "none"


def _runsc_date(version: str) -> int:
    """The number 20221219 of `release-20221219.0` and `0.0~20221219.0`; 0 for an unknown version."""
    digits = next((part for part in version.replace("-", ".").replace("~", ".").split(".") if len(part) == 8), "")
    return int(digits) if digits.isdecimal() else 0


def _runsc_config(options: RuntimeOptions) -> dict[str, str]:
    """Flags of the TOML file that containerd's runsc shim takes: the table `runsc_config`, name to value."""
    data = options.config_body
    if options.config_path and not data:
        try:
            with open(options.config_path, "rb") as file:  # noqa: PTH123 - pathlib weighs in shims
                data = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise InvalidArgument(f"config_path {options.config_path!r} cannot be read: {error.strerror}") from None
    if not data:
        return {}
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidArgument(f"the runtime's config has more than {MAX_CONFIG_BYTES} bytes")
    import tomllib

    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:
        raise InvalidArgument(f"the runtime's config is no TOML: {error}") from None
    flags = table.get("runsc_config", {})
    if not isinstance(flags, dict):
        raise InvalidArgument("runsc_config of the runtime's config must be a table")
    return {_flag_name(name): _flag_value(name, value) for name, value in cast(dict[str, Any], flags).items()}


def _flag_name(name: str) -> str:
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise InvalidArgument(f"runsc_config has a flag {name!r}")
    return name


def _flag_value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise InvalidArgument(f"{name!r} of runsc_config must be a text, number or boolean, it is {value!r}")
