"""Sections of plugins against the plugins that are installed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from moored.config.check import check_plugins
from moored.config.load import load_text
from moored.config.report import line
from moored.kernel.config import setting
from moored.kernel.duration import Duration

SCHEDULER = "io.containerd.gc.v1.scheduler"
NATIVE = "io.containerd.snapshotter.v1.native"
EVENTS = "io.containerd.event.v1.exchange"
OURS = "io.moored.oci-runtime.v1.runc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    pause_threshold: float = setting(0.02, ge=0, le=0.5, doc="share of time")
    startup_delay: Duration = setting(Duration(0.1), doc="pause before the first run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    root_path: str = setting("", doc="folder")


CLASSES = {SCHEDULER: Scheduler, NATIVE: Native, EVENTS: None}


def checked(text, known=()):
    loaded = load_text(text)
    return loaded, check_plugins(loaded, CLASSES, known)


def only(text, known=()):
    loaded, _ = checked(text, known)
    (problem,) = loaded.problems
    return problem


def test_good_sections_become_configs_and_absent_ones_defaults():
    loaded, configs = checked(f'version = 4\n[plugins."{SCHEDULER}"]\nstartup_delay = "5s"\n')

    assert loaded.problems == []
    assert configs == {SCHEDULER: Scheduler(startup_delay=Duration(5)), NATIVE: Native()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f'[plugins."{SCHEDULER}"]\npause_treshold = 0.1',
            f"config.toml:3: plugins.\"{SCHEDULER}\".pause_treshold: unknown key, did you mean 'pause_threshold'?",
        ),
        (
            f'[plugins."{SCHEDULER}"]\npause_threshold = "x"',
            f"config.toml:3: plugins.\"{SCHEDULER}\".pause_threshold: 'x' is a string, wanted a number",
        ),
        (
            '[plugins."io.containerd.gc.v1.schedular"]',
            (
                f'config.toml:2: plugins."io.containerd.gc.v1.schedular": no plugin of that name is installed,'
                f" did you mean '{SCHEDULER}'?"
            ),
        ),
        (
            "[plugins.cri]",
            (
                "config.toml:2: plugins.cri: no plugin of that name is installed,"
                " did you mean 'io.containerd.grpc.v1.cri'?"
            ),
        ),
        (
            '[plugins."io.nobody.thing.v1.x"]',
            'config.toml:2: plugins."io.nobody.thing.v1.x": no plugin of that name is installed',
        ),
        (
            f'[plugins."{EVENTS}"]\nsize = 1',
            f"config.toml:3: plugins.\"{EVENTS}\".size: unknown key, plugin '{EVENTS}' has no settings",
        ),
        (
            '[proxy_plugins.native]\ntype = "snapshot"\naddress = "/n"',
            (
                f"config.toml:2: proxy_plugins.native: proxy plugin 'native' would be '{NATIVE}',"
                f" which an installed plugin is already"
            ),
        ),
    ],
)
def test_a_mistake_is_an_error_at_its_line(text, message):
    problem = only(f"version = 4\n{text}\n")

    assert (problem.level, line(problem)) == ("error", message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[plugins."io.containerd.cri.v1.images"]', "not provided by any installed plugin"),
        (f'[plugins."{SCHEDULER}"]\nschedule_delay = "1s"', "a setting of containerd that is not used here"),
        (
            'disabled_plugins = ["io.containerd.gc.v1.schedular"]',
            f"plugin 'io.containerd.gc.v1.schedular' is not installed, did you mean '{SCHEDULER}'?",
        ),
        (
            'disabled_plugins = ["io.containerd.internal.v1.restart"]',
            (
                "plugin 'io.containerd.internal.v1.restart' is not installed,"
                " did you mean 'io.containerd.monitor.container.v1.restart'?"
            ),
        ),
    ],
)
def test_what_containerd_has_is_only_warned_of(text, message):
    problem = only(f"version = 4\n{text}\n")

    assert (problem.level, problem.message) == ("warning", message)


def test_without_strictness_every_mistake_of_names_is_a_warning():
    text = f'version = 4\nstrict = false\n[plugins."{SCHEDULER}"]\npause_treshold = 1\n'
    text += f'[plugins.zzz]\n[plugins."{EVENTS}"]\na = 1\n'

    loaded, configs = checked(text)

    assert [problem.level for problem in loaded.problems] == ["warning"] * 3
    assert configs[SCHEDULER] == Scheduler()


def test_a_section_of_an_installed_plugin_that_is_not_loaded_is_let_be():
    loaded, _ = checked(f'version = 4\ndisabled_plugins = ["{OURS}"]\n[plugins."{OURS}"]\nanything = 1\n', known=[OURS])

    assert loaded.problems == []


def test_a_disabled_plugin_leaves_its_name_to_a_proxy():
    text = f'version = 4\ndisabled_plugins = ["{NATIVE}"]\n[proxy_plugins.native]\ntype = "snapshot"\naddress = "/n"\n'

    assert checked(text)[0].problems == []


def test_a_broken_section_has_no_config_and_the_others_have_theirs():
    _, configs = checked(f'version = 4\n[plugins."{SCHEDULER}"]\npause_threshold = 2\n')

    assert set(configs) == {NATIVE}


def test_a_moved_key_is_reported_where_it_was_written():
    problem = only("version = 1\n[plugins.scheduler]\npause_treshold = 0.1\n")

    assert line(problem).startswith(f'config.toml:3: plugins."{SCHEDULER}".pause_treshold: ')
