"""What every command takes: the daemon's address, the namespace, a time limit, the form of output; no slow imports."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from click.core import ParameterSource

DEFAULT_ADDRESS = "/run/moored/moored.sock"
ADDRESS_VARIABLES = ("MOORED_ADDRESS", "CONTAINERD_ADDRESS")
DEFAULT_TIMEOUT = 10.0
DEFAULT_NAMESPACE = "default"
NAMESPACE_VARIABLE = "CONTAINERD_NAMESPACE"
MAX_PATH = 107
"""Bytes; sun_path of unix(7) without its end."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """The global options of one invocation.

    address is the absolute path of a unix socket; timeout is seconds for each call to the daemon that should be quick.
    """

    address: str = DEFAULT_ADDRESS
    timeout: float = DEFAULT_TIMEOUT
    json: bool = False
    no_color: bool = False
    namespace: str = DEFAULT_NAMESPACE


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def socket_path(address: str) -> str:
    """The absolute path that an address (`/PATH`, `unix:///PATH`) names. Raises ValueError for what cannot be one."""
    scheme, separator, rest = address.partition("://")
    path = rest if separator else address.removeprefix("unix:")
    if (separator and scheme != "unix") or not path:
        raise ValueError(f"address {address!r} must be the path of a unix socket, or unix:// and a path")
    path = os.path.abspath(path)  # noqa: PTH100 - a Path keeps the dots of "a/../b"
    if len(os.fsencode(path)) > MAX_PATH:
        raise ValueError(f"address {path!r} is longer than the {MAX_PATH} bytes that a unix socket's path may have")
    return path


def positive_seconds(text: str) -> float:
    """A time limit such as `2.5` or `2.5s`. Raises ValueError unless it is positive and at most a year."""
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = math.nan
    # nan fails both comparisons; gRPC's own arithmetic overflows far above a year.
    if not 0 < seconds <= 365 * 86400:
        raise ValueError(f"timeout {text!r} must be a positive number of seconds")
    return seconds


def _keep(convert: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Keep what was given; below the root group only the command line counts, so that defaults do not overrule."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        assert param.name is not None
        if ctx.parent is not None and ctx.get_parameter_source(param.name) is not ParameterSource.COMMANDLINE:
            return
        try:
            setattr(ctx.ensure_object(Settings), param.name, convert(value))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return keep


def _namespace(text: str) -> str:
    if not text:
        raise ValueError("namespace must not be empty")
    return text


def _options(address: tuple[str, ...], namespace: tuple[str, ...]) -> Callable[[F], F]:
    made = (
        click.option(
            "--no-color",
            is_flag=True,
            callback=_keep(bool),
            expose_value=False,
            help="Never colour; NO_COLOR does the same.",
        ),
        click.option("--json", is_flag=True, callback=_keep(bool), expose_value=False, help="Print JSON."),
        click.option(
            "--timeout",
            metavar="SECONDS",
            default=f"{DEFAULT_TIMEOUT:g}",
            show_default=True,
            callback=_keep(positive_seconds),
            expose_value=False,
            help="Seconds that the daemon gets for an answer.",
        ),
        click.option(
            *namespace,
            metavar="NAME",
            envvar=NAMESPACE_VARIABLE,
            default=DEFAULT_NAMESPACE,
            show_default=True,
            callback=_keep(_namespace),
            expose_value=False,
            help=f"Whose containers and images; {NAMESPACE_VARIABLE} sets it too.",
        ),
        click.option(
            *address,
            metavar="PATH",
            envvar=ADDRESS_VARIABLES,
            default=DEFAULT_ADDRESS,
            show_default=True,
            callback=_keep(socket_path),
            expose_value=False,
            help=f"Unix socket of the daemon; {' or '.join(ADDRESS_VARIABLES)} sets it too.",
        ),
    )

    def add(command: F) -> F:
        for option in made:
            command = option(command)
        return command

    return add


def global_options(command: F) -> F:
    """Give a command or group the global options; they may stand before or after its name, the last one given wins."""
    return _options(("--address", "-a"), ("--namespace", "-n"))(command)


def global_options_without_a(command: F) -> F:
    """Give them to a command that has a `-a` of its own."""
    return _options(("--address",), ("--namespace", "-n"))(command)


def long_global_options(command: F) -> F:
    """Give them to a command that has a `-a` and a `-n` of its own, or passes unknown words on."""
    return _options(("--address",), ("--namespace",))(command)
