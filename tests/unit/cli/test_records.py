"""Decoding of answers, selection, and finding one plugin by a short name."""

from __future__ import annotations

import dataclasses

import pytest

from moored.api.cli import records
from moored.api.moored.daemon.v1 import daemon_pb2
from moored.kernel.errors import Internal, InvalidArgument, NotFound
from unit.cli.canned import GRPC, METADATA, SNAPSHOTTER, plugin, plugins


def test_every_outcome_has_a_word_of_its_own():
    words = [
        records.plugin(daemon_pb2.Plugin(outcome=value)).status
        for name, value in daemon_pb2.Outcome.items()
        if name != "OUTCOME_UNSPECIFIED"
    ]

    assert sorted(words) == sorted(records.STATUSES)


@pytest.mark.parametrize("outcome", [0, 99])
def test_an_outcome_from_a_newer_daemon_is_unknown(outcome):
    message = daemon_pb2.Plugin.FromString(b"\x20" + bytes([outcome]))

    assert records.plugin(message).status == "unknown"


def test_every_field_of_the_wire_is_decoded():
    wire = {field.name for field in daemon_pb2.Plugin.DESCRIPTOR.fields}
    renamed = {"outcome": "status", "import_time": "import_seconds", "start_time": "start_seconds"}

    assert {renamed.get(name, name) for name in wire} == {field.name for field in dataclasses.fields(records.Plugin)}


def test_what_did_not_happen_has_no_time():
    message = daemon_pb2.Plugin()
    assert records.plugin(message).seconds is None

    message.import_time.FromMilliseconds(20)
    assert records.plugin(message).seconds == pytest.approx(0.02)
    assert records.plugin(message).start_seconds is None

    message.start_time.FromMilliseconds(0)
    assert records.plugin(message).start_seconds == 0


def test_a_value_that_is_not_json_is_refused_by_name():
    message = daemon_pb2.ConfigResponse(values=[daemon_pb2.Value(key="gc.delay", value_json="{")])

    with pytest.raises(Internal, match=r"'\{' as the value of 'gc.delay'"):
        records.effective(message)


def test_selection_takes_any_of_the_statuses_and_any_of_the_types():
    def ids(*args):
        return [found.id for found in records.select(plugins(), *args)]

    assert ids((), ()) == [found.id for found in plugins()]
    assert ids(("failed", "skipped"), ()) == ["bolt", "zfs"]
    assert ids((), ("snapshotter",)) == ["zfs", "native"]
    assert ids((), (SNAPSHOTTER, METADATA)) == ["bolt", "zfs", "native"]
    assert ids(("ok",), ("snapshotter",)) == ["native"]
    assert ids((), ("snap",)) == []


def test_counts_are_in_a_fixed_order_without_zeros():
    assert list(records.counts(plugins()).items()) == [
        ("ok", 3),
        ("skipped", 1),
        ("disabled", 1),
        ("failed", 1),
        ("blocked", 3),
    ]


@pytest.mark.parametrize("name", [f"{SNAPSHOTTER}.native", "native", "v1.native", "snapshotter.v1.native"])
def test_a_plugin_is_found_by_its_name_or_the_end_of_it(name):
    assert records.find(plugins(), name).uri == f"{SNAPSHOTTER}.native"


def test_a_whole_id_goes_before_the_end_of_another():
    both = [plugin(GRPC, "my.native"), plugin(SNAPSHOTTER, "native")]

    assert records.find(both, "native").id == "native"
    assert records.find(both[:1], "native").id == "my.native"


def test_an_ambiguous_name_is_refused_with_the_choice():
    both = [plugin(GRPC, "native"), plugin(SNAPSHOTTER, "native")]

    with pytest.raises(InvalidArgument) as refused:
        records.find(both, "native")

    assert str(refused.value) == (
        f"plugin name 'native' is ambiguous, did you mean '{GRPC}.native' or '{SNAPSHOTTER}.native'?"
    )


def test_an_unknown_name_is_answered_with_what_is_near():
    with pytest.raises(NotFound) as refused:
        records.find(plugins(), "natvie")
    assert str(refused.value) == f"no plugin is named 'natvie', did you mean '{SNAPSHOTTER}.native'?"

    with pytest.raises(NotFound, match="list them with: moorctl plugins ls"):
        records.find(plugins(), "qqqqqq")


def test_a_long_choice_is_cut():
    many = [plugin(f"io.x{index}.v1", "same") for index in range(7)]

    with pytest.raises(InvalidArgument, match="or one of 2 more"):
        records.find(many, "same")
