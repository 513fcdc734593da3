"""References and platforms: what people and documents write, and what is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moored.kernel.errors import InvalidArgument
from moored.kernel.imagespec import references
from moored.kernel.imagespec.platforms import Platform, any_of, exactly, normalized, parse, runnable_on

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("user/tool", "docker.io/user/tool:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:1", "localhost:5000/tool:1"),
        ("registry.example/a/b/c", "registry.example/a/b/c:latest"),
        ("[::1]:5000/tool:1", "[::1]:5000/tool:1"),
        (f"alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine:3@{DIGEST}", f"docker.io/library/alpine:3@{DIGEST}"),
    ],
)
def test_short_names_mean_the_usual_whole_ones(typed: str, meant: str) -> None:
    assert str(references.parse_familiar(typed)) == meant
    assert str(references.parse(meant)) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://host/a:b", "scheme"),
        ("alpine", "hostname required"),
        ("host/path", "object required"),
        ("host/Path:tag", "path"),
        ("host/../../etc:tag", "path"),
        ("host/path:", "tag"),
        ("host/path:../x", "tag"),
        ("host/path@sha256:xyz", "digest"),
        (f"host/path@sha256:{'A' * 64}", "digest"),
        ("ho st/path:tag", "host"),
        ("host:port/path:tag", "host"),
        (f"host/{'a' * 256}:tag", "longer"),
        ("host/path:tag\n", "tag"),
        ("", "hostname required"),
    ],
)
def test_malformed_references_are_refused_naming_the_part(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        references.parse(text)


@given(st.text(max_size=60))
def test_what_parses_prints_as_it_was_written(text: str) -> None:
    try:
        found = references.parse(text)
    except InvalidArgument:
        return
    assert str(found) == text


def test_what_people_type_is_what_they_are_shown() -> None:
    assert references.familiar("docker.io/library/alpine:3") == "alpine:3"
    assert references.familiar("docker.io/user/tool:1") == "user/tool:1"
    assert references.familiar("host/tool:1") == "host/tool:1"


@pytest.mark.parametrize(
    ("specifier", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/x86_64", Platform("linux", "amd64")),
        ("Linux/aarch64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/5", Platform("linux", "arm", "v5")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763")),
        ("s390x", Platform("linux", "s390x")),
        ("macos/arm64", Platform("darwin", "arm64")),
    ],
)
def test_specifiers_are_read_into_the_one_spelling(specifier: str, platform: Platform) -> None:
    assert parse(specifier) == platform
    assert normalized(platform) == platform


@pytest.mark.parametrize("specifier", ["", "*", "linux/*", "linux/a/b/c", "toaster", "linux//v8", "linux/amd64\n"])
def test_malformed_specifiers_are_refused(specifier: str) -> None:
    with pytest.raises(InvalidArgument, match="platform"):
        parse(specifier)


def test_a_host_runs_its_own_platform_first_then_older_and_narrower_ones() -> None:
    arm64 = runnable_on(Platform("linux", "arm64"))
    assert [str(choice) for choice in arm64.choices] == [
        "linux/arm64",
        "linux/arm/v8",
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/arm/v5",
    ]
    amd64 = runnable_on(Platform("linux", "amd64", "v3"))
    assert [str(choice) for choice in amd64.choices] == [
        "linux/amd64/v3",
        "linux/amd64/v2",
        "linux/amd64",
        "linux/386",
    ]
    v9 = runnable_on(Platform("linux", "arm64", "v9.1"))
    assert [str(choice) for choice in v9.choices][:4] == [
        "linux/arm64/v9.1",
        "linux/arm64/v9",
        "linux/arm64/v8.6",
        "linux/arm64/v8.5",
    ]


def test_rank_tells_the_best_of_what_is_offered() -> None:
    host = runnable_on(Platform("linux", "amd64"))
    assert host.rank(Platform("linux", "x86_64")) == 0
    assert host.rank(Platform("linux", "386")) == 1
    assert host.rank(Platform("linux", "arm64")) is None
    assert host.rank(None) == 2
    assert exactly([Platform("linux", "amd64")]).rank(Platform("linux", "386")) is None
    assert any_of([Platform("linux", "arm64"), Platform("linux", "amd64")]).rank(Platform("linux", "386")) == 6
