"""`moorctl run` and networks: addresses, names, published ports, and nothing of it left."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.containers import eventually
from e2e.moorctl import IMAGE, Moorctl, needs_moorctl, nothing_is_left
from moored.api.cli.network.cni import PLUGIN_FOLDERS

needs_cni = pytest.mark.skipif(
    not any(Path(folder, "bridge").exists() for folder in PLUGIN_FOLDERS) or not shutil.which("iptables"),
    reason="needs CNI plugins and iptables",
)
pytestmark = [*needs_moorctl, needs_cni, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]
SERVER = ("busybox", "httpd", "-f", "-p", "80", "-h", "/etc")


@pytest.fixture
def nothing_of_moorctl_is_left(world: Moorctl) -> Iterator[None]:
    yield
    nothing_is_left(world)
    ipam = world.place.folder / "ipam" / "bridge"
    assert [path.name for path in ipam.glob("*") if path.name[0].isdigit()] == []
    rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True, check=True).stdout
    assert str(next(iter(subnet(world).split("/")))) not in rules


def subnet(world: Moorctl) -> str:
    document = json.loads((world.place.folder / "net.d" / "bridge.conflist").read_text())
    return str(document["plugins"][0]["ipam"]["ranges"][0][0]["subnet"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError):
        return ""


def test_a_container_has_an_address_that_its_name_stands_for(world):
    out = world.does("run", "--rm", "--hostname", "ship", IMAGE, "sh", "-c", "ip -4 addr show eth0; cat /etc/hosts")

    prefix = subnet(world).rpartition(".")[0]
    assert f"inet {prefix}." in out
    assert [line for line in out.splitlines() if line.startswith(prefix) and line.endswith("\tship")]


def test_a_published_port_leads_to_the_container(world):
    port = free_port()
    id_ = world.does("run", "-d", "--name", "web", "-p", f"{port}:80", IMAGE, *SERVER).strip()
    try:
        network = world.json("inspect", "web")[0]["network"]
        address = network["ips"][0]["address"].partition("/")[0]

        eventually(lambda: "root:x:0" in get(f"http://{address}/passwd"), lambda: "the container does not answer")
        eventually(lambda: "root:x:0" in get(f"http://127.0.0.1:{port}/passwd"), lambda: "the port leads nowhere")
        assert f"0.0.0.0:{port}->80/tcp" in world.does("ps")
        taken = world.run("run", "--rm", "-p", f"{port}:80", IMAGE, "ls")
        assert taken.status == 125
        assert f"port {port}/tcp is published by another container" in taken.err
        world.does("stop", "-t", "0", "web")
        assert get(f"http://127.0.0.1:{port}/passwd") == ""
        world.does("start", "web")
        eventually(lambda: "root:x:0" in get(f"http://127.0.0.1:{port}/passwd"), lambda: "not after a restart")
    finally:
        world.run("rm", "-f", id_)


def test_a_port_that_somebody_listens_on_is_refused(world):
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]

        done = world.run("run", "--rm", "-p", f"{port}:80", IMAGE, "ls")

    assert done.status == 125
    assert "cannot be used: Address already in use" in done.err


def test_a_port_of_the_host_is_chosen_where_none_is_named(world):
    id_ = world.does("run", "-d", "-p", "80", IMAGE, *SERVER).strip()
    try:
        (port,) = world.json("ps")["containers"][0]["ports"]

        assert port["ContainerPort"] == 80
        eventually(lambda: "root" in get(f"http://127.0.0.1:{port['HostPort']}/passwd"), lambda: str(port))
    finally:
        world.run("rm", "-f", id_)


def test_containers_on_one_bridge_reach_each_other(world):
    id_ = world.does("run", "-d", IMAGE, *SERVER).strip()
    try:
        address = world.json("inspect", id_)[0]["network"]["ips"][0]["address"].partition("/")[0]
        script = f"busybox wget -q -O - http://{address}/passwd"

        eventually(lambda: "root" in world.run("run", "--rm", IMAGE, "sh", "-c", script).out, lambda: "unreachable")
    finally:
        world.run("rm", "-f", id_)


def test_another_containers_network_can_be_shared(world):
    with world.running(*SERVER) as name:
        script = "busybox wget -q -O - http://127.0.0.1/passwd"

        assert "root" in world.does("run", "--rm", "--net", f"container:{name}", IMAGE, "sh", "-c", script)


def test_a_container_that_dies_is_brought_back_with_its_network(world):
    id_ = world.does("run", "-d", "--restart", "always", IMAGE, *SERVER).strip()
    try:
        found = world.json("inspect", id_)[0]
        address = found["network"]["ips"][0]["address"].partition("/")[0]
        subprocess.run(["kill", "-9", str(found["pid"])], check=True)

        eventually(lambda: world.json("inspect", id_)[0]["pid"] not in (None, found["pid"]), lambda: "not started")
        eventually(lambda: "root" in get(f"http://{address}/passwd"), lambda: "no network")
    finally:
        world.run("rm", "-f", id_)


def lose_network(world: Moorctl, id_: str) -> None:
    """End a container and take its network away, as a reboot does; what lies on disk stays."""
    found = world.json("inspect", id_)[0]
    netns = Path(world.env["MOORCTL_RUN"]) / "netns" / id_
    subprocess.run(["umount", "--lazy", netns], check=True)
    netns.unlink()
    subprocess.run(["ip", "link", "del", world.bridge], check=True)
    subprocess.run(["kill", "-9", str(found["pid"])], check=True)


def test_a_restarted_container_whose_network_is_lost_gets_it_again(world):
    port = free_port()
    words = ("--restart", "always", "--hostname", "ship", "--add-host", "other:10.9.8.7", "-p", f"{port}:80")
    id_ = world.does("run", "-d", *words, IMAGE, *SERVER).strip()
    try:
        eventually(lambda: "root:x:0" in get(f"http://127.0.0.1:{port}/passwd"), lambda: "no answer at first")
        lose_network(world, id_)

        eventually(lambda: "root:x:0" in get(f"http://127.0.0.1:{port}/passwd"), lambda: world.run("logs", id_).err)
        address = world.json("inspect", id_)[0]["network"]["ips"][0]["address"].partition("/")[0]
        hosts = world.does("exec", id_, "cat", "/etc/hosts")
        assert f"{address}\tship" in hosts
        assert "10.9.8.7\tother" in hosts
    finally:
        world.run("rm", "-f", id_)


def test_why_a_network_cannot_be_made_again_stands_in_the_log(world):
    id_ = world.does("run", "-d", "--restart", "always", IMAGE, *SERVER).strip()
    kept = next(Path(world.env["MOORCTL_ROOT"]).glob(f"*/*/containers/{id_}/network.json"))
    right = kept.read_text()
    try:
        kept.write_text(right.replace('"type": "portmap"', '"type": "nosuch"'))
        lose_network(world, id_)

        told = "the network of this container could not be made again"
        eventually(lambda: told in world.run("logs", id_).err, lambda: world.run("logs", id_).err)
        assert "nosuch" in world.run("logs", id_).err
        kept.write_text(right)
        world.becomes(id_, "running")
    finally:
        kept.write_text(right)
        world.run("rm", "-f", id_)


def test_a_container_without_a_log_gets_its_network_again(world):
    id_ = world.does("run", "-d", "--restart", "always", "--log-driver", "none", IMAGE, *SERVER).strip()
    try:
        lose_network(world, id_)

        eventually(lambda: world.status(id_) == "running", lambda: world.status(id_))
        address = world.json("inspect", id_)[0]["network"]["ips"][0]["address"].partition("/")[0]
        eventually(lambda: "root" in get(f"http://{address}/passwd"), lambda: "no network")
    finally:
        world.run("rm", "-f", id_)


def test_a_network_that_cannot_be_made_leaves_nothing(world):
    broken = {"cniVersion": "1.0.0", "name": "broken", "plugins": [{"type": "bridge", "ipam": {"type": "nosuch"}}]}
    (world.place.folder / "net.d" / "broken.conflist").write_text(json.dumps(broken))

    done = world.run("run", "--rm", "--net", "broken", IMAGE, "ls")

    assert done.status == 125
    assert "network plugin 'bridge' failed" in done.err


def test_missing_plugins_are_told_with_what_to_install(world, tmp_path):
    done = world.run("run", "--rm", IMAGE, "ls", CNI_PATH=str(tmp_path))

    assert done.status == 125
    assert "install the CNI plugins" in done.err
