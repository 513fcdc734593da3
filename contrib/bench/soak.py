"""Runs many containers through a daemon of ours and watches what it keeps: memory, descriptors, threads, leftovers.

    python -m contrib.bench.soak [--containers N] [--clients N] [--runtime runc|crun] [--samples N]

Each container gets a snapshot, is started, has `true` executed in it, is killed and deleted with all that it had. The
daemon and its zygote are looked at again and again; what they hold at the end may be no more than after a fifth of the
work, but for a little. Ends with status 1 if a call failed, something grew, or something is left. Needs root, ctr,
busybox and the runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from contrib.bench import containers as steps
from contrib.bench.http2 import CallFailed, Client, Link
from contrib.bench.memory import family
from contrib.bench.peers import Running, memory_mb, moored, running
from contrib.bench.rounds import say

GROWTH = {"private_mb": 6.0, "descriptors": 8, "threads": 12}
"""What may be more at the end, of the daemon and its helpers together; their pools of threads fill slowly."""
SETTLE_SECONDS = 10.0
_BUNDLES = "io.containerd.runtime.v2.task"


@dataclass(frozen=True)
class Sample:
    """What the daemon and its helpers hold after so many containers."""

    containers: int
    private_mb: float
    descriptors: int
    threads: int
    processes: int


def sample(running_: Running, done: int) -> Sample:
    """Look at the daemon, its zygote and other helpers; not at shims, which are no children of it for long."""
    shims = set(steps.shims(running_.address))
    pids = [pid for pid in family(running_.pid) if pid not in shims]
    return Sample(
        containers=done,
        private_mb=round(sum(memory_mb(pid)["private"] for pid in pids), 2),
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
        processes=len(pids),
    )


def lives(runtime: str, ids: list[str]) -> Callable[[Link], Client]:
    """A client that has containers live one after the other."""

    def client(link: Link) -> Client:
        for id_ in ids:
            yield from steps.create(link, id_, runtime, "sleep", "1000")
            yield from steps.start(link, id_)
            yield from steps.execute(link, id_, "exec")
            yield from steps.kill(link, id_)
            yield from steps.delete(link, id_)

    return client


def left(running_: Running) -> list[str]:
    """What there still is of any container, once it had time to go."""
    folder = Path(running_.address).parent
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = [f"shim {pid}" for pid in steps.shims(running_.address)]
        found += [f"cgroup {path}" for path in steps.CGROUPS.glob(f"*/{steps.NAMESPACE}/*/")]
        found += [f"folder {path}" for kind in ("root", "state") for path in (folder / kind / _BUNDLES).glob("*/*")]
        found += [f"socket {path}" for path in (folder / "state/s").glob("*")]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line.split()[4]}" for line in mounts if str(folder) in line]
        snapshots = folder / f"root/io.containerd.snapshotter.v1.{steps.SNAPSHOTTER}/snapshots"
        if (kept := len(list(snapshots.glob("*")))) > 1:
            found.append(f"{kept} snapshots, wanted that of the image")
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def grown(first: Sample, last: Sample) -> list[str]:
    """What has grown more than it may."""
    pairs = {name: (getattr(first, name), getattr(last, name)) for name in GROWTH}
    return [f"{name} from {old} to {new}" for name, (old, new) in pairs.items() if new - old > GROWTH[name]]


def soak(base: Path, args: argparse.Namespace) -> dict[str, object]:
    """Do it; what was found, with `faults` empty if all is well."""
    samples: list[Sample] = []
    faults: list[str] = []
    began = time.perf_counter()
    with running(moored(0, base / "padding"), base / "daemon") as one, steps.swept(one):
        steps.bring_image(one.address, base)
        steps.work(one.address, [lives(args.runtime, [f"first-{at}"]) for at in range(args.clients)])
        each = max(1, args.containers // args.samples // args.clients)
        for number in range(args.samples):
            names = [[f"soak-{number}-{client}-{at}" for at in range(each)] for client in range(args.clients)]
            try:
                steps.work(one.address, [lives(args.runtime, ids) for ids in names])
            except (CallFailed, RuntimeError) as error:
                faults.append(f"round {number}: {error}")
                break
            time.sleep(1.0)  # what ends by itself has ended
            samples.append(sample(one, each * args.clients * (number + 1)))
            say(f"soak: {samples[-1]}")
        faults += left(one)
    if len(samples) > 1:
        faults += grown(samples[(len(samples) - 1) // 5], samples[-1])
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 1), "samples": [asdict(found) for found in samples], "faults": faults}


def main() -> int:
    """Print what was found as JSON."""
    parser = argparse.ArgumentParser(prog="python -m contrib.bench.soak", description="Run many containers.")
    parser.add_argument("--containers", type=int, default=2000, help="how many; default 2000")
    parser.add_argument("--clients", type=int, default=8, help="how many side by side; default 8")
    parser.add_argument("--samples", type=int, default=10, help="how often the daemon is looked at; default 10")
    parser.add_argument("--runtime", choices=("runc", "crun"), default="runc", help="OCI runtime; default runc")
    args = parser.parse_args()
    if not steps.installed(args.runtime):
        parser.error(f"needs root, ctr, busybox and {args.runtime}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(Path(folder), args)
    print(json.dumps(found, indent=2))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
