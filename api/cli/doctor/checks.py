"""The checks of the host; each takes a `Host` and gives one `Finding`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from moored.api.cli.doctor.findings import Check, Finding, Host, failed, ok, warning

OLDEST: Final = (5, 6)
"""The first kernel with openat2(2), by which files of containers are reached."""
CONTROLLERS: Final = ("cpu", "memory", "pids")
NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
PLUGINS: Final = ("bridge", "host-local", "portmap", "firewall", "loopback")
LOW_SPACE: Final = 1 << 30
LOW_INODES: Final = 50_000


def kernel(host: Host) -> Finding:
    """The kernel is not too old."""
    match = re.match(r"(\d+)\.(\d+)", host.release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST:
        return failed(f"kernel {host.release} is older than 5.6", "boot a kernel of 5.6 or later")
    return ok(f"kernel {host.release}")


def namespaces(host: Host) -> Finding:
    """The kernel has the namespaces that containers are made of."""
    missing = [kind for kind in NAMESPACES if not host.has(f"/proc/self/ns/{kind}")]
    if missing:
        return failed(
            f"the kernel has no {', '.join(missing)} namespaces",
            "boot a kernel with CONFIG_NAMESPACES and all of its kinds",
        )
    return ok("all namespaces")


def seccomp(host: Host) -> Finding:
    """The kernel can filter system calls."""
    if "Seccomp:" not in host.text("/proc/self/status"):
        return warning(
            "the kernel cannot filter system calls",
            "boot a kernel with CONFIG_SECCOMP_FILTER, or run with --security-opt seccomp=unconfined",
        )
    return ok("seccomp")


def cgroups(host: Host) -> Finding:
    """Cgroups are mounted, and have the controllers for limits."""
    unified = host.has("/sys/fs/cgroup/cgroup.controllers")
    known, mounted = set[str](), list[str]()
    if unified:
        there = set(host.text("/sys/fs/cgroup/cgroup.controllers").split())
    else:
        lines = [line.split() for line in host.text("/proc/cgroups").splitlines() if not line.startswith("#")]
        known = {words[0] for words in lines if len(words) == 4 and words[3] == "1"}
        mounted = [name for name in CONTROLLERS if host.has(f"/sys/fs/cgroup/{name}/tasks")]
        if not mounted:
            return failed(
                "no cgroups are mounted on /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup, or let systemd do it"
            )
        there = known & set(mounted)
    places = ["/sys/fs/cgroup"] if unified else [f"/sys/fs/cgroup/{name}" for name in mounted]
    for place in places:
        if remedy := host.read_only(host.path(place)):
            return failed(f"cgroups are read-only on {place}", remedy)
    missing = [name for name in CONTROLLERS if name not in there]
    version = 2 if unified else 1
    if missing:
        return warning(
            f"cgroups (version {version}) without {', '.join(missing)}, whose limits have no effect",
            "enable them in cgroup.subtree_control of the parent" if unified else _how_to_mount(missing, known),
        )
    return ok(f"cgroups version {version} with {', '.join(CONTROLLERS)}")


def _how_to_mount(missing: Sequence[str], known: Collection[str]) -> str:
    """Say how to get controllers of version 1, which the kernel knows or has to be told to."""
    unknown = [name for name in missing if name not in known]
    if unknown:
        return f"boot with {' '.join(f'cgroup_enable={name}' for name in unknown)} on the kernel's command line"
    name = missing[0]
    return f"mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}"


def overlay(host: Host) -> Finding:
    """The kernel has overlayfs, which the default snapshotter uses, or can load it, as it does for the first mount."""
    known = {line.split()[-1] for line in host.text("/proc/filesystems").splitlines() if line.split()}
    if "overlay" in known:
        return ok("overlayfs")
    modules = f"/lib/modules/{host.release}"
    lists = [host.text(f"{modules}/{name}") for name in ("modules.dep", "modules.builtin")]
    if any(re.search(r"/overlay\.ko", text) for text in lists):
        return ok("overlayfs, a module")
    return failed(
        "the kernel has no overlayfs, which containers are made with unless told otherwise",
        "boot a kernel with CONFIG_OVERLAY_FS or its module, modprobe overlay, or use another snapshotter: "
        "moorctl namespace label NAME containerd.io/defaults/snapshotter=native",
    )


def runtimes(host: Host) -> Finding:
    """There is an OCI runtime, and those that are there can be run."""
    found = {name: path for name in ("runc", "crun", "runsc") if (path := host.which(name))}
    if not found:
        return failed("no OCI runtime is on PATH", "install runc or crun")
    broken = [path for path in found.values() if not host.runs(path)]
    if broken:
        text = f"{', '.join(broken)} cannot be run"
        remedy = f"{broken[0]} --version shows why; install it anew"
        return failed(text, remedy) if len(broken) == len(found) else warning(text, remedy)
    return ok(f"OCI runtimes: {', '.join(found)}")


def cni(host: Host) -> Finding:
    """The CNI plugins of the default network are there."""
    folders = [host.path(folder) for folder in host.cni_folders]
    missing = [name for name in PLUGINS if not any((folder / name).exists() for folder in folders)]
    if missing:
        return failed(
            f"CNI plugins are missing: {', '.join(missing)}; only --net host and none work",
            "install the package containernetworking-plugins, or name its folder in CNI_PATH",
        )
    return ok("CNI plugins")


def forwarding(host: Host) -> Finding:
    """Containers on a bridge can reach further than the host."""
    if host.text("/proc/sys/net/ipv4/ip_forward") != "1":
        return warning(
            "IPv4 is not forwarded; containers reach nothing but the host until the bridge plugin turns it on",
            "sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d to keep it",
        )
    return ok("IPv4 forwarding")


def firewall(host: Host) -> Finding:
    """The tool that the CNI plugins bridge, portmap and firewall run is there."""
    if host.which("iptables"):
        return ok("packet filter tools")
    if host.which("nft"):
        return warning("iptables is not on PATH, only nft; CNI plugins before 1.6 need it", "install iptables")
    return failed(
        "neither iptables nor nft is on PATH; only --net host and none work, and no port can be published",
        "install iptables",
    )


def permission(host: Host) -> Finding:
    """Moorctl may do what containers take."""
    if host.uid != 0:
        return warning(
            "moorctl does not run as root; it can only ask, not run containers with networks or volumes",
            "run it with sudo",
        )
    return ok("runs as root")


def _disk(host: Host, what: str, path: str) -> Finding:
    if remedy := host.read_only(host.path(path)):
        return failed(f"nothing can be written for {what} ({path}), it is mounted read-only", remedy)
    try:
        free, size, inodes, all_inodes = host.disk(host.path(path))
    except OSError as error:
        return warning(f"the disk of {what} cannot be asked: {error.strerror}", f"look at {path}")
    from moored.api.cli.quantities import size as shown

    if free < LOW_SPACE:
        return failed(
            f"{shown(free)} of {shown(size)} are free for {what} ({path})",
            "moorctl df tells what takes it, moorctl prune frees it",
        )
    if all_inodes and inodes < LOW_INODES:
        return warning(
            f"{inodes} inodes are free for {what} ({path})", "moorctl prune, or a file system with more of them"
        )
    return ok(f"{shown(free)} of {shown(size)} free for {what}")


def disk(host: Host) -> Finding:
    """The daemon's root has room."""
    return _disk(host, "images and containers", str(host.daemon_root))


def own_disk(host: Host) -> Finding:
    """Logs and volumes have room."""
    return _disk(host, "logs and volumes", str(host.own_root))


def socket(host: Host) -> Finding:
    """Not everybody on the host can use the daemon, which is to be its root."""
    mode = host.mode(host.address)
    if mode is not None and mode & 0o002:
        return failed(
            f"everybody can write to {host.address}, and so become root of the host", f"chmod 660 {host.address}"
        )
    return ok("permissions of the socket") if mode is not None else ok("no socket that everybody can write to")


def inotify(host: Host) -> Finding:
    """Programs in containers can watch files, of which all containers of a user share the number."""
    value = host.text("/proc/sys/fs/inotify/max_user_instances")
    if value.isdigit() and int(value) < 128:
        return warning(f"fs.inotify.max_user_instances is {value}", "sysctl -w fs.inotify.max_user_instances=1024")
    return ok("inotify limits")


def keyrings(host: Host) -> Finding:
    """Runc makes a keyring a container, of which a user has few."""
    value = host.text("/proc/sys/kernel/keys/maxkeys")
    if value.isdigit() and int(value) < 200:
        return warning(f"kernel.keys.maxkeys is {value}", "sysctl -w kernel.keys.maxkeys=1000")
    return ok("kernel keyrings")


def apparmor(host: Host) -> Finding:
    """Where AppArmor is on, its parser is there."""
    if host.text("/sys/module/apparmor/parameters/enabled") == "Y" and not host.which("apparmor_parser"):
        return warning("AppArmor is on and apparmor_parser is missing; profiles cannot be loaded", "install apparmor")
    return ok("AppArmor")


def logger(host: Host) -> Finding:
    """The program that writes logs is there."""
    from moored.api.cli.making import logger_path
    from moored.kernel.errors import NotFound

    try:
        found = logger_path()
    except NotFound as error:
        return warning(error.text, "install moored whole")
    del host
    return ok(f"log writer {found}")


HOST: Final[Mapping[str, Check]] = {
    check.__name__: check
    for check in (
        kernel,
        namespaces,
        seccomp,
        cgroups,
        overlay,
        runtimes,
        cni,
        firewall,
        forwarding,
        permission,
        socket,
        disk,
        own_disk,
        inotify,
        keyrings,
        apparmor,
        logger,
    )
}
"""Every check of the host, by its name."""
