"""Listeners: a plugin of this type has a socket open for as long as it runs."""

from __future__ import annotations

from typing import Protocol

from moored.kernel.plugin import PluginType


class Listener(Protocol):
    """An open socket that accepts clients.

    Its plugin skips itself when no address is configured. Starting binds, so that a plugin which has started can be
    connected to; stopping refuses new calls, ends the running ones within the plugin's stop deadline and removes a unix
    socket that is still its own. Unix sockets are 0660 in a folder that is made 0770 where it is missing; an address on
    which somebody answers is never taken over (FailedPrecondition naming it), a dead socket file is replaced.
    """

    @property
    def address(self) -> str:
        """What clients connect to: an absolute path, or HOST:PORT with the real port."""


SERVER: PluginType[Listener] = PluginType("io.containerd.server.v1")
