"""`moorctl doctor` on a host of which one thing is broken for real, and on the same host mended as it says."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.brokenhost import BrokenHost, broken_host, install, programs_without
from e2e.containers import short_folder
from e2e.moorctl import PROGRAM, Moorctl, needs_moorctl
from moored.api.cli.home import home

pytestmark = needs_moorctl

PLUGINS = next((folder for folder in ("/opt/cni/bin", "/usr/lib/cni") if (Path(folder) / "bridge").exists()), "")


@pytest.fixture
def host(world: Moorctl) -> Iterator[BrokenHost]:
    with broken_host(world) as found:
        yield found


def test_cgroups_that_are_not_mounted(host):
    host.does("mount -t tmpfs none /sys/fs/cgroup")

    told = host.is_told("cgroups", "no cgroups are mounted", "mount -t cgroup2 none /sys/fs/cgroup")

    host.does(told.partition(",")[0])
    # Which controllers are there then is up to the host: those of version 1 in use elsewhere are missing.
    assert host.doctor("cgroups").status == 0


@pytest.mark.skipif(Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="needs cgroups of version 1")
def test_a_controller_that_is_not_mounted(host):
    host.does("umount /sys/fs/cgroup/pids")

    told = host.is_told("cgroups", "without pids", "mount -t cgroup -o pids")

    host.does(f"mkdir -p /sys/fs/cgroup/pids && {told}")
    host.is_well("cgroups")


def test_cgroups_that_nobody_can_write_to(host):
    place = "/sys/fs/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/sys/fs/cgroup/memory"
    host.does(f"mount --bind {place} {place} && mount -o remount,bind,ro {place}")

    told = host.is_told("cgroups", "cgroups are read-only", f"mount -o remount,bind,rw {place}")

    host.does(told)
    host.is_well("cgroups")


def test_a_kernel_without_overlayfs(host, tmp_path):
    (tmp_path / "filesystems").write_text("nodev\tproc\n\text4\n")
    host.does(f"mount --bind {tmp_path}/filesystems /proc/filesystems")
    if Path("/lib/modules").is_dir():
        host.does("mount -t tmpfs none /lib/modules")

    host.is_told("overlay", "no overlayfs", "modprobe overlay")

    host.does("umount /proc/filesystems")
    host.is_well("overlay")


def test_overlayfs_that_is_loaded_by_its_first_mount(host, tmp_path):
    (tmp_path / "filesystems").write_text("nodev\tproc\n\text4\n")
    modules = tmp_path / "modules" / os.uname().release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/fs/overlayfs/overlay.ko.xz:\n")
    host.does(f"mount --bind {tmp_path}/filesystems /proc/filesystems")
    host.does(f"mkdir -p /lib/modules && mount --bind {tmp_path}/modules /lib/modules")

    host.is_well("overlay")


def test_no_runtime(host, tmp_path):
    path = programs_without(tmp_path / "bin", "runc", "crun", "runsc")

    host.is_told("runtimes", "no OCI runtime is on PATH", "install runc or crun", PATH=path)

    install(path, "runc")
    host.is_well("runtimes", PATH=path)


def test_a_runtime_that_cannot_be_run(host, tmp_path):
    path = programs_without(tmp_path / "bin", "runc", "crun", "runsc")
    broken = Path(path) / "runc"
    broken.write_bytes(b"\x7fELF for another machine")
    broken.chmod(0o755)

    host.is_told("runtimes", f"{broken} cannot be run", "install it anew", PATH=path)

    install(path, "runc")
    host.is_well("runtimes", PATH=path)


@pytest.mark.skipif(not PLUGINS, reason="needs CNI plugins")
def test_network_plugins_that_are_missing(host, tmp_path):
    host.is_told("cni", "CNI plugins are missing: bridge", "name its folder in CNI_PATH", CNI_PATH=str(tmp_path))

    host.is_well("cni", CNI_PATH=PLUGINS)


@pytest.mark.skipif(not PLUGINS, reason="needs CNI plugins")
def test_the_folder_of_network_plugins_that_is_gone(host):
    for folder in ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"):
        if Path(folder).is_dir():
            host.does(f"mount -t tmpfs none {folder}")

    host.is_told("cni", "CNI plugins are missing", "install the package containernetworking-plugins")

    host.does(f"umount {PLUGINS}")
    host.is_well("cni")


@pytest.mark.skipif(not shutil.which("iptables"), reason="needs iptables")
def test_no_packet_filter(host, tmp_path):
    path = programs_without(tmp_path / "bin", "iptables", "nft")

    host.is_told("firewall", "neither iptables nor nft", "install iptables", PATH=path)

    install(path, "iptables")
    host.is_well("firewall", PATH=path)


def test_a_network_that_does_not_forward(world):
    with broken_host(world, net=True) as host:
        host.does("sysctl -qw net.ipv4.ip_forward=0")

        told = host.is_told("forwarding", "IPv4 is not forwarded", "sysctl -w net.ipv4.ip_forward=1")

        host.does(told.partition(",")[0])
        host.is_well("forwarding")


def test_a_root_that_is_mounted_read_only(host, world):
    root = world.place.folder / "root"
    host.does(f"mount --bind {root} {root} && mount -o remount,bind,ro {root}")

    told = host.is_told("disk", "nothing can be written", f"mount -o remount,bind,rw {root}")

    host.does(told)
    host.is_well("disk")


def test_a_file_system_that_is_read_only(host, tmp_path):
    host.does(f"mount -t tmpfs -o size=2g none {tmp_path} && mount -o remount,ro {tmp_path}")
    env = {"MOORCTL_ROOT": f"{tmp_path}/moorctl"}

    told = host.is_told("own_disk", "nothing can be written", f"mount -o remount,rw {tmp_path}", **env)

    host.does(told)
    host.is_well("own_disk", **env)


def test_a_disk_that_is_full(host, tmp_path, monkeypatch):
    """1 GiB is what must be free; a volume takes the rest."""
    monkeypatch.setenv("MOORCTL_ROOT", str(tmp_path))
    env = {"MOORCTL_ROOT": str(tmp_path)}
    volumes = home(host.world.env["MOORED_ADDRESS"], host.world.env["CONTAINERD_NAMESPACE"]).volumes
    volume = volumes / ("a" * 64)
    host.does(f"mount -t tmpfs -o size=1060m none {tmp_path} && mkdir -p {volume}/_data")
    host.does(f"""echo '{{"name": "{volume.name}", "anonymous": true}}' > {volume}/volume.json""")
    host.does(f"head -c 64m /dev/zero > {volume}/_data/large")

    host.is_told("own_disk", "are free for logs and volumes", "moorctl prune frees it", **env)

    assert host.run(host.world.command("prune", "-f"), **env).status == 0
    host.is_well("own_disk", **env)


def test_a_socket_that_everybody_may_use(world, host):
    address = world.env["MOORED_ADDRESS"]
    mode = Path(address).stat().st_mode & 0o777
    Path(address).chmod(0o777)
    try:
        told = host.is_told("socket", "everybody can write to", f"chmod 660 {address}")

        host.does(told)
        host.is_well("socket")
    finally:
        Path(address).chmod(mode)


def test_a_socket_that_is_not_ours_to_use(world, host):
    address = world.env["MOORED_ADDRESS"]
    mode = Path(address).stat().st_mode & 0o777
    Path(address).chmod(0)
    try:
        # Root without capabilities is asked for permission as anybody is.
        done = host.run(["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", str(PROGRAM), "doctor", "daemon"])
    finally:
        Path(address).chmod(mode)

    assert done.status == 1
    assert f"permission denied on socket {address}" in done.out
    assert "mend: run moorctl as root" in done.out
    host.is_well("daemon")


def test_a_socket_that_a_daemon_has_left_behind(host):
    with short_folder() as folder:
        address = folder / "m.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(address))

        host.is_told("daemon", "nobody listens on socket", "start it with: moored -c", MOORED_ADDRESS=str(address))

        with Daemon(folder):
            host.is_well("daemon", MOORED_ADDRESS=str(address))


def test_a_mistake_in_the_configuration_of_a_daemon_that_does_not_start(host, tmp_path):
    (tmp_path / "up").mkdir()
    (tmp_path / "work").mkdir()
    host.does(f"mount -t overlay -o lowerdir=/etc,upperdir={tmp_path}/up,workdir={tmp_path}/work none /etc")
    host.does("mkdir -p /etc/moored && printf 'version = 4\\nrot = \"/x\"\\n' > /etc/moored/config.toml")
    env = {"MOORED_ADDRESS": str(tmp_path / "none.sock")}

    host.is_told("config", "config.toml:2: rot: unknown key, did you mean 'root'?", "correct it", **env)

    host.does("sed -i s/rot/root/ /etc/moored/config.toml")
    host.is_well("config", **env)


def test_a_mistake_in_the_configuration_of_a_daemon_that_runs(host):
    with short_folder() as folder, Daemon(folder) as daemon:
        right = daemon.config.read_text()
        daemon.config.write_text(right + "\n[debg]\n")
        env = {"MOORED_ADDRESS": str(daemon.socket)}

        told = host.is_told("config", "unknown key, did you mean 'debug'?", f"moored -c {daemon.config}", **env)

        daemon.config.write_text(right)
        command = told.partition("; ")[2].removesuffix(" tells when all is right")
        host.does(f"{PROGRAM.parent}/{command}")
        host.is_well("config", **env)


def test_the_log_writer_that_is_missing(host, tmp_path):
    host.does(f"mount --bind /dev/null {PROGRAM.with_name('moorctl-log')}")
    path = programs_without(tmp_path / "bin", "moorctl-log")

    host.is_told("logger", "moorctl-log", "install moored whole", PATH=path)

    host.does(f"umount {PROGRAM.with_name('moorctl-log')}")
    host.is_well("logger", PATH=path)


def test_warnings_fail_only_when_that_is_asked_for(world):
    with broken_host(world, net=True) as host:
        host.does("sysctl -qw net.ipv4.ip_forward=0")

        assert host.doctor("forwarding").status == 0
        assert host.doctor("--strict", "forwarding").status == 1
