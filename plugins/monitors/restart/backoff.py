"""How long to wait before a task that keeps ending is started again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FREE_RESTARTS: Final = 2
"""Restarts in a row that are not put off."""


@dataclass(slots=True)
class Backoff:
    """The restarts of one container. Times are seconds of any one clock.

    A run that ended within `interval` counts as short. After FREE_RESTARTS short ones in a row the next start waits
    for twice the interval after the last one, then for four times, and so on up to `longest`.
    """

    interval: float
    longest: float
    short_runs: int = 0
    started: float | None = None
    """When it was last started, None once that run has ended."""
    due: float = 0.0
    """When it may be started again."""

    @property
    def pause(self) -> float:
        """Seconds from one start to the next."""
        if self.short_runs <= FREE_RESTARTS:
            return 0.0
        return min(self.longest, self.interval * 2.0 ** min(self.short_runs - FREE_RESTARTS, 60))

    def begin(self, now: float) -> None:
        """Note that it is being started."""
        self.started = now

    def ended(self, when: float) -> None:
        """Note when the run ended that `begin` began; further calls before the next one change nothing."""
        if self.started is None:
            return
        self.short_runs = self.short_runs + 1 if when - self.started < self.interval else 0
        self.due = self.started + self.pause
        self.started = None
