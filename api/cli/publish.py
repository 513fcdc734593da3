"""`moored publish`: hands one event, read from standard input, to a running daemon, as `containerd publish` does.

    moored --address PATH publish --topic /tasks/exit --namespace default < ANY

Standard input is a google.protobuf.Any, at most 16 MiB. The daemon is the one at `--address`, before or after the
command's name, or else at the first of GRPC_ADDRESS (which shims are given), MOORED_ADDRESS, CONTAINERD_ADDRESS that is
set, or else at the default one.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import BinaryIO
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from moored.api.cli.settings import ADDRESS_VARIABLES, DEFAULT_ADDRESS, DEFAULT_TIMEOUT, socket_path
from moored.api.services.events.v1 import events_pb2, events_pb2_grpc
from moored.kernel.errors import InvalidArgument, MooredError, Unavailable, Unknown

MAX_INPUT = 16 << 20
"""Bytes; what a daemon takes in one message."""
VARIABLES = ("GRPC_ADDRESS", *ADDRESS_VARIABLES)


def run(args: argparse.Namespace) -> int:
    """Carry the command out; `args.rest` is its own command line. Returns the exit status, 0 or 1 with a line why."""
    own = _parser().parse_args(args.rest)
    try:
        publish(own.address or args.address or "", own.topic, own.namespace, sys.stdin.buffer)
    except (MooredError, ValueError) as error:
        sys.stderr.write(f"moored: {error}\n")
        return 1
    return 0


def publish(address: str, topic: str, namespace: str, source: BinaryIO) -> None:
    """Publish one event; blocks for 10 seconds at most, besides reading.

    Errors: InvalidArgument for no topic and for input that is no event; Unavailable where no daemon answers; Unknown
    with what the daemon has against the event; ValueError for an address that cannot be one.
    """
    if not topic:
        raise InvalidArgument("topic required to publish event: invalid argument")
    request = events_pb2.PublishRequest(topic=topic, event=_read(source))
    found = next(filter(None, (address, *map(os.environ.get, VARIABLES))), DEFAULT_ADDRESS)
    path = socket_path(found)
    with grpc.insecure_channel(f"unix:{quote(path)}", options=[("grpc.max_send_message_length", -1)]) as channel:
        header = (("containerd-namespace", namespace),)
        try:
            events_pb2_grpc.EventsStub(channel).Publish(request, metadata=header, timeout=DEFAULT_TIMEOUT)
        except grpc.RpcError as error:
            raise _told(error, path) from error


def _told(error: grpc.RpcError, path: str) -> MooredError:
    assert isinstance(error, grpc.Call)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"no daemon answers at {path!r}: {error.details()}")
    return Unknown(error.details() or error.code().name)


def _read(source: BinaryIO) -> AnyMessage:
    data = source.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise InvalidArgument(f"standard input is longer than the {MAX_INPUT} bytes that an event may have")
    try:
        return AnyMessage.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"standard input is no google.protobuf.Any: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moored publish", description="Publishes the event on standard input.")
    parser.add_argument("--topic", default="", metavar="TOPIC", help="what happened, such as /tasks/exit")
    parser.add_argument("--namespace", default="", metavar="NAME", help="whose event it is")
    parser.add_argument("-a", "--address", metavar="PATH", help="gRPC socket of the daemon")
    return parser
