"""The client library: containers, images and all else that a daemon of containerd's API keeps, from asyncio.

    from moored.api.client import Client

    async with Client() as client:
        image = await client.pull("docker.io/library/alpine:latest")
        container = await client.containers.create("hello", image, Options(args=("echo", "hello")))
        result = await container.run()

`moored.api.client.sync` has the same for programs without an event loop. Values are those of `moored.kernel.ports`,
errors those of `moored.kernel.errors`.
"""

from moored.api.client.client import Client
from moored.api.client.spec import Options

__all__ = ["Client", "Options"]
