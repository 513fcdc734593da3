"""The command `containerd-shim-moored-v2`, by which any containerd can use our shim.

`start` answers in the daemon's own form: containerd 2.3 sends BootstrapParams and gets a BootstrapResult, 1.7 to 2.2
(which set MAX_SHIM_VERSION) get JSON of version 2, which all of them take, 1.6 gets the bare address.
Source: `contracts/shim-v2.md` 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from moored.kernel.errors import InvalidArgument, MooredError
from moored.kernel.payloads import Packed
from moored.kernel.protowire import decode, encode
from moored.plugins.runtime.shim import messages as m

if TYPE_CHECKING:
    import socket

    from moored.plugins.runtime.shim.spawn import Spawn

NAME: Final = "io.containerd.moored.v2"
_MAX_INPUT: Final = 10 << 20
_SWITCHES: Final = frozenset({"debug", "v", "version", "info"})
_VALUES: Final = frozenset({"namespace", "id", "address", "bundle", "publish-binary", "socket", "debug-socket"})


class Flags(NamedTuple):
    """The command line: values by name without dashes, "true" for a switch; and the word after them."""

    values: dict[str, str]
    action: str

    def get(self, name: str) -> str:
        """Give a value, empty if it was not told."""
        return self.values.get(name, "")


def main() -> None:
    """Do what the command line says; faults are one line on standard error and exit status 1."""
    try:
        flags = parse(sys.argv[1:])
        if flags.get("v") or flags.get("version"):
            _print_version()
        elif flags.get("info"):
            _info()
        elif not flags.get("namespace"):
            raise InvalidArgument("shim namespace cannot be empty")
        elif flags.action == "start":
            _start(flags)
        elif flags.action == "delete":
            _delete(flags)
        else:
            raise InvalidArgument(f"action {flags.action!r} is not known, wanted start or delete")
    except (MooredError, OSError, ValueError) as error:
        sys.exit(f"containerd-shim-moored-v2: {error}")


def parse(arguments: list[str]) -> Flags:
    """Read flags as Go programs do: one dash or two, a value after a blank or `=`. Raises InvalidArgument."""
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, given, value = rest.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            values[name] = "" if given and value in ("false", "0") else "true"
        elif name not in _VALUES:
            raise InvalidArgument(f"flag provided but not defined: -{name}")
        elif given:
            values[name] = value
        elif rest:
            values[name] = rest.pop(0)
        else:
            raise InvalidArgument(f"flag needs an argument: -{name}")
    return Flags(values, rest[0] if rest else "")


# --- start ------------------------------------------------------------------------------------------------------------


def _start(flags: Flags) -> None:
    about, modern, socket_folder = _asked(flags, sys.stdin.buffer.read(_MAX_INPUT))
    from moored.plugins.runtime.shim import address

    if modern and socket_folder != address.DEFAULT_FOLDER:
        _link_sockets(about.bundle, socket_folder)
    address.make_folder(socket_folder)
    listener = address.listen(about.socket_path)
    if listener is not None and os.fork() == 0:
        _become(about, listener)
    sys.stdout.buffer.write(_answer(about, modern=modern))
    sys.stdout.flush()


def _asked(flags: Flags, data: bytes) -> tuple[Spawn, bool, str]:
    """Give the shim that is wanted, whether the daemon sent BootstrapParams, and the folder of sockets."""
    from moored.plugins.runtime.shim import address
    from moored.plugins.runtime.shim.spawn import Spawn

    params = _params(flags, data)
    options = _options(params, data)
    folder = str(Path.cwd())
    grpc = params.grpc_address or flags.get("address")
    group = address.group_of(_spec_of(folder), flags.get("id"))
    sockets = params.socket_dir or address.DEFAULT_FOLDER
    path = address.socket_path(sockets, grpc, flags.get("namespace"), group)
    debug = bool(flags.get("debug"))
    ttrpc = params.ttrpc_address or os.environ.get("TTRPC_ADDRESS") or f"{grpc}.ttrpc"
    about = Spawn(
        namespace=flags.get("namespace"),
        id=flags.get("id"),
        bundle=folder,
        address=f"unix://{path}",
        ttrpc_address=ttrpc,
        grpc_address=grpc,
        debug_socket=address.socket_path(sockets, grpc, flags.get("namespace"), f"{group}/debug") if debug else "",
        shim_cgroup=options.shim_cgroup,
    )
    return about, bool(params.instance_id), sockets


def _spec_of(folder: str) -> dict[str, Any]:
    """Give the OCI spec; a sandbox may have none."""
    from moored.plugins.runtime.shim import bundle

    try:
        return bundle.spec_of(folder)
    except FileNotFoundError:
        return {}


def _params(flags: Flags, data: bytes) -> m.BootstrapParams:
    """Read BootstrapParams; empty ones for what older daemons send, whose options look alike but name no such id."""
    try:
        params = decode(m.BootstrapParams, data)
    except ValueError:
        return m.BootstrapParams()
    return params if params.instance_id == flags.get("id") else m.BootstrapParams()


def _options(params: m.BootstrapParams, data: bytes) -> m.Options:
    try:
        sent = [one.value for one in params.extensions] if params.instance_id else [decode(Packed, data)]
        ours = [one.value for one in sent if one is not None and one.type_url.endswith(m.OPTIONS_URL)]
        found = [decode(m.Options, value) for value in ours]
    except ValueError:
        return m.Options()
    return found[0] if found else m.Options()


def _link_sockets(bundle: str, folder: str) -> None:
    link = Path(bundle, "s")
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def _answer(about: Spawn, *, modern: bool) -> bytes:
    if modern:
        return encode(m.BootstrapResult(3, about.address, "ttrpc"))
    Path(about.bundle, "address").write_text(about.address)
    if "MAX_SHIM_VERSION" in os.environ:
        return json.dumps({"version": 2, "address": about.address, "protocol": "ttrpc"}).encode()
    return about.address.encode()


def _become(about: Spawn, listener: socket.socket) -> NoReturn:
    """Be the shim, in the forked process. The daemon waits until nobody holds its pipe, so that is let go first."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)
    os.environ.pop("NOTIFY_SOCKET", None)
    from moored.plugins.runtime.shim.zygote import become_shim, prepare

    become_shim(prepare(), about, listener)


# --- the rest ---------------------------------------------------------------------------------------------------------


def _delete(flags: Flags) -> None:
    from moored.plugins.runtime.shim.cleanup import clean

    bundle = str(Path.cwd().parent / flags.get("id"))
    ended = clean(bundle, flags.get("namespace"), flags.get("id"), lambda text: print(text, file=sys.stderr))  # noqa: T201
    sys.stdout.buffer.write(encode(m.DeleteResponse(ended.pid, ended.status, ended.at)))
    sys.stdout.flush()


def _info() -> None:
    import subprocess

    from moored.plugins.runtime.oci.invocations import located

    data = sys.stdin.buffer.read(_MAX_INPUT)
    options = _options(m.BootstrapParams(), data)
    binary = located(options.binary_name or "runc")
    told = subprocess.run([binary, "features"], check=False, capture_output=True, timeout=10)
    features = Packed(type_url=m.FEATURES_URL, value=told.stdout.strip()) if told.returncode == 0 else None
    sent = decode(Packed, data) if data else None
    sys.stdout.buffer.write(encode(m.RuntimeInfo(NAME, m.RuntimeVersion(_version()), sent, features)))
    sys.stdout.flush()


def _print_version() -> None:
    print(f"containerd-shim-moored-v2:\n  Version:  {_version()}")  # noqa: T201


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("moored")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
