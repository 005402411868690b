"""What one job says about another that it depends on, and what can be depended on. Pure."""

from __future__ import annotations

from typing import Literal, NoReturn, Protocol

from msgspec import Struct

Meets = Literal["completed", "settled", "failed"]
"""The ending of a job that meets a dependency on it: `completed`; `settled`, which is any; or
`failed`, which is failed for good, cancelled or skipped."""


class Dependency(Struct, frozen=True):
    """That a job waits for another one.

    - `job_id`: the id of the other job.
    - `meets`: the ending of it that counts: `"completed"`, `"settled"` for any, or `"failed"` for
      failed for good, cancelled or skipped. Default: `"completed"`.
    - `name`: what the waiting job calls it, 1 to 128 characters as of a job type. Default: None.

    `job.settled` and `job.failed` make one. It is no truth value: `if job.failed` raises TypeError.
    """

    job_id: str
    meets: Meets = "completed"
    name: str | None = None

    def __bool__(self) -> NoReturn:
        raise TypeError("this is a dependency, not a state: compare job.status")


class HasId(Protocol):
    """Something that has the id of a job."""

    @property
    def id(self) -> str:
        """The id of the job."""


class Parent:
    """What jobs can depend on: `depends_on=[job, other.settled]`."""

    __slots__ = ()

    @property
    def settled(self: HasId) -> Dependency:
        """A dependency that any ending of the job meets."""
        return Dependency(self.id, "settled")

    @property
    def failed(self: HasId) -> Dependency:
        """A dependency that is met if the job fails for good, is cancelled or skipped."""
        return Dependency(self.id, "failed")
