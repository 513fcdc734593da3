"""What a sandbox is made of, by its spec, its pod config and its network."""

from __future__ import annotations

from typing import Any

import pytest

from moored.api.cri.runtime.v1 import api_pb2 as cri
from moored.kernel.errors import InvalidArgument, MooredError, Unimplemented
from moored.kernel.payloads import Packed
from moored.plugins.runtime.shim.podwishes import Wishes, cgroup_of, wishes_of

NODE, POD, CONTAINER = cri.NamespaceMode.NODE, cri.NamespaceMode.POD, cri.NamespaceMode.CONTAINER


def spec(*kinds: str, **paths: str) -> dict[str, Any]:
    namespaces = [{"type": kind} for kind in kinds] + [{"type": kind, "path": path} for kind, path in paths.items()]
    return {"linux": {"namespaces": namespaces}}


def pod(hostname: str = "", cgroup: str = "", sysctls: dict[str, str] | None = None, **modes: Any) -> Packed:
    options = cri.NamespaceOption(**modes)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    linux = cri.LinuxPodSandboxConfig(cgroup_parent=cgroup, security_context=context, sysctls=sysctls or {})
    config = cri.PodSandboxConfig(hostname=hostname, linux=linux)
    return Packed("runtime.v1.PodSandboxConfig", config.SerializeToString())


def test_nothing_is_held_unless_asked_for() -> None:
    assert wishes_of({}, None, "") == Wishes({})
    assert wishes_of({"hostname": "h", "linux": None}, Packed("google.protobuf.Empty", b""), "") == Wishes({})


def test_spec_names_what_is_held() -> None:
    asked = {**spec("ipc", "uts", "mount", "cgroup", network="/run/netns/a"), "hostname": "h"}
    asked["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "7"}

    found = wishes_of(asked, None, "")

    assert found.namespaces == {"ipc": "", "uts": "", "network": "/run/netns/a"}
    assert found.hostname == "h"
    assert found.sysctls == {"net.ipv4.ip_forward": "1", "kernel.shmmax": "7"}


@pytest.mark.parametrize(
    ("modes", "held"),
    [
        ({}, {"ipc", "pid", "uts"}),
        ({"pid": CONTAINER}, {"ipc", "uts"}),
        ({"network": NODE}, {"ipc", "pid"}),
        ({"network": NODE, "pid": NODE, "ipc": NODE}, set()),
        ({"userns_options": cri.UserNamespace(mode=NODE)}, {"ipc", "pid", "uts"}),
    ],
)
def test_pod_config_says_what_a_pod_has_for_itself(modes: dict[str, Any], held: set[str]) -> None:
    found = wishes_of({}, pod("h", "/pods/a", **modes), "")

    assert dict(found.namespaces) == dict.fromkeys(held, "")
    assert found.hostname == ("h" if "uts" in held else "")
    assert found.cgroup == "/pods/a"


def test_network_of_the_request_wins() -> None:
    assert wishes_of(spec("network"), None, "/run/netns/a").namespaces == {"network": "/run/netns/a"}
    assert wishes_of({}, pod(), "/run/netns/a").namespaces["network"] == "/run/netns/a"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kernel.panic", "sysctl 'kernel.panic' is not of a namespace, wanted one of net.*, kernel.shm*, fs.mqueue.*"),
        ("net.../../kernel/panic", "sysctl 'net.../../kernel/panic' is not of a namespace"),
        ("net.ipv4.ip_forward", "sysctl 'net.ipv4.ip_forward' is of the host, which the sandbox shares"),
    ],
)
def test_settings_of_the_host_are_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        wishes_of(spec("ipc"), pod(sysctls={name: "1"}), "")
    assert caught.value.text.startswith(text)


@pytest.mark.parametrize(
    ("asked", "options", "kind"),
    [
        (spec("user"), None, Unimplemented),
        ({}, pod(userns_options=cri.UserNamespace(mode=POD)), Unimplemented),
        ({}, Packed("runtime.v1.PodSandboxConfig", b"\xff"), InvalidArgument),
    ],
)
def test_what_cannot_be_done_is_told(asked: dict[str, Any], options: Packed | None, kind: type[MooredError]) -> None:
    with pytest.raises(kind):
        wishes_of(asked, options, "")


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("", ""),
        ("/pods/a", "/pods/a"),
        ("kubepods.slice", "/kubepods.slice"),
        (
            "kubepods-burstable-pod1_2.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
        ),
        ("/kubepods.slice/kubepods-burstable.slice", "/kubepods.slice/kubepods-burstable.slice"),
        ("/elsewhere/kubepods-burstable.slice", "/kubepods.slice/kubepods-burstable.slice"),
        ("-.slice", "/"),
    ],
)
def test_slice_of_a_pod_is_found_where_systemd_makes_it(parent: str, path: str) -> None:
    assert cgroup_of(parent) == path
    assert wishes_of({}, pod(cgroup=parent), "").cgroup == path
