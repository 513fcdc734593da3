"""Whose objects a call means: the namespace and lease of the running call, and the rules for identifiers and labels.

The transport binds both headers as they came; a service that needs a namespace asks for it and gets the error of a
missing or bad one. Calls that need none (Version, Health, ...) never look. Source: semantics 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.filters import quote

MAX_IDENTIFIER_BYTES: Final = 76
MAX_LABEL_BYTES: Final = 4096
"""Bytes of a label's key and value together."""
MAX_LABEL_KEY_SHOWN: Final = 64
"""Bytes of a key that an error shows."""

_PATTERN: Final = "[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*"
_IDENTIFIER: Final = re.compile(_PATTERN)

NAMESPACE: Final[ContextVar[str]] = ContextVar("moored.namespace", default="")
"""The namespace header of the running call, not validated; "" without one."""
LEASE: Final[ContextVar[str]] = ContextVar("moored.lease", default="")
"""The lease that the running call's writes belong to; "" without one. Any text may be a lease's id."""


@contextmanager
def bind(namespace: str | None = None, lease: str | None = None) -> Generator[None]:
    """Set namespace and lease for the block and the tasks started in it; None keeps what is set."""
    tokens = [(var, var.set(value)) for var, value in ((NAMESPACE, namespace), (LEASE, lease)) if value is not None]
    try:
        yield
    finally:
        for var, token in tokens:
            var.reset(token)


def current_namespace() -> str:
    """Return the running call's namespace; raises FailedPrecondition if it has none, InvalidArgument for a bad name."""
    namespace = NAMESPACE.get()
    if not namespace:
        raise FailedPrecondition("namespace is required")
    return validate_identifier(namespace, "namespace validation")


def namespace_or_empty() -> str:
    """Return the running call's namespace as it came, "" if it has none."""
    return NAMESPACE.get()


def current_lease() -> str:
    """Return the running call's lease, "" if it has none; whether it exists is not known here."""
    return LEASE.get()


def is_identifier(text: str) -> bool:
    """Return whether `validate_identifier` takes a text."""
    return len(text) <= MAX_IDENTIFIER_BYTES and _IDENTIFIER.fullmatch(text) is not None


def validate_identifier(text: str, context: str = "") -> str:
    """Return text if it is an identifier: letters and digits, single `.`, `_`, `-` between them, at most 76 bytes.

    Valid for namespaces, containers, tasks, execs, sandboxes and each part of a topic. Raises InvalidArgument, its text
    behind `context: `.
    """
    if is_identifier(text):
        return text
    if not text:
        fault = "identifier must not be empty"
    elif len(text.encode("utf-8", "surrogatepass")) > MAX_IDENTIFIER_BYTES:
        fault = f"identifier {quote(text)} greater than maximum length ({MAX_IDENTIFIER_BYTES} characters)"
    else:
        fault = f"identifier {quote(text)} must match ^{_PATTERN}$"
    raise InvalidArgument(f"{context}: {fault}" if context else fault)


def validate_labels(labels: Mapping[str, str], prefix: str) -> None:
    """Raise InvalidArgument, its text behind `prefix: `, if a label's key and value are over 4096 bytes together."""
    for key, value in labels.items():
        raw = key.encode("utf-8", "surrogatepass")
        size = len(raw) + len(value.encode("utf-8", "surrogatepass"))
        if size > MAX_LABEL_BYTES:
            shown = raw[:MAX_LABEL_KEY_SHOWN].decode("utf-8", "replace")
            raise InvalidArgument(
                f"{prefix}: label key and value length ({size} bytes) greater than maximum size "
                f"({MAX_LABEL_BYTES} bytes), key: {shown}"
            )


def normalise_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels to store: an empty value is never stored, so writing one deletes.

    An update is `normalise_labels({**stored, **changes})`.
    """
    return {key: value for key, value in labels.items() if value}
