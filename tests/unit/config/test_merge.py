"""What wins when several files say something."""

import tomllib

import pytest

from moored.config.merge import merge
from moored.config.origin import grow


def merged(*texts):
    first, *others = [grow(tomllib.loads(text), label=str(number)) for number, text in enumerate(texts)]
    for other in others:
        first = merge(first, other)
    return first


@pytest.mark.parametrize(
    ("earlier", "later", "result"),
    [
        ('root = ""', 'root = "/a"', 'root = "/a"'),
        ('root = "/a"', 'root = ""', 'root = "/a"'),
        ("oom_score = 1", "oom_score = 0", "oom_score = 1"),
        ("oom_score = 0", "oom_score = 1", "oom_score = 1"),
        ("oom_score = 1", "oom_score = 2", "oom_score = 2"),
        ("debug = {log_trace_id = true}", "debug = {log_trace_id = false}", "debug = {log_trace_id = true}"),
        ('debug = {level = "info"}', 'debug = {format = "json"}', 'debug = {level = "info", format = "json"}'),
        ('disabled_plugins = ["1"]', 'disabled_plugins = ["2"]', 'disabled_plugins = ["1", "2"]'),
        ('disabled_plugins = ["1"]', "disabled_plugins = []", 'disabled_plugins = ["1"]'),
        ('disabled_plugins = ["1", "2"]', 'disabled_plugins = ["1", "3", "3"]', 'disabled_plugins = ["1", "2", "3"]'),
        ("disabled_plugins = []", 'disabled_plugins = ["2"]', 'disabled_plugins = ["2"]'),
        (
            "plugins = {p = {a = 1, t = {x = 1}}}",
            "plugins = {p = {b = 2, t = {y = 2}}}",
            "plugins = {p = {a = 1, b = 2, t = {x = 1, y = 2}}}",
        ),
        (
            "plugins = {p = {a = 1, b = true, c = 'x'}}",
            "plugins = {p = {a = 0, b = false, c = ''}}",
            "plugins = {p = {a = 0, b = false, c = ''}}",
        ),
        ("plugins = {p = {l = [1, 2]}}", "plugins = {p = {l = [3]}}", "plugins = {p = {l = [3]}}"),
        ("plugins = {p = {l = [1, 2]}}", "plugins = {p = {l = []}}", "plugins = {p = {l = []}}"),
        (
            "proxy_plugins = {a = {type = 'snapshot', address = 'x'}, b = {}}",
            "proxy_plugins = {a = {address = 'y'}}",
            "proxy_plugins = {a = {address = 'y'}, b = {}}",
        ),
        (
            "stream_processors = {a = {path = 'p', returns = 'r'}}",
            "stream_processors = {a = {path = 'q'}, b = {}}",
            "stream_processors = {a = {path = 'q'}, b = {}}",
        ),
        ("timeouts = {a = '1s', b = '2s'}", "timeouts = {a = '0s'}", "timeouts = {a = '0s', b = '2s'}"),
    ],
)
def test_each_part_of_the_file_has_its_rule(earlier, later, result):
    assert merged(earlier, later).plain() == tomllib.loads(result)


def test_a_value_keeps_the_place_of_the_file_that_won():
    tree = merged(
        "oom_score = 1\nplugins = {p = {a = 1, b = 1}}\nimports = ['x']\n[timeouts]\nt = '1s'",
        "oom_score = 0\nplugins = {p = {a = 0}}\nimports = ['x']\n[timeouts]\nt = '2s'",
    )

    assert tree.origin(("oom_score",)).label == "0"
    assert tree.origin(("plugins", "p", "a")).label == "1"
    assert tree.origin(("plugins", "p", "b")).label == "0"
    assert tree.origin(("imports",)).label == "0"
    assert tree.origin(("timeouts", "t")).label == "1"
