"""Specs are changed to what a runtime takes, or refused naming the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.conformance import refuses
from moored.kernel.errors import Unimplemented
from moored.kernel.ports.invocations import RuntimeFacts
from moored.plugins.runtime.oci.adaptation import adapt_spec
from moored.plugins.runtime.oci.host import Host, look
from moored.plugins.runtime.oci.texts import already_finished, no_such_container

ANY = Host()
UNPRIVILEGED = Host(lowest_oom_score=1)
MAPPED = {"destination": "/m", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}


def facts(name: str = "runc", *, spec: str = "1.0.2-dev", features: Any = None) -> RuntimeFacts:
    data = json.dumps(features).encode() if features is not None else b""
    return RuntimeFacts(name=name, binary=f"/bin/{name}", version="1.2.3", spec_version=spec, features=data)


@pytest.mark.parametrize(
    ("driver", "version", "adapted"),
    [
        ("crun", "1.2.1", "1.0.0"),
        ("crun", "1.0.0", "1.0.0"),
        ("crun", "nonsense", "nonsense"),
        ("runc", "1.2.1", "1.2.1"),
        ("runsc", "1.2.1", "1.2.1"),
    ],
)
def test_version_is_lowered_for_crun_only(driver: str, version: str, adapted: str) -> None:
    spec = {"ociVersion": version}

    adapt_spec(driver, facts(driver, spec="1.0.0"), spec, host=ANY)

    assert spec == {"ociVersion": adapted}


@pytest.mark.parametrize(("host", "score", "adapted"), [(UNPRIVILEGED, -5, 1), (UNPRIVILEGED, 7, 7), (ANY, -5, -5)])
def test_oom_score_is_raised_to_what_the_kernel_allows(host: Host, score: int, adapted: int) -> None:
    spec = {"process": {"oomScoreAdj": score}}

    adapt_spec("runc", facts(), spec, host=host)

    assert spec == {"process": {"oomScoreAdj": adapted}}


@pytest.mark.parametrize(
    ("driver", "left"), [("runsc", ["CAP_KILL"]), ("runc", ["CAP_KILL", "CAP_BPF"]), ("crun", ["CAP_KILL", "CAP_BPF"])]
)
def test_capabilities_that_gvisor_does_not_know_are_left_out(driver: str, left: list[str]) -> None:
    spec = {"process": {"capabilities": {"bounding": ["CAP_KILL", "CAP_BPF"], "ambient": None}}}

    adapt_spec(driver, facts(driver), spec, host=ANY)

    assert spec == {"process": {"capabilities": {"bounding": left, "ambient": None}}}


@pytest.mark.parametrize(
    ("driver", "features"),
    [("runc", None), ("runsc", None), ("crun", {"linux": {"mountExtensions": {"idmap": {"enabled": False}}}})],
)
@pytest.mark.parametrize("mount", [MAPPED, {"options": ["rbind", "idmap=uids=0-1-1"]}, {"options": ["ridmap"]}])
def test_mapped_mounts_are_refused_where_they_would_not_be_mapped(
    driver: str, features: Any, mount: dict[str, Any]
) -> None:
    spec = {"mounts": [{"destination": "/proc"}, mount]}

    error = refuses(Unimplemented, lambda: adapt_spec(driver, facts(driver, features=features), spec, host=ANY))

    assert error.text.startswith("mounts[1].")


@pytest.mark.parametrize(
    ("driver", "features"), [("runc", {"linux": {"mountExtensions": {"idmap": {"enabled": True}}}}), ("crun", None)]
)
def test_mapped_mounts_are_kept_where_they_are_mapped(driver: str, features: Any) -> None:
    spec = {"mounts": [MAPPED]}

    adapt_spec(driver, facts(driver, features=features), spec, host=ANY)

    assert spec == {"mounts": [MAPPED]}


def test_namespace_types_are_those_of_the_features() -> None:
    spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "time"}]}}
    able = facts(features={"linux": {"namespaces": ["pid", "time"]}})

    adapt_spec("runc", able, copy.deepcopy(spec), host=ANY)
    error = refuses(Unimplemented, lambda: adapt_spec("runc", facts(), spec, host=ANY))

    assert error.text == "linux.namespaces[1].type: runtime \"runc\" 1.2.3 has no 'time' namespaces"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"process": None, "linux": None, "mounts": None},
        {"process": [], "linux": {"namespaces": {}}, "mounts": [3, {"options": None}]},
        {"ociVersion": 7, "process": {"oomScoreAdj": "x"}},
    ],
)
@pytest.mark.parametrize("driver", ["runc", "crun", "runsc"])
def test_malformed_specs_are_left_to_the_runtime(driver: str, spec: dict[str, Any]) -> None:
    before = copy.deepcopy(spec)

    adapt_spec(driver, facts(driver, features=[1]), spec, host=UNPRIVILEGED)

    assert spec == before


def place(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


IDENTITY = "         0          0 4294967295\n"


@pytest.mark.parametrize(
    ("capabilities", "uid_map", "lowest"),
    [
        ("000001ffffffffff", IDENTITY, None),
        ("000001fffeffffff", IDENTITY, 3),
        ("000001ffffffffff", "0 100000 65536\n", 3),
        ("0000000000000000", "", 3),
    ],
)
def test_lowest_oom_score_depends_on_the_capability(
    tmp_path: Path, capabilities: str, uid_map: str, lowest: int | None
) -> None:
    status = f"Name:\tx\nCapEff:\t{capabilities}\nCapBnd:\t000001ffffffffff\n"
    place(tmp_path, proc__self__status=status, proc__self__uid_map=uid_map, proc__self__oom_score_adj="3\n")

    assert look(tmp_path).lowest_oom_score == lowest


def test_host_is_read(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    place(tmp_path, proc__sys__kernel__osrelease="6.18.44-fc\n")

    assert (look(tmp_path).kernel, look(tmp_path).systemd) == ((6, 18), True)
    assert look(tmp_path / "nowhere") == Host(gvisor_cgroups=False)


def test_gvisor_needs_some_hierarchies_of_version_1(tmp_path: Path) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    for name in ("blkio", "cpu", "cpuset", "memory"):
        assert not look(tmp_path).gvisor_cgroups
        (groups / name).mkdir(parents=True)
        (groups / name / "tasks").touch()

    assert look(tmp_path).gvisor_cgroups


@pytest.mark.parametrize(("controllers", "usable"), [("cpuset cpu io memory pids", True), ("cpu memory", False)])
def test_gvisor_needs_some_controllers_of_version_2(tmp_path: Path, controllers: str, usable: bool) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    (groups / "cgroup.controllers").write_text(controllers)

    assert look(tmp_path).gvisor_cgroups is usable


@pytest.mark.parametrize(
    "text",
    [
        "container not running",
        "open pidfd: No such process",
        "sandbox is not running",
        "connecting to control server at PID 3: connection refused",
    ],
)
def test_texts_of_ended_processes(text: str) -> None:
    assert already_finished(text)
    assert not no_such_container(text)


@pytest.mark.parametrize(
    "text",
    [
        "container does not exist",
        "cannot open directory '/r/x': No such file or directory",
        'loading container "x": file does not exist',
    ],
)
def test_texts_of_unknown_containers(text: str) -> None:
    assert no_such_container(text)
    assert not already_finished(text)
