"""Pulls from a registry that is made for tests: what is stored, what is asked for, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from aiohttp import web

from harness import on_loop
from moored.kernel.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from moored.kernel.imagespec import media
from moored.kernel.imagespec.platforms import Platform, default
from moored.kernel.namespaces import bind
from moored.kernel.ports.transfer import Unpack
from moored.plugins.transfer.plugin import UnpackConfig
from unit.transfer.world import NS, FakeRegistry, Made, digest_of, image, index, registry, tar_of, world

AMD64 = Platform("linux", "amd64")
NATIVE = {"unpack_config": [UnpackConfig(snapshotter="native")]}
root = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


@on_loop
async def test_image_is_stored_with_the_labels_that_keep_it(tmp_path: Path) -> None:
    made = image()
    async with registry() as source, world(tmp_path) as here:
        await here.pull(source.put(made))

        assert await here.names() == {"pulled": made.target["digest"]}
        assert await here.content() == set(made.blobs)
        labels = await here.labels(made.target["digest"])
    config = next(digest for digest in made.blobs if digest not in {made.target["digest"], made.layers[0]["digest"]})
    assert labels == {
        "containerd.io/distribution.source.127.0.0.1": "a/b",
        "containerd.io/gc.ref.content.config": config,
        "containerd.io/gc.ref.content.l.0": made.layers[0]["digest"],
    }


@on_loop
async def test_second_repository_of_a_host_is_added_to_the_blobs_label(tmp_path: Path) -> None:
    made = image()
    async with registry() as source, world(tmp_path) as here:
        await here.pull(source.put(made, "z/z:1"))
        await here.pull(source.put(made, "a/b:1"))

        labels = await here.labels(made.layers[0]["digest"])
    assert labels["containerd.io/distribution.source.127.0.0.1"] == "a/b,z/z"


@on_loop
async def test_events_tell_each_object_and_name_it_as_the_ingest_is_named(tmp_path: Path) -> None:
    made = image()
    async with registry() as source, world(tmp_path) as here:
        name = source.put(made)
        await here.pull(name)
        first, here.news = here.news, []
        await here.pull(name)

    events = [(one.event, one.name, tuple(one.parents)) for one in first]
    manifest, layer = f"manifest-{made.target['digest']}", f"layer-{made.layers[0]['digest']}"
    assert events[:4] == [
        (f"Resolving from OCI Registry ({name})", "", ()),
        (f"Pulling from OCI Registry ({name})", "", ()),
        ("fetching image content", name, ()),
        ("waiting", manifest, (name,)),
    ]
    assert ("waiting", layer, (manifest,)) in events
    assert ("complete", layer, (manifest,)) in events
    assert events[-2:] == [("saved", "pulled", ()), (f"Completed pull from OCI Registry ({name})", "", ())]
    assert {one.name for one in here.news if one.event == "already exists"} >= {manifest, layer}


@on_loop
async def test_only_the_wanted_platform_of_an_index_is_fetched(tmp_path: Path) -> None:
    ours, other = image(), image(tar_of({"other": b"1"}), platform="arm64")
    both = index(ours, other)
    async with registry() as source, world(tmp_path) as here:
        await here.pull(source.put(both), platforms=[AMD64])

        assert await here.content() == {both.target["digest"], *ours.blobs}
        assert (await here.labels(both.target["digest"]))["containerd.io/gc.ref.content.m.1"] == other.target["digest"]


@on_loop
async def test_all_metadata_brings_other_platforms_manifests_and_configs_without_layers(tmp_path: Path) -> None:
    ours, other = image(), image(tar_of({"other": b"1"}), platform="arm64")
    both = index(ours, other)
    async with registry() as source, world(tmp_path) as here:
        await here.pull(source.put(both), platforms=[AMD64], all_metadata=True)

        assert await here.content() == set(both.blobs) - {other.layers[0]["digest"]}


@on_loop
async def test_limit_without_a_match_is_not_found_and_no_limit_keeps_the_bare_index(tmp_path: Path) -> None:
    both = index(image())
    windows = [Platform("windows", "amd64")]
    async with registry() as source, world(tmp_path) as here:
        name = source.put(both)
        with pytest.raises(NotFound, match="no match for platform in manifest"):
            await here.pull(name, platforms=windows, manifest_limit=1)
        assert await here.names() == {}
        await here.pull(name, platforms=windows)

        assert await here.names() == {"pulled": both.target["digest"]}


@on_loop
async def test_broken_download_goes_on_from_what_has_come(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    made = Made()
    layer = made.add(f"{media.OCI_LAYER}+gzip", data)
    made.target = made.document(media.OCI_MANIFEST, {"config": made.add(media.OCI_CONFIG, b"{}"), "layers": [layer]})
    broken: list[bool] = []

    async def cut(request: web.Request) -> web.StreamResponse | None:
        if layer["digest"] not in request.path or broken:
            return None
        broken.append(True)
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: 1 << 20])
        assert request.transport is not None
        request.transport.close()
        return response

    async with registry() as source, world(tmp_path) as here:
        name = source.put(made)
        source.fault = cut
        await here.pull(name)

        assert await here.read(layer["digest"]) == data
    assert went_on(source.range_headers, 1 << 20, len(data))


@on_loop
async def test_pull_after_a_failed_one_under_the_same_lease_resumes_the_ingest(tmp_path: Path) -> None:
    data = os.urandom(2 << 20)
    made = Made()
    layer = made.add(f"{media.OCI_LAYER}+gzip", data)
    made.target = made.document(media.OCI_MANIFEST, {"config": made.add(media.OCI_CONFIG, b"{}"), "layers": [layer]})

    async def refuse_rest(request: web.Request) -> web.StreamResponse | None:
        if layer["digest"] not in request.path:
            return None
        if "Range" in request.headers:
            return web.Response(status=403)
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: 1 << 20])
        assert request.transport is not None
        request.transport.close()
        return response

    async with registry() as source, world(tmp_path) as here:
        with bind(NS):
            lease = await here.objects.leases.create("kept", {})
        name = source.put(made)
        source.fault = refuse_rest
        with bind(lease=lease.id):
            with pytest.raises(PermissionDenied):
                await here.pull(name)
            source.fault, source.range_headers = None, []
            await here.pull(name)

        assert await here.read(layer["digest"]) == data
    assert went_on(source.range_headers, 1 << 20, len(data))


@on_loop
async def test_ingest_with_wrong_bytes_is_thrown_away_and_fetched_anew(tmp_path: Path) -> None:
    made = image(tar_of({"file": os.urandom(200_000)}))
    layer = made.layers[0]
    async with registry() as source, world(tmp_path) as here:
        with bind(NS):
            await here.objects.leases.create("l", {})
        with bind(NS, lease="l"):
            async with await here.objects.content.writer(f"layer-{layer['digest']}", layer["size"]) as writer:
                await writer.write(b"not what it should be")
            await here.pull(source.put(made))

        assert digest_of(await here.read(layer["digest"])) == layer["digest"]


@pytest.mark.parametrize("wrong", ["other bytes", "longer", "shorter"])
@on_loop
async def test_layer_that_is_not_what_its_descriptor_says_fails_and_leaves_nothing(tmp_path: Path, wrong: str) -> None:
    made = image(tar_of({"file": os.urandom(100_000)}))
    layer = made.layers[0]
    good = made.blobs[layer["digest"]]
    bodies = {"other bytes": bytes(len(good)), "longer": good + b"x" * (8 << 20), "shorter": good[:-1]}

    async def lie(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=bodies[wrong]) if layer["digest"] in request.path else None

    async with registry() as source, world(tmp_path) as here:
        name = source.put(made)
        source.fault = lie
        with pytest.raises((FailedPrecondition, Unavailable)):
            await here.pull(name)

        assert await here.names() == {}
        assert await here.left() == []
        source.fault = None
        await here.pull(name)
        assert await here.names() == {"pulled": made.target["digest"]}


@on_loop
async def test_parts_of_a_large_layer_are_fetched_side_by_side_and_put_in_order(tmp_path: Path) -> None:
    data = os.urandom(1_000_001)
    made = Made()
    layer = made.add(f"{media.OCI_LAYER}+gzip", data)
    made.target = made.document(media.OCI_MANIFEST, {"config": made.add(media.OCI_CONFIG, b"{}"), "layers": [layer]})
    at_once = asyncio.Event()
    waiting: list[str] = []

    async def together(request: web.Request) -> web.StreamResponse | None:
        wanted = request.headers.get("Range", "")
        if layer["digest"] in request.path and wanted not in {"", "bytes=0-0"}:
            waiting.append(wanted)
            if len(waiting) >= 3:
                at_once.set()
            await asyncio.wait_for(at_once.wait(), 5)
        return None

    async with registry() as source, world(tmp_path, concurrent_layer_fetch_buffer=100_000) as here:
        name = source.put(made)
        source.fault = together
        await here.pull(name)

        assert await here.read(layer["digest"]) == data
    assert len(waiting) == 11


@on_loop
async def test_layer_comes_in_one_piece_from_a_server_without_ranges(tmp_path: Path) -> None:
    made = image(tar_of({"file": os.urandom(300_000)}))
    async with registry() as source, world(tmp_path, concurrent_layer_fetch_buffer=50_000) as here:
        source.ranges = False
        await here.pull(source.put(made))

        assert digest_of(await here.read(made.layers[0]["digest"])) == made.layers[0]["digest"]


@on_loop
async def test_no_more_blobs_than_configured_are_fetched_at_once(tmp_path: Path) -> None:
    made = image(*(tar_of({f"file{number}": b"x"}) for number in range(8)))
    now = most = 0

    async def count(request: web.Request) -> web.StreamResponse | None:
        nonlocal now, most
        if "/blobs/" not in request.path:
            return None
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return None

    async with registry() as source, world(tmp_path, max_concurrent_downloads=2) as here:
        name = source.put(made)
        source.fault = count
        await here.pull(name)

    assert most == 2


@on_loop
async def test_two_pulls_of_one_image_fetch_each_object_once(tmp_path: Path) -> None:
    made = image(tar_of({"file": os.urandom(500_000)}))
    async with registry() as source, world(tmp_path) as here:
        name = source.put(made)
        await asyncio.gather(here.pull(name, name="one"), here.pull(name, name="two"))

        assert set(await here.names()) == {"one", "two"}
    gets = [asked for asked in source.asked if asked.startswith("GET")]
    assert len(gets) == len(set(gets))


@on_loop
async def test_cancelled_pull_leaves_nothing(tmp_path: Path) -> None:
    made = image()
    began = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse | None:
        if made.layers[0]["digest"] in request.path:
            began.set()
            await asyncio.Event().wait()
        return None

    async with registry() as source, world(tmp_path) as here:
        name = source.put(made)
        source.fault = hang
        pulling = asyncio.create_task(here.pull(name))
        await began.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling

        assert await here.left() == []


@pytest.mark.parametrize(
    ("reference", "kind", "text"),
    [
        ("alpine", InvalidArgument, "failed to resolve image: .*hostname required"),
        ("{}/a/b", InvalidArgument, "failed to resolve image: .*object required"),
        ("http://{}/a/b:1", InvalidArgument, "failed to resolve image: .*scheme"),
        ("{}/a/none:1", NotFound, "failed to resolve image: .*/a/none:1: not found"),
        ("{}/a/b@sha256:" + "0" * 64, NotFound, "not found"),
    ],
)
@on_loop
async def test_name_that_cannot_be_resolved_says_why(
    tmp_path: Path, reference: str, kind: type[Exception], text: str
) -> None:
    async with registry() as source, world(tmp_path) as here:
        source.put(image())
        with pytest.raises(kind, match=text):
            await here.pull(reference.format(source.address))


@on_loop
async def test_schema_1_manifest_is_refused(tmp_path: Path) -> None:
    made = Made()
    made.target = made.add(media.DOCKER_SCHEMA1_SIGNED, b'{"schemaVersion": 1}')
    async with registry() as source, world(tmp_path) as here:
        with pytest.raises(InvalidArgument, match="schema 1 image manifests are no longer supported"):
            await here.pull(source.put(made))


@on_loop
async def test_index_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    made = image()
    for _ in range(20):
        made = index(made)
    async with registry() as source, world(tmp_path) as here:
        with pytest.raises(InvalidArgument, match="levels"):
            await here.pull(source.put(made))
        assert await here.left() == []


@on_loop
async def test_config_of_an_old_registry_gets_its_type(tmp_path: Path) -> None:
    made = Made()
    layer = made.add(media.DOCKER_LAYER_GZIP, b"layer")
    config = made.add("application/octet-stream", b"{}")
    made.target = made.document(media.DOCKER_MANIFEST, {"config": config, "layers": [layer]})
    async with registry() as source, world(tmp_path) as here:
        await here.pull(source.put(made))

        stored = (await here.names())["pulled"]
        assert stored != made.target["digest"]
        assert media.DOCKER_CONFIG.encode() in await here.read(stored)
        assert set((await here.labels(stored)).values()) == {config["digest"], layer["digest"]}


def went_on(headers: list[str], sent: int, size: int) -> bool:
    """Whether one request asked for the rest, from somewhere in what had been sent before."""
    start, _, end = headers[-1].removeprefix("bytes=").partition("-")
    return len(headers) == 1 and 0 < int(start) <= sent and int(end) == size - 1


# --- verifiers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "said"), [(0, ""), (3, "not signed")])
@on_loop
async def test_verifier_sees_the_image_and_decides(tmp_path: Path, status: int, said: str) -> None:
    made = image()
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "check"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/args; cat > {tmp_path}/stdin; echo "{said}"; exit {status}\n'
    )
    program.chmod(0o755)
    others = {"io.containerd.image-verifier.v1.bindir": {"bin_dir": str(programs)}}
    async with registry() as source, world(tmp_path, others=others) as here:
        name = source.put(made)
        if status:
            with pytest.raises(
                PermissionDenied, match=r"image verifier bindir blocked pull of .* \(exit code 3\): not"
            ):
                await here.pull(name)
            assert [asked for asked in source.asked if asked.startswith("GET")] == []
        else:
            await here.pull(name)

    words = (tmp_path / "args").read_text().split()
    assert words[:4] == ["-name", name, "-digest", made.target["digest"]]
    assert made.target["digest"] in (tmp_path / "stdin").read_text()


# --- unpacking --------------------------------------------------------------------------------------------------------


async def snapshots(here: object) -> dict[str, str]:
    with bind(NS):
        return {one.name: one.parent async for one in here.objects.snapshotter("native").walk()}  # type: ignore[attr-defined]


HERE = [Unpack(platform=default(), snapshotter="native")]


@root
@pytest.mark.root
@on_loop
async def test_layers_become_snapshots_that_the_config_keeps(tmp_path: Path) -> None:
    made = image(tar_of({"a": b"1"}), tar_of({"b": b"2"}), platform=default().architecture)
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        await here.pull(source.put(made), unpacks=HERE)

        found = await snapshots(here)
        config = next(label for key, label in (await here.labels(made.target["digest"])).items() if "config" in key)
        kept = (await here.labels(config))["containerd.io/gc.ref.snapshot.native"]
        assert len(found) == 2
        assert found[kept] in found
        assert len(await here.left()) == len(made.blobs) + 2
        assert "containerd.io/uncompressed" in await here.labels(made.layers[1]["digest"])


@root
@pytest.mark.root
@on_loop
async def test_layer_with_another_diff_id_fails_the_pull_and_leaves_nothing(tmp_path: Path) -> None:
    lie = {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"other")]}}
    made = image(platform=default().architecture, **lie)
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        with pytest.raises(FailedPrecondition, match='wrong diff id "sha256:'):
            await here.pull(source.put(made), unpacks=HERE)

        assert await here.names() == {}
        assert await here.left() == []


@root
@pytest.mark.root
@on_loop
async def test_config_cannot_ask_for_the_files_of_another_image(tmp_path: Path) -> None:
    secret, junk = tar_of({"secret": b"s"}), tar_of({"junk": b"j"})
    private = image(secret, platform=default().architecture)
    thief = image(junk, platform=default().architecture, rootfs={"type": "layers", "diff_ids": [digest_of(secret)]})
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        await here.pull(source.put(private, "private/a:1"), name="private", unpacks=HERE)
        with pytest.raises(FailedPrecondition, match="wrong diff id"):
            await here.pull(source.put(thief, "thief/a:1"), name="thief", unpacks=HERE)

        assert set(await here.names()) == {"private"}


@root
@pytest.mark.root
@on_loop
async def test_only_what_is_there_as_a_whole_and_for_this_system_is_unpacked(tmp_path: Path) -> None:
    ours = image(platform=default().architecture)
    other = image(tar_of({"other": b"1"}), platform="s390x")
    attestation = image(
        tar_of({"x": b"1"}), platform="unknown", layer_type="application/vnd.in-toto+json", os="unknown"
    )
    every = index(ours, other, attestation, platforms=[default().architecture, "s390x", "unknown"])
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        name = source.put(every)
        await here.pull(name, unpacks=HERE, platforms=[default()], all_metadata=True)
        assert len(await snapshots(here)) == 1
        await here.pull(name, unpacks=HERE)

        assert await here.content() == set(every.blobs)
        assert len(await snapshots(here)) == 2  # the other architecture's too, as only the system is compared


@root
@pytest.mark.root
@on_loop
async def test_layers_and_diff_ids_must_agree_in_number(tmp_path: Path) -> None:
    made = image(platform=default().architecture, rootfs={"type": "layers", "diff_ids": []})
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        with pytest.raises(FailedPrecondition, match="number of layers and diffIDs don't match: 1 != 0"):
            await here.pull(source.put(made), unpacks=HERE)


@pytest.mark.parametrize(
    "wish", [Unpack(platform=Platform("windows", "amd64")), Unpack(platform=AMD64, snapshotter="x")]
)
@on_loop
async def test_wish_to_unpack_that_nothing_can_meet_is_refused(tmp_path: Path, wish: Unpack) -> None:
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        with pytest.raises(InvalidArgument, match="unable to initialize unpacker: no unpack platforms defined"):
            await here.pull(source.put(image()), unpacks=[wish])


@root
@pytest.mark.root
@on_loop
async def test_failing_layer_ends_the_others_and_removes_their_snapshots(tmp_path: Path) -> None:
    made = image(tar_of({"a": b"1"}), tar_of({"b": b"2"}), tar_of({"c": b"3"}), platform=default().architecture)

    async def no_third(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=404) if made.layers[2]["digest"] in request.path else None

    async with registry() as source, world(tmp_path, **NATIVE) as here:
        name = source.put(made)
        source.fault = no_third
        with pytest.raises(NotFound):
            await here.pull(name, unpacks=HERE)

        assert await here.left() == []


@root
@pytest.mark.root
@on_loop
async def test_layers_are_fetched_while_the_config_is_on_its_way(tmp_path: Path) -> None:
    made = image(platform=default().architecture)
    config = next(digest for digest in made.blobs if digest not in {made.target["digest"], made.layers[0]["digest"]})
    layer_came = asyncio.Event()

    async def slow_config(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith(config):
            await asyncio.wait_for(layer_came.wait(), 10)
        elif request.path.endswith(made.layers[0]["digest"]):
            layer_came.set()
        return None

    async with registry() as source, world(tmp_path, **NATIVE) as here:
        source.fault = slow_config
        await here.pull(source.put(made), unpacks=HERE)

        assert await here.names() == {"pulled": made.target["digest"]}


@root
@pytest.mark.root
@on_loop
async def test_a_layer_that_fails_ends_the_pull_while_the_config_is_on_its_way(tmp_path: Path) -> None:
    made = image(platform=default().architecture)
    config = next(digest for digest in made.blobs if digest not in {made.target["digest"], made.layers[0]["digest"]})

    async def no_layer(request: web.Request) -> web.StreamResponse | None:
        if request.path.endswith(config):
            await asyncio.sleep(30)
        return web.Response(status=404) if request.path.endswith(made.layers[0]["digest"]) else None

    async with registry() as source, world(tmp_path, **NATIVE) as here:
        source.fault = no_layer
        with pytest.raises(NotFound):
            await asyncio.wait_for(here.pull(source.put(made), unpacks=HERE), 10)


@root
@pytest.mark.root
@on_loop
async def test_a_layer_that_an_image_has_twice_is_fetched_once(tmp_path: Path) -> None:
    layer = tar_of({"same": b"1"})
    made = image(layer, layer, platform=default().architecture)
    async with registry() as source, world(tmp_path, **NATIVE) as here:
        await here.pull(source.put(made), unpacks=HERE)

        asked = [line for line in source.asked if line.endswith(made.layers[0]["digest"])]
    assert len(asked) == 1


def test_registry_of_the_tests_gives_what_it_was_given() -> None:
    fake = FakeRegistry(address="h:1")
    made = image(platform=default().architecture)
    assert fake.put(made) == "h:1/a/b:1"
    assert fake.blobs == made.blobs
