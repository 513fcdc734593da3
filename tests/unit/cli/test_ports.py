"""Published ports, as they are written, chosen and shown."""

from __future__ import annotations

import socket

import pytest

from moored.api.cli.network.ports import LABEL, Port, chosen, parse, read, shown, written
from moored.kernel.errors import FailedPrecondition, InvalidArgument

ANY = "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [Port(0, 80)]),
        ("8080:80", [Port(8080, 80)]),
        ("8080:53/udp", [Port(8080, 53, "udp")]),
        ("127.0.0.1:8080:80", [Port(8080, 80, "tcp", "127.0.0.1")]),
        ("127.0.0.1::80", [Port(0, 80, "tcp", "127.0.0.1")]),
        ("[::1]:8080:80", [Port(8080, 80, "tcp", "::1")]),
        ("8000-8001:80-81", [Port(8000, 80), Port(8001, 81)]),
        ("80-81", [Port(0, 80), Port(0, 81)]),
    ],
)
def test_ports_are_read(text, ports):
    assert parse(text) == ports


@pytest.mark.parametrize(
    "text", ["", "x", "0", "65536", "80:", ":80:", "1.2.3:80:80", "80/icmp", "8000-8002:80-81", "9-8", "1-65535"]
)
def test_other_ports_are_refused(text):
    with pytest.raises(InvalidArgument, match="port"):
        parse(text)


def test_a_port_of_the_host_is_chosen_where_none_was_named():
    (port,) = chosen([Port(0, 80)])

    assert port.container == 80
    assert 0 < port.host < 1 << 16


def test_a_port_that_somebody_listens_on_is_refused():
    with socket.socket() as listener:
        listener.bind((ANY, 0))
        listener.listen()

        with pytest.raises(FailedPrecondition, match="cannot be used"):
            chosen([Port(listener.getsockname()[1], 80)])


def test_a_port_of_another_container_is_refused_on_the_same_address_only():
    with socket.socket() as probe:
        probe.bind((ANY, 0))
        free = probe.getsockname()[1]
    taken = [Port(free, 80, "tcp", "127.0.0.1")]

    with pytest.raises(FailedPrecondition, match="another container"):
        chosen([Port(free, 80)], taken)
    assert chosen([Port(free, 80, "udp")], taken) == [Port(free, 80, "udp")]


def test_ports_go_into_a_label_and_come_back():
    ports = [Port(8080, 80), Port(53, 53, "udp", "::1")]

    assert read({LABEL: written(ports)}) == ports


@pytest.mark.parametrize("label", ["", "{}", "[1]", "[{}]", "null", '[{"HostPort":"x"}]'])
def test_a_label_that_cannot_be_read_is_no_ports(label):
    assert read({LABEL: label}) == []


def test_neighbours_are_shown_as_a_range():
    ports = [Port(8000, 80), Port(8001, 81), Port(53, 53, "udp", "::1")]

    assert shown(ports) == f"{ANY}:8000-8001->80-81/tcp, [::1]:53->53/udp"
