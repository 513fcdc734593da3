"""Which of a document's children belong to what a client wants."""

from __future__ import annotations

from collections.abc import Sequence

from moored.kernel.errors import NotFound
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.platforms import EVERYTHING, Matcher, exactly
from moored.kernel.imagespec.walk import chosen
from moored.kernel.ports.transfer import StoredImages


class Choice:
    """The platforms, metadata and limit of an ImageStore destination."""

    def __init__(self, wanted: StoredImages, matcher: Matcher | None = None) -> None:
        """Choose by the platforms as they are named, or by a matcher."""
        usual = exactly(wanted.platforms) if wanted.platforms else EVERYTHING
        self._wanted = usual if matcher is None else matcher
        self._all_metadata = wanted.all_metadata
        self._limit = wanted.manifest_limit

    def matches(self, entry: Entry) -> bool:
        """Whether an object is of a wanted platform, or of none."""
        return entry.platform is None or self._wanted.rank(entry.platform.platform()) is not None

    def of(self, parent: Entry, children: Sequence[Entry]) -> Sequence[Entry]:
        """Give those to go on with. Raises NotFound `no match for platform in manifest`."""
        if not self._all_metadata:
            children = [child for child in children if self.matches(child)]
        elif parent.media_type in media.MANIFESTS and not self.matches(parent):
            children = [child for child in children if child.media_type in media.CONFIGS]
        if parent.media_type not in media.INDEXES or not self._limit:
            return children
        if not children:
            raise NotFound("no match for platform in manifest")
        best = chosen(children, self._wanted)
        return [*best, *(child for child in children if child not in best)][: self._limit]
