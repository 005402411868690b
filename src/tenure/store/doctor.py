"""What `tenure doctor` says of both engines' databases: pure functions of what was read.

`sqlite/doctor.py` and `postgres/doctor.py` read, and have the checks of their engine. They create
and change nothing: a database that does not exist yet, or has an older schema, is reported as such.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from tenure.lifecycle import Status
from tenure.rules.explain import is_live
from tenure.rules.search import Query, State
from tenure.rules.stats import TypeState, queues_instead
from tenure.store import migrate
from tenure.store.database import Reads
from tenure.store.reader import Reader
from tenure.store.tables import queues as limit_tables
from tenure.store.tables import schedules as tables
from tenure.values.findings import Check, CheckResult
from tenure.values.names import listed

Settings = Mapping[str, tuple[Collection[str], str]]
"""Setting -> the values with which the promises hold, and what to do about another one."""
MAX_LATE_SECONDS = 60
MAX_WAITING = 20
"""Types in queues, without a worker, whose jobs are looked at: each look may read many jobs."""
MAX_CLOCK_DIFFERENCE = 1.0
"""Seconds; a smaller difference between callers' clocks and the store's does not matter."""


def ok(name: str, found: str) -> Check:
    return Check(name, CheckResult.OK, found)


def problem(name: str, found: str, advice: str) -> Check:
    """A check that is a problem if there is advice, otherwise in order."""
    return Check(name, CheckResult.PROBLEM if advice else CheckResult.OK, found, advice)


def warning(name: str, found: str, advice: str) -> Check:
    """A check that is a warning if there is advice, otherwise in order."""
    return Check(name, CheckResult.WARNING if advice else CheckResult.OK, found, advice)


def schema(found: int, needed: int) -> Check:
    """Whether the schema is the one that this version of Tenure works with."""
    if found == 0:
        advice = "`tenure migrate` makes it, and so does the next program that starts"
        return warning("schema", "none yet", advice)
    newer = f", one newer than {needed} of this Tenure" if found == needed + 1 else ""
    return problem("schema", f"{found}{newer}", migrate.advice(found, needed))


def guards(present: Collection[str], engine: str) -> Check:
    """Whether every trigger that guards the jobs and the ledger is there and switched on."""
    expected = trigger_names(sql for _, sql in migrate.steps(engine))
    missing = sorted(expected - set(present))
    advice = (
        f"missing or switched off: {', '.join(missing)}. Illegal transitions are not refused. "
        "Find out who removed them, run `tenure verify`, restore the database from a backup "
        "or a dump of the schema"
    )
    there = f"{len(expected) - len(missing)} triggers"
    return problem("guards", there, advice if missing else "")


def trigger_names(scripts: Iterator[str]) -> set[str]:
    """Return the triggers that exist after the scripts have run."""
    names: set[str] = set()
    for script in scripts:
        for verb, name in re.findall(r"\b(CREATE|DROP) TRIGGER (?:IF EXISTS )?(\w+)", script):
            (names.add if verb == "CREATE" else names.discard)(name)
    return names


def clock(store: float, before: float, after: float) -> Check:
    """How far the store's clock is from this machine's, read before and after; Unix seconds."""
    difference = store - min(max(store, before), after)
    advice = (
        "jobs run by the store's clock, so a run_at that this machine computes is wrong by that "
        "much: synchronise both clocks by NTP"
    )
    found = f"{difference:+.1f} s from this machine"
    return warning("clock", found, advice if abs(difference) > MAX_CLOCK_DIFFERENCE else "")


def setting(name: str, value: str, wanted: Settings) -> Check:
    """Whether a setting has a value with which the promises hold."""
    good, advice = wanted[name]
    return problem(name, value, "" if value in good else advice)


def latest_entry(seconds_ahead: float) -> Check:
    """Whether every entry of the ledger is of the past."""
    if seconds_ahead <= MAX_CLOCK_DIFFERENCE:
        return ok("time", "no transition is in the future")
    advice = (
        "the store's clock was set back after that transition. Leases end after an hour at most; "
        "delayed jobs wait until the clock reaches their time. Find out which time is right"
    )
    found = f"the latest transition is {seconds_ahead:.0f} s in the future"
    return warning("time", found, advice)


def types(reader: Reader, known: Collection[TypeState]) -> Check:
    """Whether a live worker runs the type of each due job and takes from its queue."""
    now = reader.clock()
    live = [worker for worker in reader.workers() if is_live(worker, now)]
    due = {queue.name for queue in reader.queues() if queue.oldest_due_at is not None}
    not_taken = [
        (count.type, count.queue)
        for count in reader.stats.counts()
        if count.status == Status.PENDING
        and count.queue in due
        and not any(each.serves(count.queue) and each.runs(count.type) for each in live)
    ]
    waiting = []
    for type, queue in not_taken[:MAX_WAITING]:
        ready = Query(status=Status.PENDING, state=State.READY, type=type, queue=queue, limit=1)
        if reader.find(ready):
            elsewhere = ", ".join(queues_instead(type, queue, live))
            only = f", which is run from {elsewhere} only" if elsewhere else ""
            waiting.append(f"{type} in queue {queue}{only}")
    advice = (
        f"jobs are due that no live worker takes: {'; '.join(listed(waiting))}. Start a worker "
        "with a handler of the type for that queue, or correct the type or queue of the jobs"
    )
    return warning("types", f"{len(known)} known", advice if waiting else "")


def schedules(db: Reads, now: datetime) -> Check:
    """Whether the ticks of schedules are decided, and their jobs done."""
    found = tables.read(db, f"ORDER BY next_at LIMIT {tables.MAX_CHECKED}")
    flaws = []
    for schedule in found:
        if not tables.is_readable(schedule):
            flaws.append(f"{schedule.name} has a zone that is not known here, {schedule.when.zone}")
        if schedule.next_at and (now - schedule.next_at).total_seconds() > MAX_LATE_SECONDS:
            by = " that declares it" if schedule.declared else ""
            if_removed = " (delete it if no code has it any more)" if schedule.declared else ""
            flaws.append(f"no process{by} decides the ticks of {schedule.name}{if_removed}")
        elif schedule.overlap == "allow_all" and tables.crowded(db, schedule):
            flaws.append(f"the last {tables.CROWD} jobs of {schedule.name} are not settled")
    advice = (
        f"{'; '.join(listed(flaws))}. Workers beside the database, and servers, decide ticks: see "
        "`tenure schedules show`"
    )
    return warning("schedules", f"{len(found)} known", advice if flaws else "")


def limits(db: Reads) -> Check:
    """Whether each queue with limits may start jobs."""
    found = limit_tables.read_limits(db)
    closed = sorted(name for name, (limits, _, _) in found.items() if limits.max_running == 0)
    advice = (
        f"{', '.join(listed(closed))}: at most 0 jobs may run, so none starts. If that is "
        "not meant, raise it with `tenure queues limit`"
    )
    return warning("limits", f"queues with limits: {len(found)}", advice if closed else "")
