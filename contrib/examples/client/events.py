"""Prints what happens to containers and tasks of the namespace while one runs: events.py IMAGE"""

import asyncio
import sys

from moored.api.client import Client, Options


async def main(image: str) -> None:
    async with Client() as client:
        wanted = f'namespace=="{client.namespace}",topic~="^/(containers|tasks)/"'
        async with client.events.subscribe(wanted) as events:
            container = await client.containers.create("example-events", image, Options(args=("echo", "seen")))
            await container.run()
            await container.delete()
            async for event in events:
                print(event.topic, event.payload)
                if event.topic == "/containers/delete":
                    break


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
