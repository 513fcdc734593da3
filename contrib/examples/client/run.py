"""Runs a container of an image that is there and prints what it writes: run.py IMAGE COMMAND..."""

import asyncio
import sys

from moored.api.client import Client, Options
from moored.api.client.spec import Resources


async def main(image: str, *command: str) -> int:
    limits = Resources(memory=256 << 20, pids=100)
    async with Client() as client:
        container = await client.containers.create("example-run", image, Options(args=command, resources=limits))
        try:
            result = await container.run()
        finally:
            await container.delete(force=True)
    sys.stdout.write(result.stdout.decode())
    sys.stderr.write(result.stderr.decode())
    return result.exit.status


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
