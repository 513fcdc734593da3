"""Which image is meant: by its whole name, by what people write for it, or by the beginning of its digest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from moored.api.client import Client
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec.platforms import Platform, parse
from moored.kernel.imagespec.references import parse_familiar
from moored.kernel.ports.images import Image

_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
SHORT: Final = 12


def whole(text: str) -> str:
    """Give the whole name that people mean by a short one. Raises InvalidArgument."""
    return str(parse_familiar(text))


def digest_id(digest: str) -> str:
    """Give the beginning of a digest that lists show."""
    return digest.partition(":")[2][:SHORT]


async def find(client: Client, text: str) -> Image:
    """Find an image. Raises NotFound, FailedPrecondition for the beginning of several digests, InvalidArgument."""
    names = [text]
    fault: InvalidArgument | None = None
    try:
        names.append(whole(text))
    except InvalidArgument as error:
        fault = error
    found = {image.name: image for image in await client.images.list(*(f'name=="{_quoted(name)}"' for name in names))}
    for name in names:
        if name in found:
            return found[name]
    if match := _DIGEST.fullmatch(text):
        alike = [image for image in await client.images.list() if image.target.digest.startswith(f"sha256:{match[1]}")]
        return _one(text, alike, client)
    if fault is not None:
        raise fault
    raise NotFound(f"there is no image {text!r} in namespace {client.namespace!r}, fetch it with moorctl pull {text}")


def _one(text: str, alike: Sequence[Image], client: Client) -> Image:
    if len({image.target.digest for image in alike}) > 1:
        several = ", ".join(sorted({digest_id(image.target.digest) for image in alike}))
        raise FailedPrecondition(f"image {text!r} is ambiguous: {several}; write more of the digest")
    if not alike:
        raise NotFound(f"there is no image {text!r} in namespace {client.namespace!r}, see moorctl images")
    return alike[0]


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def platform(text: str) -> Platform | None:
    """Read --platform, None for the host's. Raises InvalidArgument."""
    return parse(text) if text else None
