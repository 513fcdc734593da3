"""How a registry client behaves: what it waits for, what it lets servers make it do, whom it says to be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from moored.api.registry.credentials import Lookup, nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is waited for at most, in seconds.

    header      until the head of an answer is there, once connected and once all of the request is sent
    dial        until a connection is made, where hosts.toml does not say
    stall       between two pieces of a body, either way
    progress    in which at least `least` bytes of a body come; the reader's own time does not count
    least       bytes; a body that breaks off before as many have come counts as having brought nothing
    retry_after what a server may ask us to wait; one that asks for more gets no further request
    """

    header: float = 30.0
    dial: float = 30.0
    stall: float = 60.0
    progress: float = 300.0
    least: int = 64 * 1024
    retry_after: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What servers may make this client do.

    token_hosts       hosts (with their port where it is not the scheme's own) that tokens may be fetched from, besides
                      the registry's own; empty for any
    deny_private      refuse redirects, upload places, foreign layers and token servers, other than the registry itself,
                      at addresses that are not public: private, loopback, link-local, multicast, reserved
    private_networks  those of them that are allowed even so
    """

    token_hosts: frozenset[str] = frozenset()
    deny_private: bool = False
    private_networks: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a client behaves; headers are sent to every host, credentials looked up by host.

    upload_chunk   bytes above which blobs are uploaded in chunks of that size, each in memory; 0: only those that a
                   registry refuses to take in one request
    dump           takes the heads of all requests and answers
    trace          note names that are looked up, and connections, in the debug log
    """

    user_agent: str = "containerd/2.3.4"
    headers: Mapping[str, str] = field(default_factory=dict)
    credentials: Lookup = nobody
    limits: Limits = Limits()
    policy: Policy = Policy()
    connections: int = 32
    upload_chunk: int = 0
    dump: Callable[[bytes], Awaitable[None]] | None = None
    trace: bool = False
