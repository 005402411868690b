"""What can happen to a job: one class per event, with what the event carries.

Which job an event may happen to, and what it changes, is said by the table in `lifecycle.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from msgspec import Struct, field

STORE = "store"
"""The actor of what follows from another transition, such as the retry of a failure."""
SWEEP = "sweep"
"""The actor where time ran out."""


class Claimed(Struct, frozen=True, kw_only=True):
    """A worker takes the job for `lease_seconds`, under a `lease_id` that cannot be guessed."""

    name: ClassVar[str] = "claimed"
    lease_id: str
    lease_seconds: float
    actor: str


class OfHolder(Struct, frozen=True, kw_only=True):
    """What every report of the lease holder says."""

    lease_id: str
    actor: str | None = None


class Completed(OfHolder, frozen=True, kw_only=True):
    """The lease holder reports that the attempt succeeded."""

    name: ClassVar[str] = "completed"
    result: str | None = None


class Failed(OfHolder, frozen=True, kw_only=True):
    """The lease holder reports that the attempt failed.

    `delay`: seconds until it is tried again, if not as the policy of the job says.
    """

    name: ClassVar[str] = "failed"
    error: str
    delay: float | None = None


class GaveUp(OfHolder, frozen=True, kw_only=True):
    """The lease holder reports that the attempt failed and that another one cannot help."""

    name: ClassVar[str] = "gave_up"
    error: str


class LeaseExpired(Struct, frozen=True, kw_only=True):
    """The lease ran out before its holder reported."""

    name: ClassVar[str] = "lease_expired"
    actor: str = SWEEP


class Retried(Struct, frozen=True, kw_only=True):
    """The job runs again after `delay` seconds, with `more_retries` added to its limit."""

    name: ClassVar[str] = "retried"
    delay: float = 0.0
    more_retries: int = 0
    actor: str = STORE
    reason: str | None = None


class Released(OfHolder, frozen=True, kw_only=True):
    """The lease holder returns the job before its handler started."""

    name: ClassVar[str] = "released"


class Interrupted(OfHolder, frozen=True, kw_only=True):
    """The lease holder, which stops in order, returns the job whose handler had started."""

    name: ClassVar[str] = "interrupted"


class Snoozed(OfHolder, frozen=True, kw_only=True):
    """The lease holder returns the job, to run again after `delay` seconds, without a charge."""

    name: ClassVar[str] = "snoozed"
    delay: float


class Suspended(OfHolder, frozen=True, kw_only=True):
    """The lease holder returns the job until `need` things have come.

    `spare` is how many of those it waits for may fail to come.
    """

    name: ClassVar[str] = "suspended"
    need: int
    spare: int = 0


class Unblocked(Struct, frozen=True, kw_only=True):
    """What the job waited for has come, or an operator waits no longer: `need` is what is left."""

    name: ClassVar[str] = "unblocked"
    need: int = 0
    actor: str = STORE


class Skipped(Struct, frozen=True, kw_only=True):
    """What the job waits for can no longer come: `spare` is below zero."""

    name: ClassVar[str] = "skipped"
    spare: int = -1
    actor: str = STORE


class Restored(Struct, frozen=True, kw_only=True):
    """What made a job be skipped was retried: it waits again, for `need` with `spare`."""

    name: ClassVar[str] = "restored"
    need: int
    spare: int
    actor: str = STORE


class Amended(Struct, frozen=True, kw_only=True):
    """An operator sets columns of a pending job: column -> value, as the fields of a `Job`.

    With `delay`, it runs that many seconds from now; with 0, at once if it is not due.
    """

    name: ClassVar[str] = "amended"
    changes: Mapping[str, Any] = field(default_factory=dict)
    delay: float | None = None
    actor: str = "application"
    reason: str | None = None


class Expired(Struct, frozen=True, kw_only=True):
    """The time by which the job had to start has passed."""

    name: ClassVar[str] = "expired"
    actor: str = SWEEP


class Cancelled(Struct, frozen=True, kw_only=True):
    """An operator or the application stops the job, before it runs or while it runs."""

    name: ClassVar[str] = "cancelled"
    actor: str = "application"
    reason: str | None = None


REASONED = (Retried.name, Amended.name, Cancelled.name)
"""Events of which the one who causes them can say why."""


Return: TypeAlias = Released | Interrupted | Snoozed | Suspended
"""Events by which the lease holder returns a job uncharged. Each is bounded."""

Event: TypeAlias = (
    Return
    | Claimed
    | Completed
    | Failed
    | GaveUp
    | LeaseExpired
    | Retried
    | Unblocked
    | Skipped
    | Restored
    | Amended
    | Expired
    | Cancelled
)
