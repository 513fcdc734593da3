"""Calls without gRPC's library, made of a server that has it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from moored.api.cli.unary import MAX_ANSWER, Link, NotAnswered

ECHO = "/test.Service/Echo"
NAMESPACE = "/test.Service/Namespace"
FAIL = "/test.Service/Fail"
LARGE = "/test.Service/Large"
SLOW = "/test.Service/Slow"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with the methods above; its socket."""
    over = threading.Event()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request

    def namespace(_request: bytes, context: grpc.ServicerContext) -> bytes:
        return dict(context.invocation_metadata())["containerd-namespace"].encode()

    def fail(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "there is none")

    def large(request: bytes, _context: grpc.ServicerContext) -> bytes:
        return b"x" * int(request)

    def slow(request: bytes, _context: grpc.ServicerContext) -> bytes:
        over.wait(20)
        return request

    methods = {ECHO: answer, NAMESPACE: namespace, FAIL: fail, LARGE: large, SLOW: slow}
    handlers = {name.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(call) for name, call in methods.items()}
    options = (("grpc.max_send_message_length", 2 * MAX_ANSWER),)
    server = grpc.server(ThreadPoolExecutor(2), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    address = str(folder / "s")
    server.add_insecure_port(f"unix:{address}")
    server.start()
    try:
        yield address
    finally:
        over.set()
        server.stop(None).wait()


def test_answers_of_several_calls_on_one_link(tmp_path: Path) -> None:
    with serving(tmp_path) as address, Link(address, "default", 10) as link:
        assert [link.call(ECHO, message) for message in (b"one", b"", b"three")] == [b"one", b"", b"three"]


@pytest.mark.parametrize("length", [1, 126, 127, 128, 254, 255, 256, 5000])
def test_namespaces_of_any_length_arrive(tmp_path: Path, length: int) -> None:
    with serving(tmp_path) as address, Link(address, "n" * length, 10) as link:
        assert link.call(NAMESPACE) == b"n" * length


def test_large_answers_arrive_whole(tmp_path: Path) -> None:
    with serving(tmp_path) as address, Link(address, "default", 10) as link:
        assert link.call(LARGE, str(MAX_ANSWER).encode()) == b"x" * MAX_ANSWER


def test_answers_above_the_limit_are_not_taken(tmp_path: Path) -> None:
    with serving(tmp_path) as address, Link(address, "default", 10) as link, pytest.raises(NotAnswered):
        link.call(LARGE, str(MAX_ANSWER + 1).encode())


@pytest.mark.parametrize("method", [FAIL, "/test.Service/NoSuch"])
def test_calls_that_fail_are_not_answered(tmp_path: Path, method: str) -> None:
    with serving(tmp_path) as address, Link(address, "default", 10) as link, pytest.raises(NotAnswered):
        link.call(method)


def test_answers_that_take_too_long_are_told_apart(tmp_path: Path) -> None:
    with serving(tmp_path) as address, Link(address, "default", 0.2) as link, pytest.raises(TimeoutError):
        link.call(SLOW)


def test_nobody_at_the_socket_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(NotAnswered):
        Link(str(tmp_path / "none"), "default", 1)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="end"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http 1"),
        pytest.param(bytes.fromhex("000006 00 01 00000001 01 00000001 78"), id="compressed message"),
        pytest.param(bytes.fromhex("000006 00 01 00000001 00 00000009 78"), id="message that is cut"),
        pytest.param(bytes.fromhex("000004 03 00 00000001 00000002"), id="reset"),
    ],
)
def test_what_is_no_good_answer_is_none(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def speak() -> None:
            with server.accept()[0] as other:
                other.recv(1 << 16)
                other.sendall(said)

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            with Link(str(tmp_path / "s"), "default", 10) as link, pytest.raises(NotAnswered):
                link.call(ECHO, b"hello")
        finally:
            thread.join()
