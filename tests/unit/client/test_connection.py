"""Where a daemon is, and who is asked for when nobody says."""

from __future__ import annotations

import socket

import pytest

from harness import on_loop
from moored.api.client import Client
from moored.api.client.connection import default_address, default_namespace, socket_path
from moored.kernel.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable


@pytest.mark.parametrize("address", ["/run/x.sock", "unix:///run/x.sock", "unix:/run/x.sock", "/run/../run/x.sock"])
def test_addresses_name_sockets(address):
    assert socket_path(address) == "/run/x.sock"


@pytest.mark.parametrize("address", ["", "unix://", "tcp://h:1", "/" + "x" * 107])
def test_what_cannot_be_a_socket_is_refused(address):
    with pytest.raises(InvalidArgument, match="address"):
        socket_path(address)


def test_the_environment_says_where_when_nobody_else_does():
    assert default_address({}) == "/run/moored/moored.sock"
    assert default_address({"CONTAINERD_ADDRESS": "/c"}) == "/c"
    assert default_address({"CONTAINERD_ADDRESS": "/c", "MOORED_ADDRESS": "/m"}) == "/m"
    assert default_namespace({"CONTAINERD_NAMESPACE": "k8s.io"}) == "k8s.io"
    assert default_namespace({}) == "default"


def test_a_bad_namespace_is_refused_at_once():
    with pytest.raises(InvalidArgument, match="namespace validation"):
        Client("/x", namespace="no/slash")


def test_a_client_that_is_not_open_says_so():
    with pytest.raises(FailedPrecondition, match="not open"):
        _ = Client("/x").images


@on_loop
async def test_no_daemon_is_told_from_no_object(tmp_path):
    async with Client(str(tmp_path / "none.sock")) as client:
        with pytest.raises(Unavailable, match=r"there is no socket .*none.sock, is the daemon running"):
            await client.images.get("x")


@on_loop
async def test_a_dead_socket_is_said_to_be_one(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "d.sock"))
    async with Client(str(tmp_path / "d.sock")) as client:
        with pytest.raises(Unavailable, match="nobody listens"):
            await client.server.version()


@on_loop
async def test_a_silent_daemon_is_waited_for_as_long_as_is_wanted(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s.sock"))
        silent.listen()
        async with Client(str(tmp_path / "s.sock"), timeout=0.2) as client:
            with pytest.raises(DeadlineExceeded, match=r"gave no answer within 0.2s"):
                await client.server.version()
