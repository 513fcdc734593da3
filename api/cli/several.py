"""Commands that do one thing to each of several containers or images: all are tried, what failed is told, status 1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moored.api.cli import output
from moored.api.cli.failing import Failed
from moored.api.cli.session import advised, run
from moored.api.cli.settings import Settings
from moored.api.client import Client
from moored.kernel.errors import MooredError, PermissionDenied, Unavailable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one: the name that was given, what to print for it, the error or None."""

    name: str
    shown: str = ""
    error: str | None = None


def each(
    settings: Settings,
    names: Sequence[str],
    action: Callable[[Client, str], Awaitable[str | None]],
    *,
    key: str = "containers",
) -> None:
    """Do it to each in order. Prints what the action gives (its name for None); raises Failed if one of them failed.

    JSON: {KEY: [{"name", "result", "error"}]}, error null where there is none. That nobody answers ends it at once.
    """
    done: list[Outcome] = []

    async def body(client: Client) -> None:
        for name in dict.fromkeys(names):
            try:
                shown = await action(client, name)
            except (Unavailable, PermissionDenied):
                raise
            except MooredError as error:
                text = advised(error, settings).text
                done.append(Outcome(name, error=text))
                if not settings.json:
                    output.note(f"moorctl: {text}")
                continue
            done.append(Outcome(name, name if shown is None else shown))
            if not settings.json and done[-1].shown:
                output.write(f"{done[-1].shown}\n")

    run(settings, body)
    if settings.json:
        output.write_json({key: [_document(one) for one in done]})
    failed = [one for one in done if one.error is not None]
    if failed:
        raise Quiet if not settings.json else Failed(failed[0].error or "")


def _document(outcome: Outcome) -> dict[str, Any]:
    return {"name": outcome.name, "result": outcome.shown, "error": outcome.error}


class Quiet(Failed):
    """An exit status of 1 for errors that were told already."""

    def __init__(self) -> None:
        super().__init__("")

    def show(self, file: Any = None) -> None:
        """Say nothing."""
