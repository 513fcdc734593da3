"""What moorctl keeps on the host for containers: a folder each, with its log, hosts file and network; and volumes.

    ROOT/ADDRESS-HASH/NAMESPACE/lock
    ROOT/ADDRESS-HASH/NAMESPACE/names/NAME       pid of the moorctl that is just making a container of that name
    ROOT/ADDRESS-HASH/NAMESPACE/containers/ID/   network.json  hosts  resolv.conf  hostname  log.json[.N]
    ROOT/ADDRESS-HASH/NAMESPACE/volumes/NAME/    _data  volume.json
    RUN/netns/ID

ROOT is MOORCTL_ROOT, else /var/lib/moorctl; RUN is MOORCTL_RUN, else /run/moorctl.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moored.kernel.errors import AlreadyExists, PermissionDenied, Unknown

ROOT_VARIABLE: Final = "MOORCTL_ROOT"
RUN_VARIABLE: Final = "MOORCTL_RUN"
DEFAULT_ROOT: Final = "/var/lib/moorctl"
DEFAULT_RUN: Final = "/run/moorctl"
FIFO_VARIABLE: Final = "MOORCTL_FIFO_DIR"
DEFAULT_FIFO: Final = "/run/moored/fifo"
MAX_DOCUMENT: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one daemon's namespace."""

    root: Path
    run: Path

    @property
    def containers(self) -> Path:
        """Parent of the containers' folders."""
        return self.root / "containers"

    @property
    def volumes(self) -> Path:
        """Parent of the volumes."""
        return self.root / "volumes"

    def container(self, id: str) -> Path:  # noqa: A002 - the field's term
        """Folder of one container, there or not."""
        return self.containers / id

    def netns(self, id: str) -> Path:  # noqa: A002
        """File of a container's network namespace, there or not."""
        return self.run / "netns" / id

    def make_container(self, id: str) -> Path:  # noqa: A002
        """Make a container's folder. Raises PermissionDenied."""
        path = self.container(id)
        _make(path)
        return path

    def remove_container(self, id: str) -> None:  # noqa: A002
        """Remove a container's folder with all in it; again is harmless."""
        path = self.container(id)
        if id and path.parent == self.containers:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def reserved(self, name: str) -> Generator[None]:
        """Keep a name for a container that is being made, which may take a while. Raises AlreadyExists."""
        file = self.root / "names" / name
        with self.locked():
            if _lives(file):
                raise AlreadyExists(f"name {name!r} is just being given to another container")
            _make(file.parent)
            file.write_text(str(os.getpid()))
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other moorctl processes from reserving names or choosing ports meanwhile; for moments only."""
        _make(self.root)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def known(self) -> Iterator[str]:
        """Ids of the containers that have a folder."""
        if self.containers.is_dir():
            yield from sorted(path.name for path in self.containers.iterdir())


def home(address: str, namespace: str) -> Home:
    """Give the folders of a daemon's namespace; nothing is made."""
    root = Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    run = Path(os.environ.get(RUN_VARIABLE) or DEFAULT_RUN)
    # Daemons are told apart by the real path, so that a link to the socket is the same daemon.
    hashed = hashlib.sha256(os.path.realpath(address).encode()).hexdigest()[:8]
    return Home(root / hashed / namespace, run)


def fifo_folder() -> Path:
    """Give the folder for streams of processes: MOORCTL_FIFO_DIR, else the client library's."""
    return Path(os.environ.get(FIFO_VARIABLE) or DEFAULT_FIFO)


def _lives(file: Path) -> bool:
    """Whether the process whose pid a file holds is there; one that was killed has not removed its file."""
    try:
        pid = file.read_text()
    except OSError:
        return False
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file by a JSON document, whole or not at all; several processes may do so at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Unknown(f"cannot write '{path}': {error.strerror}") from error


def read_document(path: Path) -> dict[str, Any]:
    """Read one; empty where there is none, or none that can be read."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MAX_DOCUMENT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionDenied(
            f"folder '{path}' cannot be made: {error.strerror}; run moorctl as root, or name a place by {ROOT_VARIABLE}"
        ) from error
