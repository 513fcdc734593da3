"""All objects of one daemon over one database: the stores put together, and who is told of their changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists, InvalidArgument
from moored.kernel.filters import quote
from moored.kernel.ports.containers import ContainerStore
from moored.kernel.ports.content import ContentStore, LabelledContentStore
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.images import ImageStore
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.ports.metadata import Database
from moored.kernel.ports.mounts import ActivationRecords
from moored.kernel.ports.namespaces import NamespaceStore
from moored.kernel.ports.objects import Collection
from moored.kernel.ports.sandboxes import SandboxStore
from moored.kernel.ports.snapshots import Snapshotter
from moored.plugins.metadata.bolt.activations import NamespacedActivations
from moored.plugins.metadata.bolt.collect import Listed, collect
from moored.plugins.metadata.bolt.containers import NamespacedContainers
from moored.plugins.metadata.bolt.content import NamespacedContent
from moored.plugins.metadata.bolt.images import NamespacedImages
from moored.plugins.metadata.bolt.journal import Journal
from moored.plugins.metadata.bolt.leases import NamespacedLeases
from moored.plugins.metadata.bolt.links import OWN
from moored.plugins.metadata.bolt.namespaces import Namespaces
from moored.plugins.metadata.bolt.sandboxes import NamespacedSandboxes
from moored.plugins.metadata.bolt.snapshots import NamespacedSnapshotter

Listener = Callable[[bool], None]


class BoltObjects:
    """`Objects` over a database that `schema.prepare` has been run on, and the raw stores of the daemon.

    policy is `shared` or `isolated` (see `NamespacedContent`).
    """

    def __init__(
        self,
        *,
        database: Database,
        exchange: Exchange | None,
        content: ContentStore,
        snapshotters: Mapping[str, Snapshotter],
        policy: str,
        log: FilteringBoundLogger,
    ) -> None:
        journal = Journal(database)
        changed = self._changed
        self._database = journal
        self._exchange = exchange
        self._log = log
        self._listeners: list[Listener] = []
        self._outside: dict[str, Listed] = {}
        self.namespaces: NamespaceStore = Namespaces(
            database=journal, exchange=exchange, changed=self._namespace_changed
        )
        self.images: ImageStore = NamespacedImages(database=journal, exchange=exchange, changed=changed)
        self.containers: ContainerStore = NamespacedContainers(database=journal, exchange=exchange, changed=changed)
        self.leases: LeaseManager = NamespacedLeases(database=journal, exchange=exchange, changed=changed)
        self.sandboxes: SandboxStore = NamespacedSandboxes(database=journal, changed=changed)
        self._activations = NamespacedActivations(database=journal, changed=changed)
        self.activations: ActivationRecords = self._activations
        self._content = NamespacedContent(
            database=journal, exchange=exchange, backend=content, policy=policy, changed=changed, log=log
        )
        self.content: LabelledContentStore = self._content
        self._snapshotters = {
            name: NamespacedSnapshotter(
                database=journal, exchange=exchange, name=name, backend=backend, changed=changed
            )
            for name, backend in snapshotters.items()
        }

    def snapshotter(self, name: str) -> Snapshotter:
        """See the port."""
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        found = self._snapshotters.get(name)
        if found is None:
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return found

    def snapshotters(self) -> Mapping[str, Snapshotter]:
        """See the port."""
        return dict(self._snapshotters)

    async def collect(self) -> Collection:
        """See the port."""
        return await collect(
            database=self._database,
            content=self._content,
            snapshotters=self._snapshotters,
            mounts=self._activations,
            outside=self._outside,
            exchange=self._exchange,
            log=self._log,
        )

    def collectable(self, kind: str, listed: Listed) -> Callable[[], None]:
        """See the port."""
        if kind in OWN:
            raise InvalidArgument(f"kind {quote(kind)} is the database's own, wanted another one")
        if kind in self._outside:
            raise AlreadyExists(f"kind {quote(kind)} is collected already")
        self._outside[kind] = listed

        def end() -> None:
            if self._outside.get(kind) is listed:
                del self._outside[kind]

        return end

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """See the port."""

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        self._listeners.append(listener)
        return end

    async def close(self) -> None:
        """Let what runs behind the stores end; the database and the raw stores are the caller's."""
        for snapshotter in self._snapshotters.values():
            await snapshotter.close()

    def _namespace_changed(self, deleted: bool) -> None:
        if deleted:
            self._content.dirty = True  # its ingests went with it, of which the raw store still has the bytes
        self._changed(deleted)

    def _changed(self, deleted: bool) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(deleted)
            except Exception:  # noqa: BLE001 - the write is done, whatever a listener makes of it
                self._log.exception("listener for changes failed")
