"""Version 3 to 4: `[grpc]`, `[ttrpc]`, `[metrics]` and the socket of `[debug]` become sections of server plugins.

A ttrpc address that is not given is the gRPC one with `.ttrpc` behind it, with the same owner. A server plugin's own
section, where the file has one already, wins over the old one, whose values are then lost with a warning.

Zeros are not carried over: an owner that another file sets then stays, whichever file gives the address.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from moored.config.migrations.draft import Draft, Path
from moored.config.origin import Node, dotted

SERVER = "io.containerd.server.v1."
GRPC, TCP, TTRPC = f"{SERVER}grpc", f"{SERVER}grpc-tcp", f"{SERVER}ttrpc"
DEBUG, METRICS = f"{SERVER}debug", f"{SERVER}metrics"
PROMETHEUS = "io.containerd.metrics.v1.grpc-prometheus"

_SIZES = ("max_recv_message_size", "max_send_message_size")
_OWNER = ("address", "uid", "gid")

# where each key of the old sections belongs at version 4, also to tell those who still write it there
SUCCESSORS: Mapping[Path, tuple[Path, ...]] = MappingProxyType(
    {
        **{("grpc", key): (("plugins", GRPC, key),) for key in _OWNER},
        **{("grpc", key): (("plugins", GRPC, key), ("plugins", TCP, key)) for key in _SIZES},
        **{
            ("grpc", f"tcp_{key}"): (("plugins", TCP, key),)
            for key in ("address", "tls_ca", "tls_cert", "tls_key", "tls_common_name")
        },
        **{("ttrpc", key): (("plugins", TTRPC, key),) for key in _OWNER},
        **{("debug", key): (("plugins", DEBUG, key),) for key in _OWNER},
        ("metrics", "address"): (("plugins", METRICS, "address"),),
        ("metrics", "grpc_histogram"): (("plugins", PROMETHEUS, "grpc_histogram"),),
    }
)
OLD_SECTIONS = ("grpc", "ttrpc", "metrics")


def v3_to_v4(draft: Draft) -> None:
    """Move the sections in place."""
    old = {path: node for path in SUCCESSORS if (node := draft.get(path)) is not None and node.table is None}
    given = {path: node for path, node in old.items() if node.value}
    there = set(draft.table(("plugins",)))
    wanted = _wanted(given)
    for target, node in wanted.items():
        if target[1] not in there:
            _carry(draft, target, node, given)
    _derive_ttrpc(draft, given, there)
    for path, node in given.items():
        if not any(target in wanted and target[1] not in there for target in SUCCESSORS[path]):
            draft.warn(path, _why_lost(path, there), node.ref)
    for path in old:
        draft.take(path)
    for section in {path[0] for path in old}:
        draft.prune((section,))


def _wanted(given: Mapping[Path, Node]) -> dict[Path, Node]:
    """The new keys with their values; a TCP or debug section exists only for its address."""
    has_address = {TCP: ("grpc", "tcp_address") in given, DEBUG: ("debug", "address") in given}
    return {
        target: node for path, node in given.items() for target in SUCCESSORS[path] if has_address.get(target[1], True)
    }


def _carry(draft: Draft, target: Path, node: Node, given: Mapping[Path, Node]) -> None:
    draft.put(target, node.value, node.ref)
    source = next(path for path, from_ in given.items() if from_ is node)
    draft.note(source, target, node.ref)


def _derive_ttrpc(draft: Draft, given: Mapping[Path, Node], there: set[str]) -> None:
    """Address and owner of the ttrpc socket that the file leaves to the gRPC one."""
    grpc = given.get(("grpc", "address"))
    if grpc is None or TTRPC in there or ("ttrpc", "address") in given or not isinstance(grpc.value, str):
        return
    draft.put(("plugins", TTRPC, "address"), f"{grpc.value}.ttrpc", grpc.ref)
    for key in ("uid", "gid"):
        owner = given.get(("grpc", key))
        if owner is not None and ("ttrpc", key) not in given:
            draft.put(("plugins", TTRPC, key), owner.value, owner.ref)


def _why_lost(path: Path, there: set[str]) -> str:
    uri = SUCCESSORS[path][0][1]
    if uri in there:
        return f"lost, {dotted(('plugins', uri))} is set already"
    return f"lost, it has no effect without {dotted((path[0], 'tcp_address' if uri == TCP else 'address'))}"
