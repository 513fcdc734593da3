"""The default filter."""

from __future__ import annotations

import pytest

from moored.api.client.capabilities import DEFAULT
from moored.api.client.seccomp import default_profile


def allowed(profile):
    return {
        name for rule in profile["syscalls"] if "args" not in rule and "errnoRet" not in rule for name in rule["names"]
    }


def conditional(profile, name):
    return [rule for rule in profile["syscalls"] if name in rule["names"] and ("args" in rule or "errnoRet" in rule)]


def test_what_programs_need_is_allowed_and_what_breaks_out_is_not():
    found = allowed(default_profile(DEFAULT, "amd64"))

    assert {"read", "openat2", "execve", "futex", "epoll_pwait2", "arch_prctl", "chroot"} <= found
    assert not {"mount", "setns", "bpf", "kexec_load", "init_module", "keyctl", "userfaultfd", "reboot"} & found


def test_capabilities_bring_their_calls():
    assert "mount" in allowed(default_profile({"CAP_SYS_ADMIN"}, "amd64"))
    assert "chroot" not in allowed(default_profile(set(), "amd64"))


def test_clone_makes_no_namespaces_and_clone3_is_not_there():
    profile = default_profile(DEFAULT, "amd64")

    (clone,) = conditional(profile, "clone")
    assert clone["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    (clone3,) = conditional(profile, "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert not conditional(default_profile({"CAP_SYS_ADMIN"}, "amd64"), "clone3")


@pytest.mark.parametrize(("family", "may"), [(1, True), (2, True), (38, False), (39, True), (40, False), (41, True)])
def test_sockets_are_of_every_family_but_two(family, may):
    compare = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    rules = conditional(default_profile(DEFAULT, "amd64"), "socket")

    assert any(compare[arg["op"]](family, arg["value"]) for rule in rules for arg in rule["args"]) is may


@pytest.mark.parametrize(
    ("architecture", "first", "own"),
    [("amd64", "SCMP_ARCH_X86_64", "modify_ldt"), ("arm64", "SCMP_ARCH_AARCH64", "cacheflush")],
)
def test_architectures_have_calls_of_their_own(architecture, first, own):
    profile = default_profile(DEFAULT, architecture)

    assert profile["architectures"][0] == first
    assert own in allowed(profile)
