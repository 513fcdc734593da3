"""Which container is meant, what it is called, and what moorctl has noted of it.

A container's name is the label `nerdctl/name`, so that nerdctl and moorctl know each other's. What moorctl needs later
is one JSON object in the label `moored/moorctl`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.ports.containers import Container as Record
from moored.kernel.ports.tasks import ProcessState, Status

if TYPE_CHECKING:
    from moored.api.client import Client
    from moored.api.client.containers import Container

NAME: Final = "nerdctl/name"
NOTES: Final = "moored/moorctl"
EXITED: Final = "moored/exited"
"""Label of a container whose task is gone: its exit status, and when it ended in ns since 1970."""
STOP_SIGNAL: Final = "io.containerd.image.config.stop-signal"
ID_BYTES: Final = 32
SHORT: Final = 12
"""Characters of an id that lists show."""

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,75}")
_FIRST: Final = (
    "able amber azure bold brisk calm clear coral deft eager fair fleet fresh gentle hardy jolly keen lively loyal "
    "lucky merry nimble noble proud quick quiet ready sharp silver sleek smooth snug spry steady stout sunny swift "
    "tidy true wise"
)
_SECOND: Final = (
    "anchor barge beacon berth bosun bow brig buoy cable canoe capstan clipper compass cutter deck dinghy dock ferry "
    "galley gull harbour heron hull jetty keel ketch lantern mast oar pier pilot porpoise quay reef rigging rudder "
    "sail schooner sextant skiff sloop starboard tiller trawler tug yawl"
)


class Recorded(Protocol):
    """A container with its record: the client library's handle, or what a list was told."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def record(self) -> Record:
        """What the daemon has stored of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What was asked of a container besides its spec.

    network        `host`, `none`, `container:ID`, or a CNI network's name
    log            path of the log file, empty for none; log_format `json` or `plain`
    stdin          whether it is to get input; interactive ones keep it open
    remove         whether it goes when it ends
    volumes        anonymous volumes, which go with it
    stop_seconds   how long `stop` waits
    names          arguments of `network.joining.Names`
    """

    network: str = "host"
    log: str = ""
    log_format: str = "json"
    log_uri: str = ""
    terminal: bool = False
    stdin: bool = False
    remove: bool = False
    volumes: Sequence[str] = ()
    stop_seconds: float | None = None
    restart: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)

    def label(self) -> str:
        """Give the label's text; what is as usual is left out."""
        usual = asdict(Notes())
        given = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return json.dumps(given, separators=(",", ":"))


def notes(labels: Mapping[str, str]) -> Notes:
    """Read the notes of a container; as usual where there are none, as for those that other clients made."""
    try:
        found = json.loads(labels.get(NOTES, "{}"))
        known = set(Notes.__slots__)
        return Notes(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, AttributeError):
        return Notes()


def exited(container: Recorded) -> ProcessState | None:
    """Give the state of a task that is gone, None where nothing is known of one."""
    status, _, moment = str(container.record.labels.get(EXITED, "")).partition(" ")
    if not (status.isdigit() and moment.isdigit()):
        return None
    return ProcessState(
        container_id=container.id, status=Status.STOPPED, exit_status=int(status), exited_at=int(moment) or None
    )


def is_ours(labels: Mapping[str, str]) -> bool:
    """Whether moorctl made the container."""
    return NOTES in labels


def name_of(container: Recorded) -> str:
    """Give a container's name, empty for none."""
    return str(container.record.labels.get(NAME, ""))


def called(container: Recorded) -> str:
    """Give what to call a container in a sentence: its name, else the beginning of its id."""
    return name_of(container) or short(container.id)


def short(id: str) -> str:  # noqa: A002 - the field's term
    """Give the beginning of an id that was made up; one that was chosen is not cut."""
    return id[:SHORT] if re.fullmatch(r"[0-9a-f]{64}", id) else id


def new_id() -> str:
    """Make up an id."""
    return os.urandom(ID_BYTES).hex()


def new_name(taken: Collection[str]) -> str:
    """Make up a name that is not taken."""
    import random

    first, second = _FIRST.split(), _SECOND.split()
    while True:
        for _ in range(8):
            name = f"{random.choice(first)}-{random.choice(second)}"  # noqa: S311 - nothing rests on it
            if name not in taken:
                return name
        first = [*first, os.urandom(2).hex()]


def check_name(name: str) -> str:
    """See that a name can be one. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"container name {name!r} must be at most 76 of letters, digits, '_', '.', '-', the first a letter or digit"
        )
    return name


async def taken_names(client: Client) -> dict[str, str]:
    """Ids of the containers that have a name, by name."""
    found = await client.containers.list(f'labels."{NAME}"')
    return {name_of(container): container.id for container in found}


async def see_free(client: Client, name: str) -> None:
    """See that no container has the name, or an id that is it. Raises AlreadyExists."""
    if found := await client.containers.list(f'labels."{NAME}"=={name}', f"id=={name}"):
        raise AlreadyExists(
            f"name {name!r} is that of container {short(found[0].id)}, remove it (moorctl rm {name}) or choose another"
        )


async def find(client: Client, reference: str) -> Container:
    """Find the container that is meant by its id, its name or the beginning of its id.

    Raises NotFound, FailedPrecondition for the beginning of several ids, InvalidArgument.
    """
    if not _NAME.fullmatch(reference):
        raise InvalidArgument(f"container {reference!r} must be an id or a name")
    found = await client.containers.list(
        f"id=={reference}", f'labels."{NAME}"=={reference}', f"id~=^{re.escape(reference)}"
    )
    for fits in (lambda one: one.id == reference, lambda one: name_of(one) == reference):
        exact = [one for one in found if fits(one)]
        if len(exact) == 1:
            return exact[0]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(short(one.id) for one in found[:4])
        raise FailedPrecondition(f"container {reference!r} is ambiguous: {several}; write more of the id")
    raise NotFound(f"there is no container {reference!r} in namespace {client.namespace!r}, see moorctl ps -a")
