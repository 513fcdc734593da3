"""Where the time of one container goes: the median of each call that it takes, at both daemons, with nothing beside it.

    python -m contrib.bench.steps [--runtime runc|crun] [--count N] [--alone]

The calls are those that `ctr run --rm` and `ctr task exec` make, by one client. Beside them stands what the OCI runtime
takes for the same work when a shell script calls it. Another containerd is measured with its folder first on PATH.
Needs root, ctr, busybox and the runtime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from contrib.bench import containers as steps
from contrib.bench.http2 import Client, Link, Stream
from contrib.bench.peers import Peer, containerd, moored, running

Taken = dict[str, list[float]]
"""Milliseconds by the name of a call."""
ALTERNATIONS = 3


class TimedLink:
    """A link that notes, under the name of each call, the time from its being made until its answer is used."""

    def __init__(self, link: Link, taken: Taken, prefix: str = "") -> None:
        self._link = link
        self._taken = taken
        self._prefix = prefix
        self._name = ""
        self._began = 0.0

    def unary(self, path: str, message: bytes) -> Stream:
        """See Link."""
        service, _, method = path.rpartition("/")
        self._name = f"{self._prefix}{service.rpartition('.')[2]}.{method}"
        self._began = time.perf_counter()
        return self._link.unary(path, message)

    def follow(self, client: Callable[[Link], Client]) -> Client:
        """Run a client's calls on this link."""
        calls = client(cast(Link, self))
        try:
            waiting = next(calls)
            while True:
                answer = yield waiting
                self._taken.setdefault(self._name, []).append((time.perf_counter() - self._began) * 1e3)
                waiting = calls.send(answer)
        except StopIteration:
            return


def _life(runtime: str, ids: list[str], taken: Taken) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        for id_ in ids:
            began = time.perf_counter()
            yield from TimedLink(link, taken).follow(lambda timed, id_=id_: _whole(timed, id_, runtime))  # type: ignore[misc]
            taken.setdefault("all of it", []).append((time.perf_counter() - began) * 1e3)

    return client


def _whole(link: Link, id_: str, runtime: str) -> Client:
    yield from steps.create(link, id_, runtime, "true")
    yield from steps.start(link, id_)
    yield from steps.wait(link, id_, 0)
    yield from steps.delete(link, id_)


def _execs(runtime: str, id_: str, count: int, taken: Taken) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        yield from steps.create(link, id_, runtime, "sleep", "1000")
        yield from steps.start(link, id_)
        for number in range(count):
            name = f"e{number}"
            timed = TimedLink(link, taken, "exec: ")
            yield from timed.follow(lambda timed, name=name: steps.execute(timed, id_, name))  # type: ignore[misc]
        yield from steps.kill(link, id_)
        yield from steps.delete(link, id_)

    return client


def measure(peer: Peer, folder: Path, runtime: str, count: int, taken: Taken) -> None:
    """Run containers and execs at a daemon of its own."""
    with running(peer, folder) as one, steps.swept(one):
        steps.bring_image(one.address, folder)
        steps.work(one.address, [_life(runtime, ["first-0", "first-1"], {})])
        steps.work(one.address, [_life(runtime, [f"step-{at}" for at in range(count)], taken)])
        steps.work(one.address, [_execs(runtime, "execs", count, taken)])


def bare(folder: Path, runtime: str, count: int) -> dict[str, float]:
    """The median of each call of the OCI runtime by itself."""
    bundle = folder / "bundle"
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(root)], input=steps._layer(), check=True)
    spec = json.loads(steps._spec("bare", ["true"]).value)
    (bundle / "config.json").write_text(json.dumps(spec))
    command = [runtime, "--root", str(folder / "state")]
    taken: Taken = {}
    for _ in range(count):
        time.sleep(0.1)  # the kernel is quicker with cgroups that have just been changed than a daemon ever meets them
        for verb, more in (
            ("create", ("--bundle", str(bundle), "bare")),
            ("start", ("bare",)),
            ("delete", ("--force", "bare")),
        ):
            began = time.perf_counter()
            subprocess.run([*command, verb, *more], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            taken.setdefault(verb, []).append((time.perf_counter() - began) * 1e3)
    return {verb: statistics.median(values) for verb, values in taken.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m contrib.bench.steps", description="Time the calls of a container.")
    parser.add_argument("--runtime", choices=("runc", "crun"), default="runc", help="OCI runtime; default runc")
    parser.add_argument("--count", type=int, default=8, help="containers, and execs, of each turn; default 8")
    parser.add_argument("--alone", action="store_true", help="without containerd")
    args = parser.parse_args()
    if not steps.installed(args.runtime):
        parser.error(f"needs root, ctr, busybox and {args.runtime}")
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        base = Path(folder)
        peers = [peer for peer in (moored(0, base / "padding"), None if args.alone else containerd()) if peer]
        found: dict[str, Taken] = {peer.name: {} for peer in peers}
        for turn in range(ALTERNATIONS):
            for peer in peers:
                measure(peer, base / f"{peer.name}-{turn}", args.runtime, args.count, found[peer.name])
        alone = bare(base, args.runtime, args.count)
    print(f"{'milliseconds, ' + args.runtime:32}" + "".join(f"{peer.name:>12}" for peer in peers))
    for name in found["moored"]:
        medians = [statistics.median(found[peer.name].get(name, [0.0])) for peer in peers]
        print(f"  {name:30}" + "".join(f"{median:12.1f}" for median in medians))
    for verb, median in alone.items():
        print(f"  {args.runtime + ' ' + verb:30}{median:12.1f}")


if __name__ == "__main__":
    sys.exit(main())
