"""The C library, for calls that Python has no name for."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def libc() -> ctypes.CDLL:
    """Give it, loaded once; `ctypes.get_errno` tells of a call that failed. What it knows of types is everybody's."""
    return ctypes.CDLL(None, use_errno=True)
