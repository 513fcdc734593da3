"""The registry client with a real docker-registry: plain, with passwords, over TLS, with tokens, in parts."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Generator
from pathlib import Path

import pytest

from harness import on_loop
from moored.api.registry.credentials import Credentials
from moored.api.registry.hosts import Host, Tls, hosts_of
from moored.kernel.errors import (
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from moored.kernel.imagespec import media
from registries import (
    DOCKER_REGISTRY,
    PASSWORD,
    Authority,
    DockerRegistry,
    Image,
    TokenServer,
    client,
    described,
    fetched,
    free_port,
    htpasswd,
    once,
)

pytestmark = pytest.mark.skipif(not Path(DOCKER_REGISTRY).exists(), reason="needs docker-registry")


async def me(_: str) -> Credentials | None:
    return Credentials("me", PASSWORD)


async def stranger(_: str) -> Credentials | None:
    return Credentials("me", "wrong")


async def refreshing(_: str) -> Credentials | None:
    return Credentials("", "refresh")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Generator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("plain")) as running:
        yield running


async def moved(name: str, *hosts: Host, size: int = 100_000, **settings: object) -> Image:
    """Push an image and pull it again."""
    image = Image.of(size)
    async with client(name, *hosts, **settings) as registry:
        await image.push(registry)
        assert await registry.resolve() == image.entry
        assert await registry.document(image.entry) == image.manifest
        assert await registry.document(image.config_entry) == image.config
        assert await fetched(registry, image.layer_entry) == image.layer
    return image


# --- plain http ---------------------------------------------------------------------------------------------------


@on_loop
async def test_an_image_goes_there_and_back(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/a/b:one", plain.host())
    assert plain.file(image.layer_entry.digest).read_bytes() == image.layer


@on_loop
async def test_a_local_registry_without_tls_is_found_to_have_none(plain: DockerRegistry) -> None:
    await moved(f"{plain.address}/fallback:one", *hosts_of(plain.address))


@on_loop
async def test_requests_side_by_side_all_find_that_there_is_no_tls(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/beside:one", plain.host())
    async with client(f"{plain.address}/beside:one", *hosts_of(plain.address)) as registry:
        found = await asyncio.gather(*(registry.exists(image.layer_entry) for _ in range(8)))
    assert found == [True] * 8


@on_loop
async def test_a_digest_names_manifests_and_blobs(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/digest:one", plain.host())
    async with client(f"{plain.address}/digest@{image.entry.digest}", plain.host()) as registry:
        assert await registry.resolve() == image.entry
    async with client(f"{plain.address}/digest@{image.layer_entry.digest}", plain.host()) as registry:
        found = await registry.resolve()
    assert (found.digest, found.size) == (image.layer_entry.digest, len(image.layer))


@pytest.mark.parametrize("name", ["none:one", "none@sha256:" + "0" * 64])
@on_loop
async def test_what_is_not_there_is_not_found(plain: DockerRegistry, name: str) -> None:
    async with client(f"{plain.address}/{name}", plain.host()) as registry:
        with pytest.raises(NotFound, match=re.escape(f"{plain.address}/{name}: not found")):
            await registry.resolve()
        with pytest.raises(NotFound, match=r"content at sha256:.*: not found"):
            await fetched(registry, described(b"x", media.OCI_LAYER))


@on_loop
async def test_what_is_there_is_known_before_it_is_pushed(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/exists:one", plain.host())
    async with client(f"{plain.address}/exists:one", plain.host()) as registry:
        assert await registry.exists(image.layer_entry)
        assert await registry.exists(image.entry)
        assert await registry.exists(image.entry, "one")
        assert not await registry.exists(image.entry, "two")
        other = Image.of(10)
        assert not await registry.exists(other.entry, "one")
        assert not await registry.exists(other.layer_entry)


@on_loop
async def test_a_blob_is_mounted_from_another_repository(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/mount/from:one", plain.host())
    untouched = once(b"these bytes are not asked for")
    async with client(f"{plain.address}/mount/to:one", plain.host()) as registry:
        assert not await registry.push_blob(image.layer_entry, untouched, mount_from="mount/from")
        assert await registry.exists(image.layer_entry)


@on_loop
async def test_a_blob_that_cannot_be_mounted_is_uploaded(plain: DockerRegistry) -> None:
    image = Image.of(1000)
    async with client(f"{plain.address}/mount/alone:one", plain.host()) as registry:
        assert await registry.push_blob(image.layer_entry, once(image.layer), mount_from="mount/nowhere")
        assert await fetched(registry, image.layer_entry) == image.layer


@on_loop
async def test_a_blob_whose_bytes_are_others_is_refused_by_the_registry(plain: DockerRegistry) -> None:
    image = Image.of(1000)
    async with client(f"{plain.address}/wrong:one", plain.host()) as registry:
        with pytest.raises(MooredError, match="400 Bad Request: DIGEST_INVALID"):
            await registry.push_blob(image.layer_entry, once(bytes(1000)))


@pytest.mark.parametrize("size", [0, 999, 1001, 200_000])
@on_loop
async def test_a_source_of_another_size_is_told(plain: DockerRegistry, size: int) -> None:
    image = Image.of(1000)
    async with client(f"{plain.address}/wrong:one", plain.host()) as registry:
        with pytest.raises(FailedPrecondition, match="other than the 1000 bytes that its descriptor says"):
            await registry.push_blob(image.layer_entry, once(bytes(size)))
        assert not await registry.exists(image.layer_entry)


@on_loop
async def test_what_a_source_raises_comes_out(plain: DockerRegistry) -> None:
    async def source() -> object:
        yield b"x"
        raise NotFound("content is gone")

    async with client(f"{plain.address}/wrong:one", plain.host()) as registry:
        with pytest.raises(NotFound, match="content is gone"):
            await registry.push_blob(Image.of(1000).layer_entry, source)


@on_loop
async def test_an_empty_blob_can_be_pushed(plain: DockerRegistry) -> None:
    empty = described(b"", media.OCI_LAYER)
    async with client(f"{plain.address}/empty:one", plain.host()) as registry:
        assert await registry.push_blob(empty, once(b""))
        assert await registry.exists(empty)
        assert await fetched(registry, empty) == b""


# --- parts --------------------------------------------------------------------------------------------------------


@on_loop
async def test_parts_are_had_one_by_one_and_side_by_side(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/parts:one", plain.host(), size=3_000_000)
    async with client(f"{plain.address}/parts:one", plain.host()) as registry:
        assert await registry.takes_ranges(image.layer_entry)
        assert await fetched(registry, image.layer_entry, 1_234_567) == image.layer[1_234_567:]
        assert await fetched(registry, image.layer_entry, 100, 200) == image.layer[100:200]
        assert await fetched(registry, image.layer_entry, 2_999_999) == image.layer[-1:]
        assert await fetched(registry, image.layer_entry, 3_000_000) == b""
        edges = range(0, 3_000_000, 250_000)
        parts = await asyncio.gather(*(fetched(registry, image.layer_entry, at, at + 250_000) for at in edges))
        assert b"".join(parts) == image.layer


@on_loop
async def test_a_reader_may_stop_in_the_middle(plain: DockerRegistry) -> None:
    image = await moved(f"{plain.address}/stop:one", plain.host(), size=3_000_000)
    async with client(f"{plain.address}/stop:one", plain.host()) as registry:
        body = registry.fetch(image.layer_entry)
        assert image.layer.startswith(await anext(body))
        await body.aclose()
        assert await fetched(registry, image.layer_entry) == image.layer


# --- passwords ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[DockerRegistry]:
    folder = tmp_path_factory.mktemp("basic")
    with DockerRegistry(folder, auth=htpasswd(folder)) as running:
        yield running


@on_loop
async def test_a_password_is_sent_where_it_is_asked_for(guarded: DockerRegistry) -> None:
    await moved(f"{guarded.address}/a:one", guarded.host(), credentials=me)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"credentials": stranger}, "401 Unauthorized"), ({}, "no basic auth credentials")],
)
@on_loop
async def test_without_the_password_nothing_is_given(
    guarded: DockerRegistry, settings: dict[str, object], said: str
) -> None:
    image = Image.of(10)
    async with client(f"{guarded.address}/a:one", guarded.host(), **settings) as registry:
        with pytest.raises(PermissionDenied, match=said):
            await registry.resolve()
        with pytest.raises(PermissionDenied, match=said):
            await fetched(registry, image.layer_entry)
        with pytest.raises(PermissionDenied, match=said):
            await registry.push_blob(image.layer_entry, once(image.layer))


@on_loop
async def test_a_secret_is_in_no_error_and_no_log(guarded: DockerRegistry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        async with client(f"{guarded.address}/a:none", guarded.host(), credentials=me) as registry:
            with pytest.raises(NotFound) as error:
                await registry.resolve()
    said = f"{error.value!r}{caplog.text}"
    assert PASSWORD not in said
    assert base64.b64encode(f"me:{PASSWORD}".encode()).decode() not in said


# --- TLS ----------------------------------------------------------------------------------------------------------


class Secure:
    """A registry over TLS that wants certificates of clients, or does not."""

    def __init__(self, folder: Path, *, clients: bool = False) -> None:
        folder.mkdir()
        self.folder = folder
        self.authority = Authority(folder)
        server = self.authority.pair("server", "127.0.0.1")
        tls: dict[str, object] = {"certificate": str(server.certificate), "key": str(server.key)}
        if clients:
            tls["clientcas"] = [str(self.authority.certificate)]
        self.registry = DockerRegistry(folder / "registry", http={"tls": tls})
        self.name = f"{self.registry.address}/tls:one"

    def host(self, **tls: object) -> Host:
        return Host(url=f"https://{self.registry.address}/v2", tls=Tls(**tls))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Generator[Secure]:
    made = Secure(tmp_path_factory.mktemp("tls") / "one")
    with made.registry:
        yield made


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Generator[Secure]:
    made = Secure(tmp_path_factory.mktemp("mtls") / "one", clients=True)
    with made.registry:
        yield made


@on_loop
async def test_a_private_authority_is_trusted_for_its_host(secure: Secure) -> None:
    await moved(secure.name, secure.host(authorities=(secure.authority.certificate,)))


@on_loop
async def test_a_certificate_of_nobody_known_is_refused(secure: Secure) -> None:
    async with client(secure.name, secure.host()) as registry:
        with pytest.raises(Unavailable, match=r"certificate of 127\.0\.0\.1:\d+ is not accepted.*CERTIFICATE_VERIFY"):
            await registry.resolve()


@on_loop
async def test_a_certificate_of_another_authority_is_refused(secure: Secure, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    async with client(secure.name, secure.host(authorities=(other.certificate,))) as registry:
        with pytest.raises(Unavailable, match="is not accepted"):
            await registry.resolve()


@on_loop
async def test_a_certificate_for_another_name_is_refused(secure: Secure) -> None:
    tls = Tls(authorities=(secure.authority.certificate,))
    host = Host(url=f"https://localhost:{secure.registry.port}/v2", tls=tls)
    async with client(f"localhost:{secure.registry.port}/tls:one", host) as registry:
        with pytest.raises(Unavailable, match=r"(?i)hostname mismatch"):
            await registry.resolve()


@on_loop
async def test_verification_can_be_left_out(secure: Secure) -> None:
    await moved(secure.name, secure.host(skip_verify=True))
    await moved(secure.name, *hosts_of(secure.registry.address))  # as for any local registry


@on_loop
async def test_a_client_certificate_is_shown(mutual: Secure) -> None:
    pair = mutual.authority.pair("client")
    tls = {"authorities": (mutual.authority.certificate,), "pairs": ((pair.certificate, pair.key),)}
    await moved(mutual.name, mutual.host(**tls))


@on_loop
async def test_a_client_certificate_and_its_key_may_be_one_file(mutual: Secure, tmp_path: Path) -> None:
    pair = mutual.authority.pair("client")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    await moved(mutual.name, mutual.host(authorities=(mutual.authority.certificate,), pairs=((both, None),)))


@on_loop
async def test_without_a_client_certificate_nothing_is_given(mutual: Secure) -> None:
    async with client(mutual.name, mutual.host(authorities=(mutual.authority.certificate,))) as registry:
        with pytest.raises(Unavailable, match=r"(?i)certificate required|bad certificate|broke off"):
            await registry.resolve()


@on_loop
async def test_a_certificate_without_its_key_is_told_with_its_file(mutual: Secure) -> None:
    pair = mutual.authority.pair("client")
    async with client(mutual.name, mutual.host(pairs=((pair.certificate, None),))) as registry:
        with pytest.raises(InvalidArgument, match=r"certificate file '.*client\.cert' cannot be used"):
            await registry.resolve()


@on_loop
async def test_a_hosts_folder_sets_all_of_it(mutual: Secure, tmp_path: Path) -> None:
    pair = mutual.authority.pair("client")
    folder = tmp_path / mutual.registry.address.replace(":", "_").__add__("_")
    folder.mkdir()
    text = f"""
        server = "https://{mutual.registry.address}"
        ca = "{mutual.authority.certificate}"
        client = [["{pair.certificate}", "{pair.key}"]]
    """
    (folder / "hosts.toml").write_text(text)
    await moved(mutual.name, *hosts_of(mutual.registry.address, folders=[tmp_path]))


@on_loop
async def test_a_folder_of_certificates_sets_all_of_it(mutual: Secure, tmp_path: Path) -> None:
    pair = mutual.authority.pair("client")
    folder = tmp_path / mutual.registry.address
    folder.mkdir()
    for name, file in (("ca.crt", mutual.authority.certificate), ("c.cert", pair.certificate), ("c.key", pair.key)):
        (folder / name).write_bytes(file.read_bytes())
    await moved(mutual.name, *hosts_of(mutual.registry.address, folders=[tmp_path]))


@on_loop
async def test_a_host_that_speaks_no_tls_is_told_of(plain: DockerRegistry) -> None:
    async with client(f"{plain.address}/a:one", Host(url=f"https://{plain.address}/v2")) as registry:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+ does not speak TLS"):
            await registry.resolve()


@on_loop
async def test_a_scheme_http_with_tls_settings_finds_either(
    secure: Secure, plain: DockerRegistry, tmp_path: Path
) -> None:
    for registry in (secure.registry, plain):
        folder = tmp_path / registry.address
        folder.mkdir()
        (folder / "hosts.toml").write_text(f'server = "http://{registry.address}"\nskip_verify = true')
        await moved(f"{registry.address}/either:one", *hosts_of(registry.address, folders=[tmp_path]))


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("credentials", "post_status"), [(me, 0), (me, 404), (me, 405), (me, 400), (refreshing, 0)])
@on_loop
async def test_tokens_are_got_for_what_is_done(tmp_path: Path, credentials: object, post_status: int) -> None:
    async with TokenServer(tmp_path / "tokens", post_status=post_status) as tokens:
        with DockerRegistry(tmp_path / "registry", auth=tokens.auth) as running:
            await moved(f"{running.address}/team/a:one", running.host(), credentials=credentials)
    methods = [one.method for one in tokens.asked]
    assert methods == (["POST", "GET"] * 2 if post_status else ["POST"] * 2)
    assert {tuple(one.scopes) for one in tokens.asked} == {
        ("repository:team/a:pull,push",),
        ("repository:team/a:pull",),
    }


@on_loop
async def test_nobody_may_pull_and_not_push(tmp_path: Path) -> None:
    async with TokenServer(tmp_path / "tokens") as tokens:
        with DockerRegistry(tmp_path / "registry", auth=tokens.auth) as running:
            image = await moved(f"{running.address}/a:one", running.host(), credentials=me)
            async with client(f"{running.address}/a:one", running.host()) as registry:
                assert await registry.resolve() == image.entry
                assert await fetched(registry, image.layer_entry) == image.layer
                with pytest.raises(PermissionDenied, match="401 Unauthorized"):
                    await registry.push_blob(Image.of(10).layer_entry, once(b"x" * 10))


@on_loop
async def test_a_mount_asks_for_the_other_repository_too(tmp_path: Path) -> None:
    async with TokenServer(tmp_path / "tokens") as tokens:
        with DockerRegistry(tmp_path / "registry", auth=tokens.auth) as running:
            image = await moved(f"{running.address}/from:one", running.host(), credentials=me)
            async with client(f"{running.address}/to:one", running.host(), credentials=me) as registry:
                assert not await registry.push_blob(image.layer_entry, once(b""), mount_from="from")
    assert ["repository:from:pull", "repository:to:pull,push"] in [one.scopes for one in tokens.asked]


@on_loop
async def test_a_wrong_password_is_told_as_such(tmp_path: Path) -> None:
    async with TokenServer(tmp_path / "tokens") as tokens:
        with DockerRegistry(tmp_path / "registry", auth=tokens.auth) as running:
            async with client(f"{running.address}/a:one", running.host(), credentials=stranger) as registry:
                with pytest.raises(PermissionDenied, match="refuses the credentials"):
                    await registry.resolve()
    assert [one.method for one in tokens.asked] == ["POST", "GET"]


@on_loop
async def test_the_token_server_gets_the_hosts_own_headers(tmp_path: Path) -> None:
    async with TokenServer(tmp_path / "tokens") as tokens:
        with DockerRegistry(tmp_path / "registry", auth=tokens.auth) as running:
            host = running.host(headers={"X-Host": ["a"]})
            await moved(f"{running.address}/a:one", host, credentials=me, headers={"X-Client": "b"})
    assert {one.headers.get("X-Host") for one in tokens.asked} == {"a"}
    assert {one.headers.get("X-Client") for one in tokens.asked} == {None}


# --- several hosts ------------------------------------------------------------------------------------------------


@on_loop
async def test_a_mirror_is_asked_first_and_for_whom(plain: DockerRegistry, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "mirror") as mirror:
        image = await moved(f"{mirror.address}/ns/a:one", mirror.host())
        hosts = tmp_path / "hosts" / plain.address
        hosts.mkdir(parents=True)
        text = (
            f'server = "http://{plain.address}"\n[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]'
        )
        (hosts / "hosts.toml").write_text(text)
        async with client(
            f"{plain.address}/ns/a:one", *hosts_of(plain.address, folders=[tmp_path / "hosts"])
        ) as registry:
            assert await registry.resolve() == image.entry
            assert await fetched(registry, image.layer_entry) == image.layer
            other = Image.of(10)
            await other.push(registry, "two")
        asked = mirror.log()
    assert f"/v2/ns/a/manifests/one?ns={plain.address.replace(':', '%3A')}" in asked
    assert plain.file(other.layer_entry.digest).exists()  # what is pushed does not go to the mirror
    assert not mirror.file(other.layer_entry.digest).exists()


@on_loop
async def test_what_a_mirror_does_not_have_comes_from_the_next(plain: DockerRegistry, tmp_path: Path) -> None:
    image = await moved(f"{plain.address}/next:one", plain.host())
    dead = Host(url=f"http://127.0.0.1:{free_port()}/v2", namespace=plain.address)
    with DockerRegistry(tmp_path / "mirror") as mirror:
        empty = mirror.host(namespace=plain.address)
        async with client(f"{plain.address}/next:one", dead, empty, plain.host()) as registry:
            assert await registry.resolve() == image.entry
            assert await fetched(registry, image.layer_entry) == image.layer


@on_loop
async def test_a_base_path_of_its_own_is_asked(plain: DockerRegistry, tmp_path: Path) -> None:
    image = await moved(f"{plain.address}/base:one", plain.host())
    prefixed = DockerRegistry(tmp_path / "r", http={"prefix": "/mirrors/hub/"})
    with prefixed:
        hosts = tmp_path / "hosts" / "_default"
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{prefixed.address}/mirrors/hub"')
        await moved("reg.test/a:one", *hosts_of("reg.test", folders=[tmp_path / "hosts"]))
        (hosts / "hosts.toml").write_text(f'server = "http://{prefixed.address}/mirrors/hub/v2"\noverride_path = true')
        await moved("reg.test/b:one", *hosts_of("reg.test", folders=[tmp_path / "hosts"]))
    assert image.layer


@pytest.mark.parametrize(
    ("capabilities", "by_tag", "by_digest"),
    [({"pull"}, False, True), ({"push"}, False, False), ({"resolve"}, False, False)],
)
@on_loop
async def test_a_host_is_asked_only_for_what_it_may(
    plain: DockerRegistry, capabilities: set[str], by_tag: bool, by_digest: bool
) -> None:
    image = await moved(f"{plain.address}/may:one", plain.host())
    host = plain.host(capabilities=frozenset(capabilities))
    for name, allowed in ((":one", by_tag), (f"@{image.entry.digest}", by_digest)):
        async with client(f"{plain.address}/may{name}", host) as registry:
            if allowed:
                assert await registry.resolve() == image.entry
            else:
                with pytest.raises(NotFound, match="no resolve hosts"):
                    await registry.resolve()


@on_loop
async def test_a_host_that_may_not_be_pushed_to_is_not(plain: DockerRegistry) -> None:
    async with client(f"{plain.address}/may:one", plain.host(capabilities=frozenset({"pull"}))) as registry:
        with pytest.raises(NotFound, match="no push hosts"):
            await registry.push_blob(Image.of(1).layer_entry, once(b"x"))


@pytest.mark.parametrize("size", [1, 99_999, 100_000, 100_001, 350_000])
@on_loop
async def test_a_blob_goes_up_in_chunks(plain: DockerRegistry, size: int) -> None:
    image = Image.of(size)
    async with client(f"{plain.address}/chunks:one", plain.host(), upload_chunk=50_000) as registry:
        assert await registry.push_blob(image.layer_entry, once(image.layer))
        assert await fetched(registry, image.layer_entry) == image.layer
