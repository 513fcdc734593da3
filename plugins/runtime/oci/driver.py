"""The driver behind each of our runtimes' plugins: detection, and the pure functions of its runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moored.kernel.ports.oci import NO_OPTIONS, Invocation, RuntimeFacts, RuntimeOptions
from moored.plugins.runtime.oci.adaptation import adapt_spec
from moored.plugins.runtime.oci.detection import Detector
from moored.plugins.runtime.oci.host import look
from moored.plugins.runtime.oci.invocations import Settings, invocation_of, located


class Driver:
    """An `OciRuntime` for a binary that takes runc's, crun's or runsc's flags.

    seconds  how long the binary may take to say what it is
    """

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._settings = replace(settings, binary=settings.binary or settings.driver)
        self._detector = Detector(settings.driver, seconds)

    async def facts(self, options: RuntimeOptions = NO_OPTIONS) -> RuntimeFacts:
        """Ask the binary of the options, else the configured one."""
        binary = options.binary or self._settings.binary
        return await self._detector.facts(await asyncio.to_thread(located, binary))

    def invocation(
        self, facts: RuntimeFacts, options: RuntimeOptions, namespace: str, spec: Mapping[str, Any]
    ) -> Invocation:
        """Follow the options, the config and what the host can do."""
        return invocation_of(self._settings, facts, options, namespace, spec, host=look())

    def adapt(self, facts: RuntimeFacts, spec: dict[str, Any]) -> None:
        """Do what the runtime's version and the host need."""
        adapt_spec(self._settings.driver, facts, spec)
