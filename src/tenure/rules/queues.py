"""Limits of queues and partitions, whose turn it is, and why limits keep a due job from starting.

A limit says how many jobs run at once, or how many start in a time. Pure, with whole microseconds,
so that both engines decide alike. The databases hold the limits themselves; what is computed here
says how far a claim may go, and when to look again, and makes the sentences for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil
from typing import Annotated, Any, Literal, NamedTuple, get_args

from msgspec import UNSET, Meta, Struct
from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.lifecycle import Status
from tenure.values.durations import seconds
from tenure.values.ids import EPOCH
from tenure.values.numbers import whole
from tenure.values.text import length

MAX_RUNNING = 2**31 - 1
MAX_STARTS = 1_000_000
MIN_RATE_SECONDS, MAX_RATE_SECONDS = 0.001, 31 * 86_400.0
NO_RATE = "not a rate; use starts, a slash and a time of 1ms to 31d: 900/1m, 10/s"
MAX_WEIGHT = 1_000
MICROS = 1_000_000
LOOK_AGAIN_MICROS = 1_000_000
"""How long a worker waits that nothing has notified, before it looks at a closed queue again."""
NEXT = "\x01"
"""After a partition: the place behind it, because no partition has control characters."""
Ordered = Literal["halt", "pass"]
KEEP = UNSET
"""The default of settings that a call does not change."""


class Rate(Struct, frozen=True):
    """How many jobs may start: never more than `starts` in any `seconds`, `burst` of them at once.

    As text it is what `parse_rate` reads.
    """

    starts: int
    seconds: float
    burst: int

    @property
    def every(self) -> int:
        """The microseconds in which one more start becomes possible.

        In any `seconds` there are at most `burst` starts that were saved up, and one for each
        `every`: so these are `starts - burst` at most.
        """
        return -(-round(self.seconds * MICROS) // (self.starts - self.burst + 1))

    def __str__(self) -> str:
        for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
            if self.seconds % size == 0:
                return f"{self.starts}/{self.seconds / size:.0f}{unit}"
        return f"{self.starts}/{self.seconds}s"


class PerPartition(Struct, frozen=True):
    """What holds for each partition of a queue; without any value, only that they take turns.

    - `max_running`: how many jobs of a partition may be processing at once, 0 to 2,147,483,647.
      Default: None, no limit.
    - `rate`: how many of them may start in a time, as in `"10/1s"`; see `app.queues.limit`.
      Default: None, no limit.
    - `burst`: how many of these may start at once, 1 to all. Default: a tenth of them, 1 at least.

    Raises InvalidInput for a value out of range.
    """

    max_running: int | None = None
    rate: str | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        check_running(self.max_running, "$.per_partition.max_running")
        parse_rate(self.rate, self.burst, "$.per_partition")


class Limits(Struct, frozen=True):
    """The limits of a queue; see `app.queues.limit`."""

    max_running: int | None = None
    rate: str | None = None
    burst: int | None = None
    per_partition: PerPartition | None = None
    ordered: Ordered | None = None


def merged(old: Limits, given: Mapping[str, Any]) -> Limits:
    """Return the old limits, replaced by each that is given and not KEEP; raises InvalidInput.

    A new rate removes the old burst.
    """
    changes = {name: value for name, value in given.items() if value is not KEEP}
    if "rate" in changes:
        changes.setdefault("burst", None)
    new = replace(old, **changes)
    check_running(new.max_running, "$.max_running")
    if not isinstance(new.per_partition, PerPartition | None):
        raise InvalidInput("give a PerPartition, or None", path="$.per_partition")
    if new.ordered not in (None, "halt", "pass"):
        raise InvalidInput("use halt or pass, or None for any order", path="$.ordered")
    rate = parse_rate(new.rate, new.burst, "$")
    return replace(new, rate=str(rate), burst=rate.burst) if rate else new


def check_running(value: object, path: str) -> int | None:
    """Return a number of jobs that may run at once, None for any; raises InvalidInput."""
    return None if value is None else whole(value, 0, MAX_RUNNING, path)


def check_weight(value: object, path: str) -> int | None:
    """Return how many jobs a turn of a partition has, None for 1; raises InvalidInput."""
    return None if value is None else whole(value, 1, MAX_WEIGHT, path)


def parse_rate(text: object, burst: object, path: str) -> Rate | None:
    """Return the rate that a text and a burst say, None without a text; raises InvalidInput.

    `"900/1m"` is 900 starts in a minute; `"10/s"` is 10 in a second. `path` is that of the object
    whose fields these are.
    """
    if text is None:
        if burst is not None:
            raise InvalidInput("a burst is part of a rate: give both", path=f"{path}.burst")
        return None
    number, _, time = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not (number.isascii() and number.isdigit() and len(number) <= 7 and time.strip()):
        raise InvalidInput(NO_RATE, path=f"{path}.rate")
    starts = whole(int(number), 1, MAX_STARTS, f"{path}.rate")
    try:
        span = seconds(time if time.strip()[0] in "0123456789P" else f"1{time}")
    except InvalidInput as error:
        raise InvalidInput(NO_RATE, path=f"{path}.rate") from error
    if not MIN_RATE_SECONDS <= span <= MAX_RATE_SECONDS:
        raise InvalidInput(NO_RATE, path=f"{path}.rate")
    if burst is None:
        return Rate(starts, span, max(1, starts // 10))
    return Rate(starts, span, whole(burst, 1, starts, f"{path}.burst"))


def look_again(
    now: int, every: int | None, burst: int | None, tat: int, resume_at: int | None, per: int | None
) -> float:
    """Return the seconds after which a closed queue is worth a look that nothing was notified of.

    All in microseconds: the store's clock, the rate of the queue with its `tat`, until when the
    queue waits, and `every` of its partitions, any of which may be the next.
    """
    opens = resume_at or 0
    if every is not None and burst is not None:
        opens = max(opens, tat - (burst - 1) * every)
    known = [opens - now if opens > now else LOOK_AGAIN_MICROS]
    if per is not None:
        known.append(per)
    return ceil(min(known) / 1_000) / 1_000


# --- whose turn it is -----------------------------------------------------------------------------


class Turn(NamedTuple):
    """Whose turn it is in a lane: the first open partition from `partition` on, and around.

    If it is `partition` itself, its turn has `left` more jobs; 0 stands for all of them. If a turn
    is lost, only the order changes: another partition is next.
    """

    partition: str = ""
    left: int = 0


class Open(NamedTuple):
    """A partition that may start jobs: up to `room`, and `weight` of them in a turn."""

    partition: str
    room: int
    weight: int


def quotas(parts: Sequence[Open], turn: Turn, space: int) -> tuple[list[int], Turn]:
    """Deal the `space` of a claim to partitions, in turns; return the share of each, and the turn.

    - `parts`: open partitions in the order of their turns, the one whose turn it is first.
    - `turn`: where the turn is. The first of the parts has what is left of it, if it is its own.

    Each gets `weight` jobs, then the next, around and around while there is space, and room. So
    over any number of claims, of whatever size, the shares of partitions that have jobs are as
    their weights. The turn that is returned is what the last one has left, or behind it.
    """
    shares = [0] * len(parts)
    due = [_due(part, turn) for part in parts]
    while space > 0 and any(share < part.room for share, part in zip(shares, parts, strict=True)):
        for at, part in enumerate(parts):
            given = min(due[at], part.room - shares[at], space)
            shares[at] += given
            space -= given
            if given:
                left = due[at] - given
                turn = Turn(part.partition, left) if left else Turn(part.partition + NEXT)
            due[at] = part.weight
    return shares, turn


def has_enough(parts: Sequence[Open], turn: Turn, space: int) -> bool:
    """Whether partitions, in the order of their turns, fill a claim with one turn of each."""
    return sum(min(part.room, _due(part, turn)) for part in parts) >= space


def _due(part: Open, turn: Turn) -> int:
    began = turn.left > 0 and part.partition == turn.partition
    return min(turn.left, part.weight) if began else part.weight


# --- reasons --------------------------------------------------------------------------------------

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

OF_QUEUE: Three = ("queue_waits", "queue_full", "queue_rate")
OF_PARTITION: Three = ("partition_waits", "partition_full", "partition_rate")
"""What keeps a job from starting: a rest after a rate limit outside, its limit, its rate."""
IN_ORDER = ("behind_in_order", "halted")
"""What keeps a job of an ordered queue from starting: another one of its partition."""


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
