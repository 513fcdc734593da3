"""What `run` and `create` are asked for: their options as click has them, read into one value.

words of the command line --click--> Asked --options()--> moored.api.client.Options
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import click

from moored.api.cli.completing import images
from moored.kernel.errors import InvalidArgument, NotFound

F = TypeVar("F", bound=Callable[..., Any])

UNLIMITED: Final = (1 << 64) - 1
"""RLIM_INFINITY."""
MAX_ENV_FILE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All options, by the names that click gives them; the texts are as written."""

    image: str
    args: tuple[str, ...]
    name: str = ""
    interactive: bool = False
    tty: bool = False
    detach: bool = False
    rm: bool = False
    env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    user: str = ""
    group_add: tuple[str, ...] = ()
    workdir: str = ""
    entrypoint: str | None = None
    hostname: str = ""
    label: tuple[str, ...] = ()
    annotation: tuple[str, ...] = ()
    volume: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    shm_size: str = ""
    read_only: bool = False
    memory: str = ""
    memory_swap: str = ""
    memory_reservation: str = ""
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    ulimit: tuple[str, ...] = ()
    oom_score_adj: int | None = None
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    sysctl: tuple[str, ...] = ()
    net: str = "bridge"
    publish: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_option: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    pid: str = ""
    ipc: str = ""
    uts: str = ""
    restart: str = "no"
    stop_signal: str = ""
    stop_timeout: str = ""
    runtime: str = ""
    snapshotter: str = ""
    platform: str = ""
    pull: str = "missing"
    log_driver: str = "json-file"
    log_opt: tuple[str, ...] = ()
    cidfile: str = ""
    quiet: bool = False


def asked(values: Mapping[str, Any]) -> Asked:
    """Take the options out of what click has parsed."""
    names = {field.name for field in fields(Asked)}
    return Asked(**{key: value for key, value in values.items() if key in names and value is not None})


def _many(*names: str, metavar: str, help: str) -> Callable[[F], F]:  # noqa: A002 - click's term
    return click.option(*names, multiple=True, metavar=metavar, help=help)


def _text(*names: str, metavar: str, help: str, default: str = "") -> Callable[[F], F]:  # noqa: A002
    return click.option(*names, metavar=metavar, default=default, show_default=bool(default), help=help)


def _flag(*names: str, help: str) -> Callable[[F], F]:  # noqa: A002
    return click.option(*names, is_flag=True, help=help)


OPTIONS: Final[Sequence[Callable[[Any], Any]]] = (
    _text("--name", metavar="NAME", help="Name of the container; made up if left out."),
    _flag("--interactive", "-i", help="Pass standard input on."),
    _flag("--tty", "-t", help="Give the process a terminal."),
    _flag("--rm", help="Remove the container when it ends."),
    _many("--env", "-e", metavar="NAME[=VALUE]", help="Set a variable; without a value moorctl's own."),
    _many("--env-file", metavar="FILE", help="Set the variables of a file, NAME=VALUE a line."),
    _text("--user", "-u", metavar="USER[:GROUP]", help="Who the process is, by name or number."),
    _many("--group-add", metavar="GROUP", help="A further group."),
    _text("--workdir", "-w", metavar="PATH", help="Folder that the process starts in."),
    click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's; empty for none."),
    _text("--hostname", "-h", metavar="NAME", help="Host name in the container."),
    _many("--label", "-l", metavar="KEY=VALUE", help="Label of the container."),
    _many("--annotation", metavar="KEY=VALUE", help="Annotation of the runtime's spec."),
    _many("--volume", "-v", metavar="[SOURCE:]PLACE[:OPTIONS]", help="Mount a path of the host, or a volume."),
    _many("--mount", metavar="type=TYPE,..", help="Mount: type=bind|volume|tmpfs,source=..,target=..,readonly."),
    _many("--tmpfs", metavar="PLACE[:OPTIONS]", help="Mount an empty file system in memory."),
    _many("--device", metavar="PATH[:PLACE[:rwm]]", help="Give access to a device."),
    _text("--shm-size", metavar="SIZE", help="Size of /dev/shm."),
    _flag("--read-only", help="Let nobody write to the root file system."),
    _text("--memory", "-m", metavar="SIZE", help="Limit of memory, such as 512m."),
    _text("--memory-swap", metavar="SIZE", help="Limit of memory and swap together; -1 for none."),
    _text("--memory-reservation", metavar="SIZE", help="Memory it is pushed back to when that is short."),
    click.option("--cpus", type=float, metavar="NUMBER", help="Processors' worth of time, such as 1.5."),
    click.option("--cpu-shares", "-c", type=int, metavar="NUMBER", help="Weight against others, 1024 is usual."),
    _text("--cpuset-cpus", metavar="LIST", help="Which processors, such as 0-2,7."),
    _text("--cpuset-mems", metavar="LIST", help="Which memory nodes."),
    click.option("--pids-limit", type=int, metavar="NUMBER", help="Most processes and threads; -1 for no limit."),
    _many("--ulimit", metavar="NAME=SOFT[:HARD]", help="Limit of each process, such as nofile=1024:2048."),
    click.option("--oom-score-adj", type=click.IntRange(-1000, 1000), metavar="NUMBER", help="-1000 to 1000."),
    _flag("--privileged", help="Give all capabilities and devices; this is root of the host."),
    _many("--cap-add", metavar="NAME", help="Add a capability, or ALL."),
    _many("--cap-drop", metavar="NAME", help="Take a capability away, or ALL."),
    _many("--security-opt", metavar="OPTION", help="seccomp=unconfined|FILE, apparmor=PROFILE, no-new-privileges."),
    _many("--sysctl", metavar="KEY=VALUE", help="Kernel parameter of the container's namespaces."),
    _text(
        "--net", "--network", metavar="NETWORK", default="bridge", help="host, none, container:NAME or a CNI network."
    ),
    _many("--publish", "-p", metavar="[[IP:]PORT:]PORT[/PROTOCOL]", help="Lead a port of the host to the container."),
    _many("--dns", metavar="ADDRESS", help="DNS server, in place of the host's."),
    _many("--dns-search", metavar="DOMAIN", help="DNS search domain."),
    _many("--dns-option", metavar="OPTION", help="DNS option."),
    _many("--add-host", metavar="NAME:ADDRESS", help="Line of /etc/hosts."),
    _text("--pid", metavar="host|container:NAME", help="Whose processes are seen."),
    _text("--ipc", metavar="host|container:NAME", help="Whose shared memory is used."),
    _text("--uts", metavar="host", help="host: the host's own name."),
    _text("--restart", metavar="POLICY", default="no", help="no, always, unless-stopped or on-failure[:N]."),
    _text("--stop-signal", metavar="SIGNAL", help="What `stop` sends, in place of the image's."),
    _text("--stop-timeout", metavar="TIME", help="How long `stop` waits before it kills."),
    _text("--runtime", metavar="NAME", help="runc, crun, runsc, a binary, or a shim's name."),
    _text("--snapshotter", metavar="NAME", help="Snapshotter for the root file system."),
    _text("--platform", metavar="OS/ARCH", help="Platform of the image, such as linux/arm64."),
    click.option(
        "--pull",
        type=click.Choice(["missing", "always", "never"]),
        default="missing",
        show_default=True,
        help="When to fetch the image.",
    ),
    click.option(
        "--log-driver",
        type=click.Choice(["json-file", "plain", "none"]),
        default="json-file",
        show_default=True,
        help="How a detached container's output is kept.",
    ),
    _many("--log-opt", metavar="KEY=VALUE", help="max-size=SIZE (16m), max-file=NUMBER (3)."),
    _text("--cidfile", metavar="FILE", help="Write the id to a new file."),
    _flag("--quiet", "-q", help="Show no progress of a pull."),
)


def container_options(command: F) -> F:
    """Give a command the options, and the image and command as its arguments."""
    command = click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]")(command)
    command = click.argument("image", metavar="IMAGE", shell_complete=images)(command)
    for option in reversed(OPTIONS):
        command = option(command)
    return command


# --- reading ----------------------------------------------------------------------------------------------------------


def pairs(texts: Sequence[str], what: str) -> dict[str, str]:
    """Read KEY=VALUE texts; a missing value is empty. Raises InvalidArgument without a key."""
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise InvalidArgument(f"{what} {text!r} must look like KEY=VALUE")
        found[key] = value
    return found


def environment(asked: Asked) -> dict[str, str | None]:
    """Read -e and --env-file, in that the first wins; a variable without a value is moorctl's own, or none."""
    found: dict[str, str | None] = {}
    texts = [line for name in asked.env_file for line in _env_lines(name)]
    for text in (*texts, *asked.env):
        name, equals, value = text.partition("=")
        if not name:
            raise InvalidArgument(f"variable {text!r} must look like NAME=VALUE")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _env_lines(name: str) -> list[str]:
    try:
        with Path(name).open("rb") as file:
            text = file.read(MAX_ENV_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"environment file {name!r} cannot be read: {error}") from error
    lines = [line.lstrip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def size(text: str, option: str) -> int | None:
    """Read a size, -1 for no limit, None for empty. Raises InvalidArgument naming the option."""
    from moored.api.cli.quantities import parse_size

    if not text:
        return None
    if text == "-1":
        return -1
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidArgument(f"{option}: {error}") from error


def ulimit(text: str) -> tuple[str, int, int]:
    """Read NAME=SOFT[:HARD], -1 for no limit. Raises InvalidArgument."""
    name, _, numbers = text.partition("=")
    soft, _, hard = numbers.partition(":")
    try:
        values = [UNLIMITED if number in ("-1", "unlimited") else int(number) for number in (soft, hard or soft)]
    except ValueError:
        values = []
    if not name.isalpha() or not values or min(values) < 0:
        raise InvalidArgument(f"ulimit {text!r} must look like nofile=1024 or nofile=1024:2048")
    return name, values[0], values[1]


def restart_policy(text: str) -> str:
    """See that a restart policy is one. Raises InvalidArgument."""
    name, colon, count = text.partition(":")
    good = name in ("no", "always", "unless-stopped", "on-failure") and (not colon or name == "on-failure")
    if not good or (colon and not count.isdigit()):
        raise InvalidArgument(f"restart policy {text!r} must be no, always, unless-stopped, on-failure or on-failure:N")
    return text


def security(texts: Sequence[str]) -> tuple[Literal["default", "unconfined"] | Mapping[str, Any], str, bool]:
    """Read --security-opt: the seccomp filter, AppArmor profile, and whether privileges cannot be gained."""
    seccomp: Literal["default", "unconfined"] | Mapping[str, Any] = "default"
    apparmor, no_new = "", False
    for text in texts:
        key, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
        match key:
            case "seccomp" if value == "unconfined":
                seccomp = "unconfined"
            case "seccomp" if value:
                seccomp = _profile(value)
            case "apparmor":
                apparmor = value if value != "unconfined" else ""
            case "no-new-privileges":
                no_new = value in ("", "true", "1")
            case _:
                raise InvalidArgument(
                    f"security option {text!r} must be seccomp=unconfined|FILE, apparmor=PROFILE or no-new-privileges"
                )
    return seccomp, apparmor, no_new


def _profile(name: str) -> Mapping[str, Any]:
    import json

    try:
        found = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"seccomp profile {name!r} cannot be read: {error}") from error
    if not isinstance(found, dict) or "defaultAction" not in found:
        raise InvalidArgument(f"seccomp profile {name!r} must be a JSON object as the runtime spec has it")
    return found
