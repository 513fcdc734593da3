"""Archives in files of the client's host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from moored.api.errors import classify

_PIECE: Final = 1 << 20


async def chunks_of(source: Path | AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """Give the bytes of a file, or those given. Raises NotFound, PermissionDenied and others for the file."""
    if not isinstance(source, Path):
        async for piece in source:
            yield piece
        return
    with _named_file(source), await asyncio.to_thread(source.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


@asynccontextmanager
async def written(
    target: Path | Callable[[bytes], Awaitable[None]],
) -> AsyncGenerator[Callable[[bytes], Awaitable[None]]]:
    """Give what writes to a new file for the block, or what is given; the file goes if the block fails."""
    if not isinstance(target, Path):
        yield target
        return
    with _named_file(target), await asyncio.to_thread(target.open, "wb") as file:

        async def write(data: bytes) -> None:
            await asyncio.to_thread(file.write, data)

        try:
            yield write
        except BaseException:
            await asyncio.to_thread(target.unlink, missing_ok=True)
            raise


@contextmanager
def _named_file(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise classify(error) from error
