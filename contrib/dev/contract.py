"""Compares the .proto files of api/ with the wire contract of containerd.

    python contrib/dev/contract.py [--checker FILE] [ARGUMENTS OF THE CHECKER]

The checker, check_contract.py with the contract's tables beside it, is no part of this tree: it is looked for in
../shared/tools/ from the checkout. It takes one import root and does not follow links, so it is shown a copy of the
protos, laid out as they import each other; and it reads every table of a folder, so it is shown those of the packages
that index.tsv lists. Exit status: the checker's (0 complete, 1 not), 2 where checker or tables are missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parents[2]
CHECKER = ROOT.parent / "shared" / "tools" / "check_contract.py"


def lay_out_protos(target: Path) -> None:
    """Copy the protos of api below target, under the names by which they import each other."""
    for source in (ROOT / "api").rglob("*.proto"):
        copy = target / "moored" / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def lay_out_tables(contracts: Path, target: Path) -> None:
    """Copy the tables of all packages of index.tsv to target. Raises OSError for one that is missing."""
    target.mkdir()
    for row in (contracts / "index.tsv").read_text().splitlines():
        kind, _, table, *_ = row.split("\t")
        if kind == "package":
            shutil.copyfile(contracts / table, target / table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checker over the protos; what it prints and its exit status are the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checker", type=Path, default=CHECKER, help=f"default: {CHECKER}")
    options, rest = parser.parse_known_args(argv)
    checker: Path = options.checker
    if not checker.is_file():
        print(f"no checker at '{checker}', wanted check_contract.py; name it with --checker", file=sys.stderr)
        return 2
    google = Path(status_pb2.__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        protos, tables = Path(folder) / "protos", Path(folder) / "tables"
        lay_out_protos(protos)
        try:
            lay_out_tables(checker.resolve().parents[1] / "contracts", tables)
        except OSError as missing:
            print(f"no tables for '{checker}': {missing}", file=sys.stderr)
            return 2
        roots = ["--proto-root", str(protos), "--contracts", str(tables), "--include", str(google)]
        return subprocess.run([sys.executable, str(checker), *roots, *rest], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
