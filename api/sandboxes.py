"""Sandbox records, and what controllers tell of sandboxes, as containerd's services have them, to and from our values.

Both ends of the services use it: those who serve them, and those who call them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from moored.api.convert import set_timestamp, to_ns
from moored.api.types.sandbox_pb2 import Sandbox as SandboxMessage
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.sandboxes import Sandbox


def to_message(sandbox: Sandbox) -> SandboxMessage:
    """Give the record on the wire."""
    message = SandboxMessage(sandbox_id=sandbox.id, sandboxer=sandbox.sandboxer, labels=sandbox.labels)
    message.runtime.name = sandbox.runtime
    if sandbox.runtime_options is not None:
        fill_any(message.runtime.options, sandbox.runtime_options)
    if sandbox.spec is not None:
        fill_any(message.spec, sandbox.spec)
    set_timestamp(message.created_at, sandbox.created_at)
    set_timestamp(message.updated_at, sandbox.updated_at)
    for key, value in sandbox.extensions.items():
        fill_any(message.extensions[key], value)
    return message


def from_message(message: SandboxMessage) -> Sandbox:
    """Give the record of the wire with its times. Raises InvalidArgument for one without a runtime."""
    if not message.HasField("runtime"):
        raise InvalidArgument("sandbox has no runtime")
    return Sandbox(
        id=message.sandbox_id,
        runtime=message.runtime.name,
        runtime_options=typed(message.runtime, "options"),
        spec=typed(message, "spec"),
        sandboxer=message.sandboxer,
        labels=dict(message.labels),
        extensions={key: TypedBytes(value.type_url, value.value) for key, value in message.extensions.items()},
        created_at=to_ns(message.created_at) or 0,
        updated_at=to_ns(message.updated_at) or 0,
    )


def moment(stamp: Timestamp) -> int | None:
    """Give a time in ns since 1970; None for Go's zero time, and for 1970, which is a time that nobody has set."""
    return to_ns(stamp) or None


def typed(message: Any, name: str) -> TypedBytes | None:
    """Give an Any field of a message, None if it is not there."""
    if not message.HasField(name):
        return None
    given: AnyMessage = getattr(message, name)
    return TypedBytes(given.type_url, given.value)


def fill_any(message: AnyMessage, given: TypedBytes) -> None:
    """Write into an Any field, which is there then even if both are empty."""
    message.SetInParent()
    message.type_url, message.value = given.type_url, given.value


def any_message(given: TypedBytes | None) -> AnyMessage | None:
    """Give an Any, None for none."""
    return None if given is None else AnyMessage(type_url=given.type_url, value=given.value)
