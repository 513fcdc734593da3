"""What runtimes say when a process or container is gone: runc 1.1, crun 1.8, runsc of 2022, each as it was seen."""

from __future__ import annotations

from typing import Final

_ENDED: Final = (
    "container not running",  # runc, and crun by its name for it
    "os: process already finished",
    "process already finished",
    "no such process",  # crun: `open pidfd: No such process`
    "process not found",
    "sandbox is not running",  # runsc
    "connection refused",  # runsc, while the sandbox is ending: `connecting to control server at PID N: ..`
)
_GONE: Final = (
    "container does not exist",  # runc
    "cannot open directory",  # crun: its state folder
    "error opening file",  # crun: the state in it
    "file does not exist",  # runsc: `loading container "ID": ..`
)


def already_finished(text: str) -> bool:
    """Whether a failed `kill` means that the process had ended."""
    lower = text.lower()
    return any(part in lower for part in _ENDED)


def no_such_container(text: str) -> bool:
    """Whether a failed call means that the runtime does not know the container."""
    lower = text.lower()
    return any(part in lower for part in _GONE)
