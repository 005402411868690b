"""The table of workers that asked for jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from tenure.rules.reports import ClaimRequest
from tenure.rules.stats import WorkerState
from tenure.rules.tokens import Patterns, includes
from tenure.store.database import Reads, Statements
from tenure.store.rows import read_names, write_names
from tenure.values.names import listed

SHOWN_SECONDS = 600
"""How long a worker is listed after it last asked."""
KEPT_SECONDS = 86_400
MAX_WORKERS = 1_000
"""Workers that are kept of one caller of the HTTP API, those seen last."""
MAX_SHOWN = 10_000
SEEN_SECONDS = 5.0
"""How often it is noted that a worker asked."""
MAX_SEEN = 5_000
SEEN = ", ".join(f"{c} = excluded.{c}" for c in ("seen_at", "queues", "types", "stopping"))


class Sightings:
    """When a store has noted which worker. For any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._seen: dict[str, float] = {}

    def is_due(self, request: ClaimRequest) -> bool:
        """Whether it is time to note that a worker asked for jobs."""
        return self._clock() - self._seen.get(request.worker, -SEEN_SECONDS) >= SEEN_SECONDS

    def note(self, db: Statements, requests: Sequence[ClaimRequest]) -> None:
        """Note the workers for which it is time, and workers that stop or leave."""
        if due := {r.worker: r for r in requests if r.leaves or r.stopping or self.is_due(r)}:
            self._note(db, due)

    def _note(self, db: Statements, due: Mapping[str, ClaimRequest]) -> None:
        for name in sorted(due):  # in the same order everywhere, as jobs are locked
            if due[name].leaves:
                remove(db, name)
            else:
                see(db, due[name], new=name not in self._seen)
        now = self._clock()
        lately = {w: t for w, t in self._seen.items() if now - t < 10 * SEEN_SECONDS}
        # Replaced, not changed: other threads may iterate.
        self._seen = {**(lately if len(lately) < MAX_SEEN else {}), **dict.fromkeys(due, now)}


def see(db: Statements, request: ClaimRequest, *, new: bool) -> None:
    """Note that a worker asked. If it may be `new`, its caller may have one too many now."""
    d = db.dialect
    queues, types = (names and listed(names) for names in (request.queues, request.types))
    db.changed(
        f"INSERT INTO {d.table('worker')}"
        " (id, label, queues, types, slots, version, stopping, since_at, seen_at)"
        f" VALUES ({d.values(7)}, {d.now}, {d.now}) ON CONFLICT (id) DO UPDATE SET {SEEN}",
        (
            *(request.worker, request.label, write_names(queues), write_names(types)),
            *(request.slots, request.version, request.stopping),
        ),
    )
    caller, slash, _ = request.worker.partition("/")
    if new and slash:
        _keep_the_latest(db, caller + slash)


def _keep_the_latest(db: Statements, beginning: str) -> None:
    """Delete all but the latest of the workers whose ids have the same beginning."""
    d = db.dialect
    table = d.table("worker")
    others = (
        f"SELECT id FROM {table} WHERE substr(id, 1, {d.value}) = {d.value}"
        f" ORDER BY seen_at DESC LIMIT {MAX_SHOWN} OFFSET {MAX_WORKERS}"
    )
    some = f"SELECT id FROM {table} WHERE id IN ({others}) {d.free_to_delete}"
    db.changed(f"DELETE FROM {table} WHERE id IN ({some})", (len(beginning), beginning))


def remove(db: Statements, worker: str) -> None:
    """Delete a worker that has ended in order."""
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('worker')} WHERE id = {d.value}", (worker,))


def forget(db: Statements) -> None:
    """Delete the workers that have not asked for a day."""
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('worker')} WHERE seen_at < {d.later(-KEPT_SECONDS)}")


def seen(db: Reads, queues: Patterns | None) -> list[WorkerState]:
    """Return the workers of the last ten minutes that take from some queues, newest first.

    Of their queues and their leases, those are shown that fit. A lease that has ended is none:
    its worker may be dead, and no process alive that sweeps.
    """
    d = db.dialect
    condition, values = d.in_queues("queue", queues)
    statement = f"""
SELECT w.id, w.label, w.queues, w.types, {d.time("w.seen_at")}, coalesce(held.leases, 0),
    {d.time("w.since_at")}, w.slots, w.version, w.stopping
FROM {d.table("worker")} AS w LEFT JOIN (
    SELECT worker, count(*) AS leases FROM {d.processing}
    WHERE lease_expires_at > {d.now} AND {condition} GROUP BY worker
) AS held ON held.worker = w.id
WHERE w.seen_at > {d.later(-SHOWN_SECONDS)} ORDER BY w.seen_at DESC LIMIT {MAX_SHOWN}
"""
    found = []
    for id, label, named, types, at, leases, since, *rest in db.rows(statement, values):
        names = read_names(named)
        own = names and tuple(name for name in names if includes(queues, name))
        if own or names is None or queues is None:
            times = d.to_time(at), leases, d.to_time(since)
            state = WorkerState(id, label, own, read_names(types), *times, *rest)
            found.append(replace(state, stopping=bool(state.stopping)))
    return found
