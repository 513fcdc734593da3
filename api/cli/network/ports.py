"""Published ports, as `-p` writes them: `[HOST_IP:][HOST_PORT[-HOST_PORT]:]PORT[-PORT][/PROTOCOL]`."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument

PROTOCOLS: Final = ("tcp", "udp", "sctp")
LABEL: Final = "nerdctl/ports"
"""Label of a container: its published ports, JSON as nerdctl writes it."""
MAX_PORTS: Final = 1024

_SPEC: Final = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9]+(?:\.[0-9]+)+):)?"
    r"(?:(?P<host>[0-9]*(?:-[0-9]+)?):)?(?P<port>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>[a-z]+))?"
)


@dataclass(frozen=True, slots=True)
class Port:
    """One port of the host that leads to one of the container; ip is the host's address, `0.0.0.0` for all."""

    host: int
    container: int
    protocol: str = "tcp"
    ip: str = "0.0.0.0"  # noqa: S104 - what docker publishes on too

    def __str__(self) -> str:
        """Give it as `ps` shows it."""
        ip = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{ip}:{self.host}->{self.container}/{self.protocol}"

    def document(self) -> dict[str, Any]:
        """Give it as the label and inspect have it."""
        return {"HostPort": self.host, "ContainerPort": self.container, "Protocol": self.protocol, "HostIP": self.ip}


def parse(text: str) -> list[Port]:
    """Read one `-p`; a missing host port (0) is chosen later. Raises InvalidArgument."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"port {text!r} must look like 8080:80, 127.0.0.1:8080:80/udp or 8000-8010:8000-8010")
    protocol = match["protocol"] or "tcp"
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f"port {text!r} has protocol {protocol!r}, wanted one of {', '.join(PROTOCOLS)}")
    ip = _ip(text, (match["ip"] or "").strip("[]"))
    inner = _range(text, match["port"])
    outer = _range(text, match["host"]) if match["host"] else range(0)
    if outer and len(outer) != len(inner):
        raise InvalidArgument(f"port {text!r} has ranges of different lengths")
    hosts: Iterable[int] = outer or [0] * len(inner)
    return [Port(host, port, protocol, ip) for host, port in zip(hosts, inner, strict=True)]


def _ip(text: str, ip: str) -> str:
    if not ip:
        return "0.0.0.0"  # noqa: S104
    try:
        return str(ipaddress.ip_address(ip))
    except ValueError:
        raise InvalidArgument(f"port {text!r} has host address {ip!r}, which is no IP address") from None


def _range(text: str, part: str) -> range:
    first, _, last = part.partition("-")
    low, high = int(first), int(last or first)
    if not 0 < low <= high < 1 << 16 or high - low >= MAX_PORTS:
        raise InvalidArgument(f"port {text!r} must be of numbers from 1 to 65535, rising, at most {MAX_PORTS} of them")
    return range(low, high + 1)


def chosen(ports: Sequence[Port], taken: Iterable[Port] = ()) -> list[Port]:
    """Give each port without a host's one a free one, and see that the others are free.

    Raises FailedPrecondition naming the port that is in use; `taken` are those of other containers, which nobody
    listens on in the host's own sense.
    """
    reserved = {(port.host, port.protocol): port for port in taken}
    done: list[Port] = []
    for port in ports:
        if port.host:
            if (other := reserved.get((port.host, port.protocol))) and _overlap(other.ip, port.ip):
                raise FailedPrecondition(
                    f"port {port.host}/{port.protocol} is published by another container, see moorctl ps"
                )
            _bind(port)
            done.append(port)
            continue
        done.append(_free(port, set(reserved) | {(one.host, one.protocol) for one in done}))
    return done


def _overlap(one: str, other: str) -> bool:
    return one == other or "0.0.0.0" in (one, other) or "::" in (one, other)  # noqa: S104


def _free(port: Port, reserved: set[tuple[int, str]]) -> Port:
    for _ in range(64):
        host = _bind(port)
        if (host, port.protocol) not in reserved:
            return Port(host, port.container, port.protocol, port.ip)
    raise FailedPrecondition(f"no free port was found for {port.container}/{port.protocol}")


def _bind(port: Port) -> int:
    """Bind for a moment, which tells whether somebody listens; the port's number."""
    if port.protocol == "sctp":
        return port.host
    family = socket.AF_INET6 if ":" in port.ip else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as probe:
        if port.protocol == "tcp":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.ip, port.host))
        except OSError as error:
            raise FailedPrecondition(
                f"port {port.ip}:{port.host}/{port.protocol} of the host cannot be used: {error.strerror}; "
                "choose another one, or end who listens there"
            ) from error
        return int(probe.getsockname()[1])


def written(ports: Sequence[Port]) -> str:
    """Give the label's text."""
    return json.dumps([port.document() for port in ports], separators=(",", ":"))


def read(labels: Mapping[str, str]) -> list[Port]:
    """Read the ports that a container's labels tell of; what cannot be read is none."""
    try:
        found = json.loads(labels.get(LABEL, "[]"))
        return [
            Port(int(one["HostPort"]), int(one["ContainerPort"]), str(one["Protocol"]), str(one.get("HostIP", "")))
            for one in found
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def shown(ports: Sequence[Port]) -> str:
    """Give ports as one text, neighbours as a range."""
    parts: list[str] = []
    at = 0
    while at < len(ports):
        first, last = ports[at], ports[at]
        while at + 1 < len(ports) and _follows(last, ports[at + 1]):
            at += 1
            last = ports[at]
        if first is last:
            parts.append(str(first))
        else:
            ip = f"[{first.ip}]" if ":" in first.ip else first.ip
            span = f"{first.host}-{last.host}->{first.container}-{last.container}"
            parts.append(f"{ip}:{span}/{first.protocol}")
        at += 1
    return ", ".join(parts)


def _follows(one: Port, other: Port) -> bool:
    same = (one.ip, one.protocol) == (other.ip, other.protocol)
    return same and (other.host, other.container) == (one.host + 1, one.container + 1)
