"""Lists images and runs a container in a program without an event loop: without_asyncio.py IMAGE"""

import sys

from moored.api.client import Options
from moored.api.client.sync import Client


def main(name: str) -> None:
    with Client() as client:
        for image in client.images.list():
            print(image.name, client.images.size(image))
        container = client.containers.create("example-sync", name, Options(args=("echo", "hello")))
        try:
            print(container.run().stdout.decode(), end="")
        finally:
            container.delete(force=True)


if __name__ == "__main__":
    main(sys.argv[1])
