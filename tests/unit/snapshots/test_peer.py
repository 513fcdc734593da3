"""A root that containerd left is served as it is, once its metadata.db is imported."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import Kind, Usage
from moored.plugins.metadata.bbolt.copy import import_file
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from unit.snapshots.world import layers_of, mounted, opened

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("containerd") is None, reason="needs Debian's containerd"),
]
LABEL = "containerd.io/snapshot/kept"


@contextmanager
def containerd(folder: Path) -> Generator[Path]:
    """A containerd with its own root; gives its socket."""
    socket = folder / "c.sock"
    config = folder / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
        # A view has no label that would keep it.
        '[plugins."io.containerd.gc.v1.scheduler"]\nstartup_delay = "1h"\n'
    )
    with subprocess.Popen(["containerd", "-c", str(config)], stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 20
            while subprocess.run(["ctr", "-a", str(socket), "version"], capture_output=True, check=False).returncode:
                assert time.monotonic() < end, "containerd does not start"
                time.sleep(0.05)
            yield socket
        finally:
            process.send_signal(signal.SIGTERM)


def fill(socket: Path, kind: str, folder: Path) -> dict[str, str]:
    """Snapshots of each kind; gives what `ctr snapshots mounts` says of those that have mounts."""

    def ctr(*arguments: str) -> str:
        command = ["ctr", "-a", str(socket), "snapshots", "--snapshotter", kind, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return done.stdout

    for number, parent in ((1, []), (2, ["c1"])):
        command = ctr("prepare", "--target", str(folder / "mnt"), f"a{number}", *parent)
        (folder / "mnt").mkdir(exist_ok=True)
        subprocess.run(command, shell=True, check=True)
        (folder / f"mnt/f{number}").write_text(str(number))
        subprocess.run(["umount", str(folder / "mnt")], check=True)
        ctr("commit", f"c{number}", f"a{number}")
    ctr("prepare", "active", "c2")
    ctr("view", "view", "c2")
    ctr("label", "c1", f"{LABEL}=1")
    return {key: ctr("mounts", "/target", key) for key in ("active", "view")}


def shown(mounts: list[Mount]) -> list[str]:
    """The mounts as ctr prints them, in words; containerd 1.6 has the options in another order."""
    (one,) = mounts
    return words(f"mount -t {one.type} {one.source} /target -o {','.join(one.options)}\n")


def words(command: str) -> list[str]:
    *first, options = command.split()
    return [*first, *sorted(options.split(","))]


@pytest.mark.parametrize("kind", ["native", "overlayfs"])
@on_loop
async def test_root_of_containerd_is_served(tmp_path: Path, kind: str) -> None:
    with containerd(tmp_path) as socket:
        mounts = fill(socket, kind, tmp_path)
    root = tmp_path / f"root/io.containerd.snapshotter.v1.{kind}"
    database = LmdbDatabase.opened(root / "metadata")
    await import_file(root / "metadata.db", database)
    await database.close()
    async with opened(layers_of(kind, root)) as s:
        names = {info.name.split("/")[-1]: info for info in [info async for info in s.walk()]}
        assert {key: info.kind for key, info in names.items()} == {
            "c1": Kind.COMMITTED,
            "c2": Kind.COMMITTED,
            "active": Kind.ACTIVE,
            "view": Kind.VIEW,
        }
        assert names["active"].parent == names["view"].parent == names["c2"].name
        assert names["c1"].labels == {LABEL: "1"}
        assert await s.usage(names["c2"].name) != Usage()
        for key, wanted in mounts.items():
            found = await s.mounts(names[key].name)
            assert shown(found) == words(wanted)
            async with mounted(found) as top:
                assert sorted(path.name for path in top.iterdir()) == ["f1", "f2"]
        before = {path.name for path in (root / "snapshots").iterdir()}
        await s.cleanup()
        assert {path.name for path in (root / "snapshots").iterdir()} == before
        made = await s.prepare("new", names["c2"].name)
        async with mounted(made) as top:
            assert sorted(path.name for path in top.iterdir()) == ["f1", "f2"]
        for key in ("active", "view"):
            await s.remove(names[key].name)
        await s.remove("new")
        await s.remove(names["c2"].name)
        await s.remove(names["c1"].name)
        await s.cleanup()
    assert list((root / "snapshots").iterdir()) == []
