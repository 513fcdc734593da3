"""Problems as text, one a line: `FILE:LINE: KEY: what is wrong`."""

from __future__ import annotations

from collections.abc import Iterable

from moored.config.load import Finding
from moored.config.origin import dotted


def line(finding: Finding) -> str:
    """One problem; a warning says that it is one."""
    parts = [str(finding.origin)]
    if finding.key:
        parts.append(dotted(finding.key))
    warning = "warning: " if finding.level == "warning" else ""
    return f"{': '.join(parts)}: {warning}{finding.message}"


def report(findings: Iterable[Finding]) -> str:
    """All problems by file and line, errors and warnings together; empty when there are none."""
    ordered = sorted(findings, key=lambda finding: (finding.origin.file, finding.origin.line))
    return "".join(f"{line(finding)}\n" for finding in ordered)
