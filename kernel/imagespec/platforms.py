"""Platforms: parsing, normalising and matching `OS[(VERSION)]/ARCHITECTURE[/VARIANT]`.

What an image offers is matched against an ordered list of what a host can run: its own platform first, then older
variants and narrower architectures. Source: the image index part of the OCI image spec; containerd's clients.
"""

from __future__ import annotations

import platform as host
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from moored.kernel.errors import InvalidArgument

_COMPONENT: Final = re.compile(r"[A-Za-z0-9_.-]+")
_OS: Final = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)((?:\+[A-Za-z0-9_.-]+)*)\))?")
_KNOWN_OS: Final = re.compile(
    "aix|android|darwin|dragonfly|freebsd|hurd|illumos|ios|js|linux|macos|nacl|netbsd|openbsd|plan9|solaris|windows|zos"
)
_KNOWN_ARCHITECTURE: Final = re.compile(
    "386|amd64|amd64p32|arm|armbe|arm64|arm64be|ppc64|ppc64le|loong64|mips|mipsle|mips64|mips64le|mips64p32|mips64p32le"
    "|ppc|riscv|riscv64|s390|s390x|sparc|sparc64|wasm"
)
_ALIASES: Final = {
    "i386": ("386", ""),
    "i686": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
_VARIANTS: Final = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image was built for; empty texts where nothing is said."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Give the specifier that `parse` takes."""
        options = self.os_version + "".join(f"+{feature}" for feature in self.os_features)
        parts = [self.os + (f"({options})" if options else ""), self.architecture, self.variant]
        return "/".join(part for part in parts if part)


def normalized(platform: Platform) -> Platform:
    """Give the one spelling that names this platform: `x86_64` is `amd64`, `arm64/v8` is `arm64`."""
    architecture, variant = _architecture(platform.architecture, platform.variant)
    os = platform.os.lower() or "linux"
    return replace(
        platform,
        os="darwin" if os == "macos" else os,
        architecture=architecture,
        variant=variant,
        os_features=tuple(sorted(set(platform.os_features))),
    )


def _architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    name, fixed = _ALIASES.get(architecture, (architecture, None))
    if fixed is not None:
        return name, fixed
    return name, _VARIANTS.get((name, variant), variant)


def parse(specifier: str) -> Platform:
    """Read `linux/arm64/v8`, `arm64` or `linux`; what is left out is the host's. Raises InvalidArgument."""
    parts = specifier.split("/", 3)
    match = _OS.fullmatch(parts[0])
    if match is None or len(parts) > 3 or not all(_COMPONENT.fullmatch(part) for part in parts[1:]):
        raise InvalidArgument(f"platform {specifier!r} must look like 'linux/arm64/v8'")
    if len(parts) == 1:
        return _from_one_word(specifier, match)
    features = tuple(feature for feature in (match[3] or "").split("+") if feature)
    return normalized(Platform(match[1], parts[1], parts[2] if len(parts) == 3 else "", match[2] or "", features))


def _from_one_word(specifier: str, match: re.Match[str]) -> Platform:
    here = default()
    if _KNOWN_OS.fullmatch(match[1].lower()):
        return normalized(Platform(match[1], here.architecture, here.variant, match[2] or ""))
    architecture, variant = _architecture(specifier, "")
    if not _KNOWN_ARCHITECTURE.fullmatch(architecture):
        raise InvalidArgument(f"platform {specifier!r} is no operating system or architecture that is known")
    return Platform(here.os, architecture, variant)


def default() -> Platform:
    """Give the host's own platform."""
    return normalized(Platform("linux", host.machine()))


@dataclass(frozen=True, slots=True)
class Matcher:
    """An ordered choice of platforms, best first; without any, everything matches equally well."""

    choices: tuple[Platform, ...] = ()

    def rank(self, platform: Platform | None) -> int | None:
        """Say how good a platform is, 0 for the best, None for one that does not match.

        An image that names no platform matches last, as what cannot be told apart must not be refused.
        """
        if not self.choices:
            return 0
        if platform is None:
            return len(self.choices)
        platform = normalized(platform)
        for rank, choice in enumerate(self.choices):
            if _matches(choice, platform):
                return rank
        return None


def _matches(choice: Platform, offered: Platform) -> bool:
    same = (choice.os, choice.architecture, choice.variant) == (offered.os, offered.architecture, offered.variant)
    return same and set(offered.os_features) <= set(choice.os_features)


EVERYTHING: Final = Matcher()


def runnable_on(platform: Platform) -> Matcher:
    """Match what a host of this platform can run, the closest first."""
    return Matcher(tuple(_older(normalized(platform))))


def exactly(platforms: Sequence[Platform]) -> Matcher:
    """Match any of these platforms and nothing that merely runs there."""
    return Matcher(tuple(normalized(platform) for platform in platforms))


def any_of(platforms: Iterable[Platform]) -> Matcher:
    """Match what any of these platforms can run, in their order."""
    return Matcher(tuple(dict.fromkeys(choice for one in platforms for choice in _older(normalized(one)))))


def _older(platform: Platform) -> list[Platform]:
    match platform.architecture:
        case "amd64":
            newest = int(platform.variant[1:]) if re.fullmatch(r"v[0-9]{1,2}", platform.variant) else 1
            variants = [f"v{version}" for version in range(newest, 1, -1)] + [""]
            own = [replace(platform, variant=variant) for variant in variants]
            if platform not in own:  # a variant that is not a number is its own first choice
                own.insert(0, platform)
            return [*own, replace(platform, architecture="386", variant="")]
        case "arm":
            newest = int(platform.variant[1:]) if re.fullmatch(r"v[0-9]{1,2}", platform.variant) else 0
            lower = [replace(platform, variant=f"v{version}") for version in range(newest - 1, 4, -1)]
            return [platform, *lower]
        case "arm64":
            own = [replace(platform, variant=variant) for variant in _arm64_variants(platform.variant or "v8")]
            return [normalized(one) for one in own] + _older(replace(platform, architecture="arm", variant="v8"))
        case _:
            return [platform]


def _arm64_variants(variant: str) -> list[str]:
    match = re.fullmatch(r"v([89])(?:\.([0-9]))?", variant)
    if match is None:
        return [variant]
    major, minor = int(match[1]), int(match[2] or 0)
    lines = [(8, minor)] if major == 8 else [(9, minor), (8, min(minor + 5, 9))]
    return [f"v{line}.{step}" if step else f"v{line}" for line, top in lines for step in range(top, -1, -1)]
