"""The sync twin is what its generator writes, whole, and typed."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from moored.api.client import sync

CHECKOUT = Path(__file__).parents[3]
ASYNC = {
    name: getattr(sync, f"Async{name}")
    for name in dir(sync)
    if hasattr(sync, f"Async{name}") and inspect.isclass(getattr(sync, name))
}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_committed_file_is_current():
    done = subprocess.run(
        [sys.executable, "contrib/dev/syncgen.py", "--check"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(ASYNC))
def test_every_method_has_its_twin_with_a_docstring_and_no_coroutine(name):
    twin = getattr(sync, name)

    assert public(ASYNC[name]) == public(twin)
    for method in public(twin):
        found = inspect.getattr_static(twin, method)
        function = found.fget if isinstance(found, property) else found
        assert inspect.getdoc(function), f"{name}.{method}"
        assert not inspect.iscoroutinefunction(function)
        assert "return" in typing.get_type_hints(function, vars(sync))


def test_every_class_that_a_client_leads_to_is_a_twin():
    wanted = {"Client", "Containers", "Container", "Task", "Process", "Content", "Reader", "Writer", "Output", "Input"}
    assert wanted <= set(ASYNC)
    for kind in ASYNC.values():
        assert importlib.import_module(kind.__module__)


@pytest.mark.parametrize("room", ["api", "kernel"])
def test_users_see_the_types(room):
    assert (CHECKOUT / room / "py.typed").exists()
