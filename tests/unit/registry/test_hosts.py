"""Where a registry is asked for: the defaults, hosts folders, the keys of hosts.toml and the ways to get one wrong."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from moored.api.registry.hosts import ALL_CAPABILITIES, Host, Tls, hosts_of
from moored.kernel.errors import InvalidArgument

UNVERIFIED = Tls(skip_verify=True)


def folder(root: Path, name: str, files: Mapping[str, str]) -> Path:
    place = root / name
    place.mkdir(parents=True)
    for file, text in files.items():
        (place / file).write_text(text)
    return place


def read(root: Path, registry: str, text: str, *, name: str = "", scheme: str = "") -> list[Host]:
    folder(root, name or registry, {"hosts.toml": text})
    return hosts_of(registry, folders=[root], default_scheme=scheme, strict=True)


def refused(root: Path, text: str) -> str:
    """What is said of a hosts.toml, in which the file's name is left out."""
    place = folder(root, "reg.example", {"hosts.toml": text})
    with pytest.raises(InvalidArgument) as error:
        hosts_of("reg.example", folders=[root], strict=True)
    return error.value.text.replace(f"'{place}/hosts.toml'", "FILE")


# --- without files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "scheme", "expected"),
    [
        ("docker.io", "", Host(url="https://registry-1.docker.io/v2")),
        ("docker.io", "http", Host(url="http://registry-1.docker.io/v2")),
        ("reg.example", "", Host(url="https://reg.example/v2")),
        ("reg.example:5000", "", Host(url="https://reg.example:5000/v2")),
        ("reg.example:80", "", Host(url="https://reg.example:80/v2")),
        ("reg.example", "http", Host(url="http://reg.example/v2")),
        ("localhost", "", Host(url="https://localhost/v2")),
        ("localhost:80", "", Host(url="http://localhost:80/v2")),
        ("localhost:443", "", Host(url="https://localhost:443/v2", tls=UNVERIFIED)),
        ("localhost:5000", "", Host(url="https://localhost:5000/v2", tls=UNVERIFIED, fall_back=True)),
        ("127.0.0.1:5000", "", Host(url="https://127.0.0.1:5000/v2", tls=UNVERIFIED, fall_back=True)),
        ("127.9.9.9:5000", "", Host(url="https://127.9.9.9:5000/v2", tls=UNVERIFIED, fall_back=True)),
        ("[::1]:5000", "", Host(url="https://[::1]:5000/v2", tls=UNVERIFIED, fall_back=True)),
        ("192.168.1.1:5000", "", Host(url="https://192.168.1.1:5000/v2")),
        ("localhost:5000", "http", Host(url="http://localhost:5000/v2")),
    ],
)
def test_a_registry_without_a_folder_has_its_default_host(registry: str, scheme: str, expected: Host) -> None:
    assert hosts_of(registry, default_scheme=scheme) == [expected]


@pytest.mark.parametrize("registry", ["", ".", "..", "a/b", "../etc"])
def test_a_registry_that_is_no_host_reads_no_folder(tmp_path: Path, registry: str) -> None:
    with pytest.raises(InvalidArgument, match="must be a host"):
        hosts_of(registry, folders=[tmp_path])


# --- which folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["reg.example_5000_", "reg.example:5000", "_default"], "reg.example_5000_"),
        (["reg.example:5000", "_default"], "reg.example:5000"),
        (["_default", "reg.example", "reg.example_5001_"], "_default"),
    ],
)
def test_the_first_name_that_exists_decides(tmp_path: Path, present: list[str], chosen: str) -> None:
    for name in present:
        folder(tmp_path, name, {"hosts.toml": f'server = "https://{name.replace(":", "-").replace("_", "-")}.test"'})
    [host] = hosts_of("reg.example:5000", folders=[tmp_path])
    assert host.address == f"{chosen.replace(':', '-').replace('_', '-')}.test"


def test_the_first_folder_that_has_one_decides(tmp_path: Path) -> None:
    folder(tmp_path / "b", "_default", {"hosts.toml": 'server = "https://b.test"'})
    folder(tmp_path / "c", "reg.example", {"hosts.toml": 'server = "https://c.test"'})
    folders = [tmp_path / name for name in "abc"]
    assert [host.address for host in hosts_of("reg.example", folders=folders)] == ["b.test"]


def test_a_file_in_place_of_a_folder_is_none(tmp_path: Path) -> None:
    (tmp_path / "reg.example").write_text("")
    assert hosts_of("reg.example", folders=[tmp_path]) == [Host(url="https://reg.example/v2")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        hosts_of("reg.example", folders=[tmp_path / "closed"])


# --- hosts.toml ---------------------------------------------------------------------------------------------------


def test_hosts_come_in_the_order_of_the_file_and_the_server_last(tmp_path: Path) -> None:
    text = """
        server = "https://up.test"
        [host."https://z.test"]
        [host."https://a.test".header]
        x = "1"
        [host."m.test:5000"]
    """
    found = read(tmp_path, "reg.example", text)
    assert [host.url for host in found] == [
        "https://z.test/v2",
        "https://a.test/v2",
        "https://m.test:5000/v2",
        "https://up.test/v2",
    ]
    assert {host.namespace for host in found} == {"reg.example"}


@pytest.mark.parametrize(
    ("registry", "host", "namespace"),
    [
        ("docker.io", "https://registry-1.docker.io", ""),
        ("docker.io", "https://mirror.test", "docker.io"),
        ("reg.example:5000", "https://reg.example:5000", ""),
        ("reg.example:5000", "https://reg.example", "reg.example:5000"),
    ],
)
def test_a_host_other_than_the_registry_is_told_for_whom_it_is_asked(
    tmp_path: Path, registry: str, host: str, namespace: str
) -> None:
    assert read(tmp_path, registry, f'server = "{host}"')[-1].namespace == namespace


def test_without_a_server_the_registry_itself_is_asked_last(tmp_path: Path) -> None:
    assert read(tmp_path, "docker.io", '[host."https://m.test"]')[-1] == Host(url="https://registry-1.docker.io/v2")


@pytest.mark.parametrize(
    ("url", "override", "expected"),
    [
        ("https://m.test", False, "https://m.test/v2"),
        ("https://m.test/", False, "https://m.test/v2"),
        ("https://m.test/v2", False, "https://m.test/v2"),
        ("https://m.test/v2/", False, "https://m.test/v2"),
        ("https://m.test/v2/proxy", False, "https://m.test/v2/proxy/v2"),
        ("https://m.test/v2/proxy", True, "https://m.test/v2/proxy"),
        ("https://m.test", True, "https://m.test"),
        ("http://m.test:81", False, "http://m.test:81/v2"),
        ("m.test", False, "https://m.test/v2"),
        ("m.test:5000/x", False, "https://m.test:5000/x/v2"),
        ("httpd.test", False, "https://httpd.test/v2"),
        ("https://user:secret@m.test", False, "https://m.test/v2"),
    ],
)
def test_the_base_is_v2_unless_overridden(tmp_path: Path, url: str, override: bool, expected: str) -> None:
    text = f'[host."{url}"]\noverride_path = {str(override).lower()}'
    assert read(tmp_path, "reg.example", text)[0].url == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('["pull"]', {"pull"}),
        ('["pull", "resolve", "push", "referrers"]', ALL_CAPABILITIES),
        ('["PULL", "Resolve"]', {"pull", "resolve"}),
        ("[]", ALL_CAPABILITIES),
    ],
)
def test_capabilities(tmp_path: Path, value: str, expected: set[str]) -> None:
    assert read(tmp_path, "reg.example", f'[host."m.test"]\ncapabilities = {value}')[0].capabilities == expected


def test_certificates_are_relative_to_the_file(tmp_path: Path) -> None:
    text = """
        ca = "one.crt"
        client = [["a.cert", "a.key"], ["b.pem", ""]]
        [host."https://m.test"]
        ca = ["/abs/one.crt", "two.crt"]
        client = ["c.pem", "d.pem"]
        [host."https://n.test"]
        client = "e.pem"
        skip_verify = true
    """
    mirror, other, server = read(tmp_path, "reg.example", text)
    here = tmp_path / "reg.example"
    assert mirror.tls == Tls(
        authorities=(Path("/abs/one.crt"), here / "two.crt"), pairs=((here / "c.pem", None), (here / "d.pem", None))
    )
    assert other.tls == Tls(pairs=((here / "e.pem", None),), skip_verify=True)
    assert server.tls == Tls(
        authorities=(here / "one.crt",), pairs=((here / "a.cert", here / "a.key"), (here / "b.pem", None))
    )


def test_headers_are_texts_or_lists(tmp_path: Path) -> None:
    text = '[header]\nx-top = "t"\n[host."https://m.test".header]\nX-One = "a"\nx-two = ["b", "c"]'
    mirror, server = read(tmp_path, "reg.example", text)
    assert mirror.headers == {"X-One": ["a"], "x-two": ["b", "c"]}
    assert server.headers == {"x-top": ["t"]}


@pytest.mark.parametrize(("value", "seconds"), [("1s", 1.0), ("1m500ms", 60.5), ("", None)])
def test_dial_timeout_is_a_duration(tmp_path: Path, value: str, seconds: float | None) -> None:
    assert read(tmp_path, "reg.example", f'dial_timeout = "{value}"')[0].dial_timeout == seconds


def test_a_host_of_scheme_http_with_tls_settings_is_asked_over_tls_first(tmp_path: Path) -> None:
    text = """
        [host."http://192.168.31.250:5000"]
        skip_verify = true
        [host."http://m.test:80"]
        skip_verify = true
        [host."http://n.test:5000"]
    """
    first, with_port_80, plain, _ = read(tmp_path, "reg.example", text)
    assert (first.url, first.fall_back) == ("https://192.168.31.250:5000/v2", True)
    assert (with_port_80.url, with_port_80.fall_back) == ("http://m.test:80/v2", False)
    assert (plain.url, plain.fall_back) == ("http://n.test:5000/v2", False)


def test_a_file_for_a_local_registry_keeps_its_defaults(tmp_path: Path) -> None:
    [host] = read(tmp_path, "localhost:5000", '[header]\nx = "1"')
    assert host == Host(url="https://localhost:5000/v2", tls=UNVERIFIED, fall_back=True, headers={"x": ["1"]})


def test_a_file_may_ask_for_verification_of_a_local_registry(tmp_path: Path) -> None:
    [host] = read(tmp_path, "localhost:5000", "skip_verify = false")
    assert not host.tls.skip_verify


def test_the_wish_for_plain_http_is_for_the_registry_alone(tmp_path: Path) -> None:
    mirror, upstream = read(tmp_path, "reg.example", '[host."m.test"]', scheme="http")
    assert (mirror.url, upstream.url) == ("https://m.test/v2", "http://reg.example/v2")


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_file_leaves_the_default(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "docker.io", text) == [Host(url="https://registry-1.docker.io/v2")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = 1", "FILE: server must be a text"),
        ("host = 1", "FILE: host must be a table"),
        ('host."https://m.test" = 1', "FILE: host.'https://m.test' must be a table"),
        ('server = "ftp://m.test"', "FILE: 'ftp://m.test' must be a URL of scheme http or https"),
        ('server = "https://"', "FILE: 'https://' must be a URL of scheme http or https"),
        ('server = "https://m.test:99999"', "FILE: 'https://m.test:99999' must be a URL of scheme http or https"),
        ('server = "https://[::1"', "FILE: 'https://[::1' must be a URL of scheme http or https"),
        ('server = "https://a b"', "FILE: 'https://a b' must be a URL of scheme http or https"),
        ("capabilities = 1", "FILE: capabilities must be a text or a list of texts"),
        ('capabilities = "pull"', "FILE: capabilities must be a text or a list of texts"),
        (
            'capabilities = ["fly"]',
            "FILE: capability 'fly' must be one of ['pull', 'push', 'referrers', 'resolve']",
        ),
        ("ca = 1", "FILE: ca must be a text or a list of texts"),
        ("ca = [1]", "FILE: ca must be a text or a list of texts"),
        ("client = 1", "FILE: client must be a path, a list of paths or a list of pairs"),
        ("client = [1]", "FILE: client must be a text or a list of texts"),
        ('client = [["a"]]', "FILE: client must be a path, or a certificate and its key"),
        ('client = [["a", "b", "c"]]', "FILE: client must be a path, or a certificate and its key"),
        ('skip_verify = "yes"', "FILE: skip_verify must be true or false"),
        ("override_path = 1", "FILE: override_path must be true or false"),
        ("header = 1", "FILE: header must be a table"),
        ("[header]\nx = 1", "FILE: header.x must be a text or a list of texts"),
        ('[header]\n"x y" = "1"', "FILE: header 'x y' must be named by letters, digits and hyphens"),
        ('[header]\nx = "1\\r\\ny: 2"', "FILE: header.x must be without control characters"),
        ('dial_timeout = "soon"', "FILE: dial_timeout must be a duration above 0 such as '5s'"),
        ('dial_timeout = "-5s"', "FILE: dial_timeout must be a duration above 0 such as '5s'"),
        ("dial_timeout = 5", "FILE: dial_timeout must be a duration above 0 such as '5s'"),
    ],
)
def test_a_wrong_value_is_told_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text) == said


def test_an_unknown_key_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    assert "key 'skip_verfy' must be one of ['ca', 'capabilities'" in refused(tmp_path, "skip_verfy = true")


@pytest.mark.parametrize("text", ["server = ", "[host", "a = 1\na = 2", "x = " + "[" * 5000])
def test_what_is_no_toml_is_told_with_the_file(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith("FILE is no TOML: ")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    assert refused(tmp_path, "#" * ((1 << 20) + 1)) == "FILE has more than 1048576 bytes"


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "reg.example" / "hosts.toml").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match="cannot be read: Is a directory"):
        hosts_of("reg.example", folders=[tmp_path], strict=True)


@pytest.mark.parametrize("text", ["server = ", 'capabilities = ["fly"]', "ca = 1"])
def test_a_malformed_file_counts_as_absent_and_the_log_tells(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = folder(tmp_path, "reg.example", {"hosts.toml": text, "own.crt": ""})
    with caplog.at_level(logging.ERROR, "moored.registry"):
        found = hosts_of("reg.example", folders=[tmp_path])
    assert found == [Host(url="https://reg.example/v2", tls=Tls(authorities=(place / "own.crt",)))]
    assert "hosts file is not used" in caplog.text


def test_an_unknown_key_is_passed_over_and_the_log_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, "reg.example", {"hosts.toml": 'server = "https://m.test"\nfuture = 1'})
    with caplog.at_level(logging.WARNING, "moored.registry"):
        assert hosts_of("reg.example", folders=[tmp_path])[0].url == "https://m.test/v2"
    assert "key 'future' must be one of" in caplog.text


def test_the_documented_file_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "registries.md"
    [text] = re.findall(r"^```\n(server = .*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert [host.url for host in read(tmp_path, "registry.example:5000", text)] == [
        "https://mirror.internal/v2",
        "https://public-mirror.example/v2/hub",
        "https://registry.example:5000/v2",
    ]


# --- certificate files --------------------------------------------------------------------------------------------


def test_a_folder_without_hosts_toml_holds_certificates(tmp_path: Path) -> None:
    files = dict.fromkeys(["b.crt", "a.crt", "one.cert", "one.key", "two.cert", "x.pem", "alone.key"], "")
    place = folder(tmp_path, "reg.example", files)
    (place / "folder.crt").mkdir()
    [host] = hosts_of("reg.example", folders=[tmp_path])
    assert host.url == "https://reg.example/v2"
    assert host.tls == Tls(
        authorities=(place / "a.crt", place / "b.crt"),
        pairs=((place / "one.cert", place / "one.key"), (place / "two.cert", None)),
    )


def test_certificates_of_a_local_registry_leave_its_defaults(tmp_path: Path) -> None:
    place = folder(tmp_path, "localhost:5000", {"a.crt": ""})
    [host] = hosts_of("localhost:5000", folders=[tmp_path])
    assert host.fall_back
    assert host.tls == Tls(authorities=(place / "a.crt",), skip_verify=True)


def test_an_empty_folder_leaves_the_default(tmp_path: Path) -> None:
    folder(tmp_path, "docker.io", {})
    assert hosts_of("docker.io", folders=[tmp_path]) == [Host(url="https://registry-1.docker.io/v2")]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "own.crt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidArgument, match=r"certificate file '.*own\.crt' cannot be used"):
        Tls(authorities=(file,)).context()
    with pytest.raises(InvalidArgument, match=r"certificate file '.*own\.crt' cannot be used"):
        Tls(pairs=((file, None),)).context()
