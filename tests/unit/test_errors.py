"""The error table of moored.api.errors: every class, both directions, and exceptions from elsewhere."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import os
import subprocess
import sys

import pytest

from moored.api.errors import MAX_TEXT_BYTES, WIRE, classify, from_status, to_status, wire_of
from moored.kernel import errors as e


def all_classes(root: type[e.MooredError] = e.MooredError) -> list[type[e.MooredError]]:
    return [k for direct in root.__subclasses__() for k in (direct, *all_classes(direct)) if k.__module__ == e.__name__]


def same(a: e.MooredError, b: e.MooredError) -> bool:
    return (type(a), a.text, a.bare) == (type(b), b.text, b.bare)


def test_every_class_of_the_closed_set_is_in_the_table() -> None:
    assert set(WIRE) == set(all_classes())


def test_the_table_is_the_contract() -> None:
    assert {k.__name__: (w.code, w.suffix) for k, w in WIRE.items()} == {
        "Cancelled": (1, "context canceled"),
        "Unknown": (2, ""),
        "InvalidArgument": (3, "invalid argument"),
        "DeadlineExceeded": (4, "context deadline exceeded"),
        "NotFound": (5, "not found"),
        "AlreadyExists": (6, "already exists"),
        "PermissionDenied": (7, "permission denied"),
        "ResourceExhausted": (8, "resource exhausted"),
        "FailedPrecondition": (9, "failed precondition"),
        "Conflict": (9, "conflict"),
        "NotModified": (9, "not modified"),
        "Aborted": (10, "aborted"),
        "OutOfRange": (11, "out of range"),
        "Unimplemented": (12, "not implemented"),
        "Internal": (13, "internal"),
        "Unavailable": (14, "unavailable"),
        "DataLoss": (15, "data loss"),
        "Unauthenticated": (16, "unauthorized"),
    }


@pytest.mark.parametrize("kind", all_classes())
def test_error_class_survives_the_wire(kind: type[e.MooredError]) -> None:
    error = kind("image 'x': it is so")
    assert same(from_status(*to_status(error)), error)


@pytest.mark.parametrize("kind", [k for k in all_classes() if k not in (e.Unknown, e.Conflict, e.NotModified)])
def test_a_bare_error_survives_the_wire(kind: type[e.MooredError]) -> None:
    error = kind("Image.Name required", bare=True)
    assert to_status(error)[1] == "Image.Name required"
    assert same(from_status(*to_status(error)), error)


@pytest.mark.parametrize("kind", [e.Conflict, e.NotModified])
def test_without_its_suffix_a_class_of_code_nine_is_a_failed_precondition(kind: type[e.MooredError]) -> None:
    assert same(from_status(*to_status(kind("x", bare=True))), e.FailedPrecondition("x", bare=True))


@pytest.mark.parametrize("code", range(1, 17))
@pytest.mark.parametrize("lead", ["", "x", "x: ", ": ", "é: not found: ", "x: conflict: "])
def test_every_wire_text_comes_back_as_it_was(code: int, lead: str) -> None:
    for wire in WIRE.values():
        for message in (lead, lead + wire.suffix, f"{lead}{wire.suffix}: {wire.suffix}", f"{lead}: {wire.suffix}"):
            assert to_status(from_status(code, message)) == (code, message)


def test_the_suffix_is_added_once() -> None:
    assert to_status(e.NotFound("image 'x'")) == (5, "image 'x': not found")
    assert to_status(e.NotFound("image 'x': not found")) == (5, "image 'x': not found")
    assert to_status(e.NotFound("not found")) == (5, "not found")
    assert to_status(e.NotFound("")) == (5, "not found")
    assert to_status(e.NotFound("what is not found")) == (5, "what is not found: not found")


def test_a_text_may_carry_its_suffix_twice() -> None:
    message = "filters: bad: invalid argument: invalid argument"
    assert to_status(e.InvalidArgument(message)) == (3, message)
    assert to_status(from_status(3, message)) == (3, message)


def test_unlisted_codes_are_unknown() -> None:
    for code in (0, 17, -1, 4096):
        assert same(from_status(code, "x: not found"), e.Unknown("x: not found"))


def test_a_subclass_counts_as_its_listed_base() -> None:
    class Missing(e.NotFound):
        pass

    class Odd(e.MooredError):
        pass

    assert to_status(Missing("x")) == (5, "x: not found")
    assert to_status(Odd("x")) == (2, "x")
    assert wire_of(Missing).code == 5


def test_cancellation_and_timeout_have_go_texts() -> None:
    assert to_status(asyncio.CancelledError()) == (1, "context canceled")
    assert to_status(asyncio.CancelledError("why")) == (1, "context canceled")
    assert to_status(concurrent.futures.CancelledError()) == (1, "context canceled")
    assert to_status(TimeoutError()) == (4, "context deadline exceeded")
    assert to_status(TimeoutError("timed out")) == (4, "context deadline exceeded")


def test_unexpected_exceptions_are_unknown_with_their_text() -> None:
    assert to_status(ValueError("bad thing")) == (2, "bad thing")
    assert to_status(ValueError()) == (2, "ValueError")
    assert to_status(KeyboardInterrupt()) == (2, "KeyboardInterrupt")


def test_an_exception_that_cannot_be_shown_is_named() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert to_status(Broken()) == (2, "Broken")


@pytest.mark.parametrize(
    ("number", "code", "suffix"),
    [
        (errno.ENOENT, 5, ": not found"),
        (errno.EEXIST, 6, ": already exists"),
        (errno.EACCES, 7, ""),
        (errno.EPERM, 7, ": permission denied"),
        (errno.ENOSPC, 8, ": resource exhausted"),
        (errno.EDQUOT, 8, ": resource exhausted"),
        (errno.EMFILE, 8, ": resource exhausted"),
        (errno.ENFILE, 8, ": resource exhausted"),
        (errno.ETIMEDOUT, 4, ": context deadline exceeded"),
        (errno.EIO, 2, ""),
    ],
)
def test_system_errors_keep_their_place_and_reason(number: int, code: int, suffix: str) -> None:
    reason = os.strerror(number)
    shown = reason[0].lower() + reason[1:]
    assert to_status(OSError(number, reason, "/a/b")) == (code, f"/a/b: {shown}{suffix}")


def test_a_real_system_error_names_its_file(tmp_path: os.PathLike[str]) -> None:
    name = os.path.join(tmp_path, "none")  # noqa: PTH118 - the name is what is compared
    with pytest.raises(OSError, match="none") as caught:
        os.rename(name, name + "2")  # noqa: PTH104
    assert to_status(caught.value) == (5, f"{name} -> {name}2: no such file or directory: not found")
    with pytest.raises(OSError, match="Bad") as caught:
        os.close(1 << 30)
    assert to_status(caught.value) == (2, "bad file descriptor")


def test_a_system_error_without_number_is_unknown() -> None:
    assert to_status(OSError("odd")) == (2, "odd")


def test_file_names_that_are_no_utf8_can_be_sent() -> None:
    code, text = to_status(OSError(errno.ENOENT, "No such file or directory", b"/a\xff"))
    assert (code, text.encode()) == (5, b"/a\\udcff: no such file or directory: not found")


def test_a_group_is_its_first_telling_member() -> None:
    group = BaseExceptionGroup("g", [asyncio.CancelledError(), ExceptionGroup("h", [ValueError("v"), e.NotFound("x")])])
    assert to_status(group) == (5, "x: not found")
    assert to_status(ExceptionGroup("g", [ValueError("v"), ValueError("w")])) == (2, "v")


def test_an_error_of_the_set_is_classified_as_itself() -> None:
    error = e.NotFound("x", bare=True)
    assert classify(error) is error


@pytest.mark.parametrize("char", ["x", "é", "%", "\N{GRINNING FACE}", "\0"])
def test_a_long_text_loses_its_middle_and_keeps_its_ends(char: str) -> None:
    code, text = to_status(e.NotFound("begin " + char * 100_000 + " end"))
    escaped = sum(1 if " " <= c <= "~" and c != "%" else 3 * len(c.encode()) for c in text)
    assert code == 5
    assert text.startswith(f"begin {char}")
    assert f"{char} [...] {char}" in text
    assert text.endswith(f"{char} end: not found")
    assert MAX_TEXT_BYTES - 32 < escaped <= MAX_TEXT_BYTES + len(": not found")


def test_a_text_that_fits_exactly_is_not_cut() -> None:
    for text in ("x" * MAX_TEXT_BYTES, "é" * (MAX_TEXT_BYTES // 6)):
        assert to_status(e.Unknown(text)) == (2, text)
        assert to_status(e.Unknown(text + "é"))[1] != text + "é"


def test_the_table_loads_neither_asyncio_nor_grpc() -> None:
    program = "import sys, moored.api.errors as m; m.to_status(ValueError()); print(*sorted(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert not {"asyncio", "grpc", "google.protobuf"} & set(done.stdout.split())
