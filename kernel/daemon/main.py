"""The `moored` program: loads what the command needs, and no more, then runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager


def main(argv: list[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default); returns the exit status, see `command.run`."""
    began = time.monotonic()
    # structlog loads rich for tracebacks on terminals, which the daemon never prints: 5 MB of memory.
    with _absent("rich"):
        import structlog  # noqa: F401
    from moored.kernel.daemon.command import run

    return run(argv, began)


@contextmanager
def _absent(module: str) -> Generator[None]:
    """Imports of the module inside the block find that it is not installed, unless it is loaded already."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


if __name__ == "__main__":
    sys.exit(main())
