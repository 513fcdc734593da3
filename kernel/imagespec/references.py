"""Names of images in registries: `HOST[:PORT]/PATH[:TAG][@DIGEST]`, and the short forms that people type.

Source: the distribution project's reference grammar; contracts/semantics.md 7.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import InvalidArgument

DEFAULT_HOST: Final = "docker.io"

_PATH: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_LONGEST_PATH: Final = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is. host holds the port; tag and digest may both be empty, and the digest decides over the tag."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """Give the whole name."""
        return f"{self.repository}{f':{self.tag}' if self.tag else ''}{f'@{self.digest}' if self.digest else ''}"

    @property
    def repository(self) -> str:
        """The name without tag and digest."""
        return f"{self.host}/{self.path}"

    @property
    def object(self) -> str:
        """What is asked of the registry: the digest if there is one, else the tag."""
        return self.digest or self.tag


def parse(text: str) -> Reference:
    """Read a whole name, with a host and a tag or digest.

    Raises InvalidArgument naming the text: a URL, no host (`hostname required`), no tag or digest (`object required`),
    or a part that is malformed.
    """
    reference = _split(text)
    if not reference.object:
        raise InvalidArgument(f"image reference {text!r}: object required")
    return reference


def parse_familiar(text: str) -> Reference:
    """Read a name as people type it: `alpine` is `docker.io/library/alpine:latest`. Raises InvalidArgument."""
    first, slash, rest = text.partition("/")
    if not slash or not (set(first) & {".", ":"} or first == "localhost" or first != first.lower()):
        first, rest = DEFAULT_HOST, text
    if first in {"index.docker.io", "registry-1.docker.io"}:
        first = DEFAULT_HOST
    if first == DEFAULT_HOST and "/" not in rest.partition("@")[0]:
        rest = f"library/{rest}"
    reference = _split(f"{first}/{rest}")
    return reference if reference.object else Reference(reference.host, reference.path, "latest")


def familiar(name: str) -> str:
    """Shorten a whole name to what people type; a name that is no reference stays as it is."""
    return name.removeprefix(f"{DEFAULT_HOST}/library/").removeprefix(f"{DEFAULT_HOST}/")


def is_digest(text: str) -> bool:
    """Whether a text is a digest of a known algorithm, in the only spelling that it may have."""
    return _DIGEST.fullmatch(text) is not None


def _split(text: str) -> Reference:
    if "://" in text:
        raise InvalidArgument(f"image reference {text!r}: must not have a scheme")
    name, at, digest = text.partition("@")
    host, slash, rest = name.partition("/")
    if not slash or not host:
        raise InvalidArgument(f"image reference {text!r}: hostname required")
    path, colon, tag = rest.partition(":")
    malformed = (
        ("host", host, _HOST),
        ("path", path, _PATH),
        *([("tag", tag, _TAG)] if colon else []),
        *([("digest", digest, _DIGEST)] if at else []),
    )
    for part, value, pattern in malformed:
        if not pattern.fullmatch(value):
            raise InvalidArgument(f"image reference {text!r}: {part} {value!r} is malformed")
    if len(path) > _LONGEST_PATH:
        raise InvalidArgument(f"image reference {text!r}: path is longer than {_LONGEST_PATH} characters")
    return Reference(host, path, tag, digest)
