"""Pulls, pushes, imports and exports, by the daemon and by the client, with a real registry."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness import on_loop
from integration.client.conftest import NAME
from moored.api.client import Options
from moored.api.client.registries import RegistryOptions
from moored.api.registry.credentials import Credentials
from moored.kernel.errors import InvalidArgument, MooredError, NotFound
from moored.kernel.imagespec.platforms import Platform
from registries import DOCKER_REGISTRY, PASSWORD, DockerRegistry, htpasswd

pytestmark = pytest.mark.skipif(not Path(DOCKER_REGISTRY).exists(), reason="needs docker-registry")

PLAIN = RegistryOptions(plain_http=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The address of a registry that is gone in the end."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as made:
        yield made.address


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The address of one that wants a password."""
    folder = tmp_path_factory.mktemp("guarded")
    with DockerRegistry(folder, auth=htpasswd(folder)) as made:
        yield made.address


@pytest.fixture(params=["default", "local"])
def local(request):
    """Who does the work: who does by default (the daemon, if it can), and the client."""
    return True if request.param == "local" else None


def test_an_image_goes_to_a_registry_and_comes_back(peer, registry, local):
    @on_loop
    async def run():
        async with peer.client(namespace=peer.new("ns")) as client:
            news = []
            (image,) = await client.import_archive(peer.archive, prefix="docker.io/test/busybox", local=local)
            reference = f"{registry}/test/{'local' if local else 'default'}:{'own' if peer.own else 'debian'}"

            await client.push(image.name, reference, registry=PLAIN, progress=news.append, local=local)
            await client.images.delete(image.name, sync=True)
            assert [one async for one in client.content.walk()] == []
            pulled = await client.pull(reference, registry=PLAIN, progress=news.append, local=local)

            assert (pulled.name, pulled.target.digest) == (reference, image.target.digest)
            assert (await client.images.check(pulled)).complete
            assert await client.is_unpacked(pulled)
            assert await client.leases.list() == []
            events = {one.event for one in news}
            assert {"complete", "saved", "extracted"} <= events
            assert {one.descriptor.digest for one in news if one.event == "complete" and one.descriptor} >= {
                image.target.digest
            }
            made = await client.containers.create(peer.new(), pulled, Options(args=("echo", "pulled")))
            assert (await made.run()).stdout == b"pulled\n"
            await made.delete()
            again = await client.pull(reference, registry=PLAIN, local=local)
            assert again.target == pulled.target
            await client.images.delete(pulled.name, sync=True)
            assert [one async for one in client.snapshots().walk()] == []  # the labels tied it all to the name

    run()


def test_what_is_not_there_is_said(peer, registry, local):
    @on_loop
    async def run():
        async with peer.client() as client:
            with pytest.raises(NotFound, match="none"):
                await client.pull(f"{registry}/test/none:none", registry=PLAIN, local=local)
            with pytest.raises(NotFound):
                await client.push("docker.io/test/none:none", f"{registry}/test/none:none", registry=PLAIN, local=local)
            with pytest.raises(InvalidArgument):
                await client.pull("no-host", registry=PLAIN, local=local)
            assert await client.leases.list() == []

    run()


def test_credentials_are_asked_for_and_given(peer, guarded, local):
    asked = []

    async def lookup(host):
        asked.append(host)
        return Credentials("me", PASSWORD)

    async def wrong(host):
        return Credentials("me", "wrong")

    @on_loop
    async def run():
        async with peer.client() as client:
            reference = f"{guarded}/test/private:1"
            mine = replace(PLAIN, credentials=lookup)
            await client.push(NAME, reference, registry=mine, local=local)
            assert (await client.pull(reference, registry=mine, local=local)).name == reference
            assert set(asked) == {guarded}
            for refused in (PLAIN, replace(PLAIN, credentials=wrong)):
                with pytest.raises(MooredError, match=r"(?i)unauthorized|authentication|credentials|401|denied"):
                    await client.pull(reference, registry=refused, local=local)
            await client.images.delete(reference, sync=True)

    run()


def test_a_platform_that_an_image_lacks_is_said(peer, registry, local):
    @on_loop
    async def run():
        async with peer.client() as client:
            reference = f"{registry}/test/platforms:1"
            await client.push(NAME, reference, registry=PLAIN)
            with pytest.raises(MooredError):
                await client.pull(reference, platforms=[Platform("linux", "s390x")], registry=PLAIN, local=local)

    run()


def test_archives_go_out_and_in(peer, local, tmp_path):
    @on_loop
    async def run():
        async with peer.client() as client:
            target, parts = tmp_path / "out.tar", []

            async def write(data):
                parts.append(data)

            await client.export_archive([NAME], target, local=local)
            await client.export_archive([NAME], write, local=local, docker_manifest=False)

            with tarfile.open(target) as archive:
                assert {"oci-layout", "index.json", "manifest.json"} <= set(archive.getnames())
            (tmp_path / "other.tar").write_bytes(b"".join(parts))
            with tarfile.open(tmp_path / "other.tar") as archive:
                assert "manifest.json" not in archive.getnames()
            other = client.in_namespace(peer.new("ns"))
            (image,) = await other.import_archive(target, local=local)
            assert image.name == NAME
            assert image.target.digest == (await client.images.get(NAME)).target.digest
            assert await other.is_unpacked(image)
            await other.images.delete(NAME, sync=True)

    run()


def test_bytes_that_break_off_leave_their_error(peer, local):
    @on_loop
    async def run():
        async def broken():
            yield peer.archive.read_bytes()[:100_000]
            raise ZeroDivisionError

        async with peer.client() as client:
            with pytest.raises(ZeroDivisionError):
                await client.import_archive(broken(), local=local)
            with pytest.raises(NotFound, match="/no/such/file"):
                await client.import_archive(Path("/no/such/file"), local=local)
            assert await client.leases.list() == []

    run()


def test_what_is_no_archive_is_refused(peer, local):
    @on_loop
    async def run():
        async with peer.client() as client:
            with pytest.raises(MooredError):
                await client.import_archive(Path("/etc/passwd"), local=local)

    run()


def test_an_export_that_fails_leaves_no_file(peer, local, tmp_path):
    @on_loop
    async def run():
        async with peer.client() as client:
            with pytest.raises(NotFound):
                await client.export_archive(["docker.io/test/none:none"], tmp_path / "out.tar", local=local)

            assert not (tmp_path / "out.tar").exists()

    run()
