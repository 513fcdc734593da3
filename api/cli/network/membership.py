"""A container's network from its first start to its removal: namespace, CNI, and the files that name hosts in it.

    up: namespace made -> CNI ADD -> network.json, hosts written      down: CNI DEL -> namespace removed

    again: CNI DEL of what is lost -> namespace made -> CNI ADD -> network.json, hosts written

`network.json` tells how to undo it, and how to do it again, whatever has become of the configuration since.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from moored.api.cli.home import Home, read_document, write_document
from moored.api.cli.network import cni, ports
from moored.api.cli.network.ports import Port
from moored.kernel.errors import MooredError, NotFound

FILE: Final = "network.json"
RESOLV_CONF: Final = "/etc/resolv.conf"
RESOLVED_CONF: Final = "/run/systemd/resolve/resolv.conf"
"""What systemd-resolved asks; the other file may name only itself, which containers cannot reach."""
PUBLIC_SERVERS: Final = ("8.8.8.8", "8.8.4.4")


@dataclass(frozen=True, slots=True)
class Names:
    """What a container calls things: its own name, further `NAME:ADDRESS`, DNS servers, search domains, options."""

    hostname: str
    hosts: Sequence[str] = ()
    dns: Sequence[str] = ()
    search: Sequence[str] = ()
    options: Sequence[str] = ()


def write_names(folder: Path, names: Names, *, own_network: bool) -> None:
    """Write hosts, hostname and resolv.conf into a container's folder, before it has an address."""
    (folder / "hostname").write_text(f"{names.hostname}\n")
    (folder / "resolv.conf").write_text(_resolver(names, own_network=own_network))
    write_hosts(folder, names, ())
    for name in ("hostname", "resolv.conf", "hosts"):
        (folder / name).chmod(0o644)


def write_hosts(folder: Path, names: Names, addresses: Sequence[str]) -> None:
    """Write the hosts file, in place since containers have it mounted."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{names.hostname}" for address in addresses]
    for entry in names.hosts:
        name, _, address = entry.partition(":")
        lines.append(f"{address}\t{name}")
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _resolver(names: Names, *, own_network: bool) -> str:
    lines = [line for line in _host_resolver(own_network) if not _replaced(line, names)]
    if names.dns:
        lines = [f"nameserver {server}" for server in names.dns] + lines
    if names.search:
        lines.append(f"search {' '.join(names.search)}")
    if names.options:
        lines.append(f"options {' '.join(names.options)}")
    if own_network and not any(line.startswith("nameserver") for line in lines):
        lines = [f"nameserver {server}" for server in PUBLIC_SERVERS] + lines
    return "".join(f"{line}\n" for line in lines)


def _replaced(line: str, names: Names) -> bool:
    word = line.split(maxsplit=1)[0] if line.split() else ""
    given = {"nameserver": names.dns, "search": names.search, "domain": names.search, "options": names.options}
    return bool(given.get(word))


def _host_resolver(own_network: bool) -> list[str]:
    lines = _lines(RESOLV_CONF)
    if not own_network:
        return lines
    servers = [line for line in lines if line.startswith("nameserver")]
    if servers and all(_is_local(line) for line in servers):
        lines = _lines(RESOLVED_CONF) or lines
    return [line for line in lines if not (line.startswith("nameserver") and _is_local(line))]


def _is_local(line: str) -> bool:
    address = [*line.split(), ""][1]
    return address.startswith("127.") or address == "::1"


def _lines(path: str) -> list[str]:
    with suppress(OSError, UnicodeDecodeError):
        return [line.rstrip() for line in Path(path).read_text().splitlines() if not line.startswith(("#", ";"))]
    return []


def up(home: Home, id: str, network_name: str, wanted: Sequence[Port], names: Names) -> list[Port]:  # noqa: A002
    """Join a container to a network unless it is joined, and give its ports with the host's numbers chosen.

    Raises the errors of CNI and of ports; then nothing is left of it.
    """
    from moored.api.cli.network import namespace

    folder, netns = home.container(id), home.netns(id)
    known = read_document(folder / FILE)
    if known and namespace.is_there(netns):
        return [Port(**port) for port in known.get("ports", [])]
    down(home, id)
    network = cni.network(network_name)
    with home.locked():
        chosen = ports.chosen(wanted, _taken(home, id))
        endpoint = _endpoint(id, netns, chosen)
        document = {**_document(network, endpoint, chosen), "names": asdict(names)}
        # Written first: whoever is killed in between leaves what tells how to undo it.
        write_document(folder / FILE, document)
    try:
        namespace.make(netns)
        result = cni.add(network, endpoint)
    except BaseException:
        namespace.remove(netns)
        (folder / FILE).unlink(missing_ok=True)
        raise
    write_document(folder / FILE, {**document, "result": result})
    write_hosts(folder, names, cni.addresses(result))
    return chosen


def again(folder: Path) -> None:
    """Join the container with this folder again to the network that it was on, if its namespace is gone.

    As after a reboot: addresses may change, published ports do not. Raises NotFound for a container without a network,
    the errors of CNI; what tells how to do it stays.
    """
    from moored.api.cli.network import namespace

    known = read_document(folder / FILE)
    try:
        network, endpoint = cni.decoded(known["network"], "kept"), cni.Endpoint(**known["endpoint"])
        names = Names(**known["names"])
    except (KeyError, TypeError) as error:
        raise NotFound(f"'{folder / FILE}' does not tell how to join a network") from error
    netns = Path(endpoint.netns)
    if namespace.is_there(netns):
        return
    # What CNI plugins keep on disk, as the address that was given away, outlives a reboot.
    cni.remove(network, endpoint, known.get("result"))
    namespace.remove(netns)
    try:
        namespace.make(netns)
        result = cni.add(network, endpoint)
    except BaseException:
        namespace.remove(netns)
        raise
    write_document(folder / FILE, {**known, "result": result})
    write_hosts(folder, names, cni.addresses(result))


def down(home: Home, id: str) -> list[str]:  # noqa: A002
    """Take a container from its network; gives what could not be undone. Again is harmless."""
    folder, netns = home.container(id), home.netns(id)
    known = read_document(folder / FILE)
    faults: list[str] = []
    if known:
        with suppress(KeyError, TypeError, MooredError):
            network = cni.decoded(known["network"], "kept")
            faults = cni.remove(network, cni.Endpoint(**known["endpoint"]), known.get("result"))
    if netns.exists():
        from moored.api.cli.network import namespace

        namespace.remove(netns)
    (folder / FILE).unlink(missing_ok=True)
    return faults


def result_of(home: Home, id: str) -> Mapping[str, Any]:  # noqa: A002
    """Give what CNI said of a container, empty for one without a network of its own."""
    found = read_document(home.container(id) / FILE).get("result")
    return found if isinstance(found, dict) else {}


def _endpoint(id: str, netns: Path, chosen: Sequence[Port]) -> cni.Endpoint:  # noqa: A002
    mappings = [
        {"hostPort": p.host, "containerPort": p.container, "protocol": p.protocol, "hostIP": _portmap_ip(p.ip)}
        for p in chosen
    ]
    return cni.Endpoint(
        container_id=id, netns=str(netns), capabilities={"portMappings": mappings}, args={"IgnoreUnknown": "1"}
    )


def _portmap_ip(ip: str) -> str:
    # portmap takes an empty address for all.
    return "" if ip in ("0.0.0.0", "::") else ip  # noqa: S104


def _document(network: cni.Network, endpoint: cni.Endpoint, chosen: Sequence[Port]) -> dict[str, Any]:
    kept = {
        "container_id": endpoint.container_id,
        "netns": endpoint.netns,
        "interface": endpoint.interface,
        "capabilities": endpoint.capabilities,
        "args": endpoint.args,
    }
    listed = [{"host": p.host, "container": p.container, "protocol": p.protocol, "ip": p.ip} for p in chosen]
    return {"network": network.document(), "endpoint": kept, "ports": listed}


def _taken(home: Home, id: str) -> list[Port]:  # noqa: A002
    """Ports of the other containers, of any namespace, that have a network now."""
    found: list[Port] = []
    for file in home.root.parent.parent.glob(f"*/*/containers/*/{FILE}"):
        document = read_document(file)
        if file.parent.name != id and os.path.exists(str(document.get("endpoint", {}).get("netns", ""))):  # noqa: PTH110
            with suppress(TypeError, KeyError):
                found += [Port(**port) for port in document["ports"]]
    return found
