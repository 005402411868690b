"""What `tenure verify` checks of limits: in the ledger, and in the tables that follow the jobs.

The ledger has every start and every end in the order in which the limits counted them: a start
takes its number under the lock of its queue or partition, an end before its commit. `limit_change`
has numbers of the same sequence. So what ran at once, and what was allowed, can be counted again.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tenure.store.audit import FOLLOWED, HELD
from tenure.store.audit_query import AuditQuery, Finding
from tenure.store.constraints import SETTLED_SQL
from tenure.store.dialect import Dialect

BACK_MILLIS = 2_000
"""A start that is so much earlier than one before it: the clock was set back."""

SLOTS = AuditQuery(
    "slots of queues with limits",
    f"""
SELECT CAST(job.id AS text) AS job_id, 'processing without a slot' AS "{FOLLOWED}"
FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue AND job.status = 'processing'
WHERE (l.max_running IS NOT NULL OR l.rate_starts IS NOT NULL OR l.partitioned)
    AND NOT EXISTS (SELECT 1 FROM {{slot}} AS s WHERE s.queue = job.queue
        AND s.partition = coalesce(job.partition, '') AND s.job_id = job.id)
UNION ALL SELECT CAST(s.job_id AS text), 'a slot in ' || s.queue || ', '
    || coalesce(job.status, 'no job')
FROM {{slot}} AS s LEFT JOIN {{job}} AS job ON job.id = s.job_id AND job.queue = s.queue
    AND coalesce(job.partition, '') = s.partition
WHERE coalesce(job.status, '') <> 'processing'
    OR NOT EXISTS (SELECT 1 FROM {{queue_limit}} AS l WHERE l.queue = s.queue)""",
)
LINES = AuditQuery(
    "lines of ordered queues",
    f"""
SELECT CAST(job.id AS text) AS job_id, job.status || ' and in no line' AS "{FOLLOWED}"
FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue
WHERE l.ordered IS NOT NULL AND job.status NOT IN ({SETTLED_SQL})
    AND NOT EXISTS (SELECT 1 FROM {{line}} AS place WHERE place.queue = job.queue
        AND place.partition = coalesce(job.partition, '') AND place.id = job.id)
UNION ALL SELECT CAST(place.id AS text), 'in a line of ' || place.queue || ', '
    || coalesce(job.status, 'no job')
FROM {{line}} AS place LEFT JOIN {{queue_limit}} AS l ON l.queue = place.queue
    LEFT JOIN {{job}} AS job ON job.id = place.id AND job.queue = place.queue
    AND coalesce(job.partition, '') = place.partition
WHERE l.ordered IS NULL OR job.id IS NULL
    OR job.status IN ({SETTLED_SQL}) AND NOT (job.status = 'failed' AND l.ordered = 'halt')""",
)
TURNS = AuditQuery(
    "turns of partitions",
    f"""
SELECT coalesce(min(CAST(job_id AS text)), '') AS job_id, 'turns of ' || partition || ' in '
    || queue || ': ' || sum(turns) || ' for ' || sum(jobs) || ' pending jobs' AS "{FOLLOWED}"
FROM (
    SELECT queue, partition, 1 AS turns, 0 AS jobs, NULL AS job_id FROM {{turns}}
    UNION ALL SELECT job.queue, coalesce(job.partition, ''), 0, 1, CAST(job.id AS text)
    FROM {{queue_limit}} AS l JOIN {{job}} AS job ON job.queue = l.queue
    WHERE l.partitioned AND job.status = 'pending'
) AS one GROUP BY queue, partition HAVING sum(turns) <> sum(jobs)""",
)
QUERIES = (SLOTS, LINES, TURNS)


def used(dialect: Dialect) -> str:
    """Select a row if any queue ever had limits."""
    tables = (dialect.table("queue_limit"), dialect.table("limit_change"))
    return " UNION ALL ".join(f"SELECT 1 FROM {table}" for table in tables) + " LIMIT 1"


def starts_and_ends(dialect: Dialect) -> str:
    """Select the starts and ends of queues that ever had limits, and the limits, in their order."""
    d = dialect
    changes = d.table("limit_change")
    tie = "rowid" if d.engine == "sqlite" else "0"
    at = d.millis.format(time="t.at")
    return f"""
SELECT queue, partition, setting, delta, job_id, at FROM (
    SELECT place, 1 AS later, {tie} AS tie, queue, partition, setting, 0 AS delta, '' AS job_id,
        0 AS at FROM {changes}
    UNION ALL
    SELECT t.seq, 0, 0, job.queue, coalesce(job.partition, ''), NULL,
        CASE WHEN t.target = 'processing' THEN 1 ELSE -1 END, CAST(t.job_id AS text), {at}
    FROM {d.table("transition")} AS t JOIN {d.table("job")} AS job ON job.id = t.job_id
    WHERE (t.target = 'processing') <> (coalesce(t.source, '') = 'processing')
        AND job.queue IN (SELECT queue FROM {changes})
) AS one ORDER BY place, later, tie"""


Setting = Mapping[str, Any]


class Replay:
    """Counts again what ran at once and what started in the time of a rate."""

    def __init__(self) -> None:
        self._settings: dict[tuple[str, str | None], Setting] = {}
        self._running = Counter[tuple[str, str | None]]()
        self._starts: dict[tuple[str, str | None], list[int]] = {}
        self._most: dict[tuple[str, str], tuple[int, str]] = {}

    def seen(self) -> list[str]:
        """Say of each limit the largest number that was ever seen, of partitions in the fullest."""
        return [text for _, (_, text) in sorted(self._most.items())]

    def findings(self, rows: Iterable[tuple[Any, ...]], limit: int) -> list[Finding]:
        """Return starts that the limits of their time did not allow, up to `limit` of them."""
        found: list[Finding] = []
        for queue, partition, setting, delta, job_id, at in rows:
            if not delta:
                self._change(queue, partition, setting)
                continue
            for place in ((queue, None), (queue, partition)):
                self._running[place] += delta
                if not self._running[place]:
                    del self._running[place]
            if delta > 0:
                found += [(HELD, job_id, what) for what in self._broken(queue, partition, at)]
                if len(found) >= limit:
                    return found[:limit]
        return found

    def _change(self, queue: str, partition: str | None, setting: str | None) -> None:
        self._settings[queue, partition] = json.loads(setting) if setting else {}
        if partition is None:  # a change of a rate begins it again
            for place in [place for place in self._starts if place[0] == queue]:
                del self._starts[place]

    def _broken(self, queue: str, partition: str, at: int) -> Iterable[str]:
        whole = self._settings.get((queue, None), {})
        yield from self._over(
            (queue, None), f"queue {queue}", at, whole, "", whole.get("max_running")
        )
        if whole.get("partitioned"):
            own = self._settings.get((queue, partition), {}).get("max_running")
            most = whole.get("per_max_running") if own is None else own
            if whole.get("ordered"):
                most = 1 if most is None else min(most, 1)
            name = f"partition {partition!r} of queue {queue}"
            yield from self._over((queue, partition), name, at, whole, "per_", most)

    def _over(
        self,
        place: tuple[str, str | None],
        name: str,
        at: int,
        setting: Setting,
        prefix: str,
        most: int | None,
    ) -> Iterable[str]:
        if most is not None:
            running = self._running[place]
            self._note(place, f"{prefix}running", running, f"{name}: {running} of {most} at once")
            if running > most:
                yield f"{running} of {name} at once, {most} allowed"
        if (starts := setting.get(f"{prefix}rate_starts")) is not None:
            seconds = setting[f"{prefix}rate_seconds"]
            seen = busiest(self._starts.setdefault(place, []), at, int(seconds * 1000), starts)
            text = f"{name}: {seen} of {starts} starts in {seconds:g} s"
            self._note(place, f"{prefix}rate", seen, text)
            if seen > starts:
                yield f"{seen} starts of {name} in {seconds:g} s, {starts} allowed"

    def _note(self, place: tuple[str, str | None], kind: str, seen: int, text: str) -> None:
        if seen > self._most.get((place[0], kind), (0, ""))[0]:
            self._most[place[0], kind] = seen, text


def busiest(times: list[int], at: int, length: int, most: int) -> int:
    """Add a start to the last ones, in order; return how many the busiest window with it has.

    A window is shorter than `length` milliseconds. No more than are needed to see over `most` stay.
    """
    if times and at < times[-1] - BACK_MILLIS:
        times.clear()
    insort(times, at)
    last = bisect_left(times, at + length)
    first = bisect_left(times, at - length + 1)
    seen = max(
        end + 1 - bisect_left(times, times[end] - length + 1)
        for end in range(max(bisect_left(times, at), first), last)
    )
    if len(times) > 2 * most + 2:
        del times[: len(times) - most - 1]
    return seen
