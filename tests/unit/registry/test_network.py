"""Addresses that servers name, proxies of the environment, and what counts as private."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import pytest
from aiohappyeyeballs import start_connection
from yarl import URL

from moored.api.registry.network import (
    OUT_OF_BOUNDS,
    OutOfBounds,
    guarded_socket,
    is_public,
    place,
    proxy_for,
    read_address,
    refuse_private,
    same_origin,
)
from moored.api.registry.settings import Policy
from moored.kernel.errors import InvalidArgument, PermissionDenied

BASE = URL("https://reg.example/v2/a/blobs/x?ns=y")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://cdn.test/a?sig=%2F%2b+%20x&b=a%3D", "https://cdn.test/a?sig=%2F%2b+%20x&b=a%3D"),
        ("/next?_state=a%2Bb", "https://reg.example/next?_state=a%2Bb"),
        ("//cdn.test/a", "https://cdn.test/a"),
        ("https://cdn.test/a#part", "https://cdn.test/a"),
        ("https://cdn.test/ä b", "https://cdn.test/%C3%A4%20b"),
    ],
)
def test_an_address_is_read_as_it_is_spelt(location: str, expected: str) -> None:
    assert str(read_address(location, BASE)) == expected


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "unix:///run/moored.sock",
        "gopher://x/",
        "javascript:alert(1)",
        "https://",
        "http:///x",
        "http://[::1",
        "http://a:99999/",
        "http://a:0/",
        "http://a:b/",
        "http://\udcff/",
    ],
)
def test_what_is_no_http_address_is_refused(location: str) -> None:
    with pytest.raises(PermissionDenied, match="which is no http address"):
        read_address(location, BASE)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.test/x", "https://a.test:443/y", True),
        ("https://A.test/", "https://a.test/", True),
        ("https://a.test/", "http://a.test/", False),
        ("http://a.test:5000/", "https://a.test:5000/", False),
        ("https://a.test/", "https://a.test:444/", False),
        ("https://a.test/", "https://b.test/", False),
        ("https://a.test@b.test/", "https://a.test/", False),
        ("https://a.test./", "https://a.test/", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert same_origin(read_address(one), read_address(other)) is same


def test_a_place_has_its_port_where_it_is_not_the_schemes_own() -> None:
    texts = ["https://u:p@A.test:443/x", "http://a.test:443/", "http://[::1]:80/", "http://[::1]:81/"]
    assert [place(read_address(text)) for text in texts] == ["a.test", "a.test:443", "[::1]", "[::1]:81"]


PRIVATE = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_the_internets(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(OutOfBounds):
        refuse_private(address, Policy(deny_private=True))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    refuse_private(address, Policy(deny_private=True))


def test_host_with_two_addresses_out_of_bounds_is_told_as_one_with_one() -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("::1", 9, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 9)),
    ]
    guarded = guarded_socket(Policy(deny_private=True))

    with pytest.raises(OSError, match=r"127\.0\.0\.1 is a private address") as raised:
        asyncio.run(start_connection(both, happy_eyeballs_delay=0.25, socket_factory=guarded))

    assert raised.value.errno == OUT_OF_BOUNDS


def test_networks_can_be_excepted() -> None:
    policy = Policy(deny_private=True, private_networks=(ipaddress.ip_network("10.1.0.0/16"),))
    refuse_private("10.1.2.3", policy)
    with pytest.raises(OutOfBounds, match=r"10\.2\.0\.1 is a private address"):
        refuse_private("10.2.0.1", policy)


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://a.test/", {}, None),
        ("https://a.test/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://a.test/", {"https_proxy": "p:3128", "HTTPS_PROXY": "http://q"}, "http://p:3128"),
        ("https://a.test/", {"HTTP_PROXY": "http://p"}, None),
        ("http://a.test/", {"HTTP_PROXY": "http://u:s@p"}, "http://u:s@p"),
        ("https://a.test/", {"HTTPS_PROXY": "socks5://u:s@p:9"}, "socks5://u:s@p:9"),
        ("http://localhost:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://127.0.0.1:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://[::1]:5000/", {"HTTP_PROXY": "http://p"}, None),
        ("http://a.test/", {"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("http://a.test/", {"HTTP_PROXY": "http://p", "NO_PROXY": "b.test, A.test"}, None),
        ("http://x.a.test/", {"HTTP_PROXY": "http://p", "NO_PROXY": "a.test"}, None),
        ("http://xa.test/", {"HTTP_PROXY": "http://p", "NO_PROXY": "a.test"}, "http://p"),
        ("http://x.a.test/", {"HTTP_PROXY": "http://p", "no_proxy": ".a.test"}, None),
        ("http://a.test/", {"HTTP_PROXY": "http://p", "no_proxy": ".a.test"}, "http://p"),
        ("http://a.test:81/", {"HTTP_PROXY": "http://p", "no_proxy": "a.test:81"}, None),
        ("http://a.test:82/", {"HTTP_PROXY": "http://p", "no_proxy": "a.test:81"}, "http://p"),
        ("http://10.1.2.3/", {"HTTP_PROXY": "http://p", "no_proxy": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/", {"HTTP_PROXY": "http://p", "no_proxy": "10.0.0.0/8"}, "http://p"),
        ("http://10.1.2.3/", {"HTTP_PROXY": "http://p", "no_proxy": "10.1.2.3"}, None),
        ("http://10.1.2.3:8/", {"HTTP_PROXY": "http://p", "no_proxy": "10.1.2.3:8"}, None),
        ("http://[fd00::1]/", {"HTTP_PROXY": "http://p", "no_proxy": "fd00::/8"}, None),
    ],
)
def test_proxies_are_those_of_the_environment(url: str, environment: dict[str, str], expected: str | None) -> None:
    assert proxy_for(URL(url), environment) == (None if expected is None else URL(expected))


@pytest.mark.parametrize("proxy", ["ftp://p", "socks4://p", "http://", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_an_error_without_its_secrets(proxy: str) -> None:
    with pytest.raises(InvalidArgument, match="proxy of HTTPS_PROXY must be a URL of scheme http, https or socks5"):
        proxy_for(URL("https://a.test"), {"HTTPS_PROXY": proxy})
