"""Pages of the debug socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moored.kernel.plugin import PluginType


@dataclass(frozen=True, slots=True)
class Page:
    """An answer: HTTP status, content type and body."""

    status: int
    content_type: str
    body: bytes


class DebugPages(Protocol):
    """HTTP GET pages for the debug listener."""

    def pages(self) -> Mapping[str, Callable[[Mapping[str, str]], Awaitable[Page]]]:
        """Absolute URL path -> coroutine function of the query parameters. A page may take as long as it says."""


HTTP: PluginType[DebugPages] = PluginType("io.containerd.http.v1")
