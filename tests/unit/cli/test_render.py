"""Lists of plugins in every width, and foreign text made harmless."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.text import Text

from moored.api.cli.records import counts
from moored.api.cli.render import Screen, duration, line, listing, screen, summary
from unit.cli.canned import EVENT, plugin, plugins


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def shown(width, some=None):
    return Screen(width).text(listing(plugins() if some is None else some, width))


def test_a_list_that_is_not_for_a_terminal_is_one_full_line_a_plugin():
    rows = [(row[:72].rstrip(), row[72:]) for row in shown(None).splitlines()]

    assert rows == [
        ("TYPE                          ID        STATUS    TIME  FROM", "REASON"),
        ("io.containerd.content.v1      content   ok        12ms  moored 0.1.0", ""),
        ("io.containerd.event.v1        exchange  ok        12ms  moored 0.1.0", ""),
        ("io.containerd.metadata.v1     bolt      failed    1.3s  moored 0.1.0", plugins()[2].reason),
        ("io.containerd.snapshotter.v1  zfs       skipped      -  moored-zfs 2.0", plugins()[3].reason),
        ("io.containerd.snapshotter.v1  native    ok        12ms  moored 0.1.0", ""),
        ("io.containerd.grpc.v1         images    blocked      -  moored 0.1.0", plugins()[5].reason),
        ("io.containerd.grpc.v1         cri       blocked      -  moored 0.1.0", plugins()[6].reason),
        ("io.containerd.grpc.v1         transfer  blocked      -  moored 0.1.0", plugins()[7].reason),
        ("io.containerd.nri.v1          nri       disabled     -  moored 0.1.0", plugins()[8].reason),
    ]


def test_a_wide_terminal_gets_the_table_with_reasons_broken_inside_their_column():
    rows = shown(120).splitlines()

    assert rows[0].split() == ["TYPE", "ID", "STATUS", "TIME", "FROM", "REASON"]
    assert rows[6].endswith("requires io.containerd.metadata.v1:")
    assert rows[7] == " " * 72 + "io.containerd.metadata.v1.bolt is failed"


def test_a_middling_terminal_gets_a_line_a_plugin_and_its_reason_below():
    assert shown(80).splitlines()[:8] == [
        "ok         io.containerd.content.v1.content  12ms  moored 0.1.0",
        "ok         io.containerd.event.v1.exchange  12ms  moored 0.1.0",
        "failed     io.containerd.metadata.v1.bolt  1.3s  moored 0.1.0",
        "  OSError: [Errno 28] No space left on device",
        "skipped    io.containerd.snapshotter.v1.zfs  moored-zfs 2.0",
        "  /var/lib/moored is no zfs dataset",
        "ok         io.containerd.snapshotter.v1.native  12ms  moored 0.1.0",
        "blocked    io.containerd.grpc.v1.images  moored 0.1.0",
    ]


@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(width):
    text = shown(width)

    assert max(map(cell_len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for found in plugins():
        for part in (found.type, found.id, found.status, found.source, found.reason):
            if width < 100:
                assert "".join(part.split()) in squeezed
            else:
                assert all(word in text for word in part.split())


def test_a_list_of_nothing_still_has_its_header():
    assert shown(None, []).split() == ["TYPE", "ID", "STATUS", "TIME", "FROM", "REASON"]


def test_foreign_text_cannot_steer_the_terminal():
    evil = plugin(EVENT, "evil", "failed", reason="a\nb\x1b[31m\x07[red]c[/red] :smile: \u202e\t.")

    text = shown(None, [evil])

    assert text.splitlines()[1].endswith(r"a b\x1b[31m\x07[red]c[/red] :smile: \u202e .")


def test_colours_only_where_the_screen_has_them():
    assert Screen(width=80, colour=True).text(Text("x", "green")) == "\x1b[32mx\x1b[0m\n"
    assert Screen(width=80).text(Text("x", "green")) == "x\n"


def test_what_an_ascii_terminal_cannot_show_is_escaped():
    assert Screen(ascii=True).text(line("é")) == "\\xe9\n"


@pytest.mark.parametrize(
    ("env", "no_color", "colour"),
    [
        ({"TERM": "xterm"}, False, True),
        ({"TERM": "xterm"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_has_colours_unless_told_otherwise(monkeypatch, env, no_color, colour):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "57")
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert screen(Terminal(), no_color=no_color) == Screen(width=57, colour=colour)


def test_a_pipe_has_neither_width_nor_colours(monkeypatch):
    monkeypatch.setenv("COLUMNS", "57")

    assert screen(io.StringIO(), no_color=False) == Screen()
    assert screen(None, no_color=False) == Screen()
    assert screen(io.TextIOWrapper(io.BytesIO(), encoding="latin-1"), no_color=False) == Screen(ascii=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "<1ms"), (0.0123, "12ms"), (0.9996, "1.0s"), (1.34, "1.3s"), (9.96, "10s"), (75, "75s")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_summary_is_one_line():
    assert summary(counts(plugins())) == "3 ok, 1 skipped, 1 disabled, 1 failed, 3 blocked"
    assert summary({}) == "no plugins"
