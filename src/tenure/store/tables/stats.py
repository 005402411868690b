"""What the ledger adds up to: a rollup that follows it.

Nothing is counted while jobs move. Afterwards a *batch* of the ledger, from where the last one
ended, is added up in one statement on a reading connection, and the sums go into a few small tables
in one transaction that also moves the place where the next batch begins, if nobody else has moved
it. So each entry counts exactly once, however many processes measure and whenever they die.

The tally (jobs by status, queue and type) is exact at any moment: what it says of that place, and
the moves since, read in one statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tenure.jobs.stats import BUCKETS, Activity, Count, FailureGroup, Total
from tenure.lifecycle import FAILURES
from tenure.store.tables.error_kinds import kind_of
from tenure.store.tables.stats_sql import Words

MAX_MOVES = 2_000
"""Ledger entries in a batch."""
MAX_SERIES = 200
"""Pairs of type and queue that are told apart in activity and totals; the rest is `OTHER`."""
OTHER = "(other)"
"""What no type and no queue can be called."""
MINUTES_KEPT = 25 * 60
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[Any, ...]
"""Of an entry in the ledger."""

Rows = Callable[[str, Sequence[Any]], list[Any]]
"""Runs a statement with its values; what it answers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The sums of a part of the ledger: after `start`, up to and with `end`."""

    start: Place
    end: Place
    transitions: int
    millis: int  # the latest time in it
    sums: Sequence[Sequence[Any]]  # minute, type, queue, event, source, target, bucket, moves, sum
    failures: Sequence[Sequence[Any]]  # type, first line, attempts, first and last time, last job


def _answer(words: Words, rows: Rows, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    found = rows(statement, values)
    return _decode(found[0][0]) if words.packs else found


_decode = msgspec.json.Decoder(list[list[Any]]).decode


def next_batch(
    words: Words, rows: Rows, *, hold: bool = False, known: Place | None = None
) -> tuple[Sequence[Any], Batch | None]:
    """The place that has been measured (with its time), and the batch after it, if there is one.

    `hold` keeps others from moving the place until the end of the transaction. Where the place is
    not the `known` one, somebody else measures: there is no batch then.
    """
    (place,) = rows(words.held(hold=hold), ())
    start = tuple(place[:-1])
    if known is not None and start != known:
        return place, None
    ends = rows(words.end(), (*start, MAX_MOVES))
    if not ends:
        return place, None
    *end, transitions, millis = ends[0]
    between = (*start, *end)
    sums = _answer(words, rows, words.sums(), between)
    failed = any(event in FAILURES for _, _, _, event, *_ in sums)
    failures = _answer(words, rows, words.failures(), between) if failed else []
    return place, Batch(start, tuple(end), transitions, millis, sums, failures)


# --- what is read ---------------------------------------------------------------------------------


class Measured:
    """The reading side."""

    def __init__(self, words: Words, rows: Rows, all_rows: Rows) -> None:
        """`all_rows` runs what reads most of a table, `rows` what must not."""
        self._words = words
        self._rows = rows
        self._all_rows = all_rows

    def counts(self) -> list[Count]:
        """Jobs by status, queue and type, at this moment."""
        return [Count(*row) for row in self.counted("{counts}")]

    def counted(self, statement: str) -> list[Any]:
        """What a statement answers with the counts in it, counted in the faster one of two ways."""
        ((far,),) = self._rows(self._words.is_far(), ())
        if far:
            return self._all_rows(statement.replace("{counts}", self._words.plain_counts()), ())
        return self._rows(statement.replace("{counts}", self._words.counts()), ())

    def next_batch(self, known: Place | None) -> tuple[Place, Batch | None]:
        """Where the ledger has been measured to, and the next batch of it.

        No batch where there is nothing new, or where that is not the `known` place.
        """
        (*place, _), batch = next_batch(self._words, self._rows, known=known)
        return tuple(place), batch

    def activity(self, minutes: int) -> list[Activity]:
        """The moves of the last minutes, as far as they have been measured."""
        found = _answer(self._words, self._rows, self._words.activity(), (minutes,))
        return [
            Activity(
                _time(minute * 60_000), type, queue, event, transitions, seconds, tuple(buckets)
            )
            for minute, type, queue, event, transitions, seconds, *buckets in found
        ]

    def totals(self) -> list[Total]:
        """All moves that have been measured."""
        found = _answer(self._words, self._all_rows, self._words.totals())
        return [
            Total(type, queue, event, transitions, seconds, tuple(buckets))
            for type, queue, event, transitions, seconds, *buckets in found
        ]

    def failures(self, limit: int) -> list[FailureGroup]:
        """The kinds of failures seen last, as far as they have been measured."""
        return [
            FailureGroup(type, error, attempts, _time(first), _time(last), job_id)
            for type, error, attempts, first, last, job_id in self._all_rows(
                self._words.groups(), (limit,)
            )
        ]

    def until(self) -> datetime | None:
        """Up to when the ledger has been measured; None if not even its first entry has."""
        ((millis,),) = self._rows(self._words.until(), ())
        return _time(millis) if millis else None


def _time(millis: int) -> datetime:
    return EPOCH + timedelta(milliseconds=millis)


# --- what is written ------------------------------------------------------------------------------


class Measures:
    """The writing side, inside the transaction of its database."""

    def __init__(self, words: Words, run: Callable[[str, Sequence[Any]], Any]) -> None:
        """`run` executes a statement and returns its cursor."""
        self._words = words
        self._run = run
        self._series: set[tuple[str, str]] = set()

    def _rows(self, statement: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = self._run(statement, values).fetchall()
        return found

    def add(self, batch: Batch, now: datetime) -> bool:
        """Add a batch to the tables; False, and nothing is changed, if somebody else has."""
        words = self._words
        values = (*batch.end, batch.millis, batch.millis, *batch.start)
        if self._run(words.move_on(), values).rowcount != 1:
            return False
        self._count(tallied(batch.sums))
        oldest = int((now - EPOCH).total_seconds()) // 60 - MINUTES_KEPT
        by_minute, in_all = added(batch.sums, self._told_apart(batch.sums), oldest)
        self._run(words.add_totals(), (_json(in_all),))
        if by_minute:
            self._run(words.add_activity(), (_json(by_minute),))
        self._run(words.forget_minutes(), (oldest,))
        if batch.failures:
            self._run(words.add_failures(), (_json(grouped(batch.failures)),))
            self._run(words.forget_failures(), ())
        return True

    def catch_up(self, now: datetime) -> Sequence[Any]:
        """Measure the next batch in this transaction; the place and time that are measured then.

        Nobody else moves that place before the transaction ends.
        """
        place, batch = next_batch(self._words, self._rows, hold=True)
        if batch is None or not self.add(batch, now):
            return place
        return (*batch.end, max(batch.millis, place[-1]))

    def take_out(self, jobs: Mapping[tuple[str, str, str], int]) -> None:
        """Take jobs that were deleted out of the tally, by status, queue and type."""
        self._count({key: -count for key, count in jobs.items()})

    def recount(self) -> int:
        """Make the counts those of the jobs; how many were wrong. Nobody measures meanwhile."""
        self._rows(self._words.held(hold=True), ())
        return int(self._run(self._words.recount(), ()).rowcount)

    def _count(self, jobs: Mapping[tuple[str, str, str], int]) -> None:
        rows = _json([(*key, count) for key, count in jobs.items() if count])
        self._run(self._words.count(), (rows,))
        self._run(self._words.forget_empty(), (rows,))

    def _told_apart(self, sums: Iterable[Sequence[Any]]) -> set[tuple[str, str]]:
        """The pairs of type and queue that are told apart, with those that there is room for."""
        met = {(type, queue) for _, type, queue, *_ in sums}
        if met - self._series:
            found = _answer(self._words, self._rows, self._words.series())
            self._series = {(type, queue) for type, queue in found}
            room = max(MAX_SERIES - len(self._series), 0)
            return self._series | set(sorted(met - self._series)[:room])
        return self._series


def tallied(sums: Iterable[Sequence[Any]]) -> Mapping[tuple[str, str, str], int]:
    """How moves change the tally: (status, queue, type) -> jobs more."""
    jobs: dict[tuple[str, str, str], int] = {}
    for _, type, queue, _, source, target, _, transitions, _ in sums:
        jobs[target, queue, type] = jobs.get((target, queue, type), 0) + transitions
        if source is not None:
            jobs[source, queue, type] = jobs.get((source, queue, type), 0) - transitions
    return jobs


def added(
    sums: Iterable[Sequence[Any]], told_apart: set[tuple[str, str]], oldest: int
) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """What moves add to the minutes from `oldest` on, and to the totals, as rows."""
    minutes: dict[tuple[Any, ...], list[Any]] = {}
    in_all: dict[tuple[Any, ...], list[Any]] = {}
    for minute, type, queue, event, _, _, bucket, transitions, seconds in sums:
        series = (type, queue) if (type, queue) in told_apart else (OTHER, OTHER)
        rows = [in_all.setdefault((*series, event), [0, 0.0, *_none])]
        if minute >= oldest:
            rows.append(minutes.setdefault((minute, *series, event), [0, 0.0, *_none]))
        for row in rows:
            row[0] += transitions
            if bucket is not None:
                row[1] += seconds
                row[2 + bucket] += transitions
    return [(*k, *v) for k, v in minutes.items()], [(*k, *v) for k, v in in_all.items()]


_none = (0,) * len(BUCKETS)


def grouped(failures: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Failures by type and kind, as rows."""
    groups: dict[tuple[str, str], tuple[Any, ...]] = {}
    for type, line, *failure in failures:
        key = (type, kind_of(line or ""))
        groups[key] = _together(tuple(failure), groups.get(key))
    return [(*key, *group) for key, group in groups.items()]


def _together(one: tuple[Any, ...], other: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if other is None:
        return one
    return (one[0] + other[0], min(one[1], other[1]), *max(one[2:], other[2:]))


def _json(rows: Sequence[Sequence[Any]]) -> str:
    return msgspec.json.encode(rows).decode()
