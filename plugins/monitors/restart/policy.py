"""The labels of a container that ask for restarts, and what they ask for. Source: semantics 3.2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import InvalidArgument

STATUS: Final = "containerd.io/restart.status"
"""`running` or `stopped`: what the task is to be; without it the container is left alone."""
POLICY: Final = "containerd.io/restart.policy"
"""When to start a task that ought to run: `always` (the default), `no`, `on-failure[:N]`, `unless-stopped`."""
COUNT: Final = "containerd.io/restart.count"
"""How often it was started again."""
LOG_URI: Final = "containerd.io/restart.loguri"
"""Where its output goes; nowhere without it."""
EXPLICITLY_STOPPED: Final = "containerd.io/restart.explicitly-stopped"
"""Set by clients that stop it for good."""

POLICIES: Final = ("no", "always", "on-failure", "unless-stopped")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy; at_most bounds the restarts of `on-failure`, 0 for no bound."""

    name: str
    at_most: int = 0


def read_policy(text: str) -> Policy:
    """Give the policy in a label's value; an empty one is `always`. Raises InvalidArgument naming it."""
    name, colon, rest = text.partition(":")
    name = name or "always"
    if name not in POLICIES:
        raise InvalidArgument(f"restart policy {text!r} is none of {', '.join(POLICIES)}")
    if not colon:
        return Policy(name)
    if name != "on-failure":
        raise InvalidArgument(f"restart policy {text!r} has a number of restarts, which only 'on-failure' takes")
    count = rest.partition(":")[0]
    if not _NUMBER.fullmatch(count):
        raise InvalidArgument(f"restart policy {text!r} must end in a number of restarts")
    return Policy(name, int(count))


def restarts(labels: Mapping[str, str]) -> int:
    """Give how often it was restarted; 0 without the label. Raises InvalidArgument for a label that is no number."""
    text = labels.get(COUNT, "")
    if not text:
        return 0
    if not _NUMBER.fullmatch(text):
        raise InvalidArgument(f"label {COUNT!r} is {text!r}, a number is wanted")
    return int(text)


def wants_start(labels: Mapping[str, str], exit_status: int) -> bool:
    """Say whether a task that ought to run and does not is to be started; exit_status is 0 where none is known.

    Raises InvalidArgument for labels that cannot be read.
    """
    policy = read_policy(labels.get(POLICY, ""))
    match policy.name:
        case "always":
            return True
        case "on-failure":
            done = restarts(labels)
            return exit_status != 0 and (policy.at_most == 0 or done < policy.at_most)
        case "unless-stopped":
            return labels.get(EXPLICITLY_STOPPED, "") not in _TRUE
        case _:
            return False
