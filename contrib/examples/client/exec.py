"""Talks to a second process in a running container: exec.py IMAGE"""

import asyncio
import sys

from moored.api.client import Client, Options
from moored.api.client.stdio import NULL, PIPES_AND_STDIN


async def main(image: str) -> None:
    async with Client() as client:
        container = await client.containers.create("example-exec", image, Options(args=("sleep", "60")))
        try:
            async with await container.create_task(NULL) as task:
                await task.start()
                process = await task.exec(["cat"], PIPES_AND_STDIN)
                async with process:
                    await process.start()
                    assert process.stdin is not None
                    assert process.stdout is not None
                    for word in ("one", "two"):
                        await process.stdin.write(f"{word}\n".encode())
                        print((await process.stdout.readline()).decode(), end="")
                    await process.stdin.close()
                    print("cat ended with", (await process.wait()).status)
        finally:
            await container.delete(force=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
