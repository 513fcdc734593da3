"""Options of `run` as they are written."""

from __future__ import annotations

import pytest

from moored.api.cli import asked as reading
from moored.api.cli.asked import Asked
from moored.api.cli.runtimes import runtime
from moored.api.cli.volumes import Asked as Volume
from moored.api.cli.volumes import parse_mount, parse_tmpfs, parse_volume
from moored.kernel.errors import InvalidArgument


def test_variables_are_those_given_over_those_of_files_over_none(tmp_path, monkeypatch):
    file = tmp_path / "env"
    file.write_text("# comment\nA=file\nB=file\n\nHERE\n")
    monkeypatch.setenv("HERE", "own")
    monkeypatch.delenv("GONE", raising=False)

    found = reading.environment(Asked(image="", args=(), env=("A=given", "E=", "GONE"), env_file=(str(file),)))

    assert found == {"A": "given", "B": "file", "HERE": "own", "E": ""}


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=5", ("nofile", 5, 5)),
        ("nproc=5:7", ("nproc", 5, 7)),
        ("core=-1", ("core", (1 << 64) - 1, (1 << 64) - 1)),
    ],
)
def test_limits_of_processes_are_read(text, limit):
    assert reading.ulimit(text) == limit


@pytest.mark.parametrize("text", ["nofile", "nofile=", "nofile=x", "=5", "nofile=-2"])
def test_other_limits_are_refused(text):
    with pytest.raises(InvalidArgument, match="ulimit"):
        reading.ulimit(text)


@pytest.mark.parametrize("text", ["no", "always", "unless-stopped", "on-failure", "on-failure:3"])
def test_restart_policies_are_taken(text):
    assert reading.restart_policy(text) == text


@pytest.mark.parametrize("text", ["", "sometimes", "always:3", "on-failure:", "on-failure:x"])
def test_other_policies_are_refused(text):
    with pytest.raises(InvalidArgument, match="restart policy"):
        reading.restart_policy(text)


def test_security_options_are_read(tmp_path):
    (tmp_path / "p.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')

    assert reading.security(["seccomp=unconfined", "apparmor=p", "no-new-privileges"]) == ("unconfined", "p", True)
    assert reading.security([f"seccomp={tmp_path}/p.json"])[0] == {"defaultAction": "SCMP_ACT_ALLOW"}
    with pytest.raises(InvalidArgument, match="security option 'x=y'"):
        reading.security(["x=y"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a:/b", Volume("bind", "/a", "/b")),
        ("/a:/b/../c:ro,z", Volume("bind", "/a", "/c", ("ro",))),
        ("data:/d", Volume("volume", "data", "/d")),
        ("/d", Volume("volume", "", "/d", ("rw",))),
    ],
)
def test_volumes_are_read(text, wanted):
    assert parse_volume(text) == wanted


@pytest.mark.parametrize("text", ["", ":", "a:", "/a:b", "/a:/", "a b:/c", "/a:/b:rx", "/a:/b:ro:x"])
def test_other_volumes_are_refused(text):
    with pytest.raises(InvalidArgument, match="volume"):
        parse_volume(text)


def test_mounts_are_read():
    bind = parse_mount("type=bind,src=/a,dst=/b,readonly")

    assert bind == Volume("bind", "/a", "/b", ("ro",), must_exist=True)
    assert parse_mount("type=tmpfs,target=/t,tmpfs-size=1k").options == ("size=1024",)
    assert parse_tmpfs("/t:size=1k,mode=700") == Volume("tmpfs", "", "/t", ("size=1k", "mode=700"))


@pytest.mark.parametrize(
    "text", ["type=bind,target=/b", "type=x,target=/b", "target=/b,colour=red", "type=bind,src=/a"]
)
def test_other_mounts_are_refused(text):
    with pytest.raises(InvalidArgument):
        parse_mount(text)


def test_runtimes_have_short_names():
    assert runtime("") == ("", None)
    assert runtime("runc") == ("io.containerd.runc.v2", None)
    assert runtime("runsc") == ("io.containerd.runsc.v1", None)
    assert runtime("io.containerd.other.v1") == ("io.containerd.other.v1", None)
    name, options = runtime("crun")
    assert (name, options.type_url) == ("io.containerd.runc.v2", "containerd.runc.v1.Options")
