"""Generates the committed protobuf stubs that stand beside the .proto files of api/.

    python contrib/dev/protogen.py            write the stubs, delete stale ones, print what changed
    python contrib/dev/protogen.py --check    write nothing; exit 1 with a list where the committed ones differ

Needs the versions of grpcio-tools and mypy-protobuf that pyproject.toml pins: others generate other bytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "api"
# The prefix under which protos import each other, so that stubs import `moored.api....`; a root of api/ itself would
# give `from types import ...`, which is the standard library's.
PREFIX = "moored/api"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


class GenerationError(Exception):
    """protoc refused; the text is its own."""


def google_root() -> Path:
    """The import root of google/rpc/status.proto: the folder that googleapis-common-protos is installed in."""
    return Path(status_pb2.__file__).resolve().parents[2]


def proto_files(api: Path = API) -> list[str]:
    """All .proto files of api, by the names under which they import each other, sorted."""
    return sorted(f"{PREFIX}/{path.relative_to(api).as_posix()}" for path in api.rglob("*.proto"))


def protoc(arguments: Sequence[str]) -> None:
    """Run grpcio-tools' protoc over api. Raises GenerationError with its output, warnings included."""
    roots = [f"-I{PREFIX}={API}", f"-I{google_root()}"]
    # protoc looks for its mypy plugins on PATH; a virtual environment that is not activated is not there.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *roots, *arguments],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    # mypy-protobuf names each file it writes; everything else is a warning, and an unused import is a needless load.
    noise = [line for line in done.stderr.splitlines() if not line.startswith("Writing mypy")]
    if done.returncode or noise:
        raise GenerationError("\n".join(noise) or f"protoc exited with {done.returncode}")


def with_services(names: Sequence[str], scratch: Path) -> list[str]:
    """Those of the proto files that define a service."""
    out = scratch / "descriptors.bin"
    protoc([f"--descriptor_set_out={out}", *names])
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return [file.name for file in files if file.service]


def generate() -> dict[str, bytes]:
    """The stubs as they should be: path below api -> content. Raises GenerationError."""
    names = proto_files()
    with tempfile.TemporaryDirectory(prefix="protogen-") as folder:
        scratch = Path(folder)
        protoc([f"--python_out={scratch}", f"--mypy_out={scratch}", *names])
        services = with_services(names, scratch)
        protoc([f"--grpc_python_out={scratch}", f"--mypy_grpc_out={scratch}", *services])
        made = scratch / PREFIX
        return {path.relative_to(made).as_posix(): path.read_bytes() for path in stubs(made)}


def stubs(root: Path) -> Iterator[Path]:
    """The generated files below root, sorted."""
    return (path for path in sorted(root.rglob("*_pb2*")) if path.name.endswith(SUFFIXES))


def differences(want: Mapping[str, bytes], have: Mapping[str, bytes]) -> list[str]:
    """One line for each stub that is missing, stale or changed, sorted by path."""
    lines = []
    for name in sorted(want.keys() | have.keys()):
        if name not in have:
            lines.append(f"missing api/{name}")
        elif name not in want:
            lines.append(f"stale   api/{name}")
        elif want[name] != have[name]:
            lines.append(f"changed api/{name}")
    return lines


def write(want: Mapping[str, bytes], have: Mapping[str, bytes]) -> None:
    """Make the stubs below api those of want; files that are right already keep their times."""
    for name in have.keys() - want.keys():
        (API / name).unlink()
    for name, content in want.items():
        if have.get(name) != content:
            (API / name).write_bytes(content)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 for differences found by --check, 2 for protos that do not compile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where committed stubs differ")
    check: bool = parser.parse_args(argv).check
    try:
        want = generate()
    except GenerationError as refused:
        print(refused, file=sys.stderr)
        return 2
    have = {path.relative_to(API).as_posix(): path.read_bytes() for path in stubs(API)}
    lines = differences(want, have)
    for line in lines:
        print(line)
    tools = f"grpcio-tools {version('grpcio-tools')}, mypy-protobuf {version('mypy-protobuf')}"
    if check:
        print(f"{len(lines)} of {len(want)} stubs differ ({tools})")
        return 1 if lines else 0
    write(want, have)
    print(f"{len(want)} stubs, {len(lines)} changed ({tools})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
