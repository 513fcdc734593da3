"""Each check of the doctor, on hosts that are well and on hosts that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from moored.api.cli.doctor import checks, daemon
from moored.api.cli.doctor.findings import Host, Server

GIB = 1 << 30
NOWHERE = Path("/nowhere")


@pytest.fixture
def fit(tmp_path):
    """A host that is well; a function of what is different: files by path (None: removed), and fields."""
    files = {
        **{f"/proc/self/ns/{kind}": "" for kind in checks.NAMESPACES},
        "/proc/self/status": "Seccomp:\t0\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpu io memory pids",
        "/proc/filesystems": "nodev\toverlay\n",
        "/proc/sys/net/ipv4/ip_forward": "1\n",
        "/proc/sys/fs/inotify/max_user_instances": "128\n",
        "/proc/sys/kernel/keys/maxkeys": "200\n",
        "/sys/module/apparmor/parameters/enabled": "Y\n",
        **{f"/cni/{name}": "" for name in checks.PLUGINS},
    }

    def make(changes=None, **fields):
        for path, text in (files | (changes or {})).items():
            target = tmp_path / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                target.unlink(missing_ok=True)
            else:
                target.write_text(text)
        usual = {
            "address": "/x.sock",
            "uid": 0,
            "root": tmp_path,
            "release": "6.1.0-test",
            "which": lambda name: f"/bin/{name}",
            "runs": lambda _: True,
            "read_only": lambda _: "",
            "disk": lambda _: (50 * GIB, 100 * GIB, 10**6, 10**7),
            "cni_folders": ["/cni"],
        }
        return Host(**(usual | fields))

    return make


@pytest.mark.parametrize("name", [name for name in checks.HOST if name != "logger"])
def test_a_host_that_is_well_passes(fit, name):
    assert checks.HOST[name](fit()).verdict == "ok"


@pytest.mark.parametrize(
    ("name", "changes", "fields", "verdict", "remedy"),
    [
        ("kernel", {}, {"release": "5.4.0"}, "failed", "5.6"),
        ("namespaces", {"/proc/self/ns/net": None}, {}, "failed", "CONFIG_NAMESPACES"),
        ("seccomp", {"/proc/self/status": "Name: x\n"}, {}, "warning", "CONFIG_SECCOMP_FILTER"),
        ("cgroups", {"/sys/fs/cgroup/cgroup.controllers": "cpu"}, {}, "warning", "subtree_control"),
        ("cgroups", {"/sys/fs/cgroup/cgroup.controllers": None}, {}, "failed", "mount -t cgroup2"),
        (
            "cgroups",
            {
                "/sys/fs/cgroup/cgroup.controllers": None,
                "/sys/fs/cgroup/cpu/tasks": "",
                "/sys/fs/cgroup/pids/tasks": "",
                "/proc/cgroups": "#n\ncpu 1 1 1\npids 1 1 1\nmemory 0 1 0\n",
            },
            {},
            "warning",
            "cgroup_enable=memory",
        ),
        ("overlay", {"/proc/filesystems": "ext4\n"}, {}, "failed", "modprobe overlay"),
        ("runtimes", {}, {"which": lambda _: None}, "failed", "install runc"),
        ("cni", {"/cni/portmap": None}, {}, "failed", "containernetworking-plugins"),
        ("runtimes", {}, {"runs": lambda path: path != "/bin/runc"}, "warning", "/bin/runc --version"),
        ("runtimes", {}, {"runs": lambda _: False}, "failed", "/bin/runc --version"),
        ("cgroups", {}, {"read_only": lambda path: "mount it" * (path.name == "cgroup")}, "failed", "mount it"),
        ("firewall", {}, {"which": lambda _: None}, "failed", "iptables"),
        ("firewall", {}, {"which": lambda name: name if name == "nft" else None}, "warning", "iptables"),
        ("disk", {}, {"read_only": lambda _: "mount it"}, "failed", "mount it"),
        ("forwarding", {"/proc/sys/net/ipv4/ip_forward": "0"}, {}, "warning", "sysctl"),
        ("permission", {}, {"uid": 1000}, "warning", "sudo"),
        ("disk", {}, {"disk": lambda _: (1 << 20, GIB, 10**6, 10**7)}, "failed", "moorctl prune"),
        ("disk", {}, {"disk": lambda _: (50 * GIB, 100 * GIB, 10, 10**7)}, "warning", "inodes"),
        ("own_disk", {}, {"disk": lambda _: (1 << 20, GIB, 10**6, 10**7)}, "failed", "moorctl prune"),
        ("inotify", {"/proc/sys/fs/inotify/max_user_instances": "8"}, {}, "warning", "sysctl"),
        ("keyrings", {"/proc/sys/kernel/keys/maxkeys": "20"}, {}, "warning", "sysctl"),
        ("apparmor", {}, {"which": lambda _: None}, "warning", "install apparmor"),
    ],
)
def test_a_host_that_is_not_well_is_told_how_to_mend_it(fit, name, changes, fields, verdict, remedy):
    finding = checks.HOST[name](fit(changes, **fields))

    assert finding.verdict == verdict
    assert remedy in finding.remedy + finding.what


def test_every_finding_but_ok_has_a_remedy(fit):
    ill = Host(address="/x", uid=1, root=NOWHERE, release="2.6", which=lambda _: None, disk=lambda _: (0, 1, 0, 1))

    findings = [check(ill) for name, check in checks.HOST.items() if name != "logger"]

    assert [finding for finding in findings if finding.verdict != "ok" and not finding.remedy] == []


def test_a_daemon_is_judged_by_its_answer():
    well = Server("1.0", (), ("overlayfs",))
    mistakes = ("c.toml:3: x: unknown key", "c.toml:4: y: unknown key")
    ill = Server("1.0", (("io.x.v1.y", "no disk"),), (), problems=mistakes, config="c.toml")
    away = Server(error="there is no socket /x", advice="start it")

    assert [check(well).verdict for check in daemon.CHECKS.values()] == ["ok", "ok", "ok", "ok"]
    assert [check(ill).verdict for check in daemon.CHECKS.values()] == ["ok", "failed", "warning", "failed"]
    assert "c.toml:3: x: unknown key and 1 more" in daemon.config(ill).what
    assert "moored -c c.toml config check" in daemon.config(ill).remedy
    assert "moorctl plugins why io.x.v1.y" in daemon.plugins(ill).remedy
    assert daemon.reachable(away).verdict == "failed"
    assert "start it" in daemon.reachable(away).remedy
