"""The commands that people type: `moorctl run --rm` beside `ctr run --rm`, and `moorctl ps` beside `ctr containers ls`.

Each daemon is asked with its own command, for a container with no network; a command is measured from its start to its
end. Where podman is installed it runs the same, in moored's turns and with the same runtimes, for `run_X_by_podman`:
moorctl's time as a part of podman's. Needs root, ctr, busybox and runc, and moored installed beside python.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from contrib.bench import containers as steps
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values

RUNS = 8
LISTS = 10
PODMAN_SECONDS = 20.0
MOORCTL = Path(sys.executable).with_name("moorctl")


def installed() -> bool:
    """Whether the commands are there."""
    return steps.installed("runc") and MOORCTL.exists()


def prepare(running: Running, _scale: float) -> None:
    """Bring the image, and let everything happen once that happens only once."""
    steps.bring_image(running.address, _folder(running))
    with _swept(running):
        for runtime in steps.runtimes():
            _timed(_run(running, runtime, f"first-{runtime}"), running)
        _timed(_list(running), running)
        if _is_moored(running) and shutil.which("podman"):
            _bring_podman_image(running)
            for runtime in steps.runtimes():
                _timed(_podman_run(running, runtime), running)


def _bring_podman_image(running: Running) -> None:
    folder = _folder(running)
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    words = _podman(running, "runc", "pull", "--signature-policy", str(policy), f"oci-archive:{folder / 'image.tar'}")
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"podman pull: {done.stderr.decode()}")
    (folder / "podman-image").write_bytes(done.stdout.split()[-1])


def measure(running: Running, number: int, scale: float) -> Values:
    """Milliseconds of a run and a list."""
    found: Values = {}
    with _swept(running):
        for runtime in steps.runtimes():
            count = max(2, int(RUNS * scale))
            runs = _median(running, count, lambda at: _run(running, runtime, f"run-{runtime}-{number}-{at}"))  # noqa: B023
            found[f"run_{runtime}_ms"] = runs
            if (_folder(running) / "podman-image").exists():
                other = _median(running, count, lambda _: _podman_run(running, runtime))  # noqa: B023
                found[f"run_{runtime}_podman_ms"] = other
                found[f"run_{runtime}_by_podman"] = runs / other
        found["list_ms"] = _median(running, max(2, int(LISTS * scale)), lambda _: _list(running))
    return found


@contextmanager
def _swept(running: Running) -> Iterator[None]:
    """Leave nothing; podman mounts its folder once more in a process that its containers leave behind."""
    with steps.swept(running):
        try:
            yield
        finally:
            deadline = time.monotonic() + PODMAN_SECONDS
            while _uses(running) and time.monotonic() < deadline:
                time.sleep(0.05)


def _uses(running: Running) -> bool:
    """Whether podman, or what it has started, still runs with our folder."""
    folder = f"{_folder(running)}/podman".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder in (entry / "cmdline").read_bytes():
                return True
    return False


def _median(running: Running, count: int, words: Callable[[int], Sequence[str]]) -> float:
    return statistics.median(_timed(words(at), running) for at in range(count))


def _timed(words: Sequence[str], running: Running) -> float:
    environment = _environment(running)
    began = time.perf_counter()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=environment)
    taken = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode()}")
    return taken * 1e3


def _run(running: Running, runtime: str, id_: str) -> Sequence[str]:
    if _is_moored(running):
        return [str(MOORCTL), "run", "--rm", "--net", "none", "--runtime", runtime, steps.IMAGE, "true"]
    binary = [] if runtime == "runc" else ["--runc-binary", runtime]
    return steps.ctr(running.address, "run", "--rm", *binary, steps.IMAGE, id_, "true")


def _list(running: Running) -> Sequence[str]:
    return [str(MOORCTL), "ps"] if _is_moored(running) else steps.ctr(running.address, "containers", "ls")


def _podman(running: Running, runtime: str, *words: str) -> list[str]:
    folder = _folder(running) / "podman"
    places = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--tmpdir", f"{folder}/tmp"]
    return ["podman", *places, "--runtime", runtime, "--cgroup-manager", "cgroupfs", *words]


def _podman_run(running: Running, runtime: str) -> list[str]:
    image = (_folder(running) / "podman-image").read_text()
    # Limits above the host's own, which it asks for by itself, are not everywhere to be had.
    limits = [word for name in ("nofile", "nproc") for word in ("--ulimit", f"{name}=1024:1024")]
    return _podman(running, runtime, "run", "--rm", "--network", "none", *limits, image, "true")


def _is_moored(running: Running) -> bool:
    return b"moored.kernel.daemon.main" in Path(f"/proc/{running.pid}/cmdline").read_bytes()


def _folder(running: Running) -> Path:
    return Path(running.address).parent


def _environment(running: Running) -> dict[str, str]:
    """The environment of the commands: byte code is there from the second run on, as where pip has installed it."""
    folder = _folder(running)
    own = {
        "MOORED_ADDRESS": running.address,
        "CONTAINERD_NAMESPACE": steps.NAMESPACE,
        "MOORCTL_ROOT": f"{folder}/own",
        "MOORCTL_RUN": f"{folder}/run",
        "MOORCTL_FIFO_DIR": f"{folder}/fifo",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": f"{folder}/pycache",
    }
    return {**os.environ, **own}


GROUP = Group(measure, prepare=prepare, needs_root=True)
