"""A claim of the SQLite store: how its lanes are read, and how jobs of one are leased."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tenure.errors import WriteRefused
from tenure.jobs.limits import NEXT, Turn, has_enough, quotas
from tenure.jobs.names import serves
from tenure.jobs.work import MAX_BYTES, ClaimRequest, Lease, is_full
from tenure.store.claims import Head, Lane, Limited, Mark
from tenure.store.lanes import MAX_LANES, MAX_PLACES, LaneView, effort
from tenure.store.protocol import DROPPED_CHANGE, Database
from tenure.store.refusals import MAX_TRIED, Picked, RefusedClaims
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite import turns
from tenure.store.sqlite.connection import kept, to_millis, to_time

_read_picked = msgspec.json.Decoder(
    list[tuple[int, str, str, str, Any, int, int, int, float | None, int]]
).decode


@dataclass(slots=True)
class SqliteLaneView(LaneView):
    """What is known of the lanes; and of partitions, what was passed over in them."""

    marks: dict[tuple[Lane, str], Mark] = field(default_factory=dict)


class SqliteClaim:
    """One claim, in the open transaction of a connection; see `lanes.Claim`."""

    start: Mark = (-(2**62), "")

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
            self._values["types"] = msgspec.json.encode(request.types).decode()
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
            limited = turns.limited(self._db, {head.lane[0] for head in heads})
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
        limited = turns.limited(self._db, {lane[0] for lane in lanes})
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
        rowids = msgspec.json.encode([row[0] for row in picked]).decode()
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
        return turns.room(self._db, {**self._values, "queue": queue, "most": most})

    def take_in_turn(
        self, lane: Lane, turn: Turn, limit: int, wide: bool = False
    ) -> tuple[list[Lease], Turn, int]:
        self._look_at(lane, self.start)
        space = max(limit, turns.MAX_PARTITIONS) if wide else limit
        parts, last, looked = turns.open_partitions(self._db, self._values, turn, space)
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
        picked = turns.pick(self._db, self._values, given, marks, behind)
        most = min(limit, MAX_TRIED) if self._wary else limit
        leases, refused = self._lease(picked[:most])
        floors.rise(lane, refused, self.now)
        if len(picked) > most or is_full(leases):
            next_turn = Turn(picked[len(leases) + len(refused) - 1][-2] + NEXT)
        return leases, next_turn, effort(looked, len(given))

    def look_again(self, queue: str) -> float:
        return turns.opens(self._db, queue, self._values["now"])

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
