"""The task API of a shim, version 3 or 2: both have the same methods and messages, under different names."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from moored.kernel.errors import Internal, NotFound, Unavailable, Unimplemented, Unknown
from moored.plugins.runtime.manager.shim import ManagedShim

M = TypeVar("M", bound=Message)

_SERVICE: Final = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}


class TaskCalls:
    """Calls with messages of version 3. A shim that does not know that version is asked by version 2 from then on."""

    def __init__(self, shim: ManagedShim) -> None:
        self._shim = shim
        self._version = 2 if shim.endpoint.version == 2 else 3
        self._sure = self._version == 2
        self._gone = False

    @property
    def version(self) -> int:
        """The version in use."""
        return self._version

    def task_is_gone(self) -> None:
        """Say that the task was deleted: what the shim no longer answers is then NotFound."""
        self._gone = True

    async def __call__(self, method: str, request: Message, answer: type[M], *, seconds: float | None) -> M:
        """Call a method. Raises as `Shim.call`, Internal for an answer that does not parse."""
        data = request.SerializeToString()
        try:
            payload = await self._ask(method, data, seconds)
        except Unavailable:
            if not self._gone:
                raise
            raise NotFound(f"task {self._shim.id} not found", bare=True) from None
        except Unknown as error:
            # containerd's shims forget the class of a missing exec in some calls
            if not error.text.startswith("process does not exist "):
                raise
            raise NotFound(error.text.removesuffix(": not found")) from None
        self._sure = True
        try:
            return answer.FromString(payload)
        except DecodeError as error:
            raise Internal(f"shim answered {method} with what is no {answer.DESCRIPTOR.name}: {error}") from None

    async def _ask(self, method: str, data: bytes, seconds: float | None) -> bytes:
        try:
            return await self._shim.call(_SERVICE[self._version], method, data, seconds=seconds)
        except Unimplemented:
            if self._sure or self._shim.endpoint.protocol == "grpc":
                raise
            payload = await self._shim.call(_SERVICE[2], method, data, seconds=seconds)
            self._version = 2
            return payload
