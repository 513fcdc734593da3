"""The examples do what they say, against both daemons, and their types hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.client.conftest import NAME
from moored.api.client.registries import RegistryOptions
from registries import DOCKER_REGISTRY, DockerRegistry

CHECKOUT = Path(__file__).parents[3]
EXAMPLES = CHECKOUT / "contrib" / "examples" / "client"


def example(peer, name: str, *words: str) -> tuple[int, str, str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT / "contrib" / "dev"),
        "MOORED_ADDRESS": str(peer.place.address),
        "CONTAINERD_NAMESPACE": peer.place.namespace,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_run(peer):
    assert example(peer, "run.py", NAME, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")


def test_exec(peer):
    assert example(peer, "exec.py", NAME) == (0, "one\ntwo\ncat ended with 0\n", "")


def test_events(peer):
    status, out, err = example(peer, "events.py", NAME)

    assert (status, err) == (0, "")
    topics = [line.split()[0] for line in out.splitlines()]
    assert topics[0] == "/containers/create"
    assert {"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"} <= set(topics)


def test_without_asyncio(peer):
    status, out, err = example(peer, "without_asyncio.py", NAME)

    assert (status, err) == (0, "")
    assert any(line.startswith(f"{NAME} ") for line in out.splitlines())
    assert out.endswith("hello\n")


@pytest.mark.skipif(not Path(DOCKER_REGISTRY).exists(), reason="needs docker-registry")
def test_pull(peer, tmp_path):
    with DockerRegistry(tmp_path) as registry, peer.sync() as client:
        address = registry.address
        client.push(NAME, f"{address}/test/example:1", registry=RegistryOptions(plain_http=True))
        status, out, err = example(peer, "pull.py", "--plain-http", f"{address}/test/example:1")
        client.images.delete(f"{address}/test/example:1")

    assert (status, err) == (0, "")
    assert f"{address}/test/example:1 is sha256:" in out.splitlines()[-1]


def test_every_example_is_run():
    tested = {f"{name.removeprefix('test_')}.py" for name in globals() if name.startswith("test_")}

    assert {path.name for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.timeout(300)
def test_types_of_the_examples_hold(tmp_path):
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *sorted(EXAMPLES.glob("*.py"))],
        cwd=CHECKOUT,
        env={**os.environ, "MYPYPATH": str(CHECKOUT / "contrib" / "dev")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
