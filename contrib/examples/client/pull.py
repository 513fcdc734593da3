"""Pulls an image and shows how that goes: pull.py [--plain-http] REFERENCE"""

import asyncio
import sys

from moored.api.client import Client
from moored.api.client.registries import RegistryOptions
from moored.api.registry.credentials import DockerConfig
from moored.kernel.ports.transfer import Progress


def show(news: Progress) -> None:
    done = f"{news.progress}/{news.total}" if news.total else ""
    print(news.event, news.name, done)


async def main(*words: str) -> None:
    registry = RegistryOptions(credentials=DockerConfig(), plain_http="--plain-http" in words)
    async with Client() as client:
        image = await client.pull(words[-1], registry=registry, progress=show)
        config = await client.images.config(image)
        print(f"{image.name} is {image.target.digest}, for {config.platform()}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
