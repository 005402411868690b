"""A claim of the SQLite store: how its lanes are read, and how jobs of one are leased.

For queues with limits it also reads what room there is, and the turns of partitions. No other
transaction writes meanwhile, so what is read is still true when the jobs start. The triggers of
`0001_4_limits.sql` compute the same once more, for starts by any other SQL.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tenure.errors import WriteRefused
from tenure.rules.queues import NEXT, Open, Turn, has_enough, look_again, quotas
from tenure.rules.reports import MAX_BYTES, ClaimRequest, Lease, is_full
from tenure.store.database import DROPPED_CHANGE, Database
from tenure.store.lanes import MAX_LANES, MAX_PLACES, Head, Lane, LaneView, Limited, Mark, effort
from tenure.store.refusals import MAX_TRIED, Picked, RefusedClaims
from tenure.store.rows import as_json
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.connection import kept, to_millis, to_time
from tenure.store.sqlite.statements import OF_TYPES, PICKED
from tenure.values.names import serves

# --- limits and turns -----------------------------------------------------------------------------

MAX_PARTITIONS = 250
"""Partitions that one look into a lane goes over."""
MAX_SEEN = 250
"""Jobs of a partition that one look goes over."""
START: Mark = (-(2**62), "")
"""Before every job."""
ANY = 2**31 - 1
NOW = ":now * 1000"

LIMITED = """
SELECT queue, iif(partitioned, 'partitions', 'queue') FROM tenure_queue_limit
WHERE queue IN (SELECT value FROM json_each(?))
"""
ROOM = f"""
SELECT min(:most, iif(resume_at > :now, 0, {ANY}),
    coalesce(max_running - (SELECT count(*) FROM tenure_slot WHERE queue = :queue), {ANY}),
    coalesce(({NOW} + burst * every - max(tat, {NOW})) / every, {ANY}))
FROM tenure_queue_limit WHERE queue = :queue
"""
LOOK_AGAIN = """
SELECT every, burst, tat, resume_at * 1000, per_every FROM tenure_queue_limit WHERE queue = ?
"""
FIRST_IN_LINE = """(
    SELECT id FROM tenure_line WHERE queue = :queue AND partition = {of} ORDER BY id LIMIT 1)"""
# One row with everything, as in PICK. Each partition is found by a search behind the one before.
WALK = f"""
WITH RECURSIVE walk (partition, n) AS (
    SELECT min(partition), 1 FROM tenure_turn
    WHERE queue = :queue AND priority = :priority AND partition >= :place
    UNION ALL
    SELECT (SELECT min(t.partition) FROM tenure_turn AS t WHERE t.queue = :queue
            AND t.priority = :priority AND t.partition > walk.partition), n + 1
    FROM walk WHERE partition IS NOT NULL AND n < :looks
)
SELECT json_group_array(json_array(walk.partition, CASE
    WHEN p.paused_at IS NOT NULL OR p.resume_at > :now THEN 0
    WHEN ordered IS NULL AND :now < (
        SELECT run_at FROM tenure_turn AS t WHERE t.queue = :queue AND t.priority = :priority
            AND t.partition = walk.partition ORDER BY run_at LIMIT 1) THEN 0
    WHEN ordered IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM tenure_job WHERE id = {FIRST_IN_LINE.format(of="walk.partition")}
            AND status = 'pending' AND priority = :priority AND run_at <= :now) THEN 0
    ELSE min(
        coalesce(iif(ordered IS NULL, coalesce(p.max_running, per_max_running),
            min(1, coalesce(p.max_running, per_max_running, 1)))
            - (SELECT count(*) FROM tenure_slot AS s
            WHERE s.queue = :queue AND s.partition = walk.partition), {ANY}),
        coalesce(({NOW} + per_burst * per_every - max(coalesce(p.tat, 0), {NOW})) / per_every,
            {ANY}))
    END, coalesce(p.weight, 1)))
FROM walk CROSS JOIN tenure_queue_limit AS l ON l.queue = :queue
LEFT JOIN tenure_partition_limit AS p ON p.queue = :queue AND p.partition = walk.partition
WHERE walk.partition IS NOT NULL
"""
_TURN = "queue = :queue AND priority = :priority AND partition = part.value ->> 0"
_DUE = f"{_TURN} AND (run_at, id) > (part.value ->> 1, part.value ->> 2) AND run_at <= :now"
# The first jobs of each of `parts`, up to their `share`: those seen from its mark on, or, in order,
# the one that is first in its line.
PICK = {
    (of_types, in_order): f"""
SELECT json_group_array(json_array({PICKED}, part.value ->> 0, run_at))
FROM json_each(:parts) AS part CROSS JOIN tenure_job AS job ON job.rowid IN (
    SELECT seen.rowid FROM {seen} WHERE seen.status = 'pending'
        AND (seen.start_by IS NULL OR seen.start_by > :now) {OF_TYPES[of_types]} LIMIT :share)
"""
    for of_types in (False, True)
    for in_order, seen in (
        (
            False,
            f"(SELECT id FROM tenure_turn WHERE {_DUE} ORDER BY run_at, id LIMIT {MAX_SEEN})"
            " AS token CROSS JOIN tenure_job AS seen ON seen.id = token.id",
        ),
        (
            True,
            "(SELECT " + FIRST_IN_LINE.format(of="part.value ->> 0") + " AS id)"
            " AS token CROSS JOIN tenure_job AS seen ON seen.id = token.id",
        ),
    )
}
PASSED = f"""
SELECT json_group_array(json_array(part, run_at, id)) FROM (
    SELECT part.value ->> 0 AS part, t.run_at, t.id FROM json_each(:parts) AS part
    CROSS JOIN tenure_turn AS t ON (t.queue, t.priority, t.partition, t.run_at, t.id) = (
        SELECT queue, priority, partition, run_at, id FROM tenure_turn WHERE {_DUE}
        ORDER BY run_at, id LIMIT 1 OFFSET {MAX_SEEN - 1}))
"""

_read = msgspec.json.decode
_read_in_turn = msgspec.json.Decoder(
    list[tuple[int, str, str, str, Any, int, int, int, float | None, int, str, int]]
).decode


def limits_of(db: sqlite3.Connection, queues: Collection[str]) -> Mapping[str, Limited]:
    """Return how queues are limited; leaves out queues without limits."""
    return dict(db.execute(LIMITED, (as_json(list(queues)),)))


def room(db: sqlite3.Connection, values: Mapping[str, Any]) -> int:
    """Return how many jobs of a `queue` may start `now`, `most` at most."""
    (found,) = db.execute(ROOM, values).fetchone()
    return max(int(found), 0)


def opens(db: sqlite3.Connection, queue: str, now: int) -> float:
    """Return what `queues.look_again` says of a queue; the time is in milliseconds."""
    return look_again(now * 1000, *db.execute(LOOK_AGAIN, (queue,)).fetchone())


def open_partitions(
    db: sqlite3.Connection, values: Mapping[str, Any], turn: Turn, space: int
) -> tuple[list[Open], str | None, int]:
    """Return partitions of a lane that may start jobs, in the order of their turns.

    They are enough to fill `space`, or all that `MAX_PARTITIONS` looks found; and
    the last one that was looked at, None if every one was; and at how many it looked.
    """
    parts: list[Open] = []
    place, end, last = turn.partition, None, None
    looks, step = MAX_PARTITIONS, max(2 * space, 16)
    while looks > 0 and not has_enough(parts, turn, space):
        step = min(step, looks)
        (text,) = db.execute(WALK, {**values, "place": place, "looks": step}).fetchone()
        found = [Open(*row) for row in _read(text)]
        seen = [part for part in found if end is None or part.partition < end]
        parts += [part for part in seen if part.room > 0]
        looks -= len(seen)
        if len(seen) == step:
            last = seen[-1].partition
            place = last + NEXT
        elif end is None and turn.partition:
            end, place = turn.partition, ""
        else:
            return parts, None, MAX_PARTITIONS - looks
        step = looks
    return parts, last, MAX_PARTITIONS - looks


def pick(
    db: sqlite3.Connection,
    values: Mapping[str, Any],
    parts: Mapping[str, int],
    marks: dict[tuple[Lane, str], Mark],
    floors: Mapping[str, Mark],
) -> list[Any]:
    """Return the first jobs of partitions, up to the share of each, as rows of `PICKED`.

    If a look finds no job for this worker, the next look begins behind the jobs of this one. No
    look begins before the floor of a partition; in order, one with a floor has to wait.
    """
    lane = (values["queue"], values["priority"])
    is_ordered = "SELECT ordered IS NOT NULL FROM tenure_queue_limit WHERE queue = ?"
    (in_order,) = db.execute(is_ordered, lane[:1]).fetchone()
    statement = PICK["types" in values, bool(in_order)]
    if in_order and floors:
        parts = {part: share for part, share in parts.items() if part not in floors}
    begins = {part: marks.get((lane, part), START) for part in parts}
    places = {part: (part, *max(at, floors.get(part, START))) for part, at in begins.items()}
    rows: list[Any] = []
    for share in set(parts.values()):
        some = as_json([places[part] for part in parts if parts[part] == share])
        (text,) = db.execute(statement, {**values, "parts": some, "share": share}).fetchone()
        rows += _read_in_turn(text)
    order = {part: n for n, part in enumerate(parts)}
    rows.sort(key=lambda row: (order[row[-2]], row[-1], row[1]))
    if not in_order and (vain := parts.keys() - {row[-2] for row in rows}):
        some = as_json([places[part] for part in vain])
        (text,) = db.execute(PASSED, {**values, "parts": some}).fetchone()
        for part in vain:
            marks.pop((lane, part), None)
        marks.update({(lane, part): (run_at, id) for part, run_at, id in _read(text)})
    return rows


# --- the claim ------------------------------------------------------------------------------------

_read_picked = msgspec.json.Decoder(
    list[tuple[int, str, str, str, Any, int, int, int, float | None, int]]
).decode


@dataclass(slots=True)
class SqliteLaneView(LaneView):
    """What is known of the lanes; and of partitions, what was passed over in them."""

    marks: dict[tuple[Lane, str], Mark] = field(default_factory=dict)


class SqliteClaim:
    """One claim, in the open transaction of a connection; see `lanes.Claim`."""

    start: Mark = START

    def __init__(
        self,
        db: sqlite3.Connection,
        request: ClaimRequest,
        now: datetime,
        view: SqliteLaneView | None = None,
        wary: Database | None = None,
    ) -> None:
        """`wary` is the database of a claim that the database refused the first time."""
        self.now = now
        self.refused = RefusedClaims()
        self._view = view or SqliteLaneView()
        self._db = db
        self._wary = wary
        self._until = kept(now + timedelta(seconds=request.lease_seconds))
        self._values: dict[str, Any] = {"now": to_millis(now), "worker": request.worker}
        self._of_types = request.types is not None
        if self._of_types:
            self._values["types"] = as_json(request.types)
        self._paused: set[str | None] = set()  # and None, if any queue has limits

    def search(self, queues: Sequence[str] | None, after: Lane) -> tuple[list[Head], Lane | None]:
        self._paused = {name for (name,) in self._db.execute(sql.PAUSED)}
        if queues is None:
            found, stopped = self._step(sql.NEXT_LANE, after, MAX_LANES)
            heads = [head for head in found if serves(None, head.lane[0])]
        else:
            heads, stopped = [], None
            names = sorted(set(queues))
            for name in names:
                heads += self._step(sql.NEXT_PRIORITY, (name, sql.LOWEST), None)[0]
                if len(heads) >= MAX_LANES and name != names[-1]:
                    stopped = (name, 0)
                    break
        heads = [head for head in heads if head.lane[0] not in self._paused]
        if None in self._paused:
            limited = limits_of(self._db, {head.lane[0] for head in heads})
            heads = [head._replace(limited=limited.get(head.lane[0])) for head in heads]
        return heads, stopped

    def _step(self, statement: str, lane: Lane, most: int | None) -> tuple[list[Head], Lane | None]:
        """Step from lane to lane, up to `most` times; return their heads, and where it stopped."""
        heads: list[Head] = []
        execute = self._db.execute
        while found := execute(statement, {"queue": lane[0], "priority": lane[1]}).fetchone():
            queue, priority, run_at, id = found
            lane = (queue, priority)
            heads.append(Head(lane, run_at, id))
            if len(heads) == most:
                return heads, lane
        return heads, None

    def time(self, run_at: Any) -> datetime:
        return to_time(run_at)

    def newest(self) -> Iterable[Lane]:
        return self._db.execute(sql.NEWEST)

    def open(self, lanes: Sequence[Lane]) -> Mapping[Lane, Limited]:
        limited = limits_of(self._db, {lane[0] for lane in lanes})
        return {lane: limited.get(lane[0]) for lane in lanes if lane[0] not in self._paused}

    def take(self, lane: Lane, after: Mark, limit: int) -> list[Lease]:
        self._look_at(lane, after)
        self._values["limit"] = min(limit, MAX_TRIED) if self._wary else limit
        statement = sql.PICK[self._of_types, after != self.start]
        (text,) = self._db.execute(statement, self._values).fetchone()
        return self._lease(_read_picked(text))[0]

    def _lease(self, picked: Sequence[Any]) -> tuple[list[Lease], list[Picked]]:
        """Claim the jobs of rows of `PICKED`, up to `MAX_BYTES`; return also what is refused."""
        if not picked:
            self.refused.upto = None
            return [], []
        if any(row[4] is None for row in picked):
            picked = self._with_large_payloads(picked)
        if self._wary is None:
            return self._start(picked), []
        rowids = as_json([row[0] for row in picked])
        rows = self._db.execute(sql.PLACES, (rowids,))
        places = {row: (place, partition) for row, partition, *place in rows}
        some = [Picked(row, tuple(places[row[0]][0]), places[row[0]][1], row[1]) for row in picked]
        return self.refused.start(self._wary, lambda few: self._start([o.key for o in few]), some)

    def _start(self, picked: Sequence[Any]) -> list[Lease]:
        chance = os.urandom(16 * len(picked)).hex()
        secrets = [chance[at : at + 32] for at in range(0, len(chance), 32)]
        taken = [(row[0], lease_id) for row, lease_id in zip(picked, secrets, strict=True)]
        holder = self._values["worker"]
        times = (to_millis(self._until), self._values["now"])
        calls = sql.calls(sql.CLAIM, taken, *times, holder, holder)
        if sum(self._db.execute(text, values).rowcount for text, values in calls) < len(taken):
            raise WriteRefused(DROPPED_CHANGE)
        return [
            Lease(*[*row[1:9], lease_id, self._until, None, row[9] == 1])
            for row, lease_id in zip(picked, secrets, strict=True)
        ]

    def passed(self, lane: Lane, after: Mark) -> Mark | None:
        self._look_at(lane, after)
        statement = sql.LAST_SEEN[after != self.start]
        found: Mark | None = self._db.execute(statement, self._values).fetchone()
        return found

    def room(self, queue: str, most: int) -> int:
        return room(self._db, {**self._values, "queue": queue, "most": most})

    def take_in_turn(
        self, lane: Lane, turn: Turn, limit: int, wide: bool = False
    ) -> tuple[list[Lease], Turn, int]:
        self._look_at(lane, self.start)
        space = max(limit, MAX_PARTITIONS) if wide else limit
        parts, last, looked = open_partitions(self._db, self._values, turn, space)
        shares, next_turn = quotas(parts, turn, space)
        if last is not None and not has_enough(parts, turn, space):
            next_turn = Turn(last + NEXT)
        given = {part.partition: n for part, n in zip(parts, shares, strict=True) if n}
        if not given:
            return [], next_turn, effort(looked, 0)
        marks, floors = self._view.marks, self._view.floors
        if len(marks) > MAX_PLACES:
            marks.clear()
        behind = floors.of(lane, list(given), self.now)
        picked = pick(self._db, self._values, given, marks, behind)
        most = min(limit, MAX_TRIED) if self._wary else limit
        leases, refused = self._lease(picked[:most])
        floors.rise(lane, refused, self.now)
        if len(picked) > most or is_full(leases):
            next_turn = Turn(picked[len(leases) + len(refused) - 1][-2] + NEXT)
        return leases, next_turn, effort(looked, len(given))

    def look_again(self, queue: str) -> float:
        return opens(self._db, queue, self._values["now"])

    def _look_at(self, lane: Lane, after: Mark) -> None:
        values = self._values
        values["queue"], values["priority"] = lane
        if after != self.start:
            values["after_time"], values["after_id"] = after

    def _with_large_payloads(self, picked: Sequence[Any]) -> list[Any]:
        """Return the first of the jobs, up to `MAX_BYTES`, with the payloads that were left out."""
        whole: list[Any] = []
        size = 0
        for row, *others in picked:
            if others[3] is None:
                (payload,) = self._db.execute(sql.PAYLOAD, (row,)).fetchone()
                others[3] = payload.decode("utf-8", "backslashreplace")
            whole.append((row, *others))
            size += len(others[3].encode())
            if size >= MAX_BYTES:
                break
        return whole
