"""An OCI runtime driver that calls another runtime and writes each call into a file, a line each.

    [plugins."io.moored.oci-runtime.v1.logbook"]
    path = "/var/log/calls"
    runtime = "crun"

    [plugins."io.containerd.runtime.v2.task".runtimes]
    "io.example.logbook.v1" = "logbook"

Then `ctr run --runtime io.example.logbook.v1 ..`. It needs nothing of moored but the ports.
"""

from __future__ import annotations

import dataclasses
import shlex
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.oci import NO_OPTIONS, OCI_RUNTIME, Invocation, OciRuntime, RuntimeFacts, RuntimeOptions

SCRIPT = """#!/bin/sh
printf '%s\\n' "$LOGBOOK_DRIVER $*" >> "$LOGBOOK_PATH"
exec {binary} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.moored.oci-runtime.v1.logbook"]"""

    path: str = setting(doc="where the calls are written")
    runtime: str = setting("runc", doc="the driver that does the work")


class Logbook:
    """Does what another driver does, through a script that writes."""

    def __init__(self, config: Config, folder: Path, real: OciRuntime) -> None:
        self._config = config
        self._folder = folder
        self._real = real

    async def facts(self, options: RuntimeOptions = NO_OPTIONS) -> RuntimeFacts:
        """What the real runtime is."""
        return dataclasses.replace(await self._real.facts(options), name="logbook")

    def invocation(
        self, facts: RuntimeFacts, options: RuntimeOptions, namespace: str, spec: Mapping[str, Any]
    ) -> Invocation:
        """The real one's, with the script before it."""
        real = self._real.invocation(facts, options, namespace, spec)
        script = self._folder / Path(real.binary).name
        new = script.with_name(f".{script.name}-{threading.get_ident()}")
        new.write_text(SCRIPT.format(binary=shlex.quote(real.binary)))
        new.chmod(0o755)
        new.replace(script)
        environment = {**real.environment, "LOGBOOK_PATH": self._config.path, "LOGBOOK_DRIVER": real.driver}
        return dataclasses.replace(real, driver="logbook", binary=str(script), environment=environment)

    def adapt(self, facts: RuntimeFacts, spec: dict[str, Any]) -> None:
        """As the real runtime needs it."""
        self._real.adapt(facts, spec)


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Logbook]:
    """Find the driver that does the work among those that are there."""
    yield Logbook(ctx.config, ctx.state, ctx.named(OCI_RUNTIME, ctx.config.runtime))


plugin = Registration(kind=OCI_RUNTIME, id="logbook", config=Config, requires=(OCI_RUNTIME,), open=open_)
