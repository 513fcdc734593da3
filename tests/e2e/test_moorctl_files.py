"""`moorctl cp`, `diff` and `commit`: files of containers, also of those that lay links."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from e2e.moorctl import IMAGE, needs_moorctl

pytestmark = [*needs_moorctl, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text("content")
    (folder / "inner" / "deep").write_bytes(b"\0" * 3000)
    (folder / "link").symlink_to("file")
    (folder / "file").chmod(0o4750)
    return folder


def test_a_tree_goes_in_and_comes_back_the_same(world, tree, tmp_path):
    with world.running() as name:
        world.does("cp", "-a", tree, f"{name}:/srv")
        world.does("cp", "-a", f"{name}:/srv/.", tmp_path / "back")

    assert listed(tmp_path / "back") == listed(tree)


def listed(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def test_a_setuid_file_comes_out_without_that_bit(world, tmp_path):
    with world.running("sh", "-c", "touch /s; busybox chmod 4755 /s; sleep 600") as name:
        while not world.run("exec", name, "ls", "/s").out:
            pass
        world.does("cp", f"{name}:/s", tmp_path / "s")

    assert (tmp_path / "s").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("runs", [True, False])
def test_a_link_of_the_container_does_not_lead_to_the_host(world, tmp_path, runs):
    canary = tmp_path / "canary"
    canary.mkdir()
    script = f"ln -s {canary} /out; ln -s ../../../../../../../..{canary} /up; " + (
        "sleep 600" if runs else "echo done"
    )
    with world.running("sh", "-c", script) as name:
        if runs:
            while "up" not in world.run("exec", name, "ls", "/").out:
                pass
        else:
            world.becomes(name, "exited")
        (tmp_path / "file").write_text("x")

        for link in ("out", "up"):
            assert "no such file or directory" in world.run("cp", tmp_path / "file", f"{name}:/{link}/file").err
            assert world.run("cp", f"{name}:/{link}/.", tmp_path / "stolen").status == 1

    assert list(canary.iterdir()) == []
    assert not (tmp_path / "stolen").exists()


def test_a_container_that_swaps_a_folder_for_a_link_does_not_lead_to_the_host(world, tmp_path):
    canary = tmp_path / "canary"
    canary.mkdir()
    (tmp_path / "file").write_text("x")
    swap = f"mkdir /d; while :; do busybox mv /d /e; ln -s {canary} /d; busybox unlink /d; busybox mv /e /d; done"
    with world.running("sh", "-c", swap) as name:
        outcomes = {world.run("cp", tmp_path / "file", f"{name}:/d/file").status for _ in range(15)}

    assert list(canary.iterdir()) == []
    assert outcomes <= {0, 1}


def test_an_archive_goes_in_without_leaving_its_folder(world):
    with world.running() as name:
        world.does("cp", "-", f"{name}:/tmp", data=archive(("a/b", b"one"), ("a/c", b"two")))
        refused = world.run("cp", "-", f"{name}:/tmp", data=archive(("../etc/evil", b"x")))

        assert world.does("exec", name, "cat", "/tmp/a/b", "/tmp/a/c") == "onetwo"
        assert "must not have '..'" in refused.err
        assert world.run("exec", name, "cat", "/etc/evil").status == 1


def archive(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_an_archive_comes_out_on_standard_output(world):
    with world.running() as name:
        done = world.run("cp", f"{name}:/etc/passwd", "-")

    assert "root:x:0:0" in done.out


def test_the_rules_of_places_are_those_of_docker(world, tree, tmp_path):
    with world.running() as name:
        assert world.run("cp", tree / "file", f"{name}:/nosuch/").status == 1
        assert world.run("cp", tree, f"{name}:/etc/passwd").status == 1
        world.does("cp", tree, f"{name}:/tmp")
        world.does("cp", f"{tree}/.", f"{name}:/tmp")

        assert sorted(world.does("exec", name, "ls", "/tmp").split()) == ["file", "inner", "link", "tree"]


def test_a_file_that_is_mounted_on_can_be_written(world, tmp_path):
    (tmp_path / "hosts").write_text("10.0.0.1 here\n")
    with world.running() as name:
        world.does("cp", tmp_path / "hosts", f"{name}:/etc/hosts")

        assert world.does("exec", name, "cat", "/etc/hosts") == "10.0.0.1 here\n"


def test_changes_are_listed_and_become_an_image(world):
    script = "echo hi > /new; rm /etc/group; echo x >> /etc/passwd"
    try:
        world.does("run", "--name", "changed", "--net", "none", IMAGE, "sh", "-c", script)

        listed = {(one["kind"], one["path"]) for one in world.json("diff", "changed")["changes"]}
        world.does("commit", "-m", "why", "-c", 'CMD ["cat","/new"]', "-c", "ENV A=b", "changed", "made:1")
        image = world.json("inspect", "--type", "image", "made:1")[0]

        assert {("added", "/new"), ("deleted", "/etc/group"), ("changed", "/etc/passwd")} <= listed
        assert world.does("run", "--rm", "--net", "none", "made:1") == "hi\n"
        assert image["config"]["config"]["Env"] == ["A=b"]
        assert len(image["manifest"]["layers"]) == 2
        assert world.run("run", "--rm", "--net", "none", "made:1", "ls", "/etc/group").status == 1
    finally:
        world.run("rm", "-f", "changed")
        world.run("rmi", "-f", "made:1")
