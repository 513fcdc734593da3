"""Tables in every width."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moored.api.cli.tables import Column, cells, cut, table

COLUMNS = [
    Column("ID", rank=1),
    Column("COMMAND", least=6, rank=3),
    Column("SIZE", right=True, rank=2),
    Column("NAME", least=4),
]
ROWS = [["0123456789ab", "sleep 600 and more", "1MiB", "harbour"], ["fedcba987654", "sh", "12MiB", "quay"]]


def test_columns_are_aligned_and_lines_have_no_blanks_at_their_ends():
    assert table(COLUMNS, ROWS, None) == (
        "ID             COMMAND               SIZE   NAME\n"
        "0123456789ab   sleep 600 and more    1MiB   harbour\n"
        "fedcba987654   sh                   12MiB   quay\n"
    )


def test_the_widest_column_gives_way_first():
    assert table(COLUMNS, ROWS, 44).splitlines()[1] == "0123456789ab   sleep 600…     1MiB   harbour"


def test_columns_of_high_rank_go_where_it_is_narrow():
    assert table(COLUMNS, ROWS, 20) == "ID             NAME\n0123456789ab   harb…\nfedcba987654   quay\n"


@given(st.integers(5, 200), st.lists(st.lists(st.text(max_size=30), min_size=4, max_size=4), max_size=4))
def test_no_line_is_wider_than_the_terminal_but_by_a_column_that_cannot_go(width, rows):
    text = table(
        [Column("A", least=3), Column("B", least=3, rank=1), Column("C", rank=2, least=3), Column("D", rank=3)],
        rows,
        width,
    )

    assert text.count("\n") == len(rows) + 1
    assert max(cells(line) for line in text.splitlines()) <= max(width, 3)


def test_what_terminals_would_obey_is_escaped():
    assert "\x1b" not in table([Column("A")], [["\x1b[2Jx\n\ry"]], None)


def test_wide_characters_count_twice():
    assert cells("船a") == 3
    assert cut("船船船", 5) == "船船…"


def test_no_rows_are_a_title():
    assert table([Column("A"), Column("B")], [], 80) == "A   B\n"
