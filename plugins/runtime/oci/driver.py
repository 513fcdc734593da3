"""The driver behind each of our runtimes' plugins: detection, and the pure functions of its runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from moored.kernel.ports.oci import NO_OPTIONS, Invocation, RuntimeFacts, RuntimeOptions
from moored.plugins.runtime.oci.adaptation import adapt_spec
from moored.plugins.runtime.oci.detection import Detector
from moored.plugins.runtime.oci.host import Host, look
from moored.plugins.runtime.oci.invocations import Settings, invocation_of

HOST_SECONDS: Final = 1.0
"""Seconds for which a look at the host holds; it takes as long as all else that makes a bundle."""


class Driver:
    """An `OciRuntime` for a binary that takes runc's, crun's or runsc's flags.

    seconds  how long the binary may take to say what it is
    """

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._settings = replace(settings, binary=settings.binary or settings.driver)
        self._detector = Detector(settings.driver, seconds)
        self._looked = (-HOST_SECONDS, Host())

    async def facts(self, options: RuntimeOptions = NO_OPTIONS) -> RuntimeFacts:
        """Ask the binary of the options, else the configured one."""
        binary = options.binary or self._settings.binary
        return await self._detector.facts(binary)

    def invocation(
        self, facts: RuntimeFacts, options: RuntimeOptions, namespace: str, spec: Mapping[str, Any]
    ) -> Invocation:
        """Follow the options, the config and what the host can do."""
        return invocation_of(self._settings, facts, options, namespace, spec, host=self._host())

    def adapt(self, facts: RuntimeFacts, spec: dict[str, Any]) -> None:
        """Do what the runtime's version and the host need."""
        adapt_spec(self._settings.driver, facts, spec, host=self._host())

    def _host(self) -> Host:
        """A look at the host that is not older than HOST_SECONDS."""
        looked, host = self._looked
        if (now := time.monotonic()) > looked + HOST_SECONDS:
            host = look()
            self._looked = now, host
        return host
