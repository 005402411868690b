"""Limits of queues and partitions: how many jobs run at once, how many start in a time, whose turn
it is.

Pure, with whole microseconds, so that both engines decide alike. The databases hold the limits
themselves; what is computed here says how far a claim may go, and when to look again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Literal, NamedTuple

from msgspec import UNSET, Struct
from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.jobs.durations import seconds
from tenure.jobs.enqueue import whole

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
        length = seconds(time if time.strip()[0] in "0123456789P" else f"1{time}")
    except InvalidInput as error:
        raise InvalidInput(NO_RATE, path=f"{path}.rate") from error
    if not MIN_RATE_SECONDS <= length <= MAX_RATE_SECONDS:
        raise InvalidInput(NO_RATE, path=f"{path}.rate")
    if burst is None:
        return Rate(starts, length, max(1, starts // 10))
    return Rate(starts, length, whole(burst, 1, starts, f"{path}.burst"))


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


# --- whose turn it is


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
