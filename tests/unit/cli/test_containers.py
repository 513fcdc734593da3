"""Names, notes and changes of containers, and what is read of their counters."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from moored.api.cgroups.v1 import metrics_pb2 as v1
from moored.api.cgroups.v2 import metrics_pb2 as v2
from moored.api.cli.commit import changed
from moored.api.cli.counters import percent, use
from moored.api.cli.diff import listed
from moored.api.cli.identity import NOTES, Notes, check_name, new_name, notes, short
from moored.api.cli.inspect import formatted
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import Metric


def test_notes_go_into_a_label_and_come_back():
    given = Notes(network="bridge", log="/l", terminal=True, volumes=["v"], names={"hostname": "h"})

    assert notes({NOTES: given.label()}) == given
    assert Notes().label() == "{}"


@pytest.mark.parametrize("label", ["", "[]", "nonsense", '{"later": 1}'])
def test_a_label_that_cannot_be_read_is_as_usual(label):
    assert notes({NOTES: label}) == Notes()


def test_made_up_names_are_names_that_are_not_taken():
    taken: set[str] = set()
    for _ in range(200):
        taken.add(check_name(new_name(taken)))

    assert len(taken) == 200


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 77])
def test_other_names_are_refused(name):
    with pytest.raises(InvalidArgument, match="container name"):
        check_name(name)


def test_only_an_id_that_was_made_up_is_cut():
    assert short("ab" * 32) == "abababababab"
    assert short("my-own-long-container-id") == "my-own-long-container-id"


@pytest.mark.parametrize(
    ("instruction", "config"),
    [
        ('CMD ["a","b"]', {"Cmd": ["a", "b"]}),
        ("CMD a b", {"Cmd": ["/bin/sh", "-c", "a b"]}),
        ('entrypoint ["e"]', {"Entrypoint": ["e"]}),
        ('ENV A=1 B="2 3"', {"Env": ["A=1", "B=2 3"]}),
        ("ENV A 1 2", {"Env": ["A=1 2"]}),
        ("EXPOSE 80 53/udp", {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        ("LABEL a=b", {"Labels": {"a": "b"}}),
        ('VOLUME ["/v"]', {"Volumes": {"/v": {}}}),
        ("USER u", {"User": "u"}),
        ("WORKDIR /w", {"WorkingDir": "/w"}),
        ("STOPSIGNAL SIGINT", {"StopSignal": "SIGINT"}),
    ],
)
def test_instructions_change_an_images_config(instruction, config):
    process: dict = {}

    changed(process, instruction)

    assert process == config


def test_a_variable_takes_the_place_of_the_one_of_its_name():
    process = {"Env": ["A=0", "B=0"]}

    changed(process, "ENV A=1")

    assert process == {"Env": ["B=0", "A=1"]}


@pytest.mark.parametrize("instruction", ["", "CMD", "RUN x", "ENV A=1 B", 'LABEL "a'])
def test_other_instructions_are_refused(instruction):
    with pytest.raises(InvalidArgument, match="change"):
        changed({}, instruction)


def test_entries_of_a_layer_are_added_changed_or_deleted():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("etc/passwd", "new", "etc/.wh.group", "etc/.wh..wh..opq"):
            archive.addfile(tarfile.TarInfo(name))
    out.seek(0)

    found = list(listed(out, lambda path: path == "/etc/passwd"))

    assert found == [("changed", "/etc/passwd"), ("added", "/new"), ("deleted", "/etc/group")]


def metric(message, moment: int) -> Metric:
    return Metric(id="c", timestamp=moment, data=TypedBytes(message.DESCRIPTOR.full_name, message.SerializeToString()))


def test_counters_of_both_versions_are_read():
    old, new = v1.Metrics(), v2.Metrics()
    old.cpu.usage.total = new_total = 5_000_000
    old.memory.usage.usage, old.memory.total_inactive_file, old.memory.usage.limit = 100, 30, 1 << 62
    new.cpu.usage_usec = new_total // 1000
    new.memory.usage, new.memory.inactive_file, new.memory.usage_limit = 100, 30, 500

    first, second = use(metric(old, 1)), use(metric(new, 1))

    assert (first.cpu, first.memory, first.limit) == (5_000_000, 70, 0)
    assert (second.cpu, second.memory, second.limit) == (5_000_000, 70, 500)


def test_the_share_of_a_processor_is_that_since_the_last_look():
    old, new = v2.Metrics(), v2.Metrics()
    new.cpu.usage_usec = 500_000
    before, now = use(metric(old, 0)), use(metric(new, 1_000_000_000))

    assert percent(before, now) == pytest.approx(50.0)
    assert percent(None, now) == 0.0


def test_fields_of_a_document_are_filled_in():
    document = {"id": "x", "spec": {"args": ["a", 1]}}

    assert formatted("{id}: {spec[args][0]} {spec[args]}", document) == f"x: a {json.dumps(['a', 1])}"
    with pytest.raises(InvalidArgument, match="there is no field 'nosuch'"):
        formatted("{nosuch}", document)
