"""Containers run one after the other and side by side, and execs: `ctr run --rm`, loops through the API.

`run` is the whole of ctr, from its start to its end. A loop is a snapshot, a container and a task made, started, waited
for and all of it deleted, by 1, 4 and 16 clients; its program is `true`. `contrib.bench.steps` tells where the time
goes. Needs root, ctr, busybox and runc.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from contrib.bench import containers as steps
from contrib.bench.http2 import Client, Link
from contrib.bench.peers import Running
from contrib.bench.rounds import Group, Values, say

RUNS = 8
LOOPS = {1: 10, 4: 32, 16: 48}
"""Containers by number of clients."""
EXECS = 12
TOO_OLD = "unknown version specified"
"""How crun refuses a spec of a version that it does not know."""


def prepare(running: Running, _scale: float) -> None:
    """Bring the image, and let everything happen once that happens only once."""
    steps.bring_image(running.address, Path(running.address).parent)
    for runtime in steps.runtimes():
        _runs(running, runtime, f"first-{runtime}", 1)


def _run(running: Running, runtime: str, id_: str) -> float:
    binary = [] if runtime == "runc" else ["--runc-binary", runtime]
    began = time.perf_counter()
    done = subprocess.run(
        steps.ctr(running.address, "run", "--rm", *binary, steps.IMAGE, id_, "true"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    taken = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"ctr run: {done.stderr.decode()}")
    return taken * 1e3


def _runs(running: Running, runtime: str, name: str, count: int) -> list[float]:
    """Run that many; none where ctr asks for a spec that this runtime is too old for, and the daemon passes it on."""
    try:
        return [_run(running, runtime, f"{name}-{at}") for at in range(count)]
    except RuntimeError as error:
        if TOO_OLD not in str(error):
            raise
        say(f"tasks: {Path(running.address).parent.name}: ctr run with {runtime} left out, it is too old for this ctr")
        return []


def _loop(runtime: str, name: str, count: int) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        for number in range(count):
            id_ = f"{name}-{number}"
            yield from steps.create(link, id_, runtime, "true")
            yield from steps.start(link, id_)
            yield from steps.wait(link, id_, 0)
            yield from steps.delete(link, id_)

    return client


def _execs(runtime: str, id_: str, count: int, taken: list[float]) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        yield from steps.create(link, id_, runtime, "sleep", "1000")
        yield from steps.start(link, id_)
        for number in range(count):
            began = time.perf_counter()
            yield from steps.execute(link, id_, f"e{number}")
            taken.append((time.perf_counter() - began) * 1e3)
        yield from steps.kill(link, id_)
        yield from steps.delete(link, id_)

    return client


def measure(running: Running, number: int, scale: float) -> Values:
    """Milliseconds of one run and one exec, containers a second of the loops."""
    found: Values = {}
    with steps.swept(running):
        for runtime in steps.runtimes():
            if runs := _runs(running, runtime, f"run-{runtime}-{number}", max(2, int(RUNS * scale))):
                found[f"run_{runtime}_ms"] = statistics.median(runs)
            for clients, count in LOOPS.items():
                each = max(1, int(count * scale) // clients)
                names = [f"loop-{runtime}-{number}-{clients}-{at}" for at in range(clients)]
                makers = [_loop(runtime, name, each) for name in names]
                found[f"loop_{runtime}_{clients}_per_s"] = clients * each / steps.work(running.address, makers)
            taken: list[float] = []
            maker = _execs(runtime, f"execs-{runtime}-{number}", max(3, int(EXECS * scale)), taken)
            steps.work(running.address, [maker])
            found[f"exec_{runtime}_ms"] = statistics.median(taken)
    return found


GROUP = Group(measure, prepare=prepare, needs_root=True)
