"""Makes containers of what `run` and `create` are asked for.

image found or pulled -> id, name, folder -> mounts, network, log, limits as Options -> container with its labels
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from moored.api.cli import asked as reading
from moored.api.cli import identity, imagenames, volumes
from moored.api.cli.asked import Asked
from moored.api.cli.home import Home
from moored.api.cli.identity import Notes
from moored.api.cli.network import ports
from moored.api.cli.network.membership import Names, write_names
from moored.api.cli.quantities import parse_duration, parse_size
from moored.api.cli.runtimes import runtime
from moored.api.client import Client, Options
from moored.api.client.containers import Container
from moored.api.client.hostdevices import Device
from moored.api.client.resources import Resources
from moored.api.client.signalnames import signal_number
from moored.api.client.spec import Mount, Rlimit
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.imagespec.documents import ImageConfig
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.images import Image

LOG_SIZE: Final = 16 << 20
"""Bytes after which a log is rotated unless asked otherwise."""
LOG_FILES: Final = 3
OWN_NETWORK: Final = ("host", "none")
"""Networks that are no CNI network."""
_PASSED: Final = ("PATH", "MOORCTL_ROOT", "MOORCTL_RUN", "MOORCTL_FIFO_DIR", "CNI_PATH", "NETCONFPATH")


async def image_of(client: Client, asked: Asked, *, no_color: bool) -> Image:
    """Give the image, fetched if it is to be. Raises NotFound where it may not be fetched."""
    if asked.pull != "always":
        try:
            return await imagenames.find(client, asked.image)
        except NotFound:
            if asked.pull == "never":
                raise
    from moored.api.cli.pull import fetch

    wanted = imagenames.platform(asked.platform)
    return await fetch(
        client,
        imagenames.whole(asked.image),
        platforms=[wanted] if wanted else [],
        snapshotter=asked.snapshotter,
        quiet=asked.quiet,
        no_color=no_color,
    )


async def make(client: Client, home: Home, asked: Asked, image: Image) -> Container:
    """Make the container, whole or not at all. Raises what its options, its image and the daemon are at fault with."""
    id_ = identity.new_id()
    name = identity.check_name(asked.name) if asked.name else ""
    published = [port for text in asked.publish for port in ports.parse(text)]
    reading.restart_policy(asked.restart)
    if asked.rm and asked.restart != "no":
        raise InvalidArgument("--rm and --restart exclude each other")
    await asyncio.to_thread(_write_id, asked.cidfile, id_)
    folder = home.make_container(id_)
    made = volumes.Made()
    try:
        names = _names(asked, id_)
        await asyncio.to_thread(write_names, folder, names, own_network=asked.net not in OWN_NETWORK)
        platform = imagenames.platform(asked.platform)
        config = await client.images.config(image, platform)
        made = volumes.mounts(home, _mounts_asked(asked, config))
        notes = _notes(client, asked, home, id_, anonymous=made.anonymous, names=names)
        spaces = await _namespaces(client, home, asked, id_)
        options = _options(
            asked, _outer_first([*_own_files(asked, folder, made.mounts), *made.mounts]), names.hostname, spaces
        )
        kind, kind_options = runtime(asked.runtime)
        name = name or identity.new_name(await identity.taken_names(client))
        with home.reserved(name):
            await identity.see_free(client, name)
            container = await client.containers.create(
                id_,
                image,
                options,
                platform=platform,
                config=config,
                snapshotter=asked.snapshotter,
                runtime=kind,
                runtime_options=kind_options,
                labels=_labels(asked, name, notes, published),
            )
            await _filled(client, home, container, made.to_fill)
            return container
    except BaseException:
        home.remove_container(id_)
        for volume in made.anonymous:
            volumes.remove(home, volume)
        _remove_id(asked.cidfile)
        raise


def _write_id(file: str, id_: str) -> None:
    if not file:
        return
    try:
        with Path(file).open("x") as out:
            out.write(id_)
    except FileExistsError:
        raise FailedPrecondition(f"file {file!r} exists, the one for the id must be new") from None
    except OSError as error:
        raise Unknown(f"file {file!r} for the id cannot be written: {error.strerror}") from error


def _remove_id(file: str) -> None:
    if file:
        Path(file).unlink(missing_ok=True)


def _names(asked: Asked, id_: str) -> Names:
    host = asked.net == "host" or asked.uts == "host"
    hostname = asked.hostname or (socket.gethostname() if host else identity.short(id_))
    return Names(hostname, asked.add_host, asked.dns, asked.dns_search, asked.dns_option)


async def _filled(client: Client, home: Home, container: Container, places: Mapping[str, str]) -> None:
    """Fill the container's volumes from its image; without them there is to be no container."""
    if not places:
        return
    from moored.api.cli.filling import fill

    record = container.record
    try:
        shown = await client.snapshots(record.snapshotter).mounts(record.snapshot_key)
        await asyncio.to_thread(fill, home, places, shown)
    except BaseException:
        with suppress(MooredError):
            await container.delete()
        raise


def _mounts_asked(asked: Asked, config: ImageConfig) -> list[volumes.Asked]:
    """All mounts: those that are asked for, and the image's volumes in other places."""
    given = _mounts_given(asked)
    return [*given, *volumes.of_image((config.config.volumes if config.config else None) or (), given)]


def _mounts_given(asked: Asked) -> list[volumes.Asked]:
    return [
        *map(volumes.parse_volume, asked.volume),
        *map(volumes.parse_mount, asked.mount),
        *map(volumes.parse_tmpfs, asked.tmpfs),
    ]


def _own_files(asked: Asked, folder: Path, given: Sequence[Mount]) -> list[Mount]:
    """The files of the container's folder that are shown in it, but for those that are mounted on."""
    taken = {mount.destination for mount in given}
    named = bool(asked.dns or asked.dns_search or asked.dns_option)
    host = asked.net == "host"
    wanted = {
        "hosts": not host or bool(asked.add_host),
        "resolv.conf": not host or named,
        "hostname": asked.uts != "host",
    }
    return [
        Mount(destination=f"/etc/{name}", source=str(folder / name), options=("rbind", "rprivate", "rw"))
        for name, yes in wanted.items()
        if yes and f"/etc/{name}" not in taken
    ]


def _outer_first(mounts: Sequence[Mount]) -> list[Mount]:
    """Give mounts in an order in which none hides another: `/etc` before `/etc/hosts`."""
    return sorted(mounts, key=lambda mount: mount.destination.count("/"))


def _notes(client: Client, asked: Asked, home: Home, id_: str, *, anonymous: Sequence[str], names: Names) -> Notes:
    log = str(home.container(id_) / "log.json") if asked.log_driver != "none" else ""
    restored = asked.restart != "no" and _has_network(asked)
    more = {"netns": str(home.netns(id_)), "folder": str(home.container(id_))} if restored else {}
    uri = log_uri(client, asked, log, more) if log or asked.rm or restored else ""
    return Notes(
        network=asked.net,
        log=log,
        log_format="plain" if asked.log_driver == "plain" else "json",
        log_uri=uri,
        terminal=asked.tty,
        stdin=asked.interactive,
        remove=asked.rm,
        volumes=anonymous,
        stop_seconds=_seconds(asked.stop_timeout),
        restart=asked.restart if asked.restart != "no" else "",
        names=asdict(names),
    )


def _seconds(text: str) -> float | None:
    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise InvalidArgument(f"--stop-timeout: {error}") from error


def log_uri(client: Client, asked: Asked, log: str, more: Mapping[str, str] = NO_LABELS) -> str:
    """Give the URI by which a shim starts the logging program. Raises NotFound if that is not installed."""
    options = reading.pairs(asked.log_opt, "log option")
    size, count = options.pop("max-size", str(LOG_SIZE)), options.pop("max-file", str(LOG_FILES))
    if options:
        raise InvalidArgument(f"log option {next(iter(options))!r} is not known, wanted max-size or max-file")
    try:
        limits = {"size": str(0 if size == "-1" else parse_size(size)), "count": str(max(1, int(count)))}
    except ValueError as error:
        raise InvalidArgument(f"log option: {error}") from error
    arguments = {"path": log or os.devnull, "format": "plain" if asked.log_driver == "plain" else "json", **limits}
    if not log:
        arguments["size"] = "0"
    if asked.rm:
        arguments["remove"] = client.address
    if asked.rm or more:
        arguments |= dict(more)
        arguments |= {f"env:{name}": os.environ[name] for name in _PASSED if name in os.environ}
    return f"binary://{logger_path()}?{urlencode(arguments)}"


def logger_path() -> str:
    """Give the path of the logging program. Raises NotFound."""
    beside = Path(sys.executable).with_name("moorctl-log")
    found = str(beside) if beside.is_file() else shutil.which("moorctl-log")
    if not found:
        raise NotFound(
            "moorctl-log, which writes logs, is not beside moorctl; install moored whole, or use --log-driver none"
        )
    return found


def _options(asked: Asked, mounts: Sequence[Mount], hostname: str, namespaces: Mapping[str, str]) -> Options:
    seccomp, apparmor, no_new = reading.security(asked.security_opt)
    if asked.shm_size:
        size = reading.size(asked.shm_size, "--shm-size")
        shm = ("nosuid", "noexec", "nodev", "mode=1777", f"size={size}")
        mounts = [*mounts, Mount(destination="/dev/shm", source="shm", type="tmpfs", options=shm)]  # noqa: S108
    return Options(
        args=asked.args,
        entrypoint=None if asked.entrypoint is None else tuple(filter(None, [asked.entrypoint])),
        env=reading.environment(asked),
        cwd=asked.workdir,
        user=asked.user,
        groups=asked.group_add,
        terminal=asked.tty,
        hostname="" if asked.uts == "host" else hostname,
        mounts=mounts,
        devices=tuple(_device(text) for text in asked.device),
        cap_add=asked.cap_add,
        cap_drop=asked.cap_drop,
        privileged=asked.privileged,
        seccomp=seccomp,
        apparmor=apparmor,
        resources=_resources(asked),
        namespaces=namespaces,
        rlimits=tuple(Rlimit(*reading.ulimit(text)) for text in asked.ulimit),
        annotations=reading.pairs(asked.annotation, "annotation"),
        read_only=asked.read_only,
        no_new_privileges=no_new,
        sysctl=reading.pairs(asked.sysctl, "sysctl"),
        oom_score_adj=asked.oom_score_adj,
    )


def _device(text: str) -> Device:
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise InvalidArgument(f"device {text!r} must look like /dev/fuse, /dev/sda:/dev/xvda or /dev/sda:/dev/xvda:r")
    if len(parts) == 2 and set(parts[1]) <= set("rwm"):
        parts = [parts[0], "", parts[1]]
    place, permissions = [*parts[1:], "", ""][:2]
    return Device(parts[0], place, permissions or "rwm")


def _resources(asked: Asked) -> Resources:
    memory = reading.size(asked.memory, "--memory")
    swap = reading.size(asked.memory_swap, "--memory-swap")
    return Resources(
        cpus=asked.cpus,
        cpu_shares=asked.cpu_shares,
        cpuset_cpus=asked.cpuset_cpus,
        cpuset_mems=asked.cpuset_mems,
        memory=memory,
        memory_swap=swap,
        memory_reservation=reading.size(asked.memory_reservation, "--memory-reservation"),
        pids=asked.pids_limit,
    )


def _has_network(asked: Asked) -> bool:
    """Whether it is to be on a CNI network."""
    return asked.net not in OWN_NETWORK and not asked.net.startswith("container:")


async def _namespaces(client: Client, home: Home, asked: Asked, id_: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for kind, text in (("pid", asked.pid), ("ipc", asked.ipc), ("uts", asked.uts)):
        if text:
            found[kind] = await _namespace(client, kind, text)
    if asked.net.startswith("container:"):
        found["network"] = await _namespace(client, "net", asked.net)
    elif not _has_network(asked):
        found["network"] = "host" if asked.net == "host" else "private"
    else:
        from moored.api.cli.network.cni import network

        network(asked.net)  # its errors belong here, before anything is made
        found["network"] = str(home.netns(id_))
    if asked.publish and asked.net in OWN_NETWORK:
        raise InvalidArgument(
            f"ports cannot be published on network {asked.net!r}, leave out -p or choose another --net"
        )
    return found


async def _namespace(client: Client, kind: str, text: str) -> str:
    """Give `host`, `private`, or the path of another container's namespace."""
    if text in ("host", "private"):
        return text
    other = text.removeprefix("container:")
    if other == text:
        raise InvalidArgument(f"{kind} namespace {text!r} must be host, private or container:NAME")
    container = await identity.find(client, other)
    try:
        pid = (await container.task()).pid
    except NotFound:
        raise FailedPrecondition(f"container {other!r} does not run, start it with moorctl start {other}") from None
    return f"/proc/{pid}/ns/{kind}"


def _labels(asked: Asked, name: str, notes: Notes, published: Sequence[ports.Port]) -> dict[str, str]:
    made = reading.pairs(asked.label, "label")
    made |= {identity.NAME: name, identity.NOTES: notes.label()}
    if published:
        made[ports.LABEL] = ports.written(published)
    if asked.stop_signal:
        signal_number(asked.stop_signal)
        made[identity.STOP_SIGNAL] = asked.stop_signal
    return made
