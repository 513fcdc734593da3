"""A host of whose mounts, or network, something is broken for the programs of one test only."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.containers import Done
from e2e.moorctl import Moorctl

SECONDS = 60.0


@dataclass(frozen=True)
class BrokenHost:
    """Namespaces of their own, which a process holds; what happens in them is gone with it."""

    world: Moorctl
    pid: int
    net: bool

    def run(self, words: Sequence[str], **env: str) -> Done:
        """Run a program there."""
        # The root too: entering a mount namespace leaves a chroot.
        into = ["nsenter", "--target", str(self.pid), "--mount", "--root", *(["--net"] if self.net else [])]
        done = subprocess.run(
            [*into, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=self.world.environment(**env),
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def does(self, command: str) -> None:
        """Run a shell command there, which must succeed."""
        done = self.run(["sh", "-c", command])
        assert done.status == 0, f"{command}: {done}"

    def doctor(self, *words: str, **env: str) -> Done:
        """Ask the doctor there."""
        return self.run(self.world.command("doctor", *words), **env)

    def is_told(self, check: str, what: str, remedy: str, **env: str) -> str:
        """The check finds what is broken, and how to mend it; the remedy as it is told."""
        done = self.doctor("--strict", check, **env)
        assert done.status == 1, done
        found, mend = done.out.splitlines()[-2:]
        assert what in found, done
        assert remedy in mend, done
        return mend.partition("mend: ")[2]

    def is_well(self, check: str, **env: str) -> None:
        """The check finds nothing."""
        done = self.doctor("--strict", check, **env)
        assert done.status == 0, done


@contextmanager
def broken_host(world: Moorctl, *, net: bool = False) -> Iterator[BrokenHost]:
    """A copy of this host's mounts, and an empty network if that is wanted."""
    words = ["unshare", "--mount", "--propagation", "private", *(["--net"] if net else [])]
    # It has its namespaces once it speaks.
    holder = subprocess.Popen([*words, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"\n"
        yield BrokenHost(world, holder.pid, net)
    finally:
        holder.stdin.close()
        holder.wait(SECONDS)
        holder.stdout.close()


def programs_without(folder: Path, *missing: str) -> str:
    """A PATH with every program of this host but some."""
    folder.mkdir()
    for place in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(place).glob("*"):
            if program.name not in missing and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def install(path: str, *programs: str) -> None:
    """Put programs where such a PATH looks for them."""
    for program in programs:
        target = shutil.which(program)
        assert target is not None
        link = Path(path) / program
        link.unlink(missing_ok=True)
        link.symlink_to(target)
