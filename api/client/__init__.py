"""The client library: containers, images and all else that a daemon of containerd's API keeps, from asyncio.

    from moored.api.client import Client

    async with Client() as client:
        image = await client.pull("docker.io/library/alpine:latest")
        container = await client.containers.create("hello", image, Options(args=("echo", "hello")))
        result = await container.run()

`moored.api.client.sync` has the same for programs without an event loop. Values are those of `moored.kernel.ports`,
errors those of `moored.kernel.errors`.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moored.api.client.client import Client
    from moored.api.client.spec import Options

__all__ = ["Client", "Options"]

_PLACES: Final = {"Client": "moored.api.client.client", "Options": "moored.api.client.spec"}


def __getattr__(name: str) -> Any:
    """Import what is asked for: programs that need one small part of the library do not wait for all of it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found
