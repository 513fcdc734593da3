"""Docker's config file and its credential helpers, which are real programs on PATH."""

from __future__ import annotations

import base64
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness import on_loop
from moored.api.registry.credentials import Credentials, DockerConfig, nobody
from moored.kernel.errors import InvalidArgument, Unavailable


def auth(user: str, secret: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def helper(path: Path, name: str, script: str) -> None:
    file = path / f"docker-credential-{name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


async def find(folder: Path, config: object, host: str, *, seconds: float = 20) -> Credentials | None:
    file = folder / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return await DockerConfig(file, helper_seconds=seconds)(host)


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("reg.test", "reg.test"),
        ("reg.test:5000", "reg.test:5000"),
        ("https://reg.test", "reg.test"),
        ("https://reg.test/v1/", "reg.test"),
        ("http://reg.test:5000/v2/", "reg.test:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
@on_loop
async def test_a_host_is_found_by_the_names_that_files_give_it(tmp_path: Path, name: str, host: str) -> None:
    assert await find(tmp_path, {"auths": {name: auth("me", "se:cret")}}, host) == Credentials("me", "se:cret")


@pytest.mark.parametrize("host", ["reg.test:5000", "other.test", "sub.reg.test", "reg.tes"])
@on_loop
async def test_other_hosts_are_not_found(tmp_path: Path, host: str) -> None:
    assert await find(tmp_path, {"auths": {"reg.test": auth("me", "secret")}}, host) is None


@on_loop
async def test_the_hosts_own_entry_comes_before_those_of_its_paths(tmp_path: Path) -> None:
    auths = {"reg.test/team": auth("team", "1"), "reg.test": auth("all", "2")}
    assert await find(tmp_path, {"auths": auths}, "reg.test") == Credentials("all", "2")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "secret"}, Credentials("me", "secret")),
        ({"auth": base64.b64encode(b"me:secret\0\0").decode()}, Credentials("me", "secret")),
        ({**auth("me", "x"), "identitytoken": "refresh"}, Credentials("", "refresh")),
        ({"registrytoken": "ready"}, Credentials(header="Bearer ready")),
        ({}, None),
        (auth("me", ""), None),
        ("text", None),
    ],
)
@on_loop
async def test_the_forms_of_an_entry(tmp_path: Path, entry: object, expected: Credentials | None) -> None:
    assert await find(tmp_path, {"auths": {"reg.test": entry}}, "reg.test") == expected


@pytest.mark.parametrize("secret", ["!", "YQ", base64.b64encode(b"\xff:\xff").decode()])
@on_loop
async def test_an_auth_that_is_malformed_is_told_without_it(tmp_path: Path, secret: str) -> None:
    with pytest.raises(InvalidArgument, match=r"auth of 'reg\.test' is not base64") as error:
        await find(tmp_path, {"auths": {"reg.test": {"auth": secret}}}, "reg.test")
    assert error.value.text.endswith("is not base64")


@on_loop
async def test_no_file_is_no_credentials(tmp_path: Path) -> None:
    assert await DockerConfig(tmp_path / "none.json")("reg.test") is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"auths": }'])
@on_loop
async def test_a_malformed_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"credentials file '.*config\.json'"):
        await find(tmp_path, text, "reg.test")


@pytest.mark.parametrize("config", [{"auths": []}, {"credHelpers": 1}, {"auths": None, "credsStore": ""}])
@on_loop
async def test_tables_of_another_kind_hold_nothing(tmp_path: Path, config: object) -> None:
    assert await find(tmp_path, config, "reg.test") is None


@on_loop
async def test_the_file_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert DockerConfig().path == tmp_path / "config.json"
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DockerConfig().path == tmp_path / ".docker" / "config.json"


def test_a_secret_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("me", "secret", "secret"))
    assert not Credentials("me")


@on_loop
async def test_nobody_knows_no_host() -> None:
    assert await nobody("reg.test") is None


# --- helpers ------------------------------------------------------------------------------------------------------

ANSWER = """read host; printf '{"ServerURL": "%s", "Username": "%s", "Secret": "s"}' "$host" "$host" """


@pytest.mark.parametrize(
    ("config", "host", "user"),
    [
        ({"credsStore": "one"}, "reg.test", "reg.test"),
        ({"credsStore": "one"}, "docker.io", "https://index.docker.io/v1/"),
        ({"credHelpers": {"reg.test": "one"}}, "reg.test", "reg.test"),
        ({"credHelpers": {"https://reg.test": "one"}, "credsStore": "absent"}, "reg.test", "reg.test"),
        ({"credHelpers": {"docker.io": "one"}}, "registry-1.docker.io", "https://index.docker.io/v1/"),
    ],
)
@on_loop
async def test_a_helper_is_asked_for_the_host(tmp_path: Path, path: Path, config: object, host: str, user: str) -> None:
    helper(path, "one", f'test "$1" = get || exit 9\n{ANSWER}')
    assert await find(tmp_path, config, host) == Credentials(user, "s")


@on_loop
async def test_a_helper_of_another_host_is_not_asked(tmp_path: Path, path: Path) -> None:
    helper(path, "one", f"touch {tmp_path}/asked")
    assert await find(tmp_path, {"credHelpers": {"other.test": "one"}}, "reg.test") is None
    assert not (tmp_path / "asked").exists()


@on_loop
async def test_the_user_token_stands_for_a_refresh_token(tmp_path: Path, path: Path) -> None:
    helper(path, "one", """printf '{"Username": "<token>", "Secret": "r"}'""")
    assert await find(tmp_path, {"credsStore": "one"}, "reg.test") == Credentials("", "r")


@on_loop
async def test_what_a_helper_does_not_have_is_looked_for_in_the_file(tmp_path: Path, path: Path) -> None:
    helper(path, "one", "echo 'credentials not found in native keychain'; exit 1")
    config = {"credsStore": "one", "auths": {"reg.test": auth("me", "secret")}}
    assert await find(tmp_path, config, "reg.test") == Credentials("me", "secret")
    assert await find(tmp_path, config, "other.test") is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo boom; exit 3", "failed with status 3: boom"),
        ("kill -9 $$", "failed with status -9"),
        ("echo", "answered what is no credential"),
        ("echo '[]'", "answered what is no credential"),
        ("""echo '{"Username": "me"}'""", "answered what is no credential"),
        ("head -c 3000000 /dev/zero | tr '\\0' ' '", "answered with more than 1048576 bytes"),
        ("exec cat /dev/zero", "answered with more than 1048576 bytes"),
    ],
)
@on_loop
async def test_a_helper_that_fails_is_told_of(tmp_path: Path, path: Path, script: str, said: str) -> None:
    helper(path, "one", script)
    with pytest.raises(Unavailable, match="credential helper 'docker-credential-one'") as error:
        await find(tmp_path, {"credsStore": "one"}, "reg.test")
    assert said in error.value.text


@on_loop
async def test_an_answer_in_parts_is_read_to_its_end(tmp_path: Path, path: Path) -> None:
    secret = "x" * 60_000
    helper(path, "one", f"""printf '{{"Username": "me",'\nprintf ' "Secret": "%s"}}' {secret}""")
    found = await find(tmp_path, {"credsStore": "one"}, "reg.test")
    assert found == Credentials("me", secret)


def alive(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = file.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state not in "ZX":
                found.append(str(file))
    return found


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60 & sleep 60", "sleep 60 &"])
@on_loop
async def test_a_helper_that_hangs_is_ended_with_what_it_started(tmp_path: Path, path: Path, script: str) -> None:
    helper(path, "one", f"echo $$ > {tmp_path}/pid\n{script}")
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 seconds"):
        await find(tmp_path, {"credsStore": "one"}, "reg.test", seconds=0.5)
    assert time.monotonic() - start < 5
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while alive(group):
        assert time.monotonic() < deadline


@on_loop
async def test_a_helper_that_is_not_there_is_told_of(tmp_path: Path, path: Path) -> None:
    with pytest.raises(Unavailable, match=r"'docker-credential-absent' cannot be started: No such file"):
        await find(tmp_path, {"credsStore": "absent"}, "reg.test")


@pytest.mark.parametrize("name", ["../evil", "a/b", "a b", "a;b", ""])
@on_loop
async def test_a_helper_is_named_plainly(tmp_path: Path, path: Path, name: str) -> None:
    if not name:
        assert await find(tmp_path, {"credsStore": name}, "reg.test") is None
        return
    with pytest.raises(InvalidArgument, match="must be a plain name"):
        await find(tmp_path, {"credsStore": name}, "reg.test")


@on_loop
async def test_a_helper_that_does_not_read_is_no_trouble(tmp_path: Path, path: Path) -> None:
    helper(path, "one", """exec 0<&-; printf '{"Username": "me", "Secret": "s"}'""")
    assert await find(tmp_path, {"credsStore": "one"}, "reg.test") == Credentials("me", "s")
