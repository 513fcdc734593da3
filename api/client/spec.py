"""The OCI runtime spec of a container, made of what its image says and what was asked for.

    Options + ImageConfig + User --build--> the spec, as JSON objects

Source: OCI runtime spec 1.1; what containers of containerd's clients look like (contracts/semantics.md 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from moored.api.client import capabilities
from moored.api.client.hostdevices import Device, all_devices, devices, permission
from moored.api.client.resources import NO_LIMITS, Resources
from moored.api.client.seccomp import default_profile
from moored.api.client.users import ROOT, User
from moored.kernel.errors import InvalidArgument
from moored.kernel.imagespec.documents import ImageConfig, Process
from moored.kernel.imagespec.platforms import default as host_platform

__all__ = ["Device", "Mount", "Options", "Resources", "Rlimit", "build", "process"]

SPEC_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VERSION: Final = "1.0.2"
"""Nothing newer is used, and older runtimes refuse a newer one."""

NAMESPACES: Final = ("pid", "ipc", "uts", "mount", "network")
"""What a container has of its own unless asked otherwise; a cgroup namespace too where cgroups are version 2."""
_UNIFIED: Final = Path("/sys/fs/cgroup/cgroup.controllers")
_MORE_NAMESPACES: Final = ("user", "cgroup", "time")
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

Json: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[dict[str, Any]], None]
"""Changes a finished spec in place."""
NO_TEXTS: Final[Mapping[str, str | None]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount inside of the container; options as for mount(8), `rbind` and `ro` for example."""

    destination: str
    source: str
    type: str = "bind"
    options: Sequence[str] = ("rbind", "rw")


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A limit by its name, `RLIMIT_NOFILE` or `nofile`."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked of a container; what is left out is as the image says, else as containers usually have it.

    args                the command, in place of the image's, behind its entry point
    entrypoint          in place of the image's; with one, the image's command is not taken
    env                 over the image's; a None removes a variable
    user                `USER[:GROUP]`, each a name or a number
    groups              further groups
    tmpfs               options by place, `size=64m,mode=1777`
    cap_add, cap_drop   `ALL`, or names with or without CAP_; what is added wins
    privileged          all capabilities and devices, no filter, nothing hidden
    seccomp             `default`, `unconfined`, or a filter as the runtime spec has it
    apparmor            the name of a loaded profile
    namespaces          by kind (pid, ipc, uts, mount, network, user, cgroup, time): `host`, `private`, or a path
    masked_paths, readonly_paths   in place of the usual ones
    cgroup              the cgroup's path, `/NAMESPACE/ID` by default
    hooks               as the runtime spec has them
    changes             called with the finished spec, in order, to change it in place
    """

    args: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    groups: Sequence[str] = ()
    terminal: bool = False
    hostname: str = ""
    mounts: Sequence[Mount] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Device] = ()
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    privileged: bool = False
    seccomp: Literal["default", "unconfined"] | Mapping[str, Any] = "default"
    apparmor: str = ""
    resources: Resources = NO_LIMITS
    namespaces: Mapping[str, str] = field(default_factory=dict)
    rlimits: Sequence[Rlimit] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = False
    masked_paths: Sequence[str] | None = None
    readonly_paths: Sequence[str] | None = None
    no_new_privileges: bool = True
    sysctl: Mapping[str, str] = field(default_factory=dict)
    oom_score_adj: int | None = None
    cgroup: str = ""
    hooks: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Change] = ()


def build(
    options: Options,
    *,
    container_id: str,
    namespace: str,
    image: ImageConfig | None = None,
    user: User = ROOT,
    rootfs: str = "rootfs",
) -> Json:
    """Make the spec. user is who `options.user`, or the image's, was found to be.

    Looks at the host's devices where any are asked for. Raises InvalidArgument for options that cannot be together,
    or are malformed; NotFound for a device that is not there.
    """
    linux = _linux(options, container_id, namespace)
    spec: Json = {
        "ociVersion": VERSION,
        "root": {"path": rootfs, "readonly": options.read_only},
        "process": _process(options, image.config if image else None, user),
        "mounts": _mounts(options),
        "linux": linux,
        "annotations": dict(options.annotations),
    }
    if options.hostname:
        if options.namespaces.get("uts") == "host":
            raise InvalidArgument(f"hostname {options.hostname!r} cannot be set in the host's uts namespace")
        spec["hostname"] = options.hostname
    if options.hooks:
        spec["hooks"] = dict(options.hooks)
    if seccomp := _seccomp(options, spec["process"]["capabilities"]["bounding"]):
        linux["seccomp"] = seccomp
    for change in options.changes:
        change(spec)
    return spec


# --- process ----------------------------------------------------------------------------------------------------------


def _process(options: Options, image: Process | None, user: User) -> Json:
    args = _args(options, image)
    given = dict(options.env)
    if options.terminal:
        given.setdefault("TERM", "xterm")
    made: Json = {
        "terminal": options.terminal,
        "user": user_json(user),
        "args": args,
        "env": environment([PATH, *((image.env if image else None) or [])], given),
        "cwd": options.cwd or (image.working_dir if image else "") or "/",
        "noNewPrivileges": options.no_new_privileges and not options.privileged,
        "capabilities": _capabilities(options),
        "rlimits": [_rlimit(one) for one in options.rlimits] or [_rlimit(Rlimit("nofile", 1024, 1024))],
    }
    if options.oom_score_adj is not None:
        made["oomScoreAdj"] = options.oom_score_adj
    if options.apparmor and not options.privileged:
        made["apparmorProfile"] = options.apparmor
    return made


def _args(options: Options, image: Process | None) -> list[str]:
    entrypoint = options.entrypoint if options.entrypoint is not None else ((image and image.entrypoint) or ())
    command = options.args
    if not command and options.entrypoint is None:
        command = (image and image.cmd) or ()
    args = [*entrypoint, *command]
    if not args:
        raise InvalidArgument("neither the options nor the image name a command, wanted args")
    return args


def environment(base: Sequence[str], changes: Mapping[str, str | None]) -> list[str]:
    """Give `NAME=VALUE` texts, each name once with its last value; a change to None removes one.

    Raises InvalidArgument for a name that is empty or has a `=`.
    """
    values: dict[str, str] = {}
    for text in base:
        name, _, value = text.partition("=")
        values[name] = value
    for name, change in changes.items():
        if not name or "=" in name:
            raise InvalidArgument(f"environment name {name!r} must not be empty or have a '='")
        if change is None:
            values.pop(name, None)
        else:
            values[name] = change
    return [f"{name}={value}" for name, value in values.items()]


def user_json(user: User) -> Json:
    """Give a user as a process has it."""
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}


def _capabilities(options: Options) -> Json:
    base = capabilities.known() if options.privileged else capabilities.DEFAULT
    held = capabilities.chosen(base, options.cap_add, options.cap_drop)
    # None are inheritable: file capabilities of the image's programs would add to them.
    return {"bounding": held, "effective": list(held), "permitted": list(held)}


def _rlimit(limit: Rlimit) -> Json:
    name = limit.type.upper()
    if limit.soft > limit.hard:
        raise InvalidArgument(f"rlimit {limit.type!r} has soft {limit.soft} above hard {limit.hard}")
    return {"type": name if name.startswith("RLIMIT_") else f"RLIMIT_{name}", "soft": limit.soft, "hard": limit.hard}


def process(
    base: Mapping[str, Any],
    args: Sequence[str],
    *,
    env: Mapping[str, str | None] = NO_TEXTS,
    cwd: str = "",
    user: User | None = None,
    terminal: bool = False,
    privileged: bool = False,
) -> Json:
    """Give a further process of a container, whose own is `base`. Raises InvalidArgument without args."""
    if not args:
        raise InvalidArgument("a process needs a command, wanted args")
    made = {key: value for key, value in base.items() if key not in {"commandLine", "consoleSize"}}
    given = {"TERM": "xterm", **env} if terminal else env
    made |= {"args": list(args), "terminal": terminal, "env": environment(base.get("env", ()), given)}
    if cwd:
        made["cwd"] = cwd
    if user is not None:
        made["user"] = user_json(user)
    if privileged:
        held = list(capabilities.known())
        made |= {"capabilities": {"bounding": held, "effective": held, "permitted": held}, "noNewPrivileges": False}
    return made


# --- file systems -----------------------------------------------------------------------------------------------------

_USUAL: Final = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
_HOST_FILES: Final = ("/etc/hosts", "/etc/resolv.conf")


def _mounts(options: Options) -> list[Json]:
    usual = [Mount(destination=place, source=source, type=kind, options=o) for place, source, kind, o in _USUAL]
    if options.privileged:
        usual = [_writable(one) if one.destination == "/sys" else one for one in usual]
        usual.append(Mount(destination="/sys/fs/cgroup", source="cgroup", type="cgroup", options=("rw",)))
    if options.namespaces.get("network") == "host":
        usual += [Mount(destination=file, source=file, options=("rbind", "ro")) for file in _HOST_FILES]
    given = [*options.mounts, *(_tmpfs(place, text) for place, text in options.tmpfs.items())]
    # A place that is given is not the usual one.
    taken = {one.destination.rstrip("/") for one in given}
    return [_mount(one) for one in [*(one for one in usual if one.destination not in taken), *given]]


def _writable(mount: Mount) -> Mount:
    options = tuple(option for option in mount.options if option != "ro")
    return Mount(destination=mount.destination, source=mount.source, type=mount.type, options=(*options, "rw"))


def _tmpfs(place: str, options: str) -> Mount:
    given = [option for option in options.split(",") if option]
    return Mount(destination=place, source="tmpfs", type="tmpfs", options=("nosuid", "nodev", *given))


def _mount(mount: Mount) -> Json:
    if not mount.destination.startswith("/"):
        raise InvalidArgument(f"mount destination {mount.destination!r} must be an absolute path")
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source,
        "options": list(mount.options),
    }


# --- isolation --------------------------------------------------------------------------------------------------------


def _linux(options: Options, container_id: str, namespace: str) -> Json:
    rules, nodes = [permission("a", None, None, "rwm", allow=False)], []
    if options.privileged:
        rules = [permission("a", None, None, "rwm", allow=True)]
        nodes = all_devices()
    for device in options.devices:
        for node, rule in devices(device):
            nodes.append(node)
            rules.append(rule)
    hidden = () if options.privileged else MASKED
    guarded = () if options.privileged else READ_ONLY
    linux: Json = {
        "namespaces": _namespaces(options.namespaces),
        "cgroupsPath": options.cgroup or f"/{namespace}/{container_id}",
        "resources": {"devices": rules, **options.resources.document()},
        "maskedPaths": list(options.masked_paths if options.masked_paths is not None else hidden),
        "readonlyPaths": list(options.readonly_paths if options.readonly_paths is not None else guarded),
        "devices": nodes,
        "sysctl": dict(options.sysctl),
    }
    if options.privileged:
        linux["rootfsPropagation"] = "rslave"
    return {key: value for key, value in linux.items() if value != {} or key == "resources"}


def _namespaces(given: Mapping[str, str]) -> list[Json]:
    known = (*NAMESPACES, *_MORE_NAMESPACES)
    if unknown := next((kind for kind in given if kind not in known), None):
        raise InvalidArgument(f"namespace {unknown!r} is not known, wanted one of {', '.join(known)}")
    found: list[Json] = []
    own = (*NAMESPACES, "cgroup") if _UNIFIED.exists() else NAMESPACES
    for kind in known:
        wanted = given.get(kind, "private" if kind in own else "host")
        if wanted in {"private", "none"}:
            found.append({"type": kind})
        elif wanted.startswith("/"):
            found.append({"type": kind, "path": wanted})
        elif wanted != "host":
            raise InvalidArgument(f"{kind} namespace {wanted!r} must be 'host', 'private' or an absolute path")
    return found


def _seccomp(options: Options, bounding: Sequence[str]) -> Json | None:
    if not isinstance(options.seccomp, str):
        return dict(options.seccomp)
    if options.privileged or options.seccomp == "unconfined":
        return None
    return default_profile(bounding, host_platform().architecture)
