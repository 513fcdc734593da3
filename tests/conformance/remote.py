"""Ports through a socket: proxies to a service, and real containerds to put them before."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.api.services.version.v1 import version_pb2_grpc
from moored.kernel.namespaces import bind
from moored.plugins.proxy.endpoint import RemoteEndpoint
from unit.content.served import headers

START_SECONDS = 20.0

CONTAINERDS = [
    path for path in [shutil.which("containerd"), *os.environ.get("MOORED_TEST_CONTAINERDS", "").split(":")] if path
]
"""The one on PATH, and further ones (other versions) by their paths."""
each_containerd = CONTAINERDS or [pytest.param("", marks=pytest.mark.skip("needs containerd"))]

Check = Callable[..., Any]
numbers = itertools.count()


def every_check(
    checks: Sequence[Check], but: Mapping[str, str], *, races: Collection[str] = ()
) -> pytest.MarkDecorator:
    """Each check as `check`; those of `but` must fail, for the reason given there, of `races` only most of the time."""
    names = {check.__name__.removeprefix("check_") for check in checks}
    assert set(but) <= names, set(but) - names
    assert set(races) <= set(but), set(races) - set(but)

    def param(check: Check) -> object:
        name = check.__name__.removeprefix("check_")
        marks = [pytest.mark.xfail(reason=but[name], strict=name not in races)] if name in but else []
        return pytest.param(check, id=name, marks=marks)

    return pytest.mark.parametrize("check", [param(check) for check in checks])


@asynccontextmanager
async def endpoint(address: str) -> AsyncGenerator[RemoteEndpoint]:
    """A connection to an address."""
    made = RemoteEndpoint(address)
    try:
        yield made
    finally:
        await made.close()


@contextmanager
def started(binary: str, folder: Path) -> Generator[str]:
    """The address of a containerd with a private root, without CRI."""
    address = str(folder / "c.sock")
    config = folder / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{address}"\n[ttrpc]\naddress = "{address}.ttrpc"\n'
        # Blobs of one check, which has a namespace of its own, must not be there for the next.
        '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n'
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "-c", config], stdout=log, stderr=log, start_new_session=True)
    try:
        with grpc.insecure_channel(f"unix:{address}") as channel:
            grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
        yield address
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def is_old(address: str) -> bool:
    """Whether it is a containerd 1."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        return version_pb2_grpc.VersionStub(channel).Version(Empty()).version.startswith("1.")


@asynccontextmanager
async def namespace_of(address: str) -> AsyncGenerator[str]:
    """A new namespace, with a lease for the block; both hold for the calls in it.

    Without a lease, the collections that deletes lead to would take what a check has made.
    """
    namespace = f"conformance-{next(numbers)}"
    async with grpc.aio.insecure_channel(f"unix:{address}") as channel:
        leases = leases_pb2_grpc.LeasesStub(channel)
        await leases.Create(leases_pb2.CreateRequest(id="check"), metadata=headers(namespace))
        try:
            with bind(namespace, "check"):
                yield namespace
        finally:
            await leases.Delete(leases_pb2.DeleteRequest(id="check", sync=True), metadata=headers(namespace))
