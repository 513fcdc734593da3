"""Real clients and the content of a real daemon."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from daemons import Daemon

CTRS = [path for path in [shutil.which("ctr"), *os.environ.get("MOORED_TEST_CTRS", "").split(os.pathsep)] if path]
"""The one on PATH, and further ones (other versions) by their paths."""
DATA = b"hello content"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
EDITED = f"sha256:{hashlib.sha256(b'goodbye content').hexdigest()}"
ABSENT = f"sha256:{'0' * 64}"

CONFIG = """
version = 4
[plugins."io.containerd.gc.v1.scheduler"]
startup_delay = "1h"
"""
"""The collection after the start would take what is not labelled in time."""

pytestmark = [
    pytest.mark.peer,
    pytest.mark.parametrize("ctr", CTRS or [pytest.param("ctr", marks=pytest.mark.skip("needs ctr"))]),
]


class Ctr:
    """`ctr content` in one namespace of a daemon."""

    def __init__(self, ctr: str, daemon: Daemon) -> None:
        self._command = [ctr, "-a", str(daemon.socket), "-n", "ns", "content"]

    def __call__(self, *args: str, data: bytes = b"", status: int = 0) -> str:
        """Run a command, which must end with `status`; its output, or the errors that it ends with."""
        done = subprocess.run([*self._command, *args], input=data, capture_output=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr.decode()
        return (done.stderr if status else done.stdout).decode().strip()

    def digests(self) -> list[str]:
        return self("ls", "-q").split()


def test_ctr_writes_reads_labels_and_removes(tmp_path: Path, ctr: str) -> None:
    with Daemon(tmp_path, CONFIG) as daemon:
        content = Ctr(ctr, daemon)
        content("ingest", "--expected-digest", DIGEST, "--expected-size", str(len(DATA)), "ref", data=DATA)
        content("ingest", "again", data=DATA)
        assert content.digests() == [DIGEST]
        assert content("get", DIGEST) == DATA.decode()
        # Without a root, the collection that `rm` leads to takes what is left.
        assert sorted(content("label", DIGEST, "containerd.io/gc.root=x", "b.c/d=2").split(",")) == [
            "b.c/d=2",
            "containerd.io/gc.root=x",
        ]
        assert content("label", DIGEST, "b.c/d=") == "containerd.io/gc.root=x"
        assert DIGEST in content("ls", 'labels."containerd.io/gc.root"==x')
        assert DIGEST not in content("ls", "labels.other")
        # In place: old ones do not see a file that took the name of theirs.
        (tmp_path / "editor").write_text("printf 'goodbye content' > \"$1\"\n")
        assert content("edit", "--editor", f"sh {tmp_path}/editor", DIGEST) == EDITED
        assert content.digests() == sorted([DIGEST, EDITED])
        assert content("rm", EDITED) == EDITED
        assert content.digests() == [DIGEST]


def test_ctr_is_told_what_is_wrong(tmp_path: Path, ctr: str) -> None:
    with Daemon(tmp_path, CONFIG) as daemon:
        content = Ctr(ctr, daemon)
        assert content("get", ABSENT, status=1).endswith(f"content digest {ABSENT}: not found")
        assert content("label", ABSENT, "a=1", status=1).endswith(f"content digest {ABSENT}: not found")
        assert content("ls", "labels.a=", status=1).endswith(
            'filters: parse error: [labels.a >|=|< ]: unsupported operator "=": invalid argument'
        )
        wrong = content("ingest", "--expected-digest", ABSENT, "digest", data=DATA, status=1)
        assert wrong.endswith(f"unexpected commit digest {DIGEST}, expected {ABSENT}: failed precondition")
        wrong = content("ingest", "--expected-size", "5", "size", data=DATA, status=1)
        assert wrong.endswith(f'"size" failed size validation: {len(DATA)} != 5: failed precondition')
        assert [line.split()[:2] for line in content("active").splitlines()[1:]] == [["digest", "13B"], ["size", "13B"]]


def test_content_survives_a_restart_of_the_daemon(tmp_path: Path, ctr: str) -> None:
    daemon = Daemon(tmp_path, CONFIG)
    with daemon:
        content = Ctr(ctr, daemon)
        content("ingest", "ref", data=DATA)
        content("label", DIGEST, "containerd.io/gc.root=x")
        content("ingest", "--expected-size", "5", "left", data=DATA, status=1)
    daemon.log.unlink()
    with daemon:
        assert content("get", DIGEST) == DATA.decode()
        assert content("active").splitlines()[1].split()[:2] == ["left", "13B"]
