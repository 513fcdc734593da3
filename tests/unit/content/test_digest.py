"""Digests: which texts are good, and the words for those that are not."""

from __future__ import annotations

import pytest

from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.content import ALGORITHMS, Digest, digest_fault

FORMAT = "invalid checksum digest format"
LENGTH = "invalid checksum digest length"
UNSUPPORTED = "unsupported digest algorithm"


@pytest.mark.parametrize(("algorithm", "length"), ALGORITHMS.items())
def test_good_digest_has_its_two_parts(algorithm: str, length: int) -> None:
    digest = Digest(f"{algorithm}:{'0f' * (length // 2)}")

    assert (digest.algorithm, digest.encoded) == (algorithm, "0f" * (length // 2))
    assert digest == f"{algorithm}:{'0f' * (length // 2)}"
    assert Digest(digest) is digest


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", FORMAT),
        ("x", FORMAT),
        (":", FORMAT),
        ("sha256:", FORMAT),
        ("sha256:" + "A" * 64, FORMAT),
        ("sha256:" + "a" * 63 + "\n", FORMAT),
        ("sha256:" + "../" * 21 + "a", FORMAT),
        ("sha256:" + "\N{ARABIC-INDIC DIGIT ONE}" * 64, FORMAT),
        ("sha256:abc", LENGTH),
        ("sha256:" + "a" * 65, LENGTH),
        ("sha384:" + "a" * 64, LENGTH),
        ("md5:" + "a" * 32, UNSUPPORTED),
        ("SHA256:" + "a" * 64, FORMAT),
        ("a+b.c:x=_-", UNSUPPORTED),
        ("a b:c", FORMAT),
    ],
)
def test_bad_digest_is_refused_in_the_words_of_clients(text: str, fault: str) -> None:
    assert digest_fault(text) == fault
    with pytest.raises(InvalidArgument) as caught:
        Digest(text)
    assert caught.value.text == f"{text}: {fault}"


def test_error_of_a_huge_digest_is_short() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Digest("x" * 1_000_000)

    assert len(caught.value.text) < 400
