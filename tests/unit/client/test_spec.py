"""The spec that options and an image make."""

from __future__ import annotations

import pytest

from moored.api.client import capabilities
from moored.api.client.resources import Resources
from moored.api.client.spec import Device, Mount, Options, Rlimit, build, environment, process
from moored.api.client.users import User
from moored.kernel.errors import InvalidArgument, NotFound
from moored.kernel.imagespec.documents import ImageConfig, Process

IMAGE = ImageConfig(
    config=Process(env=["PATH=/opt", "A=image"], entrypoint=["/entry"], cmd=["serve"], working_dir="/srv", user="anna")
)


def made(**given):
    options = Options(**{"args": ("true",), **given})
    return build(options, container_id="c1", namespace="ns")


def of_image(**given):
    return build(Options(**given), container_id="c1", namespace="ns", image=IMAGE, user=User(7, 8, (8, 9)))


def mounts(spec):
    return {one["destination"]: one for one in spec["mounts"]}


def test_the_image_says_what_runs_where_and_as_whom():
    found = of_image()["process"]

    assert found["args"] == ["/entry", "serve"]
    assert found["cwd"] == "/srv"
    assert found["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    assert found["env"] == ["PATH=/opt", "A=image"]


@pytest.mark.parametrize(
    ("given", "args"),
    [
        ({"args": ("one", "two")}, ["/entry", "one", "two"]),
        ({"entrypoint": ("/mine",)}, ["/mine"]),
        ({"entrypoint": (), "args": ("only",)}, ["only"]),
    ],
)
def test_a_command_stands_behind_the_entry_point_and_a_new_entry_point_alone(given, args):
    assert of_image(**given)["process"]["args"] == args


def test_without_a_command_nothing_can_be_run():
    with pytest.raises(InvalidArgument, match="name a command"):
        build(Options(), container_id="c1", namespace="ns")


def test_environment_is_the_image_s_with_changes_and_removals():
    assert environment(["A=1", "B=2", "A=3"], {"B": None, "C": "x=y"}) == ["A=3", "C=x=y"]
    with pytest.raises(InvalidArgument, match="'A=B'"):
        environment([], {"A=B": "c"})


def test_options_of_two_containers_share_nothing():
    one, two = made(), made()
    one["process"]["env"].append("X=1")
    one["mounts"][0]["options"].append("ro")
    one["process"]["capabilities"]["bounding"].clear()

    assert two == made()
    assert one["process"]["capabilities"]["effective"]


def test_a_terminal_has_a_type():
    assert "TERM=xterm" in made(terminal=True)["process"]["env"]
    assert "TERM=vt100" in made(terminal=True, env={"TERM": "vt100"})["process"]["env"]


def test_capabilities_are_dropped_then_added_and_never_inherited():
    held = made(cap_drop=("ALL",), cap_add=("net_admin", "CAP_CHOWN"))["process"]["capabilities"]

    assert held == {name: ["CAP_CHOWN", "CAP_NET_ADMIN"] for name in ("bounding", "effective", "permitted")}
    with pytest.raises(InvalidArgument, match="'CAP_FLY'"):
        made(cap_add=("CAP_FLY",))


def test_usual_containers_are_confined():
    spec = made()

    assert spec["process"]["noNewPrivileges"]
    assert set(spec["process"]["capabilities"]["bounding"]) == set(capabilities.DEFAULT)
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": False, "type": "a", "access": "rwm"}]
    assert {one["type"] for one in spec["linux"]["namespaces"]} >= {"pid", "ipc", "uts", "mount", "network"}


def test_privileged_containers_are_not():
    spec = made(privileged=True, cap_drop=("CAP_SYS_BOOT",))

    assert "seccomp" not in spec["linux"]
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert "ro" not in mounts(spec)["/sys"]["options"]
    assert "CAP_SYS_ADMIN" in spec["process"]["capabilities"]["bounding"]
    assert "CAP_SYS_BOOT" not in spec["process"]["capabilities"]["bounding"]
    assert {"/dev/null"} <= {one["path"] for one in spec["linux"]["devices"]}
    assert not spec["process"]["noNewPrivileges"]


def test_namespaces_are_the_host_s_private_or_somewhere():
    spec = made(namespaces={"network": "host", "pid": "/proc/1/ns/pid", "user": "private", "cgroup": "host"})

    found = {one["type"]: one.get("path", "") for one in spec["linux"]["namespaces"]}
    assert found == {"pid": "/proc/1/ns/pid", "ipc": "", "uts": "", "mount": "", "user": ""}
    assert mounts(spec)["/etc/resolv.conf"]["options"] == ["rbind", "ro"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"namespaces": {"net": "host"}}, "'net' is not known"),
        ({"namespaces": {"network": "bridge"}}, "'bridge' must be"),
        ({"hostname": "h", "namespaces": {"uts": "host"}}, "host's uts namespace"),
        ({"mounts": (Mount(destination="rel", source="/"),)}, "'rel' must be an absolute path"),
        ({"rlimits": (Rlimit("nofile", 9, 1),)}, "soft 9 above hard 1"),
        ({"devices": (Device("/dev/null", permissions="x"),)}, "permissions 'x'"),
        ({"devices": (Device("/etc/passwd"),)}, "is no device"),
        ({"resources": Resources(cpus=float("nan"))}, "cpus nan"),
        ({"resources": Resources(cpus=1, cpu_quota=5)}, "say the same"),
    ],
)
def test_options_that_cannot_be_are_refused(given, said):
    with pytest.raises(InvalidArgument, match=said):
        made(**given)


def test_a_mount_takes_the_place_of_the_usual_one():
    spec = made(mounts=(Mount(destination="/run", source="/srv", options=("rbind", "ro")),), tmpfs={"/tmp": "size=1m"})

    assert [one["source"] for one in spec["mounts"] if one["destination"] == "/run"] == ["/srv"]
    assert mounts(spec)["/tmp"]["options"] == ["nosuid", "nodev", "size=1m"]


def test_devices_are_found_with_their_numbers_and_a_rule():
    spec = made(devices=(Device("/dev/null", "/dev/nothing", "r"),))

    node, rule = spec["linux"]["devices"][0], spec["linux"]["resources"]["devices"][-1]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/nothing", "c", 1, 3)
    assert rule == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    with pytest.raises(NotFound, match="/dev/missing"):
        made(devices=(Device("/dev/missing"),))


def test_resources_are_written_as_the_runtime_spec_has_them():
    resources = Resources(cpus=1.5, cpu_shares=512, cpuset_cpus="0", memory=1 << 20, memory_swap=-1, pids=9)

    assert resources.document() == {
        "cpu": {"shares": 512, "quota": 150_000, "period": 100_000, "cpus": "0"},
        "memory": {"limit": 1 << 20, "swap": -1},
        "pids": {"limit": 9},
    }
    assert Resources().document() == {}


def test_the_rest_goes_where_it_belongs():
    spec = made(
        hostname="h",
        annotations={"k": "v"},
        read_only=True,
        sysctl={"net.ipv4.ip_forward": "1"},
        oom_score_adj=500,
        apparmor="profile",
        rlimits=(Rlimit("core", 0, 1),),
        masked_paths=("/secret",),
        no_new_privileges=False,
        changes=(lambda spec: spec.update(domainname="d"),),
    )

    assert (spec["hostname"], spec["annotations"], spec["domainname"]) == ("h", {"k": "v"}, "d")
    assert spec["root"] == {"path": "rootfs", "readonly": True}
    assert spec["linux"]["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert spec["linux"]["cgroupsPath"] == "/ns/c1"
    assert spec["linux"]["maskedPaths"] == ["/secret"]
    assert spec["process"]["oomScoreAdj"] == 500
    assert spec["process"]["apparmorProfile"] == "profile"
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 0, "hard": 1}]
    assert not spec["process"]["noNewPrivileges"]


def test_a_further_process_is_like_the_first_but_for_what_is_given():
    base = made(cwd="/srv", env={"A": "1"})["process"]

    found = process(base, ["id"], env={"A": None, "B": "2"}, user=User(1, 2, (2,)), terminal=True)

    assert found["args"] == ["id"]
    assert found["cwd"] == "/srv"
    assert found["terminal"]
    assert {"B=2", "TERM=xterm"} <= set(found["env"])
    assert "A=1" not in found["env"]
    assert found["user"]["uid"] == 1
    assert found["capabilities"] == base["capabilities"]
    with pytest.raises(InvalidArgument, match="args"):
        process(base, [])
