"""What a shim reads in a bundle that others have written."""

import json
from pathlib import Path

import pytest

from moored.plugins.runtime.shim import bundle as files

FIRST, LAST = {"level": "error", "msg": "first"}, {"level": "error", "msg": "last {one}\n"}
FATAL = {"level": "fatal", "msg": "nsexec"}
INFO = {"level": "info", "msg": "fine"}


def text(*entries: object, between: str = "\n") -> str:
    return between.join(json.dumps(entry) for entry in entries)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (text(FIRST, LAST), "last {one}"),
        (text(FIRST, LAST, between=""), "last {one}"),
        (text(FIRST, INFO, FATAL, between=" "), "first"),
        (text(FIRST) + 'panic: {x}\n\n goroutine 1 {"level":', "first"),
        ("junk{{{" + text(LAST), "last {one}"),
        ('{"a":' * 20_000, ""),
        (text(INFO, {"level": "error"}, "error", 1), ""),
        ("", ""),
    ],
)
def test_last_error_is_found_in_logs_of_any_runtime(tmp_path: Path, log: str, told: str) -> None:
    (tmp_path / files.LOG).write_text(text(FIRST))
    since = files.log_size(str(tmp_path))
    with (tmp_path / files.LOG).open("a") as file:
        file.write(log)

    assert files.last_error(str(tmp_path), since) == told


def test_no_log_has_no_error(tmp_path: Path) -> None:
    assert files.log_size(str(tmp_path)) == 0
    assert files.last_error(str(tmp_path), 0) == ""
