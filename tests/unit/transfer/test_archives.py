"""Imports and exports: what goes in and comes out, and archives that must be refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness import on_loop
from moored.kernel.errors import FailedPrecondition, InvalidArgument, MooredError, NotFound, Unimplemented, Unknown
from moored.kernel.imagespec import media
from moored.kernel.imagespec.platforms import Platform, default
from moored.kernel.namespaces import bind
from moored.kernel.ports.transfer import ArchiveSink, ArchiveSource, ExtraName, Repository, StoredImages, Unpack
from moored.plugins.transfer.plugin import UnpackConfig
from unit.transfer.world import NS, PREFIX, Made, World, chunks, digest_of, image, index, layout, tar_of, world

NATIVE = {"unpack_config": [UnpackConfig(snapshotter="native")]}
HERE = [Unpack(platform=default(), snapshotter="native")]
root = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")]


def docker(*layers: bytes, tags: tuple[str, ...] = ("test/image:1",), **files: bytes) -> bytes:
    """What `docker save` writes: layers as they are, one of them through a link."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(x) for x in layers]},
    }
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": list(tags), "Layers": [*names[:-1], "linked.tar"]}]
    content = {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode(), **files}
    content |= dict(zip(names, layers, strict=True))
    return tar_of(content, {"linked.tar": names[-1]})


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@on_loop
async def test_oci_archive_is_imported_however_it_is_packed(tmp_path: Path, pack: Any) -> None:
    made = image()
    async with world(tmp_path) as here:
        await here.import_(pack(layout(made)))

        assert await here.names() == {f"{PREFIX}:latest": made.target["digest"]}
        labels = await here.labels(made.target["digest"])
        assert labels["containerd.io/gc.ref.content.l.0"] == made.layers[0]["digest"]
        assert set(await here.left()) == set(made.blobs)
    assert [one.event for one in here.news] == ["Importing", "saved", "Completed import"]


@on_loop
async def test_docker_archive_becomes_a_manifest_of_its_own(tmp_path: Path) -> None:
    layers = tar_of({"a": b"1"}), tar_of({"b": b"2"})
    async with world(tmp_path) as here:
        await here.import_(docker(*layers, tags=("image:1", "other/name:2")), extra=[_any()])

        assert set(await here.names()) == {"docker.io/library/image:1", "docker.io/other/name:2"}
        manifest = json.loads(await here.read((await here.names())["docker.io/library/image:1"]))
    assert manifest["mediaType"] == media.DOCKER_MANIFEST
    assert [layer["digest"] for layer in manifest["layers"]] == [digest_of(layer) for layer in layers]
    assert {layer["mediaType"] for layer in manifest["layers"]} == {media.DOCKER_LAYER}


def _any() -> ExtraName:
    return ExtraName(name="docker.io/test", is_prefix=True, allow_overwrite=True)


@on_loop
async def test_layers_are_gzipped_where_that_is_forced(tmp_path: Path) -> None:
    layer = tar_of({"a": b"1" * 10_000})
    async with world(tmp_path) as here:
        await here.import_(docker(layer), extra=[_any()], force_compress=True)

        manifest = json.loads(await here.read(next(iter((await here.names()).values()))))
        stored = manifest["layers"][0]
        assert stored["mediaType"] == media.DOCKER_LAYER_GZIP
        assert gzip.decompress(await here.read(stored["digest"])) == layer
        assert (await here.labels(stored["digest"]))["containerd.io/uncompressed"] == digest_of(layer)


@on_loop
async def test_stale_ingest_of_the_same_name_does_not_spoil_an_import(tmp_path: Path) -> None:
    made = image()
    async with world(tmp_path) as here:
        with bind(NS):
            ref = f"tar-blobs/{made.layers[0]['digest'].replace(':', '/')}"
            async with await here.objects.content.writer(ref, made.layers[0]["size"]) as writer:
                await writer.write(b"old bytes")
        await here.import_(layout(made))

        assert await here.names() == {f"{PREFIX}:latest": made.target["digest"]}


def joined(*archives: bytes) -> bytes:
    """One archive of the files of several, in their order; a name may come again."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for one in archives:
            with tarfile.open(fileobj=io.BytesIO(one)) as parts:
                for member in parts:
                    archive.addfile(member, parts.extractfile(member))
    return out.getvalue()


@on_loop
async def test_last_of_several_files_of_a_name_counts(tmp_path: Path) -> None:
    older, newer = image(), image(tar_of({"newer": b"1"}))
    async with world(tmp_path) as here:
        await here.import_(joined(layout(older), layout(newer)))

        assert await here.names() == {f"{PREFIX}:latest": newer.target["digest"]}


@on_loop
async def test_bytes_under_many_names_are_one_blob(tmp_path: Path) -> None:
    made = image()
    copies = {f"copy/{number}": made.blobs[made.layers[0]["digest"]] for number in range(40)}
    async with world(tmp_path) as here:
        await here.import_(layout(made, **copies))

        assert set(await here.left()) == set(made.blobs)


# --- what must be refused ---------------------------------------------------------------------------------------------


def changed(target: dict[str, Any] | None = None, **fields: Any) -> Made:
    """An image whose manifest says something else."""
    made = image()
    manifest = json.loads(made.blobs[made.target["digest"]])
    manifest.update(fields)
    made.target = made.document(media.OCI_MANIFEST, manifest) | (target or {})
    return made


def layer_with(**fields: Any) -> Made:
    made = image()
    return changed(layers=[{**made.layers[0], **fields}])


def nested(levels: int) -> Made:
    made = image()
    for _ in range(levels):
        made = index(made)
    return made


def doubling(levels: int) -> Made:
    """Each index names the one below twice; walking it naively never ends."""
    made = image()
    for level in range(levels):
        below = {**made.target, "annotations": {"n": str(level)}}
        made.target = made.document(media.OCI_INDEX, {"manifests": [below, {**below, "annotations": {"n": "x"}}]})
    return made


REFUSED: dict[str, tuple[bytes, type[MooredError], str]] = {
    "empty": (b"", Unknown, "unrecognized image format"),
    "zeros": (bytes(2048), Unknown, "unrecognized image format"),
    "garbage": (b"\xfe" * 2000, Unknown, "invalid tar header"),
    "version 9": (tar_of({"oci-layout": b'{"imageLayoutVersion": "9"}'}), InvalidArgument, "unsupported OCI version 9"),
    "no index": (tar_of({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}), NotFound, "missing index.json"),
    "cut": (layout(image())[:2000], Unknown, "unexpected EOF"),
    "manifest larger": (layout(changed({"size": 10**12})), InvalidArgument, "at most"),
    "manifest longer": (layout(changed({"size": 5})), FailedPrecondition, "its descriptor says 5"),
    "layer size": (layout(layer_with(size=7)), FailedPrecondition, "its descriptor says 7"),
    "layer size huge": (layout(layer_with(size=10**12)), FailedPrecondition, "its descriptor says 1000000000000"),
    "layer digest path": (layout(layer_with(digest="sha256:../../x")), InvalidArgument, "layers"),
    "layer digest md5": (layout(layer_with(digest="md5:" + "0" * 32)), InvalidArgument, "layers"),
    "layers null": (layout(changed(layers=None)), InvalidArgument, "layers"),
    "schema 99": (layout(changed(schemaVersion=99)), InvalidArgument, "schemaVersion"),
    "mixed": (layout(changed(manifests=[])), InvalidArgument, "must not have"),
    "schema 1": (layout(changed(fsLayers=[])), InvalidArgument, "must not have"),
    "config is a layer": (
        layout(changed(config={**image().layers[0], "mediaType": media.OCI_CONFIG})),
        InvalidArgument,
        "image config",
    ),
    "config missing": (
        layout(changed(config={"mediaType": media.OCI_CONFIG, "digest": f"sha256:{'1' * 64}", "size": 2})),
        NotFound,
        "lacks its config",
    ),
    "inline data": (
        layout(
            changed(config={"mediaType": media.OCI_CONFIG, "digest": f"sha256:{'1' * 64}", "size": 2, "data": "e30="})
        ),
        NotFound,
        "lacks its config",
    ),
    "many layers": (layout(changed(layers=[image().layers[0]] * 5000)), InvalidArgument, "at most 512"),
    "deep index": (layout(nested(40)), InvalidArgument, "levels"),
    "nested json": (tar_of({"oci-layout": b"[" * 100_000}), InvalidArgument, "oci-layout"),
    "index of 5 MB": (
        tar_of({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": b" " * (5 << 20)}),
        InvalidArgument,
        "index.json of the archive has 5242880 bytes",
    ),
    "layout of 30 MB": (tar_of({"oci-layout": b" " * (30 << 20)}), InvalidArgument, "at most 20971520"),
    "docker config missing": (
        tar_of({"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": []}]'}),
        NotFound,
        'image config "../../etc/passwd" not found',
    ),
    "docker layer missing": (
        tar_of({"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": b"{}"}),
        NotFound,
        'layer "l" not found',
    ),
    "docker link outside": (
        tar_of({"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": b"{}"}, {"l": "../../etc/passwd"}),
        NotFound,
        'no target for symlink layer from "l"',
    ),
    "docker many layers": (
        tar_of(
            {"manifest.json": json.dumps([{"Config": "c", "Layers": ["l"] * 50_000}]).encode(), "c": b"{}", "l": b""}
        ),
        InvalidArgument,
        "50000 layers, at most 512",
    ),
    "docker bad tag": (docker(tar_of({}), tags=("../../x",)), InvalidArgument, "invalid reference format"),
}


@pytest.mark.parametrize("case", REFUSED)
@on_loop
async def test_archive_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    data, kind, text = REFUSED[case]
    async with world(tmp_path) as here:
        with pytest.raises(kind, match=text):
            await here.import_(data, piece=1 << 20)

        assert await here.names() == {}
        assert await here.left() == []
        await here.import_(layout(image()))
        assert list(await here.names()) == [f"{PREFIX}:latest"]


@on_loop
async def test_index_that_names_the_same_twice_at_each_level_is_walked_once(tmp_path: Path) -> None:
    made = doubling(14)
    async with world(tmp_path) as here:
        await here.import_(layout(made))

        assert await here.names() == {f"{PREFIX}:latest": made.target["digest"]}


def files_below(folder: Path) -> set[Path]:
    """All but blobs and ingests, which have names of their own."""
    return {path for path in folder.rglob("*") if "content" not in str(path)}


@pytest.mark.parametrize("name", ["../../../etc/passwd", "with spaces: and more", "n" * 2000, "x/../../y"])
@on_loop
async def test_names_are_only_names(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as here:
        before = files_below(tmp_path)
        await here.import_(layout(image(), name=name), extra=[_any()])

        assert name in "".join(await here.names())
        after = files_below(tmp_path)
    assert after == before


@on_loop
async def test_filter_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(NotFound, match="no match for platform"):
            await here.import_(layout(index(image())), platforms=[Platform("windows", "amd64")], manifest_limit=1)


@on_loop
async def test_manifest_of_another_platform_may_be_without_its_blobs(tmp_path: Path) -> None:
    ours, other = image(), image(tar_of({"o": b"1"}), platform="arm64")
    both = index(ours, other)
    absent = [digest for digest in other.blobs if digest != other.target["digest"] and digest not in ours.blobs]
    async with world(tmp_path) as here:
        await here.import_(layout(both, without=absent))

        assert await here.names() == {f"{PREFIX}:latest": both.target["digest"]}


# --- unpacking --------------------------------------------------------------------------------------------------------


async def unpacked(here: World) -> list[str]:
    with bind(NS):
        return [one.name async for one in here.objects.snapshotter("native").walk()]


@pytest.mark.usefixtures("tmp_path")
class TestUnpacking:
    """What is unpacked after an import."""

    pytestmark = root

    @on_loop
    async def test_image_is_unpacked(self, tmp_path: Path) -> None:
        made = image(tar_of({"a": b"1"}), tar_of({"b": b"2"}), platform=default().architecture)
        async with world(tmp_path, **NATIVE) as here:
            await here.import_(layout(made), unpacks=HERE)

            assert len(await unpacked(here)) == 2

    @on_loop
    async def test_layer_that_is_absent_is_not_found_though_its_files_are_there(self, tmp_path: Path) -> None:
        secret = tar_of({"secret": b"s"})
        private = image(secret, platform=default().architecture)
        thief = image(secret, platform=default().architecture, author="thief")
        gone = [{**thief.layers[0], "digest": f"sha256:{'2' * 64}"}]
        manifest = json.loads(thief.blobs[thief.target["digest"]]) | {"layers": gone}
        thief.target = thief.document(media.OCI_MANIFEST, manifest)
        async with world(tmp_path, **NATIVE) as here:
            await here.import_(layout(private), unpacks=HERE)
            with pytest.raises(NotFound, match="2222"):
                await here.import_(layout(thief, name="thief", without=[thief.layers[0]["digest"]]), unpacks=HERE)

            assert list(await here.names()) == [f"{PREFIX}:latest"]

    @pytest.mark.parametrize(
        ("config", "kind", "text"),
        [
            ({"diff_ids": [digest_of(b"x")]}, FailedPrecondition, "wrong diff id"),
            ({"diff_ids": ["sha256:zz"]}, InvalidArgument, "diff_ids"),
            ({"diff_ids": []}, FailedPrecondition, "number of layers and diffIDs don't match: 1 != 0"),
        ],
    )
    @on_loop
    async def test_diff_ids_that_do_not_fit_are_refused(
        self, tmp_path: Path, config: dict[str, Any], kind: type[MooredError], text: str
    ) -> None:
        made = image(platform=default().architecture, rootfs={"type": "layers", **config})
        async with world(tmp_path, **NATIVE) as here:
            with pytest.raises(kind, match=text):
                await here.import_(layout(made), unpacks=HERE)

            assert await here.left() == []

    @on_loop
    async def test_layers_of_an_unknown_type_are_not_taken_for_nothing(self, tmp_path: Path) -> None:
        made = image(platform=default().architecture, layer_type="application/x-strange")
        async with world(tmp_path, **NATIVE) as here:
            with pytest.raises(FailedPrecondition, match="don't match: 0 != 1"):
                await here.import_(layout(made), unpacks=HERE)

    @on_loop
    async def test_cut_layer_fails_and_leaves_no_snapshot(self, tmp_path: Path) -> None:
        made = image(platform=default().architecture)
        cut = made.add(f"{media.OCI_LAYER}+gzip", made.blobs[made.layers[0]["digest"]][:-20])
        manifest = json.loads(made.blobs[made.target["digest"]]) | {"layers": [cut]}
        made.target = made.document(media.OCI_MANIFEST, manifest)
        async with world(tmp_path, **NATIVE) as here:
            with pytest.raises(Unknown, match="failed to extract layer"):
                await here.import_(layout(made), unpacks=HERE)

            assert await here.left() == []


# --- exports ----------------------------------------------------------------------------------------------------------


def opened(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {one.name: (archive.extractfile(one) or io.BytesIO()).read() for one in archive.getmembers()}


@on_loop
async def test_export_is_what_was_imported(tmp_path: Path) -> None:
    made = image()
    async with world(tmp_path) as here:
        await here.import_(layout(made))
        files = opened(await here.export(f"{PREFIX}:latest"))

        again = await here.export(f"{PREFIX}:latest")
    assert {name: data for name, data in files.items() if len(name) > 40} == {
        f"blobs/{digest.replace(':', '/')}": data for digest, data in made.blobs.items()
    }
    assert list(files) == sorted(files)
    top = json.loads(files["index.json"])["manifests"][0]
    assert top["annotations"] == {
        "io.containerd.image.name": f"{PREFIX}:latest",
        "org.opencontainers.image.ref.name": "latest",
    }
    docker_sees = json.loads(files["manifest.json"])[0]
    assert docker_sees["RepoTags"] == ["test/image:latest"]
    assert docker_sees["Layers"] == [f"blobs/{made.layers[0]['digest'].replace(':', '/')}"]
    assert opened(again) == files


@on_loop
async def test_exported_archive_can_be_imported_elsewhere(tmp_path: Path) -> None:
    made = image()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    async with world(tmp_path / "1") as here, world(tmp_path / "2") as there:
        await here.import_(layout(made))
        await there.import_(await here.export(f"{PREFIX}:latest"))

        assert await there.names() == await here.names()


@on_loop
async def test_export_of_one_platform_leaves_the_others_out(tmp_path: Path) -> None:
    ours, other = image(), image(tar_of({"o": b"1"}), platform="arm64")
    both = index(ours, other)
    async with world(tmp_path) as here:
        await here.import_(layout(both))
        one = opened(await here.export(f"{PREFIX}:latest", platforms=[Platform("linux", "arm64")]))
        all_ = opened(await here.export(f"{PREFIX}:latest", platforms=[Platform("linux", "arm64")], all_platforms=True))
        with pytest.raises(NotFound, match="no manifest found for platform"):
            await here.export(f"{PREFIX}:latest", platforms=[Platform("linux", "s390x")])

    def blobs(digests: set[str]) -> set[str]:
        return {f"blobs/{digest.replace(':', '/')}" for digest in digests}

    assert {name for name in one if len(name) > 40} == blobs({both.target["digest"], *other.blobs})
    assert {name for name in all_ if len(name) > 40} == blobs(set(both.blobs))
    assert json.loads(all_["manifest.json"])[0]["Layers"] == list(blobs({other.layers[0]["digest"]}))


@on_loop
async def test_export_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    made = image(layer_type=f"{media.OCI_NONDISTRIBUTABLE}+gzip")
    async with world(tmp_path) as here:
        await here.import_(layout(made))
        files = opened(await here.export(f"{PREFIX}:latest", skip_docker_manifest=True, skip_nondistributable=True))

    assert "manifest.json" not in files
    assert f"blobs/{made.layers[0]['digest'].replace(':', '/')}" not in files


@on_loop
async def test_missing_image_or_blob_is_not_found(tmp_path: Path) -> None:
    made = image()
    async with world(tmp_path) as here:
        await here.import_(layout(made))
        with pytest.raises(NotFound, match="nothing"):
            await here.export("nothing")
        with bind(NS):
            await here.objects.content.delete(made.layers[0]["digest"])
        with pytest.raises(NotFound, match=made.layers[0]["digest"]):
            await here.export(f"{PREFIX}:latest")


@on_loop
async def test_echo_gives_the_bytes_back(tmp_path: Path) -> None:
    out = io.BytesIO()

    async def write(data: bytes) -> None:
        out.write(data)

    async with world(tmp_path) as here:
        await here.transfer(ArchiveSource(chunks=lambda: chunks(b"any bytes")), ArchiveSink(write=write))

    assert out.getvalue() == b"any bytes"


@on_loop
async def test_pair_of_ends_that_makes_no_sense_is_not_implemented(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for source, destination in [
            (Repository(reference="a/b:1"), Repository(reference="a/b:1")),
            ("containerd.types.transfer.ContainerPath", StoredImages(name="x")),
        ]:
            with pytest.raises(Unimplemented):
                await here.transfer(source, destination)


# --- names ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_tag_gives_a_second_name_over_whatever_had_it(tmp_path: Path) -> None:
    one, two = image(), image(tar_of({"2": b"2"}))
    async with world(tmp_path) as here:
        await here.import_(layout(one, name="one"))
        await here.import_(layout(two, name="two"))
        for source in ("one", "two"):
            await here.transfer(StoredImages(name=f"{PREFIX}:{source}"), StoredImages(name="tag", labels={"a": "b"}))

        assert (await here.names())["tag"] == two.target["digest"]
        with pytest.raises(NotFound, match="no image name found"):
            await here.transfer(StoredImages(name="tag"), StoredImages())
        with pytest.raises(NotFound):
            await here.transfer(StoredImages(name="nothing"), StoredImages(name="x"))


@on_loop
async def test_extra_names_go_with_the_one_that_holds_them(tmp_path: Path) -> None:
    made = image()
    extra = [
        ExtraName(name="plain"),
        ExtraName(name=PREFIX, is_prefix=True),
        ExtraName(name="d", is_prefix=True, add_digest=True, skip_named_digest=True),
        ExtraName(name="e", is_prefix=True, add_digest=True),
    ]
    async with world(tmp_path) as here:
        await here.import_(layout(made), name="top", extra=extra)
        names = set(await here.names())
        top = (await here.names())["top"]
        with bind(NS):
            await here.objects.images.delete("top")
        await here.objects.collect()

        assert await here.names() == {}
    digest = made.target["digest"]
    assert names == {
        "top",
        "plain",
        f"d@{top}",
        f"e@{top}",
        f"{PREFIX}:latest",
        "d:latest",
        "e:latest",
        f"e@{digest}",
    }
