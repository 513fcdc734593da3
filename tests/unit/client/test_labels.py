"""Labels of an image's objects."""

from __future__ import annotations

from moored.api.client.labels import child_labels, mount_candidate, source_labels
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.references import parse

HOST = "containerd.io/distribution.source.reg.example"


def entry(media_type, letter):
    return Entry(media_type=media_type, digest=f"sha256:{letter * 64}", size=1)


def test_children_are_numbered_by_kind():
    children = [entry(media.OCI_CONFIG, "a"), entry(media.OCI_LAYER, "b"), entry(media.OCI_LAYER + "+gzip", "c")]

    assert list(child_labels(children)) == [f"containerd.io/gc.ref.content.{n}" for n in ("config", "l.0", "l.1")]
    manifests = [entry(media.OCI_MANIFEST, "a"), entry(media.DOCKER_MANIFEST, "b")]
    assert list(child_labels(manifests)) == [f"containerd.io/gc.ref.content.m.{n}" for n in (0, 1)]


def test_repositories_gather_until_there_is_no_room():
    reference = parse("reg.example:5000/b/c:t")

    assert source_labels({}, reference) == {HOST: "b/c"}
    assert source_labels({HOST: "z,a"}, reference) == {HOST: "a,b/c,z"}
    assert source_labels({HOST: "x" * 4090}, reference) == {}


def test_the_repository_that_is_named_most_alike_is_mounted_from():
    reference = parse("reg.example/team/app/web:t")

    assert mount_candidate({HOST: "other/x,team/app/db,team/y"}, reference) == "team/app/db"
    assert mount_candidate({HOST: "team/app/web"}, reference) == ""
    assert mount_candidate({}, reference) == ""
