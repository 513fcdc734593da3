"""Namespaces, leases, identifiers and labels of moored.kernel.namespaces. Expected texts are containerd's."""

from __future__ import annotations

import asyncio

import pytest

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.namespaces import (
    bind,
    current_lease,
    current_namespace,
    namespace_or_empty,
    normalise_labels,
    validate_identifier,
    validate_labels,
)

RULE = "must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"


@pytest.mark.parametrize("text", ["a", "0", "k8s.io", "A-b_c.D", "a" * 76, "1.2-3_4"])
def test_these_are_identifiers(text: str) -> None:
    assert validate_identifier(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a/b", '"a/b"'),
        ("a..b", '"a..b"'),
        ("a-", '"a-"'),
        (".a", '".a"'),
        ("..", '".."'),
        ("a\n", r'"a\n"'),
        ("é", '"é"'),
        ("\u0663", '"\u0663"'),
        ("a\0", r'"a\x00"'),
        ('a"', r'"a\""'),
        ("\ud800", r'"\ud800"'),
    ],
)
def test_these_are_no_identifiers(text: str, shown: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate_identifier(text)
    assert caught.value.text == f"identifier {shown} {RULE}"


def test_an_identifier_is_not_empty() -> None:
    with pytest.raises(InvalidArgument, match=r"\Aidentifier must not be empty\Z"):
        validate_identifier("")


@pytest.mark.parametrize("text", ["a" * 77, "é" * 39])
def test_an_identifier_has_76_bytes_at_most(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate_identifier(text)
    assert caught.value.text == f'identifier "{text}" greater than maximum length (76 characters)'


def test_the_context_stands_in_front() -> None:
    with pytest.raises(InvalidArgument, match=r"\Ainvalid exec id X: identifier must not be empty\Z"):
        validate_identifier("", "invalid exec id X")


def test_without_a_namespace_one_is_required() -> None:
    assert namespace_or_empty() == ""
    assert current_lease() == ""
    with pytest.raises(FailedPrecondition, match=r"\Anamespace is required\Z"):
        current_namespace()


def test_a_bad_namespace_fails_where_it_is_needed() -> None:
    with bind("a/b"), pytest.raises(InvalidArgument) as caught:
        current_namespace()
    assert caught.value.text == f'namespace validation: identifier "a/b" {RULE}'


def test_a_bad_namespace_is_seen_as_it_came() -> None:
    with bind("a/b"):
        assert namespace_or_empty() == "a/b"


def test_binding_ends_with_its_block_even_by_an_error() -> None:
    with bind("a", "l 1"):
        assert (current_namespace(), current_lease()) == ("a", "l 1")
    with pytest.raises(KeyError), bind("a", "l 1"):
        raise KeyError
    assert (namespace_or_empty(), current_lease()) == ("", "")


def test_what_is_not_bound_anew_is_kept() -> None:
    with bind("a", "l"):
        with bind("b"):
            assert (current_namespace(), current_lease()) == ("b", "l")
        with bind(lease=""):
            assert (current_namespace(), current_lease()) == ("a", "")
        assert (current_namespace(), current_lease()) == ("a", "l")


def test_tasks_side_by_side_have_their_own_namespace() -> None:
    async def one(name: str, barrier: asyncio.Barrier) -> str:
        with bind(name):
            await barrier.wait()
            return await asyncio.to_thread(current_namespace)

    async def both() -> list[str]:
        barrier = asyncio.Barrier(2)
        return list(await asyncio.gather(one("a", barrier), one("b", barrier)))

    assert asyncio.run(both()) == ["a", "b"]


def test_labels_have_4096_bytes_at_most() -> None:
    validate_labels({"k" * 96: "v" * 4000, "é": "ü" * 2047, "": ""}, "info.Labels")
    with pytest.raises(InvalidArgument) as caught:
        validate_labels({"a": "b", "k" * 97: "v" * 4000}, "info.Labels")
    assert caught.value.text == (
        "info.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: " + "k" * 64
    )


def test_label_sizes_are_bytes() -> None:
    with pytest.raises(InvalidArgument, match=r"4098 bytes\) .* key: é\Z"):
        validate_labels({"é": "ü" * 2048}, "image.Labels")


def test_an_empty_value_deletes_a_label() -> None:
    stored = {"a": "1", "b": "2"}
    assert normalise_labels({**stored, "a": "", "c": "3", "d": ""}) == {"b": "2", "c": "3"}
    assert stored == {"a": "1", "b": "2"}
