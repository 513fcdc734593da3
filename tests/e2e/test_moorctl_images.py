"""`moorctl` and images, namespaces and stores: lists, names, archives, registries, what may go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.containers import eventually
from e2e.moorctl import IMAGE, Moorctl, needs_moorctl, nothing_is_left
from e2e.registries import needs_registry, serving

pytestmark = [*needs_moorctl, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]


@pytest.fixture
def nothing_of_moorctl_is_left(world: Moorctl) -> Iterator[None]:
    yield
    nothing_is_left(world)
    assert world.does("images", "-q") == f"{IMAGE}\n"


def test_an_image_is_known_by_its_short_name_and_its_digest(world):
    listed = world.json("images")["images"]
    digest = listed[0]["digest"]

    assert [(one["name"], one["platforms"]) for one in listed] == [(IMAGE, ["linux/amd64"])]
    assert listed[0]["size"] > 100_000
    for text in ("test/busybox", "test/busybox:latest", IMAGE, digest, digest[7:19]):
        assert world.json("inspect", "--type", "image", text)[0]["name"] == IMAGE


def test_a_tag_is_a_further_name_that_can_go(world):
    world.does("tag", "test/busybox", "other:2")

    assert set(world.does("images", "-q").split()) == {IMAGE, "docker.io/library/other:2"}
    assert world.does("run", "--rm", "--net", "none", "other:2", "echo", "runs") == "runs\n"
    assert world.does("rmi", "other:2") == "docker.io/library/other:2\n"


def test_an_image_in_use_is_not_removed_unless_forced(world):
    with world.running():
        done = world.run("rmi", "test/busybox")

    assert done.status == 1
    assert "is used by container" in done.err


def test_an_image_goes_into_an_archive_and_comes_back(world, tmp_path):
    file = tmp_path / "saved.tar"
    world.does("tag", "test/busybox", "kept:1")

    world.does("save", "-o", file, "kept:1")
    piped = world.run("save", "kept:1")
    world.does("rmi", "kept:1")

    assert file.stat().st_size == len(piped.out.encode("utf-8", "surrogateescape")) or file.stat().st_size > 1 << 20
    assert world.does("load", "-i", file) == "docker.io/library/kept:1\n"
    assert world.does("run", "--rm", "--net", "none", "kept:1", "echo", "back") == "back\n"
    world.does("rmi", "kept:1")
    assert world.does("load", data=file.read_bytes()) == "docker.io/library/kept:1\n"
    world.does("rmi", "kept:1")


def test_what_is_no_archive_is_refused(world, tmp_path):
    (tmp_path / "file").write_text("no archive")

    assert world.run("load", "-i", tmp_path / "file").status == 1
    assert "there is no file" in world.run("load", "-i", tmp_path / "nosuch").err


@needs_registry
def test_an_image_goes_to_a_registry_and_comes_back(world):
    with serving(world.place.folder / "registry") as address:
        name = f"{address}/dir/app:1"
        world.does("tag", "test/busybox", name)

        assert world.does("push", "--plain-http", name) == f"{name}\n"
        world.does("rmi", name)
        assert world.json("pull", "--plain-http", name)["images"][0]["name"] == name
        assert world.does("run", "--rm", "--net", "none", name, "echo", "pulled") == "pulled\n"
        missing = world.run("pull", "--plain-http", f"{address}/dir/nosuch:1")
        world.does("rmi", name)

    assert missing.status == 1
    assert "dir/nosuch:1" in missing.err
    assert missing.err.count("\n") == 1


@needs_registry
def test_progress_is_for_terminals(world):
    with serving(world.place.folder / "registry2") as address:
        name = f"{address}/app:1"
        world.does("tag", "test/busybox", name)
        quiet = world.run("push", "--plain-http", name)
        with world.in_terminal("push", "--plain-http", name) as screen:
            assert screen.end() == 0
        world.does("rmi", name)

    assert quiet.err == ""
    assert "layer" in screen.text


# --- stores -----------------------------------------------------------------------------------------------------------


def test_namespaces_are_apart(world):
    try:
        world.does("namespace", "create", "other", "owner=me")

        assert {"name": "other", "labels": {"owner": "me"}} in world.json("namespace", "ls")["namespaces"]
        assert world.does("-n", "other", "images", "-q") == ""
        world.does("namespace", "label", "other", "owner=")
        assert world.json("-n", "other", "namespace", "ls") is not None
    finally:
        world.does("namespace", "rm", "other")


def test_leases_are_made_listed_and_removed(world):
    made = world.does("lease", "create", "--expires", "1h", "mine", "a=b").strip()

    found = world.json("lease", "ls", "-v")["leases"]

    assert made == "mine"
    assert [(one["id"], one["labels"]["a"], one["resources"]) for one in found] == [("mine", "b", [])]
    assert world.does("lease", "rm", "mine") == "mine\n"


def test_content_is_listed_read_and_verified(world):
    digests = world.does("content", "ls", "-q").split()
    manifest = world.json("images")["images"][0]["digest"]

    assert manifest in digests
    assert json.loads(world.does("content", "get", manifest))["schemaVersion"] == 2
    assert world.does("content", "verify", manifest) == f"{manifest} ok\n"
    assert world.json("content", "ingests") == {"ingests": []}


def test_snapshots_are_listed_with_their_parents(world):
    with world.running():
        found = world.json("snapshot", "ls", "--usage")["snapshots"]
        drawn = world.does("snapshot", "tree").splitlines()
        key = next(one for one in found if one["kind"] == "active")

        assert key["parent"] in {one["name"] for one in found}
        assert key["size"] >= 0
        assert [line.startswith("  ") for line in drawn] == [False, True]
        assert world.json("snapshot", "mounts", key["name"])["mounts"][0]["type"] in {"overlay", "bind"}


def test_disk_use_is_told_and_what_is_not_in_use_can_go(world):
    world.does("run", "--name", "ended", "--net", "none", "-v", "/loose", IMAGE, "echo", "x")
    with world.running() as name:
        disk = {one["kind"]: one for one in world.json("df")["disk"]}
        planned = world.json("prune", "--dry-run")
        refused = world.run("prune")
        done = world.json("prune", "-f")

        assert (disk["containers"]["count"], disk["containers"]["active"]) == (2, 1)
        assert disk["content"]["size"] > 100_000
        assert len(planned["containers"]) == 1
        assert len(planned["volumes"]) == 1
        assert refused.status == 1
        assert "use --force" in refused.err
        assert (done["removed"], done["containers"]) == (True, planned["containers"])
        assert [one["name"] for one in world.json("ps", "-a")["containers"]] == [name]


# --- watching ---------------------------------------------------------------------------------------------------------


def test_events_are_shown_as_they_happen(world):
    wanted = ("-f", 'topic=="/tasks/exit"', "--count", "1", "--for", "30s")
    with world.started("--json", "events", *wanted) as watching:

        def heard() -> bool:
            world.run("run", "--rm", "--net", "none", IMAGE, "sh", "-c", "exit 3")
            return watching.poll() is not None

        eventually(heard, lambda: "no event came")
        out, err = watching.communicate()

    event = json.loads(out)
    assert (event["topic"], event["event"]["exit_status"], err) == ("/tasks/exit", 3, b"")


def test_use_and_processes_of_containers_are_told(world):
    with world.running("sh", "-c", "sleep 600; :") as name:
        used = world.json("stats", "--no-stream", name)["containers"][0]
        processes = world.json("top", name)["processes"]

        assert (used["name"], used["pids"]) == (name, 2)
        assert used["memory"] > 0
        assert [one["command"] for one in processes] == ["sh -c sleep 600; :", "sleep 600"]
        assert processes[0]["container_pid"] == 1


def test_the_daemon_is_told_about(world):
    found = world.json("info")

    assert found["counts"]["images"] == 1
    assert "overlayfs" in found["snapshotters"]
    assert found["plugins"]["failed"] == 0


def test_the_doctor_finds_the_host_fit(world):
    found = world.json("doctor", "kernel", "namespaces", "runtimes", "daemon", "plugins", "snapshotters")

    assert found["ok"] is True
    assert {one["verdict"] for one in found["findings"]} == {"ok"}


def test_the_doctor_tells_how_to_mend_a_daemon_that_is_not_there(world, tmp_path):
    done = world.run("doctor", "daemon", MOORED_ADDRESS=str(tmp_path / "nobody.sock"))

    assert done.status == 1
    assert "the daemon cannot be asked: there is no socket" in done.out
    assert "mend: start it with: moored" in done.out


def test_names_are_completed_by_the_daemon(world):
    with world.running() as name:
        env = {"_MOORCTL_COMPLETE": "bash_complete", "COMP_WORDS": f"moorctl stop {name[:2]}", "COMP_CWORD": "2"}
        assert f"plain,{name}" in world.run(**env).out  # type: ignore[arg-type]


def test_pages_are_written_for_every_command(world, tmp_path):
    world.does("man", "--folder", tmp_path)

    names = {path.name for path in Path(tmp_path).iterdir()}
    assert {"moorctl.1", "moorctl-run.1", "moorctl-snapshot-ls.1", "moorctl-plugins-why.1"} <= names
