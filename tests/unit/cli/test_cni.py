"""CNI plugins as programs: what they are told, in which order, and what is undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moored.api.cli.network import cni
from moored.kernel.errors import InvalidArgument, NotFound, Unknown

PLUGIN = """#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND {name} $CNI_CONTAINERID $CNI_IFNAME $config" >> {log}
{more}
"""
RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}'


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Makes plugins of shell lines; what they were told is in `told`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("CNI_PATH", str(folder))

    def make(name, more):
        path = folder / name
        path.write_text(PLUGIN.format(name=name, log=tmp_path / "log", more=more))
        path.chmod(0o755)

    return make


def told(folder: Path) -> list[tuple[str, str, dict]]:
    lines = (folder / "log").read_text().splitlines()
    return [(line.split()[0], line.split()[1], json.loads(line.split(maxsplit=4)[4])) for line in lines]


def network(*types: dict) -> cni.Network:
    return cni.decoded({"cniVersion": "1.0.0", "name": "n", "plugins": list(types)}, "test")


ENDPOINT = cni.Endpoint(container_id="c", netns="/ns", capabilities={"portMappings": [{"hostPort": 1}]})


def test_each_plugin_gets_the_result_of_the_one_before(tmp_path, plugins):
    plugins("one", f"echo '{RESULT}'")
    plugins("two", "cat > /dev/null; echo '{\"second\": true}'")

    result = cni.add(network({"type": "one"}, {"type": "two", "capabilities": {"portMappings": True}}), ENDPOINT)

    first, second = told(tmp_path)
    assert result == {"second": True}
    assert (first[:2], second[:2]) == (("ADD", "one"), ("ADD", "two"))
    assert "prevResult" not in first[2]
    assert "runtimeConfig" not in first[2]
    assert second[2]["prevResult"]["ips"] == [{"address": "10.1.2.3/24"}]
    assert second[2]["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}


def test_removal_goes_backwards_and_through_all_plugins(tmp_path, plugins):
    plugins("one", "")
    plugins("two", 'echo \'{"msg": "no"}\'; exit 1')

    faults = cni.remove(network({"type": "one"}, {"type": "two"}), ENDPOINT, json.loads(RESULT))

    assert [call[:2] for call in told(tmp_path)] == [("DEL", "two"), ("DEL", "one")]
    assert faults == ["network plugin 'two' failed: no"]


def test_a_failure_undoes_what_was_done(tmp_path, plugins):
    plugins("one", f"echo '{RESULT}'")
    plugins("two", '[ $CNI_COMMAND = DEL ] || { echo \'{"msg": "full", "details": "no address"}\'; exit 1; }')

    with pytest.raises(Unknown, match="network plugin 'two' failed: full: no address"):
        cni.add(network({"type": "one"}, {"type": "two"}), ENDPOINT)

    assert [call[:2] for call in told(tmp_path)] == [("ADD", "one"), ("ADD", "two"), ("DEL", "two"), ("DEL", "one")]


def test_a_missing_plugin_is_told_with_what_to_install(plugins):
    with pytest.raises(NotFound, match="install the CNI plugins"):
        cni.add(network({"type": "nosuch"}), ENDPOINT)


@pytest.mark.parametrize("answer", ["nonsense", "[]"])
def test_an_answer_that_is_none_is_refused(plugins, answer):
    plugins("one", f"[ $CNI_COMMAND = DEL ] || echo '{answer}'")

    with pytest.raises(Unknown, match="network plugin 'one' answered"):
        cni.add(network({"type": "one"}), ENDPOINT)


def test_networks_are_found_by_name_and_bridge_is_built_in(tmp_path):
    (tmp_path / "10-own.conflist").write_text(json.dumps({"name": "own", "plugins": [{"type": "bridge"}]}))
    (tmp_path / "20-single.conf").write_text(json.dumps({"name": "single", "type": "ptp"}))
    (tmp_path / "30-broken.conflist").write_text("{")
    (tmp_path / "notes.txt").write_text("")

    assert set(cni.networks(tmp_path)) == {"own", "single"}
    assert cni.network("single", tmp_path).plugins[0]["type"] == "ptp"
    assert cni.network("bridge", tmp_path).source == "built in"
    with pytest.raises(NotFound, match="known are host, none, bridge, own, single"):
        cni.network("nosuch", tmp_path)


@pytest.mark.parametrize(
    "found", [[], {}, {"name": "a/b", "plugins": []}, {"name": "a", "plugins": [{"type": "../x"}]}]
)
def test_other_definitions_are_refused(found):
    with pytest.raises(InvalidArgument, match="network"):
        cni.decoded(found, "test")


def test_addresses_are_those_of_the_result():
    assert cni.addresses(json.loads(RESULT)) == ["10.1.2.3"]
    assert cni.addresses({}) == []
