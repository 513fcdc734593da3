"""Signals as images and people write them."""

from __future__ import annotations

import signal

import pytest

from moored.api.client.signalnames import signal_number
from moored.kernel.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("SIGKILL", 9),
        ("sigusr1", 10),
        ("15", 15),
        (0, 0),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", 63),
    ],
)
def test_names_and_numbers(text, number):
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "SIGFLY", "65", -1, "RTMIN+99", "TERM "])
def test_what_is_no_signal_is_refused(text):
    with pytest.raises(InvalidArgument, match="is not known"):
        signal_number(text)
