"""How far a transfer is: a bar a layer on a terminal, nothing anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from moored.kernel.ports.transfer import Progress, Report

if TYPE_CHECKING:
    from rich.progress import TaskID

FINISHED: Final = frozenset({"complete", "already exists", "extracted", "done"})
_LABEL: Final = 12


@contextmanager
def shown(*, quiet: bool, no_color: bool) -> Generator[Report | None]:
    """Give what to report to, None where nothing is to be shown: standard error is no terminal, or --quiet."""
    if quiet or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    mute = no_color or bool(os.environ.get("NO_COLOR"))
    bars = Bars(
        TextColumn("{task.fields[label]}", markup=False),
        TextColumn("{task.description:<14}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True, no_color=mute, highlight=False),
        transient=False,
    )
    with bars:
        yield Bar(bars).report


class Bar:
    """The bars of one transfer, by what they are of."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._known: dict[str, TaskID] = {}

    def report(self, news: Progress) -> None:
        """Take news of an object; what concerns the whole transfer has no bar."""
        if news.descriptor is None or not news.name or news.event == "saved":
            return
        digest = news.descriptor.digest
        total = news.total or news.descriptor.size
        if digest not in self._known:
            label = _label(news.name, digest)
            self._known[digest] = self._bars.add_task(news.event, total=total, label=label)
        done = total if news.event in FINISHED else news.progress
        self._bars.update(self._known[digest], description=news.event, total=total, completed=done)


def _label(name: str, digest: str) -> str:
    kind = name.partition("-")[0] if "-sha256:" in name else "object"
    return f"{kind[:8]:<8} {digest.partition(':')[2][:_LABEL]}"
