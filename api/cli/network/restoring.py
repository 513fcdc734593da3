"""Joins a container to its network again, as a program: `moorctl-log` runs it when the namespace is gone.

    python -m moored.api.cli.network.restoring FOLDER        FOLDER: the container's, with its network.json

After a reboot a daemon restarts containers by itself, with nothing of moorctl at work but the program that writes
their logs, which shims start before the container.
"""

from __future__ import annotations

import sys
from pathlib import Path

from moored.api.cli.network.membership import again
from moored.kernel.errors import MooredError


def main() -> None:
    """Do it; an error is one line on standard error, and exit status 1."""
    try:
        again(Path(sys.argv[1]))
    except (MooredError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
