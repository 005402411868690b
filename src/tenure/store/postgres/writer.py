"""The writing side of the PostgreSQL store, for any number of processes on any number of hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, TypeVar

from psycopg import errors

from tenure.errors import TenureError
from tenure.lifecycle import Job
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest, Lease, Report
from tenure.rules.retention import Cutoffs
from tenure.store.database import Left, Passed
from tenure.store.lanes import MARGIN, next_due
from tenure.store.postgres import connection as pg
from tenure.store.postgres import statements as sql
from tenure.store.postgres.lanes import PostgresClaim, PostgresLanes, in_order, seen_for
from tenure.store.postgres.session import PostgresSession
from tenure.store.refusals import Kind, Refused, delete, unless_refused
from tenure.store.rows import (
    CHANGED,
    added_job,
    changed_values,
    field_of,
    job_of,
    parts,
    write_policy,
)
from tenure.store.tables.stats import StatsWriter

T = TypeVar("T")

KEPT_MILLIS = 60_000
"""How much later than a job settled its row of `kept` is due, at most."""
MAX_LOOKS = 20
"""Looks in a row: of retention, if each found nothing to delete, and of a sweep."""

FIND_HELD = f"""{sql.SEEN}{sql.OLD.replace("FOR UPDATE OF job SKIP LOCKED", "")}, free AS (
    SELECT job.id FROM old JOIN {{s}}.job USING (id) FOR UPDATE OF job SKIP LOCKED)
SELECT id::text FROM old WHERE id NOT IN (SELECT id FROM free)"""
"""The jobs of the next arrivals that could be deleted if no other transaction held them."""

_added_values = attrgetter(*sql.NEW[:-1])
_changed_values = attrgetter(*map(field_of, CHANGED))
_guard_values = attrgetter(*sql.GUARD)


class Postgres(PostgresSession):
    """The writing connection to one database; see `Database`."""

    dialect = sql.DIALECT

    def __init__(
        self,
        url: str,
        lanes: PostgresLanes | None = None,
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        """`lanes` is what the writing connections of a store share.

        `on_connect` is called after each connect, the first one included.
        """
        super().__init__(url, on_connect)
        self._lanes = lanes or PostgresLanes()
        self.stats = StatsWriter(self)
        self.passed: dict[Sequence[str], Passed] = {}
        self.left = Left()
        self._crowded = set[str]()  # looks after which there was more to lock than a sweep may

    # --- adding

    def insert(
        self, checked_jobs: Sequence[CheckedJob], more: Sequence[str] = ()
    ) -> Mapping[str, Job]:
        added: dict[str, Job] = {}
        for part in parts(_ordered(checked_jobs), _payload):
            added |= self._insert(part, more) if more else self._enqueue(part)
        return added

    def _insert(self, part: Sequence[CheckedJob], more: Sequence[str]) -> Mapping[str, Job]:
        rows = [(*_row(a), *[getattr(a, column) for column in more]) for a in part]
        now = self.now()
        values = (*sql.arrays((*sql.NEW, *more), rows), now)
        made = dict(self.rows(sql.insert_with(tuple(more)), values))
        return {a.id: added_job(a, now, pg.to_time(made[a.id])) for a in part if a.id in made}

    def _enqueue(
        self, ordered: Sequence[CheckedJob], *, sparing: bool = False, whole: bool = False
    ) -> Mapping[str, Job]:
        """Add the jobs whose id and key are new. Returns id -> job of each added job.

        `sparing` adds none if one of their queues has a limit, `whole` none if one is not new.
        """
        rows = [_row(a) for a in ordered]
        values = (*sql.arrays(sql.NEW, rows), sparing, whole)
        ((at, made, later, later_at),) = self.rows(sql.ENQUEUE, values)
        now = pg.to_time(at)
        run_at = dict(zip(later or (), later_at or (), strict=True))
        wanted = None if made is None else set(made)
        return {
            a.id: added_job(a, now, pg.to_time(run_at[a.id]) if a.id in run_at else now)
            for a in ordered
            if wanted is None or a.id in wanted
        }

    def known(self, checked_jobs: Sequence[CheckedJob]) -> Mapping[str, tuple[Job, str | None]]:
        ids = pg.uuids([a.id for a in checked_jobs])
        rows = self.rows(sql.KNOWN, (ids, ids, [a.idempotency_key for a in checked_jobs]))
        return {wanted: (job_of(row, pg.to_time), row[-1]) for wanted, *row in rows}

    def limits(self, queues: Collection[str]) -> list[tuple[str, int]]:
        return self.rows(sql.LIMITED, (list(queues),))

    # --- the hot path

    def complete(self, reports: Sequence[Report]) -> set[str]:
        values = _completions(reports)
        return {lease_id for (lease_id,) in self.rows(sql.COMPLETE, values)}

    def claim(self, request: ClaimRequest, *, wary: bool = False) -> list[Lease]:
        view = self._lanes.view(request)
        claim = PostgresClaim(self.rows, request, view, self._lanes.clock, self if wary else None)
        return self._lanes.claim(request, claim)

    def next_due(self, request: ClaimRequest) -> float | None:
        if not self._lanes.are_plain(request):
            return None
        view = self._lanes.view(request)
        return next_due(request, view, PostgresClaim(self.rows, request, view, self._lanes.clock))

    def keep_traces(self, traces: Sequence[tuple[str, str]]) -> None:
        ids, parents = zip(*traces, strict=True)
        self._run(sql.KEEP_TRACES, (pg.uuids(ids), list(parents)), binary=True)

    def traces(self, job_ids: Sequence[str]) -> Mapping[str, str]:
        return dict(self.rows(sql.TRACES, (pg.uuids(job_ids),)))

    # --- in one statement, which is a whole transaction: one round trip instead of several

    @property
    def alone(self) -> Postgres:
        return self

    def enqueue_alone(
        self, checked_jobs: Sequence[CheckedJob], *, whole: bool
    ) -> Mapping[str, Job]:
        if not checked_jobs or not self._commits_alone():
            return {}
        if any(checked_job.traceparent or not checked_job.simple for checked_job in checked_jobs):
            return {}  # that is another table, and so a transaction of several statements
        if len(checked_jobs) == 1:
            made = self._enqueue_one(checked_jobs[0])
        elif len(sent := list(parts(_ordered(checked_jobs), _payload))) > 1:
            return {}
        else:
            made = self._enqueue(sent[0], sparing=True, whole=whole)
        self._check_confirmed()
        return made

    def _enqueue_one(self, checked_job: CheckedJob) -> Mapping[str, Job]:
        """Add one job unless its queue has a limit or its id or key is not new."""
        values = [None if v is None else str(v).encode() for v in _row(checked_job)]
        try:
            times = self._execute_directly(sql.ENQUEUE_ONE, values).get_value(0, 0)
        except errors.UniqueViolation:  # of the id, whose first answer was lost
            return {}
        if times is None:
            return {}
        created, runs = _times(times)
        return {checked_job.id: added_job(checked_job, created, runs)}

    def exchange_alone(
        self, reports: Sequence[Report], claim: ClaimRequest | None
    ) -> tuple[set[str], list[Lease] | None, float | None] | None:
        wanted: tuple[Any, ...] = (None, 0.0, None, None, 0, 0)
        if claim is not None:
            plain = self._lanes.are_plain(claim, alone=not reports)
            if not plain or self._lanes.are_limited(claim):
                return None
            queues = None if claim.queues is None else sorted(set(claim.queues))
            types = None if claim.types is None else list(claim.types)
            most = (claim.limit, seen_for(claim.limit))
            wanted = (queues, claim.lease_seconds, claim.worker, types, *most)
        if not self._commits_alone():
            return None
        rows = self.rows(sql.EXCHANGE, (*_completions(reports), *wanted))
        self._check_confirmed()
        done = {row[-1] for row in rows if row[-1] is not None}
        rows = rows[len(done) :]
        if claim is None:
            return done, [], None
        if not rows:
            self._lanes.are_several(claim)
            return done, None, None
        *_, at, walked, due_in, _ = rows[0]
        self._lanes.noticed(claim, walked)
        until = pg.to_time(at) + timedelta(seconds=claim.lease_seconds)
        claimed = in_order([row for row in rows if row[0]])
        leases = [Lease(*[*row[:9], until, None, row[9]]) for row in claimed]
        return done, leases, None if due_in is None else due_in + MARGIN.total_seconds()

    def read_alone(self, act: Callable[[Any], T]) -> T:
        self._connect()
        return act(self)

    # --- load and save

    def hold(self, job_ids: Iterable[str]) -> None:
        self.rows(sql.HOLD, (pg.uuids([id for id in job_ids if pg.is_uuid(id)]),))

    def lock(self, job_ids: Sequence[str]) -> Mapping[str, Job]:
        rows = self.rows(sql.LOCK, (pg.uuids([id for id in job_ids if pg.is_uuid(id)]),))
        return {job.id: job for job in (job_of(row, pg.to_time) for row in rows)}

    def busy(self, job_ids: Sequence[str]) -> set[str]:
        rows = self.rows(sql.BUSY, (pg.uuids([id for id in job_ids if pg.is_uuid(id)]),))
        return {id for (id,) in rows}

    def lock_expired(self, limit: int, after: int = 0) -> list[Job]:
        # Others had these locked, so neither reports nor heartbeats got through: now they can.
        self.changed(sql.SPARE)
        return self._swept(sql.LOOK, sql.LOCK_EXPIRED, (limit, after), limit)

    def lock_late(self, limit: int, after: int = 0) -> list[Job]:
        values = (limit + after, limit, after)
        return self._swept(sql.LOOK_AT_WAITING, sql.LOCK_LATE, values, limit)

    def _swept(self, look: str, lock: str, values: Sequence[int], limit: int) -> list[Job]:
        """Go over the arrivals that are old enough, and lock what has run out: it reads all left.

        A worker may claim more jobs in a second than one look goes over. With one for each sweep,
        a sweep took 6 s after 30 s of that. While there is more to lock than `limit`, one has to
        do: what has run out enters again at each look.
        """
        for _ in range(1 if look in self._crowded else MAX_LOOKS):
            ((looked,),) = self.rows(look)
            if looked < sql.MAX_ARRIVALS:
                break
        jobs = [job_of(row, pg.to_time) for row in self.rows(lock, values)]
        (self._crowded.add if len(jobs) >= limit else self._crowded.discard)(look)
        return jobs

    def save(self, changes: Sequence[tuple[Job, Job]], more: Sequence[str] = ()) -> int:
        if not changes:
            return 0
        rows = [
            (
                *(after.id, *_changed_values(after), *_guard_values(before)),
                *changed_values(after, more),
            )
            for before, after in changes
        ]
        statement = sql.save_with(tuple(more)) if more else sql.SAVE
        ((written,),) = self.rows(statement, sql.arrays((*sql.SAVED, *more), rows))
        return int(written)

    def settled_as(self, leases: Sequence[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        rows = self.rows(sql.SETTLED_AS, _uuids(leases))
        return {(job_id, lease_id): event for job_id, lease_id, event in rows}

    def renew(self, leases: Sequence[tuple[str, str]], lease_seconds: float) -> set[str]:
        # In time for another attempt, over another connection, before the leases have run out.
        self._patience = max(lease_seconds / 2, 1.0)
        rows = self.rows(sql.RENEW, (*_uuids(leases), lease_seconds))
        return {lease_id for (lease_id,) in rows}

    def delete_settled(
        self, cutoffs: Cutoffs, until: int, place: Sequence[int], limit: int
    ) -> tuple[Counter[Kind], int, Refused]:
        status, latest, aside = cutoffs.status, cutoffs.latest, 0
        deletion = _Deletion(self, status, until, place)
        if latest is not None and not cutoffs.rules.every:
            deletion.delete((), latest, limit)
        elif latest is not None:
            ((aside,),) = self.rows(sql.of_status(sql.PUT_ASIDE, status), (latest,))
        for queue, type, at in self.rows(sql.of_status(sql.KEPT, status)):
            before, left = cutoffs.of(queue, type), limit - deletion.gone.total()
            if before is not None and self.dialect.to_time(at) < before and left > 0:
                deletion.delete((queue, type), before, left)
        return deletion.gone, aside, deletion.refused

    # --- housekeeping

    def announce(self) -> None:
        """Notify the listeners of this schema. Waits for nothing: a hint may be lost."""
        self._connect()
        self._send("SET LOCAL synchronous_commit = off; NOTIFY {s}")

    def tidy(self, others: int = 0) -> None:
        """Do nothing: autovacuum is set up with the tables."""

    def rest(self) -> None:
        self.close()  # the next use connects again


class _Deletion:
    """What is deleted of the settled jobs of one status, and what the database refuses."""

    def __init__(self, db: Postgres, status: str, until: int, place: Sequence[int]) -> None:
        """Only jobs that settled at `until` or before, and without an entry after `place`."""
        self.gone: Counter[Kind] = Counter()
        self.refused: list[tuple[Any, TenureError]] = []
        self._db, self._status, self._until, self._place = db, status, until, place

    def delete(self, pair: Sequence[str], before: datetime, limit: int) -> None:
        """Delete up to `limit` jobs; with a `pair`, of what is kept of that queue and type."""
        entered = self._until + KEPT_MILLIS if pair else self._until
        seen = (*pair, before, entered, limit, limit)
        old = (before, self._until, *self._place, limit)
        already = self.gone.total()
        for _ in range(MAX_LOOKS):
            if not self._look(seen, old, kept=bool(pair)) or self.gone.total() > already:
                return  # else the jobs of these arrivals have other statuses now, or are refused

    def _look(self, seen: Sequence[Any], old: Sequence[Any], *, kept: bool) -> int:
        """Delete jobs of the next arrivals; return how many of these there were.

        Where others hold most of a batch, as by foreign keys, those are left for as long again.
        """
        db = self._db
        find, all_at_once, look = (
            sql.arrived(one, self._status, kept=kept)
            for one in (sql.FIND_THEM, sql.DELETE_THEM, sql.LOOK_AT_THEM)
        )
        done, _ = unless_refused(db, lambda _: db.rows(all_at_once, (*seen, *old)), [None])
        for *gone, (_, _, looked) in done:
            self.gone.update({(self._status, queue, type): n for queue, type, n in gone})
            limit = seen[-1]
            if looked >= limit and sum(n for *_, n in gone) < limit / 2:  # others would never go
                held = sql.arrived(FIND_HELD, self._status, kept=kept)
                if ids := [id for (id,) in db.rows(held, (*seen, *old))]:
                    db.rows(sql.NAME_REFUSED, ("{" + ",".join(ids) + "}",))
                    db.rows(look, seen)
            return int(looked)
        found, refused = delete(db, db.rows(find, (*seen, *old)))
        self.gone += found
        self.refused += refused
        db.rows(sql.NAME_REFUSED, ("{" + ",".join(id for (id, *_), _ in refused) + "}",))
        return int(db.rows(look, seen)[0][0])


def _ordered(checked_jobs: Iterable[CheckedJob]) -> list[CheckedJob]:
    """In the same order everywhere, or two batches could wait for each other."""
    return sorted(checked_jobs, key=lambda a: (a.idempotency_key or "", a.unique_key or "", a.id))


def _payload(checked_job: CheckedJob) -> str:
    return checked_job.payload


def _row(checked_job: CheckedJob) -> tuple[Any, ...]:
    return (*_added_values(checked_job), write_policy(checked_job.backoff))


def _times(array: bytes) -> Iterator[datetime]:
    """Yield the times in a binary array without NULLs: after 20 bytes, each behind its length."""
    for at in range(24, len(array), 12):
        micros = int.from_bytes(array[at : at + 8], signed=True)
        yield pg.BINARY_EPOCH + timedelta(microseconds=micros)


def _completions(reports: Sequence[Report]) -> tuple[Any, ...]:
    """Return the arrays of completions that can be stored.

    In the order of `lock`, so that two batches with jobs in common do not block each other.
    """
    named = (r for r in reports if pg.is_uuid(r.job_id) and pg.is_uuid(r.lease_id))
    held = sorted(named, key=attrgetter("job_id"))
    ids, leases = (
        pg.uuids([r.job_id for r in held]),
        pg.uuids([r.lease_id for r in held]),
    )
    results = pg.array_of("text", [r.result for r in held])
    return ids, leases, results, pg.array_of("text", [r.actor for r in held])


def _uuids(
    leases: Sequence[tuple[str, str]],
) -> tuple[pg.BinaryArray, pg.BinaryArray]:
    """Return the job ids and the lease ids, without pairs that are no UUIDs."""
    valid = [lease for lease in leases if pg.is_uuid(lease[0]) and pg.is_uuid(lease[1])]
    return pg.uuids([job_id for job_id, _ in valid]), pg.uuids([lease_id for _, lease_id in valid])
