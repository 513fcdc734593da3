"""The hooks: one-to-many calls that any plugin may implement, specified for pluggy.

A plugin implements hooks on an object of its own and registers it while it starts:

    class Labels:
        @hookimpl
        def moored_adjust_spec(self, namespace, container_id, spec): ...

    ctx.hooks.register(Labels())        # gone again when the plugin stops

Implementations are plain functions, may take any subset of the arguments, and must return quickly: where a hook is
called from the event loop it says so. What an implementation raises is the caller's to handle, as each hook states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

from moored.kernel.ports.daemon import PluginRecord

PROJECT = "moored"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Every hook of moored. Arguments are read-only unless a hook says otherwise."""

    @hookspec
    def moored_plugin_settled(self, record: PluginRecord) -> None:
        """A plugin reached an outcome, or stopped. On the event loop; an exception is logged and changes nothing."""

    @hookspec(firstresult=True)
    def moored_admit(self, method: str, namespace: str, request: object) -> str | None:
        """Veto a call before it is carried out: return the reason to refuse it, None to leave it to others.

        method is the full RPC name (`/containerd.services.images.v1.Images/Delete`), request the decoded message (for
        streams: None). On the event loop. The caller gets PermissionDenied with the reason; an exception refuses too.
        """

    @hookspec
    def moored_adjust_spec(self, namespace: str, container_id: str, spec: dict[str, Any]) -> None:
        """Change the OCI runtime spec of a container, in place, before its task is created.

        Called by the runtime in a worker thread, in registration order. An exception fails the create, naming the
        plugin.
        """

    @hookspec
    def moored_object_event(self, namespace: str, topic: str, event: Mapping[str, Any]) -> None:
        """An image, container, snapshot or task changed: called after it happened, with the event that clients get.

        Called by the event exchange on the event loop; an exception is logged and changes nothing.
        """

    @hookspec
    def moored_config_changed(self, uri: str, keys: tuple[str, ...]) -> None:
        """The config of a running plugin was replaced; keys are dotted. On the event loop; an exception is logged."""


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the specification above and checks each implementation against it when registered."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager
