"""Completes names of containers and images by asking the daemon; where it cannot be asked there are none."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem

from moored.api.cli.settings import Settings

SECONDS: Final = 2.0
"""How long somebody who pressed Tab waits at most."""


def containers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names and ids of containers."""

    async def ask(client: object) -> Iterable[tuple[str, str]]:
        from moored.api.cli.identity import name_of, short
        from moored.api.client import Client

        assert isinstance(client, Client)
        found = await client.containers.list()
        return [(name_of(one) or short(one.id), one.record.image) for one in found]

    return _asked(ctx, incomplete, ask)


def images(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of images, as people write them."""

    async def ask(client: object) -> Iterable[tuple[str, str]]:
        from moored.api.client import Client
        from moored.kernel.imagespec.references import familiar

        assert isinstance(client, Client)
        return [(familiar(image.name), "") for image in await client.images.list()]

    return _asked(ctx, incomplete, ask)


def _asked(
    ctx: click.Context, incomplete: str, ask: Callable[[object], Awaitable[Iterable[tuple[str, str]]]]
) -> list[CompletionItem]:
    from moored.api.cli.session import run
    from moored.kernel.errors import MooredError

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    settings = ctx.find_object(Settings) or Settings()
    settings.timeout = min(settings.timeout, SECONDS)
    try:
        found = run(settings, ask)
    except (MooredError, SystemExit, OSError):
        return []
    return [CompletionItem(name, help=about or None) for name, about in sorted(found) if name.startswith(incomplete)]
