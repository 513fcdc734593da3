"""URIs of streams are read as Go's `net/url` reads them."""

import pytest

from moored.plugins.runtime.shim.streamuri import StreamUri, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", StreamUri("fifo", "")),
        ("/run/containerd/fifo/1/a%20b-stdout", StreamUri("fifo", "/run/containerd/fifo/1/a%20b-stdout")),
        ("/run/a:b?c=d#e", StreamUri("fifo", "/run/a:b?c=d#e")),
        ("fifo:///run/x", StreamUri("fifo", "/run/x")),
        ("FILE:///var/log/a%20b%2fc.log", StreamUri("file", "/var/log/a b/c.log")),
        ("file:///100%25/%zz", StreamUri("file", "/100%/%zz")),
        ("file://host/x", StreamUri("file", "/x")),
        ("binary-v2:///bin/l?a=1&b=x+y&a=2&c", StreamUri("binary-v2", "/bin/l", (("a", "1"), ("b", "x y"), ("c", "")))),
        ("binary:///bin/l?k%3D=%26&x;y=1#part", StreamUri("binary", "/bin/l", (("k=", "&"),))),
        ("1a:///x", StreamUri("fifo", "1a:///x")),
        ("ttrpc+unix:///run/s.sock?streaming_id=i", StreamUri("ttrpc+unix", "/run/s.sock", (("streaming_id", "i"),))),
    ],
)
def test_uri_is_read(text: str, expected: StreamUri) -> None:
    assert parse(text) == expected
