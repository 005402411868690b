"""Why limits keep a due job from starting, in words. Pure: facts in, a reason out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from tenure.jobs.ids import EPOCH
from tenure.jobs.limits import Limits, Rate, parse_rate
from tenure.jobs.text import length
from tenure.lifecycle import Status

Reason = Literal[
    "queue_paused", "type_paused", "not_due", "sleeping", "no_worker", "no_worker_for_queue",
    "no_worker_for_type", "queue_full", "partition_full", "queue_rate", "partition_rate",
    "queue_waits", "partition_waits", "partition_paused", "behind_in_order", "halted", "locked",
    "next", "blocked", "suspended", "will_be_skipped", "skipped", "behind_others", "running",
    "lease_ran_out", "will_expire", "expired", "completed", "failed", "cancelled",
]  # fmt: skip
ReasonName = Annotated[str, Meta(extra_json_schema={"enum": list(get_args(Reason))})]
"""Why a job does not run, or how it ended. Programs decide by these names."""
Three = tuple[Reason, Reason, Reason]


class Part(Struct, frozen=True, kw_only=True):
    """A queue, or a partition of one: how far its limits are used.

    `tat` is when its rate is unused again, in microseconds since 1970. `oldest` is the id of the
    job that runs for longest, and since when.
    """

    running: int
    tat: int
    resume_at: datetime | None
    paused_for: str | None
    oldest: tuple[str, datetime] | None
    max_running: int | None
    paused: str | None = None  # by whom and why

    def opens_at(self, rate: Rate | None) -> datetime | None:
        """Return when its rate lets the next job start."""
        if rate is None:
            return None
        micros = self.tat - (rate.burst - 1) * rate.every
        return EPOCH + timedelta(microseconds=micros)


class LimitFacts(Struct, frozen=True, kw_only=True):
    """The limits of a job's queue, and how far they are used.

    `partition` is None where partitions do not take turns; `ahead` counts the due jobs of it that
    go first, up to 10,000. `before` is the first of its line, if the queue is ordered and that is
    another job: its id, status and time.
    """

    limits: Limits
    queue: Part
    name: str = ""
    partition: Part | None = None
    ahead: int = 0
    before: tuple[str, Status, datetime] | None = None


OF_QUEUE: Three = ("queue_waits", "queue_full", "queue_rate")
OF_PARTITION: Three = (
    "partition_waits",
    "partition_full",
    "partition_rate",
)
"""What keeps a job from starting: a rest after a rate limit outside, its limit, its rate."""
IN_ORDER = ("behind_in_order", "halted")
"""What keeps a job of an ordered queue from starting: another one of its partition."""


def limit_reason(queue: str, facts: LimitFacts, now: datetime) -> tuple[Reason, str] | None:
    """Return a stable reason and a sentence, None if no limit keeps a due job from starting."""
    limits, per, named = facts.limits, facts.limits.per_partition, f"Queue {queue}"
    rate = parse_rate(limits.rate, limits.burst, "$")
    if found := _closed(OF_QUEUE, named, facts.queue, rate, now):
        return found
    if facts.partition is None:
        return None
    called = f"Partition {facts.name}" if facts.name else "The partition without a name"
    part = f"{called} of queue {queue}"
    if facts.partition.paused is not None:
        reason = facts.partition.paused
        return "partition_paused", f"{part} is paused{reason}; resume it to continue."
    if facts.before is not None:
        return _in_order(part, *facts.before)
    rate = parse_rate(per.rate, per.burst, "$") if per else None
    return _closed(OF_PARTITION, part, facts.partition, rate, now)


def limiting_jobs(reason: str, facts: LimitFacts) -> list[str]:
    """Return the job to look at next, if `limit_reason` gives this reason and names one."""
    part = facts.queue if reason in OF_QUEUE else facts.partition
    if reason in IN_ORDER and facts.before is not None:
        return [facts.before[0]]
    if part is None or reason not in (*OF_QUEUE, *OF_PARTITION):
        return []
    if reason.endswith("_full") and part.max_running and part.oldest is not None:
        return [part.oldest[0]]
    return [part.paused_for] if reason.endswith("_waits") and part.paused_for else []


def stays_closed(reason: str, facts: LimitFacts, now: datetime) -> bool:
    """Whether a job does not start for this reason of a limit, even if a worker is alive."""
    if reason == "behind_in_order" and facts.before is not None:
        _, status, run_at = facts.before
        return status is Status.WAITING or run_at > now
    if reason in ("queue_full", "partition_full"):
        part = facts.queue if reason == "queue_full" else facts.partition
        return part is not None and part.max_running == 0
    return reason in ("partition_paused", "halted")


def _closed(
    reasons: Three, named: str, part: Part, rate: Rate | None, now: datetime
) -> tuple[Reason, str] | None:
    waits, full, started = reasons
    if part.resume_at is not None and part.resume_at > now:
        wait = length((part.resume_at - now).total_seconds())
        why = f": job {part.paused_for} met a rate limit outside" if part.paused_for else ""
        return waits, f"{named} starts no job for {wait}{why}."
    if part.max_running is not None and part.running >= part.max_running:
        if part.max_running == 0:
            return full, f"{named} may run no job: its limit is 0."
        since = ""
        if part.oldest is not None:
            for_long = length((now - part.oldest[1]).total_seconds())
            since = f", the oldest for {for_long} (job {part.oldest[0]})"
        jobs = f"{part.running:,} of {part.max_running:,} jobs run{since}"
        return full, f"{named} is full: {jobs}."
    opens_at = part.opens_at(rate)
    if opens_at is not None and opens_at > now:
        wait = length(max((opens_at - now).total_seconds(), 0.1))
        return started, f"{named} starts {rate} at most; the next job can start in {wait}."
    return None


def _in_order(part: str, id: str, status: Status, run_at: datetime) -> tuple[Reason, str]:
    if status is Status.FAILED:
        return "halted", (
            f"{part} stands still since job {id} failed for good: retry that job, or pass over it."
        )
    until = f", due {run_at:%Y-%m-%d %H:%M:%S UTC}" if status is Status.PENDING else ""
    return "behind_in_order", f"{part} runs in order, and job {id} is before it ({status}{until})."
