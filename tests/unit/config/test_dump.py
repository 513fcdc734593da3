"""What is shown: the effective configuration, the default file, a migrated file, the schema, the commands."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moored.config import commands
from moored.config.check import check_plugins
from moored.config.dump import default_toml, dump, dump_origin, effective, migrate_text, values
from moored.config.load import Flags, load_text
from moored.config.main_section import Main
from moored.config.schema import DURATION_PATTERN, json_schema
from moored.config.toml import value_text, write
from moored.kernel.config import encode, setting
from moored.kernel.duration import Duration

NRI = "io.containerd.nri.v1.nri"
EVENTS = "io.containerd.event.v1.exchange"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validator:
    enable: bool = setting(False, doc="whether to check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nri:
    """Plugins of the node resource interface."""

    disable: bool = setting(False, doc="leave it off")
    timeout: Duration = setting(Duration(2), ge=0, doc="deadline of a request")
    count: int = setting(3, ge=1, le=9, doc="how many")
    path: Path | None = setting(None, doc="another folder")
    default_validator: Validator = setting(factory=Validator, doc="the built-in checks")
    extra: dict[str, Any] = setting(factory=dict, doc="handed on")


CLASSES: dict[str, type[Any] | None] = {NRI: Nri, EVENTS: None}

TEXT = f"""\
version = 4
oom_score = -5
[plugins."{NRI}"]
timeout = "90s"
extra = {{list = [{{a = 1}}], when = 1979-05-27}}
"""


def test_the_dump_holds_files_and_defaults():
    loaded = load_text(TEXT)

    shown = tomllib.loads(dump(loaded, CLASSES))

    assert shown == effective(loaded, CLASSES)
    assert shown["oom_score"] == -5
    assert shown["root"] == "/var/lib/moored"
    assert shown["plugins"][NRI]["timeout"] == "1m30s"
    assert shown["plugins"][NRI]["default_validator"] == {"enable": False}
    assert EVENTS not in shown["plugins"]


def test_a_dump_loads_to_the_same():
    loaded = load_text(TEXT)

    again = load_text(dump(loaded, CLASSES))

    assert check_plugins(again, CLASSES) == check_plugins(loaded, CLASSES)
    assert effective(again, CLASSES) == effective(loaded, CLASSES)
    assert again.problems == []


def test_every_line_of_the_dump_says_where_its_value_is_from():
    text = dump_origin(load_text(TEXT, flags=Flags(log_level="debug")), CLASSES)

    assert "oom_score = -5  # config.toml:2\n" in text
    assert 'timeout = "1m30s"  # config.toml:4\n' in text
    assert "count = 3  # default\n" in text
    assert 'level = "debug"  # flag --log-level\n' in text
    assert all("  # " in line for line in text.splitlines() if " = " in line)


def test_values_are_json_with_their_places():
    found = {key: (value, str(origin)) for key, value, origin in values(load_text(TEXT), CLASSES)}

    json.dumps(found)
    assert found[f'plugins."{NRI}".timeout'] == ("1m30s", "config.toml:4")
    assert found[f'plugins."{NRI}".extra.when'] == ("1979-05-27", "config.toml:5")
    assert found[f'plugins."{NRI}".extra.list'] == ([{"a": 1}], "config.toml:5")
    assert found["debug.level"] == ("", "default")


def test_the_default_file_says_the_defaults_and_documents_each():
    text = default_toml(CLASSES)
    loaded = load_text(text)

    configs = check_plugins(loaded, CLASSES)

    assert (loaded.problems, loaded.main.imports) == ([], Main().imports)
    assert {**encode(loaded.main), "plugins": {}} == encode(Main())
    assert configs == {NRI: Nri()}
    assert (
        f'# Plugins of the node resource interface.\n# path: another folder (path, not set)\n[plugins."{NRI}"]\n'
        in text
    )
    assert "# deadline of a request\n" in text
    assert "# leave it off\n" in text


def test_every_setting_of_the_top_level_is_documented():
    lines = default_toml({}).splitlines()

    bare = [line for line, above in zip(lines[1:], lines, strict=False) if " = " in line and not above.startswith("#")]

    assert [line for line in bare if "io.containerd.timeout." not in line] == []


def test_a_migrated_file_reads_as_the_old_one_without_its_imports(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        'version = 2\nimports = ["x.toml"]\n[plugins."io.containerd.internal.v1.restart"]\ninterval = "1s"\n'
    )

    text, file = migrate_text(path)

    assert tomllib.loads(text) == {
        "version": 4,
        "imports": ["x.toml"],
        "plugins": {"io.containerd.monitor.container.v1.restart": {"interval": "1s"}},
    }
    assert text.startswith("version = 4\n")
    assert (file.version, len(file.notes)) == (2, 1)


# --- TOML and schema -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [True, -3, 0.1, 1e300, float("inf"), 'a"b\\c\n\t\x01é', [1, [2, []]], [{"a b": 1}], "", []],
)
def test_a_written_value_reads_back(value):
    assert tomllib.loads(f"a = {value_text(value)}") == {"a": value}


def test_tables_are_written_as_headers_and_empty_ones_kept():
    assert write({"t": {"u": {"x": 1}, "e": {}}, "a": None, "b": 2}) == "b = 2\n\n[t.u]\nx = 1\n\n[t.e]\n"


def test_the_schema_has_types_bounds_defaults_and_docs():
    schema = json_schema(CLASSES)
    section = schema["properties"]["plugins"]["properties"][NRI]

    json.dumps(schema)
    assert section["properties"]["count"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "description": "how many",
        "default": 3,
    }
    assert section["additionalProperties"] is False
    assert section["properties"]["default_validator"]["properties"]["enable"]["type"] == "boolean"
    assert schema["properties"]["plugins"]["properties"][EVENTS] == {"type": "object", "additionalProperties": False}
    assert schema["properties"]["proxy_plugins"]["additionalProperties"]["properties"]["type"]["type"] == "string"


@pytest.mark.parametrize(("text", "good"), [("1m30s", True), ("0", True), ("-.5h", True), ("5", False), ("", False)])
def test_the_schemas_durations_are_gos(text, good):
    assert bool(re.search(DURATION_PATTERN, text)) is good


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    def run_(command, text, **arguments):
        path = tmp_path / "config.toml"
        path.write_text(text)
        out: list[str] = []
        code = command(SimpleNamespace(config=str(path), **arguments), out.append, CLASSES)
        return code, "".join(out).replace(f"{tmp_path}/", "")

    return run_


def test_check_says_ok_for_a_clean_file(run):
    assert run(commands.check, TEXT) == (0, "config.toml: ok\n")


def test_check_fails_with_every_problem(run):
    code, text = run(commands.check, f"version = 4\nrooot = 1\n[plugins.'{NRI}']\ncount = 0\n")

    assert code == 1
    assert text == (
        "config.toml: 2 errors\n"
        "config.toml:2: rooot: unknown key, did you mean 'root'?\n"
        f"config.toml:4: plugins.\"{NRI}\".count: '0' is out of range, wanted at least 1\n"
    )


def test_check_shows_what_the_migration_of_each_file_moves(run, tmp_path):
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text("[plugins.cgroups]\nno_prometheus = true\n")

    code, text = run(commands.check, "version = 3\n[grpc]\nuid = 3\n")

    assert code == 0
    assert "config.toml: version 3, read as version 4:\n  config.toml:3: 'grpc.uid' -> " in text
    assert "conf.d/a.toml: version 1, read as version 4:\n" in text
    assert "conf.d/a.toml: ok, 1 warning\n" in text


def test_check_of_a_file_that_is_not_there_fails(tmp_path):
    out: list[str] = []

    code = commands.check(SimpleNamespace(config=str(tmp_path / "no.toml")), out.append, CLASSES)

    assert (code, "no such file" in "".join(out)) == (1, True)


def test_dump_shows_values_and_with_origin_their_places(run):
    assert "oom_score = -5\n" in run(commands.dump, TEXT)[1]
    assert run(commands.dump, TEXT, origin=True)[1].count("config.toml:2\n") == 1
    assert run(commands.dump, TEXT, root="/r", origin=True)[1].startswith(
        'version = 4  # config.toml:1\nroot = "/r"  # flag'
    )


def test_dump_of_a_broken_file_is_its_problems(run):
    assert run(commands.dump, "a = \n") == (1, "config.toml:1:5: invalid value\n")


def test_migrate_writes_the_file_with_losses_above(run):
    code, text = run(commands.migrate, "version = 2\n[debug]\nuid = 5\nlevel = 'info'\n")

    assert code == 0
    assert text == (
        "# config.toml:3: debug.uid: lost, it has no effect without debug.address\n"
        'version = 4\n\n[debug]\nlevel = "info"\n'
    )


@pytest.mark.parametrize("text", ["a = \n", "version = 9\n"])
def test_migrate_refuses_what_it_cannot_read(run, text):
    code, said = run(commands.migrate, text)

    assert (code, said.startswith("config.toml:")) == (1, True)


def test_default_writes_the_default_file(run):
    assert run(commands.default, "") == (0, default_toml(CLASSES))
