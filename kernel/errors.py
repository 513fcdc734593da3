"""The closed set of errors that moored's ports raise; each class is one error class of the wire.

Drawn as a tree:

    MooredError
    ├── Cancelled            the caller gave up
    ├── Unknown              no class fits: most shim, mount, tar and registry errors
    ├── InvalidArgument      the input can never work
    ├── DeadlineExceeded     the time given ran out
    ├── NotFound
    ├── AlreadyExists
    ├── PermissionDenied
    ├── ResourceExhausted    a limit or budget is reached
    ├── FailedPrecondition   the state forbids it now
    │   ├── Conflict         somebody else changed it
    │   └── NotModified
    ├── Aborted
    ├── OutOfRange
    ├── Unimplemented
    ├── Internal
    ├── Unavailable          try again
    ├── DataLoss
    └── Unauthenticated

Codes and wire texts live in `moored.api.errors`; the kernel knows no wire.
"""

from __future__ import annotations


class MooredError(Exception):
    """Root of the set; never raised itself.

    `text` says what was wrong in one line: lower case, no full stop, the value quoted. `bare` errors go on the wire
    without the class suffix, where containerd's own text has none (`contracts/semantics.md` 1.2).
    """

    def __init__(self, text: str, *, bare: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.bare = bare

    def __str__(self) -> str:
        return self.text


class Cancelled(MooredError):
    """The caller gave up; nothing more happens on its behalf."""


class Unknown(MooredError):
    """No class fits."""


class InvalidArgument(MooredError):
    """The input can never work, whatever the state."""


class DeadlineExceeded(MooredError):
    """The time given ran out."""


class NotFound(MooredError):
    """The named object does not exist."""


class AlreadyExists(MooredError):
    """The name is taken."""


class PermissionDenied(MooredError):
    """The caller may not."""


class ResourceExhausted(MooredError):
    """A limit or a budget is reached."""


class FailedPrecondition(MooredError):
    """The state forbids it now."""


class Conflict(FailedPrecondition):
    """Somebody else changed the object meanwhile."""


class NotModified(FailedPrecondition):
    """There was nothing to change."""


class Aborted(MooredError):
    """The operation was ended by another one."""


class OutOfRange(MooredError):
    """An offset or length lies outside of the object."""


class Unimplemented(MooredError):
    """This implementation does not do that."""


class Internal(MooredError):
    """A broken invariant of our own."""


class Unavailable(MooredError):
    """Busy or away; trying again may work."""


class DataLoss(MooredError):
    """Stored bytes are not what they were."""


class Unauthenticated(MooredError):
    """Who is calling is not known."""
