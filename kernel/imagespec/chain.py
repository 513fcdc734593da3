"""Chain IDs: what a stack of uncompressed layers is called, and so the snapshot made of it (OCI image spec, config)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Give the chain ID of each layer on top of those before it."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(_digest(f"{chain[-1]} {diff_id}") if chain else diff_id)
    return chain


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
