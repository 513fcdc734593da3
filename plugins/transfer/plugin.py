"""Registers the transferrer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.errors import InvalidArgument, NotFound
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.diff import DIFFER, Differ
from moored.kernel.ports.leases import LEASES
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.snapshots import REBASE, SNAPSHOTTER
from moored.kernel.ports.transfer import IMAGE_VERIFIER, TRANSFER, Transferrer

if TYPE_CHECKING:
    from moored.plugins.transfer.unpack import Target

PREFERRED_DIFFER = "walking"
REMOTE_EXPORT = "enable_remote_snapshot_annotations"
"""Export of a snapshotter that makes layers by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackConfig:
    """One of [[plugins."io.containerd.transfer.v1.local".unpack_config]]"""

    platform: str = setting("", doc="what it is for, `linux/amd64`; empty for the host's own")
    snapshotter: str = setting("overlayfs", doc="id of the snapshotter that keeps the files")
    differ: str = setting("", doc="id of the differ that unpacks layers; empty for the only or the walking one")
    config_type: str = setting("", doc="the only media type of image configs that it takes; empty for the usual ones")
    layer_types: list[str] = setting(factory=list, doc="media types that count as layers beside the usual ones")
    optional: bool = setting(False, doc="leave it out, instead of failing, where snapshotter or differ are not loaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistriesConfig:
    """[plugins."io.containerd.transfer.v1.local".registries]"""

    token_hosts: list[str] = setting(
        factory=list,
        doc="hosts, with a port where it is not the scheme's own, that registries may send to for tokens, besides "
        "themselves; empty: any",
    )
    deny_private: bool = setting(
        False,
        doc="refuse redirects, upload places, token servers and layer addresses at private, loopback and link-local "
        "addresses, other than the registry's own",
    )
    private_networks: list[str] = setting(
        factory=list, doc="networks like `10.1.0.0/16` that deny_private allows even so"
    )
    dial_timeout: Duration = setting(Duration(30), ge=0.001, doc="for a connection, where hosts.toml does not say")
    header_timeout: Duration = setting(Duration(30), ge=0.001, doc="from a request to the head of its answer")
    stall_timeout: Duration = setting(Duration(60), ge=0.001, doc="between two pieces of a body, either way")
    progress_timeout: Duration = setting(Duration(300), ge=0.001, doc="in which 64 KiB of a body have to come")
    upload_chunk: int = setting(
        0,
        ge=0,
        le=256 << 20,
        doc="bytes above which blobs are pushed in chunks of that size, each kept in memory, for proxies that bound "
        "requests; 0: only blobs that a registry refuses to take in one request",
    )
    max_retry_after: Duration = setting(
        Duration(30), ge=0, doc="that a registry may ask to be waited for; the error is told at once if it wants more"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.transfer.v1.local"]"""

    max_concurrent_downloads: int = setting(
        3, ge=0, le=1024, doc="blobs that are fetched at once, by all pulls together; 0: any number"
    )
    concurrent_layer_fetch_buffer: int = setting(
        0,
        ge=0,
        le=256 << 20,
        doc="bytes of the parts of a large layer that are fetched side by side, each kept in memory, as many as "
        "max_concurrent_downloads; up to 512: layers are fetched in one piece",
    )
    max_concurrent_uploaded_layers: int = setting(
        3, ge=0, le=1024, doc="objects that are pushed at once, by all pushes together; 0: any number"
    )
    max_concurrent_unpacks: int = setting(
        1,
        ge=0,
        le=1024,
        doc="layers that are unpacked side by side where the snapshotter can give them their parent afterwards; up to "
        "1: each layer on top of the one before. Side by side, a folder that a layer writes in without having an "
        "entry for it gets the usual owner and mode instead of those of the layer below",
    )
    check_platform_supported: bool = setting(
        False, doc="unpack only what unpack_config's platforms can run, not all images of their operating system"
    )
    unpack_config: list[UnpackConfig] | None = setting(
        None, doc="the ways to unpack that clients may ask for; unset: the host's platform with overlayfs"
    )
    config_path: str = setting(
        "",
        doc="folder with a folder for each registry that holds `hosts.toml`, for transfers that name none; or "
        "several with colons between them",
    )
    registries: RegistriesConfig = setting(
        factory=RegistriesConfig, doc="what registries are waited for, and what they may make the daemon do"
    )


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Transferrer]:
    """Transfer until the end. Raises NotFound, InvalidArgument for an unpack_config that cannot be met."""
    from moored.api.registry.settings import Limits, Policy
    from moored.plugins.transfer.local import LocalTransfer
    from moored.plugins.transfer.settings import Shared, slots

    config = ctx.config
    registries = config.registries
    side_by_side = config.max_concurrent_unpacks > 1
    shared = Shared(
        objects=ctx.one(METADATA),
        leases=ctx.one(LEASES),
        log=ctx.log,
        verifiers=ctx.all(IMAGE_VERIFIER),
        targets=_targets(ctx),
        hosts_folders=[Path(name) for name in config.config_path.split(":") if name],
        limits=Limits(
            header=registries.header_timeout,
            dial=registries.dial_timeout,
            stall=registries.stall_timeout,
            progress=registries.progress_timeout,
            retry_after=registries.max_retry_after,
        ),
        policy=Policy(
            token_hosts=frozenset(host.lower() for host in registries.token_hosts),
            deny_private=registries.deny_private,
            private_networks=tuple(_network(text) for text in registries.private_networks),
        ),
        downloads=slots(config.max_concurrent_downloads),
        uploads=slots(config.max_concurrent_uploaded_layers),
        unpacks=slots(config.max_concurrent_unpacks if side_by_side else 0),
        upload_chunk=registries.upload_chunk,
        parts=config.max_concurrent_downloads or 8,
        chunk=config.concurrent_layer_fetch_buffer,
    )
    yield LocalTransfer(shared)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"'private_networks' has {text!r}, wanted is a network like '10.1.0.0/16'") from error


def _targets(ctx: InitContext[Config]) -> Sequence[Target]:
    wanted = ctx.config.unpack_config
    defaults = wanted is None
    found = []
    for one in [UnpackConfig(optional=True)] if wanted is None else wanted:
        try:
            found.append(_target(ctx, one))
        except NotFound as error:
            if not one.optional:
                raise
            level = ctx.log.info if defaults else ctx.log.warning
            level("images cannot be unpacked so", snapshotter=one.snapshotter, reason=error.text)
    return found


def _target(ctx: InitContext[Config], one: UnpackConfig) -> Target:
    from moored.kernel.imagespec import platforms
    from moored.plugins.transfer.unpack import Target

    platform = platforms.parse(one.platform) if one.platform else platforms.default()
    snapshotter = ctx.all(SNAPSHOTTER).get(one.snapshotter)
    if snapshotter is None:
        raise NotFound(f"snapshotter {one.snapshotter!r} of 'unpack_config' is not loaded")
    exports = _exports(ctx, one.snapshotter)
    return Target(
        platform=platform,
        exactly=platforms.runnable_on(platform) if ctx.config.check_platform_supported else None,
        snapshotter=one.snapshotter,
        applier=_differ(ctx.all(DIFFER), one.differ),
        config_type=one.config_type,
        layer_types=frozenset(one.layer_types),
        side_by_side=ctx.config.max_concurrent_unpacks > 1 and REBASE in snapshotter.capabilities,
        remote=exports.get(REMOTE_EXPORT) == "true",
    )


def _exports(ctx: InitContext[Config], snapshotter: str) -> Mapping[str, str]:
    uri = f"{SNAPSHOTTER.uri}.{snapshotter}"
    return next((record.exports for record in ctx.daemon.plugins() if record.uri == uri), {})


def _differ(found: Mapping[str, Differ], id_: str) -> Differ:
    if id_ and id_ not in found:
        raise NotFound(f"differ {id_!r} of 'unpack_config' is not loaded, there are {sorted(found)}")
    if not id_ and PREFERRED_DIFFER not in found and len(found) != 1:
        raise InvalidArgument(f"'unpack_config' must name a differ, there are {sorted(found)}")
    return found[id_] if id_ else found.get(PREFERRED_DIFFER) or next(iter(found.values()))


plugin = Registration(
    kind=TRANSFER,
    id="local",
    config=Config,
    open=open_,
    requires=(LEASES, METADATA, DIFFER),
    after=(IMAGE_VERIFIER, SNAPSHOTTER),
    essential=True,
    summary="pulls, pushes, imports, exports and unpacks images",
)
