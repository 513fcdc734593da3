"""Which shim and which OCI runtime a runtime's name means. Source: `contracts/shim-v2.md` 1, 10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from moored.kernel.errors import InvalidArgument, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.oci import Invocation, OciRuntime, RuntimeFacts, RuntimeOptions

SHIM: Final = "shim"
"""In the table of runtimes: use the shim binary."""
_RUNC_OPTIONS: Final = "containerd.runc.v1.Options"
_GENERIC_OPTIONS: Final = "runtimeoptions.v1.Options"


@dataclass(frozen=True, slots=True)
class Choice:
    """An OCI runtime for one container, called by our shim."""

    driver: OciRuntime
    facts: RuntimeFacts
    options: RuntimeOptions

    def adapt(self, spec: dict[str, Any]) -> None:
        """See OciRuntime.adapt."""
        self.driver.adapt(self.facts, spec)

    def invocation(self, namespace: str, spec: Mapping[str, Any]) -> Invocation:
        """See OciRuntime.invocation."""
        return self.driver.invocation(self.facts, self.options, namespace, spec)


class Runtimes:
    """The table of names, and the drivers that there are.

    A name that maps to a driver which is not there has its shim binary, as has every other name.
    """

    def __init__(self, table: Mapping[str, str], drivers: Mapping[str, OciRuntime]) -> None:
        self._table = dict(table)
        self._drivers = dict(drivers)

    @property
    def any_own(self) -> bool:
        """Whether any name is for our own shim."""
        return any(driver in self._drivers for driver in self._table.values())

    async def choose(self, runtime: str, options: TypedBytes | None) -> Choice | None:
        """Give what our shim is to call, None for a shim binary.

        A binary of the options that is called like a driver has that one. Raises as OciRuntime.facts; Unknown for
        options of a strange type, InvalidArgument for some that do not parse.
        """
        mapped = self._drivers.get(self._table.get(runtime, SHIM))
        if mapped is None:
            return None
        read = read_options(runtime, options)
        driver = self._drivers.get(PurePosixPath(read.binary).name, mapped)
        return Choice(driver, await driver.facts(read), read)


def read_options(runtime: str, options: TypedBytes | None) -> RuntimeOptions:
    """Read options of either kind that OCI runtimes have.

    Raises Unknown for another one, InvalidArgument for what does not parse.
    """
    if options is None or not (options.type_url or options.value):
        return RuntimeOptions()
    from google.protobuf.message import DecodeError

    name = options.type_url.rpartition("/")[2]
    try:
        if name == _RUNC_OPTIONS:
            return _runc_options(options.value)
        if name == _GENERIC_OPTIONS:
            return _generic_options(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"invalid task create option for {runtime}: {error}") from None
    raise Unknown(f"invalid task create option for {runtime}: type with url {options.type_url}: not found")


def _runc_options(data: bytes) -> RuntimeOptions:
    from moored.api.types.runc.options.oci_pb2 import Options

    found = Options.FromString(data)
    return RuntimeOptions(
        binary=found.binary_name,
        root=found.root,
        systemd_cgroup=found.systemd_cgroup,
        no_pivot_root=found.no_pivot_root,
        no_new_keyring=found.no_new_keyring,
        shim_cgroup=found.shim_cgroup,
        io_uid=found.io_uid,
        io_gid=found.io_gid,
        criu_image_path=found.criu_image_path,
        criu_work_path=found.criu_work_path,
    )


def _generic_options(data: bytes) -> RuntimeOptions:
    from moored.api.types.runtimeoptions.v1.api_pb2 import Options

    found = Options.FromString(data)
    return RuntimeOptions(config_path=found.config_path, config_body=found.config_body)
