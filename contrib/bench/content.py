"""Content written through the API: 1 and 8 writers, messages of 32 KiB (what clients send) and 1 MiB."""

from __future__ import annotations

import os
from collections.abc import Callable

from contrib.bench.http2 import Client, Link, run
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values

from moored.api.services.content.v1 import content_pb2 as pb

WRITE = "/containerd.services.content.v1.Content/Write"
TOTAL = 128 << 20
"""Bytes of all writers together."""
CASES = {"32k": 32 << 10, "1m": 1 << 20}


def writer(ref: str, size: int, piece: int) -> Callable[[Link], Client]:
    """A client that opens a ref, writes it piece by piece, each answered before the next, and commits it."""
    block = os.urandom(piece - 8)

    def client(link: Link) -> Client:
        stream = link.open(WRITE)
        yield stream.send(pb.WriteContentRequest(action=pb.STAT, ref=ref, total=size).SerializeToString())
        for at in range(0, size, piece):
            data = at.to_bytes(8, "big") + block
            yield stream.send(pb.WriteContentRequest(action=pb.WRITE, offset=at, data=data).SerializeToString())
        end = pb.WriteContentRequest(action=pb.COMMIT, total=size, offset=size)
        yield stream.send(end.SerializeToString(), last=True)

    return client


def ingest(running: Running, number: int, scale: float) -> Values:
    """MB a second from the first message to the last commit."""
    found: Values = {}
    for name, piece in CASES.items():
        for writers in (1, 8):
            each = max(1, int(TOTAL * scale) // writers // piece) * piece
            refs = [f"{number}-{name}-{writers}-{one}" for one in range(writers)]
            seconds, _ = run(running.address, [writer(ref, each, piece) for ref in refs])
            found[f"ingest_{name}_{writers}_mb_per_s"] = each * writers / seconds / 1e6
    return found


GROUP = Group(ingest)
