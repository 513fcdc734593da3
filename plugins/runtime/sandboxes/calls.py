"""The sandbox API of a shim, with messages of the stubs."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from moored.api.runtime.sandbox.v1 import sandbox_pb2 as api
from moored.kernel.errors import Internal, MooredError
from moored.plugins.runtime.manager.shim import Deadlines, ManagedShim

M = TypeVar("M", bound=Message)

SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"


async def call(shim: ManagedShim, method: str, request: Message, answer: type[M], *, seconds: float | None) -> M:
    """Call a method. Raises as `Shim.call`, Internal for an answer that does not parse."""
    payload = await shim.call(SERVICE, method, request.SerializeToString(), seconds=seconds)
    try:
        return answer.FromString(payload)
    except DecodeError as error:
        raise Internal(f"shim answered {method} with what is no {answer.DESCRIPTOR.name}: {error}") from None


async def end(shim: ManagedShim, deadlines: Deadlines) -> None:
    """Have a shim end, whatever there is of its sandbox. Raises nothing."""
    with suppress(MooredError):
        await call(
            shim,
            "ShutdownSandbox",
            api.ShutdownSandboxRequest(sandbox_id=shim.id),
            api.ShutdownSandboxResponse,
            seconds=deadlines.cleanup,
        )
