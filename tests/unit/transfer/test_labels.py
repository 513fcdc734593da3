"""Labels of transferred content: references, sources, and where to mount from."""

from __future__ import annotations

import pytest

from moored.api.transfer.labels import mount_candidate, reference_labels, with_source
from moored.kernel.imagespec import media, references
from moored.kernel.imagespec.documents import Entry

HOST = "containerd.io/distribution.source.h"


def entry(media_type: str, digit: str) -> Entry:
    return Entry(media_type=media_type, digest=f"sha256:{digit * 64}", size=1)


def test_children_are_counted_by_kind() -> None:
    children = [
        entry(media.OCI_CONFIG, "1"),
        entry(media.OCI_CONFIG, "2"),
        entry(media.OCI_MANIFEST, "3"),
        entry(media.OCI_LAYER, "4"),
        entry(f"{media.OCI_LAYER}+gzip", "5"),
        entry(media.OCI_INDEX, "6"),
        entry("application/strange", "7"),
    ]

    keys = [key.removeprefix("containerd.io/gc.ref.content.") for key in reference_labels(children)]

    assert keys == ["config", "config1", "m.0", "l.0", "l.1", "0", "1"]


@pytest.mark.parametrize(
    ("known", "label"), [("", "a/b"), ("a/b", "a/b"), ("z,a/b", "a/b,z"), ("a/a,c", "a/a,a/b,c"), ("x" * 4090, None)]
)
def test_repository_is_added_in_order_and_once(known: str, label: str | None) -> None:
    found = with_source({HOST: known}, references.parse("h:5000/a/b:1"))

    assert found == ({} if label is None else {HOST: label})


@pytest.mark.parametrize(
    ("known", "chosen"),
    [("", ""), ("a/b/c", ""), ("x,a/y", "a/y"), ("a/b/d,a/z", "a/b/d"), ("x,y", "y"), ("a/b/c,q", "q")],
)
def test_the_repository_most_alike_is_mounted_from(known: str, chosen: str) -> None:
    assert mount_candidate({HOST: known}, references.parse("h:5000/a/b/c:1")) == chosen
