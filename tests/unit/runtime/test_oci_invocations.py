"""Options, config, spec and host become a runtime's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.conformance import refuses
from moored.kernel.errors import InvalidArgument, NotFound
from moored.kernel.ports.invocations import Invocation, RuntimeFacts, RuntimeOptions
from moored.plugins.runtime.oci.host import Host
from moored.plugins.runtime.oci.invocations import (
    Settings,
    default_invocation,
    driver_of,
    from_json,
    invocation_of,
    located,
    to_json,
)

OLD_KERNEL, NEW_KERNEL = Host(kernel=(6, 10)), Host(kernel=(6, 11))
RUNSC = Settings(driver="runsc", root="/r")
NEW_NETWORK = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]}}
GIVEN_NETWORK = {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}}
HOST_NETWORK = {"linux": {"namespaces": [{"type": "pid"}]}}


def facts(name: str = "runc", version: str = "1.0") -> RuntimeFacts:
    return RuntimeFacts(name=name, binary=f"/bin/{name}", version=version, spec_version="1.0.2")


def invoked(
    settings: Settings | None = None,
    spec: dict[str, Any] | None = None,
    host: Host = OLD_KERNEL,
    version: str = "",
    **options: Any,
) -> Invocation:
    settings = settings or Settings(driver="runc", root="/r")
    found = facts(settings.driver, version)
    return invocation_of(settings, found, RuntimeOptions(**options), "ns", spec or {}, host=host)


def program(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("binary", "driver"),
    [("", "runc"), ("crun", "crun"), ("/opt/x/runsc", "runsc"), ("/opt/kata", "runc"), ("crun-1.9", "runc")],
)
def test_driver_is_chosen_by_the_file_name_of_the_binary(binary: str, driver: str) -> None:
    assert driver_of(binary) == driver


def test_binary_is_found_on_path_in_order(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    first, second = program(tmp_path / "one", "runx"), program(tmp_path / "two", "runx")
    (tmp_path / "none" / "runx").touch()

    path = f"{tmp_path}/none::relative:{first.parent}:{second.parent}"

    assert located("runx", path) == str(first)
    assert located(str(second)) == str(second)


def test_missing_and_relative_binaries_are_told_apart(tmp_path: Path) -> None:
    refuses(
        NotFound, lambda: located("runx", str(tmp_path)), 'runtime "runx" is not installed: no such program on PATH'
    )
    gone = f'runtime "{tmp_path}/runx" is not installed: there is no such program'
    refuses(NotFound, lambda: located(f"{tmp_path}/runx"), gone)
    refuses(InvalidArgument, lambda: located("bin/runc"), 'runtime "bin/runc" must be a name or an absolute path')


def test_root_is_a_folder_of_the_namespace() -> None:
    assert invoked().root == "/r/ns"
    assert invoked(root="/other").root == "/other/ns"


def test_options_become_flags_of_create() -> None:
    assert invoked().create_flags == ()
    assert invoked(no_pivot_root=True, no_new_keyring=True).create_flags == ("--no-pivot", "--no-new-keyring")


def test_configured_flags_are_kept() -> None:
    assert invoked(Settings(driver="crun", flags=("--debug",))).flags == ("--debug",)
    assert invoked(Settings(driver="runsc", flags=("--debug",)), HOST_NETWORK).flags == ("--network=host", "--debug")


def test_systemd_is_asked_for_by_option_or_config_and_must_be_there() -> None:
    there = Host(systemd=True)

    assert invoked(host=there).systemd_cgroup is False
    assert invoked(host=there, systemd_cgroup=True).systemd_cgroup is True
    assert invoked(Settings(systemd_cgroup=True), host=there).systemd_cgroup is True
    refuses(InvalidArgument, lambda: invoked(systemd_cgroup=True))


def test_runtimes_differ_in_what_they_can_do() -> None:
    runc, crun, runsc = (invoked(Settings(driver=name)) for name in ("runc", "crun", "runsc"))

    assert "checkpoint" in runc.verbs
    assert set(runc.verbs) - set(crun.verbs) == {"events"}
    assert set(runsc.verbs) == {"pause", "resume", "events"}
    assert [one.signals for one in (runc, crun, runsc)] == ["pid", "pid", "verb"]


@pytest.mark.parametrize(
    ("spec", "host", "version", "flags"),
    [
        (HOST_NETWORK, OLD_KERNEL, "0.0~20221219.0", ("--network=host",)),
        (HOST_NETWORK, NEW_KERNEL, "release-20260101.0", ("--network=host",)),
        (NEW_NETWORK, OLD_KERNEL, "0.0~20221219.0", ()),
        (NEW_NETWORK, NEW_KERNEL, "0.0~20221219.0", ("--network=none",)),
        (GIVEN_NETWORK, NEW_KERNEL, "0.0~20221219.0", ("--network=host",)),
        (NEW_NETWORK, NEW_KERNEL, "release-20240930.0", ()),
        (GIVEN_NETWORK, NEW_KERNEL, "release-20240930.0", ()),
        (NEW_NETWORK, NEW_KERNEL, "", ("--network=none",)),
    ],
)
def test_network_of_runsc_follows_spec_kernel_and_version(
    spec: dict[str, Any], host: Host, version: str, flags: tuple[str, ...]
) -> None:
    assert invoked(RUNSC, spec, host, version).flags == flags


def test_configured_network_of_runsc_is_kept() -> None:
    assert invoked(Settings(driver="runsc", network="sandbox"), NEW_NETWORK, NEW_KERNEL).flags == ("--network=sandbox",)


@pytest.mark.parametrize(
    ("configured", "usable", "ignored"),
    [(None, True, False), (None, False, True), (True, True, True), (False, False, False)],
)
def test_runsc_ignores_cgroups_that_it_could_not_make(configured: bool | None, usable: bool, ignored: bool) -> None:
    settings = Settings(driver="runsc", ignore_cgroups=configured)

    flags = invoked(settings, NEW_NETWORK, Host(gvisor_cgroups=usable)).flags

    assert ("--ignore-cgroups=true" in flags) is ignored


def test_config_file_of_runsc_comes_before_the_drivers_config(tmp_path: Path) -> None:
    place = tmp_path / "runsc.toml"
    place.write_text('[runsc_config]\nplatform = "kvm"\ndebug = true\nnum-network-channels = 2\n')
    settings = Settings(driver="runsc", platform="ptrace")

    flags = invoked(settings, NEW_NETWORK, config_path=str(place)).flags
    same = invoked(settings, NEW_NETWORK, config_path="/nowhere", config_body=place.read_bytes()).flags

    assert flags == same == ("--platform=kvm", "--debug=true", "--num-network-channels=2")


@pytest.mark.parametrize(
    "text",
    ["no toml", "runsc_config = 3", '[runsc_config]\n"a b" = 1', "[runsc_config]\na = [1]", '[runsc_config]\n"" = 1'],
)
def test_bad_config_of_runsc_is_refused(text: str) -> None:
    refuses(InvalidArgument, lambda: invoked(RUNSC, config_body=text.encode()))


def test_options_that_a_runtime_cannot_honour_are_refused() -> None:
    refuses(InvalidArgument, lambda: invoked(RUNSC, no_pivot_root=True))
    refuses(InvalidArgument, lambda: invoked(RUNSC, criu_image_path="/x"))
    refuses(InvalidArgument, lambda: invoked(RUNSC, config_path="/no/such/file"))
    refuses(InvalidArgument, lambda: invoked(config_body=b"x"), 'runtime "runc" has no config file')


def test_default_takes_the_driver_by_name_and_containerds_folder(tmp_path: Path) -> None:
    binary = program(tmp_path / "bin", "crun")

    found = default_invocation(RuntimeOptions(binary=str(binary)), "ns", host=Host())

    assert (found.driver, found.binary, found.root) == ("crun", str(binary), "/run/containerd/crun/ns")


def test_json_gives_back_every_field() -> None:
    one = Invocation(
        driver="x",
        binary="/x",
        root="/r",
        flags=("-a",),
        systemd_cgroup=True,
        verbs=(),
        create_flags=("-b",),
        exec_flags=("-c",),
        kill_all=False,
        exits="wait",
        signals="verb",
        environment={"A": "b"},
    )

    assert from_json(to_json(one)) == one


@pytest.mark.parametrize(
    "change",
    [
        {"flags": "x"},
        {"flags": [1]},
        {"kill_all": 1},
        {"exits": "never"},
        {"environment": {"A": 1}},
        {"binary": None},
        {"root": 3},
    ],
)
def test_json_with_a_field_of_another_type_is_refused(change: dict[str, Any]) -> None:
    good = json.loads(to_json(Invocation(driver="x", binary="/x", root="/r")))

    refuses(InvalidArgument, lambda: from_json(json.dumps({**good, **change}).encode()))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"driver": "x", "root": "/r"}', b"\xff"])
def test_what_is_no_invocation_is_refused(data: bytes) -> None:
    refuses(InvalidArgument, lambda: from_json(data))


def test_unknown_fields_of_a_later_version_are_left_out() -> None:
    good = json.loads(to_json(Invocation(driver="x", binary="/x", root="/r")))

    assert from_json(json.dumps({**good, "later": 1}).encode()).driver == "x"
