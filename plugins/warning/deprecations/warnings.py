"""Keeps, for each deprecated thing, that it was used and when last."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from moored.kernel.ports.introspection import Deprecation

MAX_IDS = 1024
"""Distinct ids that are kept; more are a bug of whoever emits, and are dropped."""


class DeprecationWarnings:
    """The Warnings port in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Deprecation] = {}

    def emit(self, id: str, message: str) -> None:  # noqa: A002 - the port's term
        """See Warnings."""
        with self._lock:
            if id in self._found or len(self._found) < MAX_IDS:
                self._found[id] = Deprecation(id, message, datetime.now(UTC))

    def deprecations(self) -> Sequence[Deprecation]:
        """See Warnings."""
        with self._lock:
            return [self._found[id_] for id_ in sorted(self._found)]
