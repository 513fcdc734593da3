"""Daemons for the client library to talk to: ours and Debian's, each with an image to run."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conformance.remote import CONTAINERDS
from daemons import Daemon
from e2e.containers import busybox_image, short_folder
from leftovers import Place, nothing_left
from moored.api.client import Client
from moored.api.client.sync import Client as SyncClient
from peers import containerd, needs_containerd

NAME = "docker.io/test/busybox:latest"
_numbers = itertools.count()


@dataclass
class Peer:
    """A daemon, and what tests make in it.

    own      whether it is moored
    archive  of the image NAME
    """

    own: bool
    place: Place
    archive: Path
    log: Path
    made: list[str] = field(default_factory=list)

    @property
    def fifos(self) -> Path:
        return self.place.folder / "fifos"

    def client(self, **more) -> Client:
        return Client(str(self.place.address), **{"namespace": self.place.namespace, "fifo_folder": self.fifos, **more})

    def sync(self) -> SyncClient:
        return SyncClient(str(self.place.address), namespace=self.place.namespace, fifo_folder=self.fifos)

    def new(self, what: str = "c") -> str:
        """An id that no test had before."""
        self.made.append(f"{what}{next(_numbers)}-{os.getpid()}")
        return self.made[-1]


def moored(folder: Path) -> Iterator[tuple[Path, Path]]:
    with Daemon(folder) as daemon:
        yield daemon.socket, daemon.log


def another(binary: str) -> Callable[[Path], Iterator[tuple[Path, Path]]]:
    def start(folder: Path) -> Iterator[tuple[Path, Path]]:
        with containerd(folder / "d", binary) as address:
            yield address, folder / "d" / "log"

    return start


DAEMONS = [
    pytest.param(moored, id="moored", marks=needs_containerd[1:]),
    *(pytest.param(another(path), id=path.lstrip("/"), marks=needs_containerd) for path in CONTAINERDS),
]
"""Ours, Debian's, and further ones that MOORED_TEST_CONTAINERDS names."""


@pytest.fixture(scope="session", params=DAEMONS)
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """Each daemon in turn, with the image; nothing of its containers may be left in the end."""
    with short_folder() as folder:
        archive = busybox_image(folder)
        for address, log in request.param(folder):
            place = Place(folder, f"cl{os.getpid()}{next(_numbers)}", address)
            found = Peer(request.param is moored, place, archive, log)
            with found.sync() as client:
                client.import_archive(archive, prefix="docker.io/test/busybox")
            before = place.found()
            try:
                yield found
                shutil.rmtree(found.fifos, ignore_errors=True)
                nothing_left(place, before, found.made)
            finally:
                place.cleared(before)
