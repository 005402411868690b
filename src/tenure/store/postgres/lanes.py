"""A claim of the PostgreSQL store: how its lanes are read, and how jobs of one are leased.

A claim leaves dead entries at the head of its lane. PostgreSQL clears them away as it meets them,
unless an old snapshot is still open somewhere (a backup, a forgotten transaction): then every
search walks past all of them again, and claims become slower by the hour. So each search reports
how many entries it walked. Once they are many, lanes are searched from where the last claim ended,
less a margin for transactions that commit late, and only sometimes from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from operator import itemgetter
from typing import Any
from uuid import UUID

from tenure.errors import WriteRefused
from tenure.rules.queues import NEXT, Open, Turn, has_enough, look_again, quotas
from tenure.rules.reports import MAX_BYTES, ClaimRequest, Lease, is_full
from tenure.store import lanes
from tenure.store.database import DROPPED_CHANGE, Database
from tenure.store.lanes import MAX_LANES, MAX_PLACES, MAX_SEEN, Head, Lane, Limited, Mark
from tenure.store.postgres import statements as sql
from tenure.store.postgres.connection import NOW, to_time, uuids
from tenure.store.refusals import MAX_TRIED, Picked, RefusedClaims
from tenure.values.ids import BEFORE_ALL, EPOCH

MARGIN = timedelta(seconds=1)
MAX_DEAD_ENTRIES = 5_000
DEAD_FOR_A_JOB = 20
"""Dead entries walked in a search from the start beyond which searches begin later: so many, and
so many for each job that is asked for. Workers that drain a queue together leave thousands."""
FULL_SECONDS = 2.0
FULL_SHARE = 0.1
"""Then a search from the start is made this often, or so that they take this share of the time."""
SEVERAL_SECONDS = 1.0
EVER = datetime(1, 1, 1, tzinfo=UTC)
SEEN_MORE = 10
"""Jobs that a look goes over for each one that is asked for, beside `MAX_SEEN`: other claims may
have locked the first ones."""

LIMITED = """(SELECT CASE WHEN l.partitioned THEN 'partitions' ELSE 'queue' END
    FROM {s}.queue_limit AS l WHERE l.queue = lane.queue)"""
SEARCH_ALL = f"SELECT *, {LIMITED} FROM {{s}}.lanes(%s, %s, {MAX_LANES}) AS lane"
SEARCH_QUEUES = f"SELECT *, {LIMITED} FROM {{s}}.lanes(%b::text[], {MAX_LANES}) AS lane"
SEARCH_ON = f"""
SELECT {NOW} AT TIME ZONE 'UTC', lane.queue, lane.priority, head.run_at AT TIME ZONE 'UTC',
    head.id::text, {LIMITED}
FROM unnest(%b::text[], %b::bigint[], %b::timestamptz[]) AS lane (queue, priority, since)
CROSS JOIN LATERAL (
    SELECT run_at, id FROM {{s}}.ready
    WHERE queue = lane.queue AND priority = lane.priority AND run_at >= since
    ORDER BY queue, priority, run_at, id LIMIT 1
) AS head
WHERE head.run_at <= {NOW} AND NOT EXISTS (
    SELECT FROM {{s}}.queue WHERE name = lane.queue AND paused_at IS NOT NULL)
"""
# What a claim that is wary picks and then starts; as the functions `claim` and `claim_in_turn`.
PICK = f"""
SELECT token.id::text, token.run_at AT TIME ZONE 'UTC', coalesce(token.partition, ''),
    octet_length(job.payload)
FROM (
    SELECT ctid, run_at, id, type FROM {{s}}.ready
    WHERE queue = %s AND priority = %s {{place}} AND run_at <= %s
    ORDER BY run_at, id LIMIT %s
) AS first JOIN {{s}}.ready AS token ON token.ctid = first.ctid
    JOIN {{s}}.job ON job.id = token.id
WHERE (%b::text[] IS NULL OR token.type = ANY (%b::text[])) AND token.type <> ALL (ARRAY(
        SELECT name FROM {{s}}.type WHERE paused_at IS NOT NULL))
    AND (job.start_by IS NULL OR job.start_by > {NOW})
ORDER BY token.run_at, token.id LIMIT %s FOR NO KEY UPDATE OF token, job SKIP LOCKED
"""
PICK_IN_LANE = PICK.replace("{place}", "AND (run_at, id) > (%s, %s::uuid)")
PICK_IN_PARTITION = PICK.replace("{place}", "AND (run_at, id) >= (%s, %s::uuid) AND partition = %s")
START = """
UPDATE {s}.job SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = gen_random_uuid(), lease_expires_at = %s, started_at = %s,
    worker = %s, event = 'claimed', actor = %s
WHERE id = ANY (%b) AND status = 'pending'
RETURNING id::text, type, queue, payload, attempts, max_retries, token, timeout, lease_id::text,
    coalesce(last_error ^@ 'lease expired' OR last_error ^@ 'the child process ', false),
    run_at AT TIME ZONE 'UTC'
"""


@dataclass(slots=True)
class PostgresLaneView(lanes.LaneView):
    """What is known of the lanes for one kind of request, and of their dead entries."""

    marks: dict[Lane, datetime] = field(default_factory=dict)
    full_search_at: float = 0.0  # monotonic seconds
    several_until: float = 0.0  # monotonic seconds, after which it may be one lane again
    limited_until: float = 0.0  # monotonic seconds, after which no due lane may have limits
    crowded: bool = False  # many dead entries were met since the last full search
    marks_in_turn: dict[tuple[Lane, str], Mark] = field(default_factory=dict)  # by partition


class PostgresLanes(lanes.Lanes[PostgresLaneView]):
    """The lanes of one store. Its writing threads share what they know; each step is atomic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(PostgresLaneView)
        self.clock = clock

    def are_plain(self, request: ClaimRequest, *, alone: bool = True) -> bool:
        """Whether one search from the start would do, for all that is known here.

        If not `alone`, reports come with the request: a second transaction would cost more.
        """
        view = self.view(request)
        now = self.clock()
        plain = view.is_plain and not view.crowded and now >= view.full_search_at
        return plain and (alone or now >= view.several_until)

    def are_limited(self, request: ClaimRequest) -> bool:
        """Whether a lane with limits was due lately: it takes more than one statement."""
        return self.clock() < self.view(request).limited_until

    def are_several(self, request: ClaimRequest) -> None:
        """Note that several lanes had due jobs."""
        self.view(request).several_until = self.clock() + SEVERAL_SECONDS

    def noticed(self, request: ClaimRequest, entries: int) -> None:
        """Note how many dead entries a search from the start walked that was not made here."""
        if are_many(entries, request):
            self.view(request).crowded = True


class PostgresClaim:
    """One claim, in the open transaction of a session; see `lanes.Claim`."""

    start: Mark = (EVER, BEFORE_ALL)

    def __init__(
        self,
        rows: Callable[..., list[Any]],
        request: ClaimRequest,
        view: PostgresLaneView,
        clock: Any,
        wary: Database | None = None,
    ) -> None:
        """`rows` runs a statement with its values, inside the transaction.

        `wary` is the database of a claim that the database refused the first time.
        """
        self.now = EVER
        self.refused = RefusedClaims()
        self._wary = wary
        self._rows = rows
        self._request = request
        self._view = view
        self._clock = clock
        self._since: Mapping[Lane, datetime] = {}

    def search(self, queues: Sequence[str] | None, after: Lane) -> tuple[list[Head], Lane | None]:
        if self._clock() < self._view.full_search_at:
            self._since = dict(self._view.marks)
            return self._search_on(self._since), None
        began = self._clock()
        if queues is None:
            found = self._rows(SEARCH_ALL, after)
        else:
            found = self._rows(SEARCH_QUEUES, (sorted(set(queues)),))
        ended = self._clock()
        self.now = to_time(found[0][1])
        read = [row[2:] for row in found if row[2]]
        heads = [
            Head((queue, priority), to_time(run_at), id, limited)
            for queue, priority, run_at, id, is_open, limited in read
            if is_open
        ]
        view = self._view
        if any(head.limited and head.run_at <= self.now for head in heads):
            view.limited_until = ended + SEVERAL_SECONDS
        view.marks = _marks(view.marks, heads, self.now)
        view.crowded = False
        many = are_many(found[-1][0], self._request)
        pause = max(FULL_SECONDS, (ended - began) / FULL_SHARE)
        view.full_search_at = ended + pause if many else 0.0
        stopped = (read[-1][0], read[-1][1]) if len(read) >= MAX_LANES else None
        return heads, stopped

    def _search_on(self, since: Mapping[Lane, datetime]) -> list[Head]:
        """Return the heads that are due of these lanes, searched from a time each."""
        queues, priorities = [lane[0] for lane in since], [lane[1] for lane in since]
        found = self._rows(SEARCH_ON, (queues, priorities, list(since.values())))
        if found:
            self.now = to_time(found[0][0])
        return [
            Head((queue, priority), to_time(run_at), id, limited)
            for _, queue, priority, run_at, id, limited in found
        ]

    def time(self, run_at: Any) -> datetime:
        time: datetime = run_at
        return time

    def newest(self) -> Iterable[Lane]:
        return self._rows(sql.NEWEST)

    def open(self, lanes: Sequence[Lane]) -> Mapping[Lane, Limited]:
        since = {lane: self._since.get(lane, EVER) for lane in lanes}
        return {head.lane: head.limited for head in self._search_on(since)}

    def take(self, lane: Lane, after: Mark, limit: int) -> list[Lease]:
        if self._wary:
            return self._take_warily(PICK_IN_LANE, (*lane, *self._after(lane, after)), limit)[0]
        until = self.now + timedelta(seconds=self._request.lease_seconds)
        types = None if self._request.types is None else list(self._request.types)
        place = (*lane, *self._after(lane, after), self.now, until)
        most = (limit, seen_for(limit))
        rows = in_order(self._rows(sql.CLAIM, (*place, self._request.worker, types, *most)))
        if rows:
            self._view.marks[lane] = to_time(rows[-1][-1]) - MARGIN
        return [Lease(*[*row[:9], until, None, row[9]]) for row in rows]

    def _take_warily(
        self, pick: str, place: Sequence[Any], limit: int, seen: int = MAX_SEEN
    ) -> tuple[list[Lease], list[Picked]]:
        """Claim up to `limit` jobs, `MAX_TRIED` at most; return also those the database refuses."""
        assert self._wary is not None
        types = None if self._request.types is None else list(self._request.types)
        rows = self._rows(pick, (*place, self.now, seen, types, types, min(limit, MAX_TRIED)))
        sizes = accumulate((row[3] for row in rows), initial=0)
        some = [
            Picked(id, (to_time(run_at), id), partition, id)
            for (id, run_at, partition, _), size in zip(rows, sizes, strict=False)
            if size < MAX_BYTES
        ]
        return self.refused.start(self._wary, self._start, some)

    def _start(self, some: Sequence[Picked]) -> list[Lease]:
        until = self.now + timedelta(seconds=self._request.lease_seconds)
        holder = self._request.worker
        ids = uuids([one.id for one in some])
        rows = in_order(self._rows(START, (until, self.now, holder, holder, ids)))
        if len(rows) < len(some):
            raise WriteRefused(DROPPED_CHANGE)
        return [Lease(*[*row[:9], until, None, row[9]]) for row in rows]

    def passed(self, lane: Lane, after: Mark) -> Mark | None:
        found = self._rows(sql.PASSED, (*lane, *self._after(lane, after), self.now))
        return (to_time(found[0][0]), found[0][1]) if found else None

    def room(self, queue: str, most: int) -> int | None:
        ((room,),) = self._rows(sql.ROOM, (queue, self.now))
        return None if room is None else max(min(room, most), 0)

    def take_in_turn(
        self, lane: Lane, turn: Turn, limit: int, wide: bool = False
    ) -> tuple[list[Lease], Turn, int]:
        space = max(limit, sql.MAX_PARTITIONS) if wide else limit
        *found, (last, _, looked, *_) = self._rows(sql.OPEN, (*lane, self.now, *turn, space))
        parts = [Open(*row[:3]) for row in found]
        shares, next_turn = quotas(parts, turn, space)
        if last is not None and not has_enough(parts, turn, space):
            next_turn = Turn(last + NEXT)
        cost = lanes.effort(looked, len(parts))
        if not parts:
            return [], next_turn, cost
        in_order = found[0][4] is not None
        marks, floors = self._view.marks_in_turn, self._view.floors
        behind = floors.of(lane, [part.partition for part in parts], self.now)
        if in_order:
            shares = [0 if p.partition in behind else n for p, n in zip(parts, shares, strict=True)]
        since = [
            (to_time(time), next)
            if in_order
            else max(marks.get((lane, partition), self.start), behind.get(partition, self.start))
            for partition, _, _, time, next in found
        ]
        if self._wary:
            given = zip(parts, shares, since, strict=True)
            asked = {part.partition: (share, at) for part, share, at in given if share}
            seen = 1 if in_order else sql.SEEN_IN_TURN
            return self._take_in_turn_warily(lane, asked, limit, seen), next_turn, cost
        until = self.now + timedelta(seconds=self._request.lease_seconds)
        types = None if self._request.types is None else list(self._request.types)
        names = [part.partition for part in parts]
        places = ([time for time, _ in since], uuids([id for _, id in since]))
        values = (until, self._request.worker, types, names, shares, *places, in_order, limit)
        rows = self._rows(sql.CLAIM_IN_TURN, (*lane, self.now, *values))
        leases = [Lease(*[*row[:9], until, None, row[9]]) for row in rows]
        if (wide and len(leases) == limit) or is_full(leases):
            return leases, Turn(rows[-1][10] + NEXT), cost
        taken = {row[10] for row in rows}
        vain = {name: mark for name, mark in zip(names, since, strict=True) if name not in taken}
        if vain and not in_order:
            self._pass_over(lane, vain)
        return leases, next_turn, cost

    def _take_in_turn_warily(
        self, lane: Lane, places: Mapping[str, tuple[int, Mark]], limit: int, seen: int
    ) -> list[Lease]:
        leases: list[Lease] = []
        for partition, (share, since) in places.items():
            left = min(share, limit - len(leases))
            if left <= 0 or is_full(leases) or self.refused.are_many:
                break
            found, refused = self._take_warily(
                PICK_IN_PARTITION, (*lane, *since, partition), left, seen
            )
            leases += found
            behind = [one._replace(place=_next(one.place)) for one in refused]
            self._view.floors.rise(lane, behind, self.now)
        return leases

    def _pass_over(self, lane: Lane, vain: Mapping[str, Mark]) -> None:
        """Note where the next looks into partitions begin that this one took nothing of.

        That is behind the jobs that it saw, which are not for this worker; at the end, the start.
        """
        places = ([time for time, _ in vain.values()], uuids([id for _, id in vain.values()]))
        rows = self._rows(sql.PASSED_IN_TURN, (*lane, self.now, list(vain), *places))
        marks = self._view.marks_in_turn
        if len(marks) > MAX_PLACES:
            marks.clear()
        for name in vain:
            marks.pop((lane, name), None)
        marks.update({(lane, name): (to_time(run_at), id) for name, run_at, id in rows})

    def look_again(self, queue: str) -> float:
        now = round((self.now - EPOCH) / timedelta(microseconds=1))
        rows = self._rows(sql.LOOK_AGAIN, (queue,))
        return min((look_again(now, *row) for row in rows), default=0.0)

    def _after(self, lane: Lane, after: Mark) -> Mark:
        """Return the later of a place and where the search of a crowded lane began."""
        return max(after, (self._since.get(lane, EVER), BEFORE_ALL))


def _next(place: Mark) -> Mark:
    """Return the place right behind one: looks into partitions begin with the job at a place."""
    return place[0], str(UUID(int=UUID(place[1]).int + 1))


def are_many(entries: int, request: ClaimRequest) -> bool:
    """Whether these are too many dead entries to walk for each claim."""
    return entries > MAX_DEAD_ENTRIES + DEAD_FOR_A_JOB * request.limit


def seen_for(limit: int) -> int:
    """Return how many jobs of a lane a look for up to `limit` jobs goes over."""
    return MAX_SEEN + SEEN_MORE * limit


def in_order(rows: Sequence[Any]) -> list[Any]:
    """Return rows of the function `claim` in the order in which their jobs fell due."""
    return sorted(rows, key=itemgetter(10, 0))


def _marks(
    known: Mapping[Lane, datetime], heads: Sequence[Head], now: datetime
) -> dict[Lane, datetime]:
    """Where to search on from: lanes that are empty stay known, the next job may come any time."""
    marks = {head.lane: min(head.run_at, now) - MARGIN for head in heads}
    if len(known) + len(marks) <= MAX_LANES:
        marks = {**dict.fromkeys(known, now - MARGIN), **marks}
    return marks
