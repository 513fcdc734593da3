"""`moorctl` on a terminal: raw mode, size, keys, detaching and joining again, and lists that fit."""

from __future__ import annotations

import os
import pty
import subprocess
import termios

import pytest

from e2e.containers import eventually
from e2e.moorctl import IMAGE, Moorctl, needs_moorctl

pytestmark = [*needs_moorctl, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]
SHELL = ("run", "--rm", "-it", "--net", "none", "-e", "PS1=ready> ", IMAGE, "sh")
DETACH = "\x10\x11"
CTRL_C, CTRL_D = "\x03", "\x04"


def test_a_shell_is_talked_to_and_its_status_passed_on(world):
    with world.in_terminal(*SHELL) as screen:
        screen.expect("ready> ")
        screen.type("tty; echo $((40+2))\n")
        screen.expect("/dev/pts/0")
        screen.expect("42")
        screen.type("exit 5\n")

        assert screen.end() == 5


def test_end_of_input_ends_a_shell(world):
    with world.in_terminal(*SHELL) as screen:
        screen.expect("ready> ")
        screen.type(CTRL_D)

        assert screen.end() == 0


def test_the_size_of_the_terminal_follows(world):
    with world.in_terminal(*SHELL) as screen:
        screen.expect("ready> ")
        screen.type("stty size\n")
        screen.expect("24 80")
        screen.resize(50, 132)
        eventually(lambda: asked(screen, "stty size", "50 132"), lambda: screen.text)
        screen.type("exit\n")
        screen.end()


def asked(screen, command, wanted):
    screen.type(f"{command}; echo don''e\n")
    before = screen.text.count("done")
    while screen.text.count("done") == before:
        screen._read(1e9)
    return wanted in screen.text


def test_ctrl_c_is_the_containers(world):
    with world.in_terminal(*SHELL) as screen:
        screen.expect("ready> ")
        screen.type("sleep 600\n")
        screen.expect("sleep 600")
        eventually(lambda: "sleep 600" in processes(world), lambda: processes(world))
        screen.type(CTRL_C)
        screen.type("echo still $((1+1))\n")
        screen.expect("still 2")
        screen.type("exit 3\n")

        assert screen.end() == 3


def processes(world: Moorctl) -> str:
    return world.does("top", world.json("ps")["containers"][0]["name"])


def test_the_terminal_is_as_it_was_afterwards(world):
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        done = subprocess.run(
            world.command("run", "--rm", "-it", "--net", "none", IMAGE, "sh", "-c", "exit 0"),
            stdin=slave,
            capture_output=True,
            check=False,
            timeout=60,
            env=world.environment(TERM="xterm"),
        )
        after = termios.tcgetattr(slave)
    finally:
        os.close(master)
        os.close(slave)

    assert done.returncode == 0, done.stderr
    assert after == before


def test_the_detach_keys_leave_it_running_and_attach_comes_back(world):
    try:
        with world.in_terminal(
            "run", "-it", "--name", "shell", "--net", "none", "-e", "PS1=ready> ", IMAGE, "sh"
        ) as one:
            one.expect("ready> ")
            one.type("x=kept\n")
            one.expect("ready> ")
            one.type(DETACH)

            assert one.end() == 0
            assert "moorctl attach shell" in one.text
        assert world.status("shell") == "running"

        with world.in_terminal("attach", "shell") as again:
            again.type("echo got $x\n")
            again.expect("got kept")
            again.type("exit 6\n")

            assert again.end() == 6
    finally:
        world.run("rm", "-f", "shell")


def test_other_detach_keys_and_their_beginning_typed_for_its_own_sake(world):
    flags = ("--detach-keys", "ctrl-a,d", "--name", "keys")
    try:
        with world.in_terminal("run", "-it", *flags, "--net", "none", "-e", "PS1=ready> ", IMAGE, "sh") as screen:
            screen.expect("ready> ")
            screen.type("cat -v\n")
            screen.expect("cat -v")
            screen.type("\x01x\n")
            screen.expect("^Ax")
            screen.type("\x01d")

            assert screen.end() == 0
    finally:
        world.run("rm", "-f", "keys")


def test_exec_with_a_terminal(world):
    with world.running() as name, world.in_terminal("exec", "-it", "-e", "PS1=inner> ", name, "sh") as screen:
        screen.expect("inner> ")
        screen.type("stty size; exit 9\n")
        screen.expect("24 80")

        assert screen.end() == 9


def test_a_detached_shell_can_be_joined(world):
    with world.running("sh", flags=("-it", "-e", "PS1=ready> ")) as name:
        with world.in_terminal("attach", name) as screen:
            screen.type("echo a$((1+1))b\n")
            screen.expect("a2b")
            screen.type(DETACH)

            assert screen.end() == 0
        assert world.status(name) == "running"
        world.log_has(name, "a2b")


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
def test_a_list_fits_the_terminal(world, columns):
    with world.running("sh", "-c", "sleep 600; echo a very long command that goes on and on") as name:
        with world.in_terminal("ps", COLUMNS=str(columns)) as screen:
            assert screen.end() == 0

        lines = screen.text.splitlines()
        assert len(lines) == 2
        assert max(map(len, lines)) <= columns
        assert name[:7] in screen.text


def test_a_list_is_plain_and_whole_in_a_pipe(world):
    with world.running("sh", "-c", "sleep 600") as name:
        text = world.does("ps", COLUMNS="20")

        assert "\x1b" not in text
        assert name in text
        assert "CONTAINER ID" in text


def test_colours_are_for_terminals_that_want_them(world):
    with world.in_terminal("doctor", "kernel") as colourful:
        colourful.end()
    with world.in_terminal("doctor", "kernel", NO_COLOR="1") as plain:
        plain.end()

    assert "\x1b[" in colourful.text
    assert "\x1b[" not in plain.text
    assert "\x1b[" not in world.does("doctor", "kernel")


def test_ctrl_c_ends_what_only_watches(world):
    with world.in_terminal("stats", "--interval", "200ms") as screen:
        screen.expect("PIDS")
        screen.type(CTRL_C)

        assert screen.end() == 130
        assert "Traceback" not in screen.text
