"""The jobs that a run of a handler adds if it completes: `JobContext.enqueue`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import msgspec
from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.jobs.enqueue import PLAIN_OPTIONS, CheckedJob, NewJob, TypeOptions, check_job
from tenure.jobs.ids import new_id
from tenure.jobs.payload import MAX_PAYLOAD_BYTES, JsonText, load

MAX_FOLLOW_UPS = 1_000
"""Jobs that one run adds. They are reported and stored together with its end."""
MAX_FOLLOW_UP_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024
"""Bytes of them all, as JSON."""
EDGE_BYTES = 100
"""What a dependency takes in a report."""

UNKNOWN = "unknown"
"""The actor until the run ends."""
TOO_LATE = "this run has completed its job already: enqueue before"

Defaults = Callable[[str], TypeOptions | None]
"""Returns the options of a type, None if they are not known here."""


class FollowUp(msgspec.Struct, frozen=True):
    """One such job: as it was given, with its payload as text, and checked."""

    new_job: NewJob
    checked: CheckedJob
    is_known: bool  # else the database has the options of its type


class FollowUps:
    """The jobs that one run of a handler adds."""

    in_use: ClassVar[bool] = False
    """Whether there may be reports with such jobs in this process."""

    def __init__(self, defaults: Defaults = lambda _: None) -> None:
        self.is_closed = False
        """Whether they are on their way, so that no further job can be added."""
        self.jobs: list[FollowUp] = []
        self._defaults = defaults
        self._bytes = 0
        FollowUps.in_use = True

    def add(self, new_job: NewJob, id: str | None = None) -> str:
        """Note a job and return its id, a new one by default; raises InvalidInput."""
        if not isinstance(new_job, NewJob):
            raise InvalidInput(
                f"give what new_job(...) returned, not a value of type {type(new_job).__name__}"
            )
        if self.is_closed:
            raise InvalidInput(TOO_LATE)
        if len(self.jobs) == MAX_FOLLOW_UPS:
            raise InvalidInput(f"a run adds at most {MAX_FOLLOW_UPS} jobs: let one add the others")
        if id is not None and self.jobs and id <= self.jobs[-1].checked.id:
            raise InvalidInput("the ids of jobs that a run adds rise from job to job", path="$.id")
        known = self._defaults(new_job.type)
        checked = check_job(new_job, id or new_id(), defaults=known or PLAIN_OPTIONS, actor=UNKNOWN)
        self._bytes += len(checked.payload.encode()) + _bytes_of(new_job, checked)
        if self._bytes > MAX_FOLLOW_UP_BYTES:
            raise InvalidInput(
                f"the jobs that this run adds have more than {MAX_FOLLOW_UP_BYTES} bytes: keep "
                "large data elsewhere and pass its address"
            )
        new_job = replace(new_job, payload=JsonText(checked.payload))
        self.jobs.append(FollowUp(new_job, checked, known is not None))
        return checked.id

    def given(self) -> list[NewJob]:
        """Return them as they were given."""
        return [replace(one.new_job, payload=load(one.checked.payload)) for one in self.jobs]

    def signed(self, actor: str, traceparent: str | None = None) -> Sequence[FollowUp]:
        """Return them for a report, in a span. Jobs that name no actor are added by `actor`."""
        return [replace(one, checked=_signed(one.checked, actor, traceparent)) for one in self.jobs]


def _bytes_of(new_job: NewJob, checked: CheckedJob) -> int:
    options = {name: v for name, v in new_job.options.items() if name != "depends_on"}
    edges: Sequence[object] = getattr(checked, "edges", ())
    return len(msgspec.json.encode(options, enc_hook=str)) + EDGE_BYTES * (1 + len(edges))


def _signed(job: CheckedJob, actor: str, traceparent: str | None) -> CheckedJob:
    actor = actor if job.actor in (None, UNKNOWN) else job.actor
    return replace(job, actor=actor, traceparent=traceparent)


def unknown_types(follow_ups: Sequence[FollowUp]) -> bool:
    """Whether `with_options` needs what the database knows of types."""
    return not all(one.is_known for one in follow_ups)


def with_options(
    follow_ups: Sequence[FollowUp], options: Mapping[str, TypeOptions]
) -> list[CheckedJob]:
    """Return the jobs to add; those of types that are not known here get these `options`."""
    made = []
    for one in follow_ups:
        job = one.checked
        if not one.is_known and (defaults := options.get(job.type)) is not None:
            again = check_job(one.new_job, job.id, defaults=defaults, actor=str(job.actor))
            job = replace(again, traceparent=job.traceparent)
        made.append(job)
    return made
