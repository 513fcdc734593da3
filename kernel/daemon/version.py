"""The version that clients are told: the containerd API that is spoken, with moored's own version as build metadata."""

from __future__ import annotations

import importlib.metadata

API_VERSION = "2.3.4"
"""Clients choose features by this number; it is the contract that moored follows."""


def distribution_version() -> str:
    """Version of the installed distribution; `0` in a checkout that is not installed."""
    try:
        return importlib.metadata.version("moored")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def full_version() -> str:
    """For example `2.3.4+moored.0.1.0`."""
    return f"{API_VERSION}+moored.{distribution_version()}"
