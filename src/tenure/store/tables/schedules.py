"""Schedules and their fires: the tables, and what adds jobs and records every tick that is due.

A transaction locks the row of a schedule before it decides anything of it. So each tick is decided
once, however many processes try, and the primary key of `fire` holds it to one job.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tenure import failpoints
from tenure.errors import InvalidInput, KeyConflict, ScheduleNotFound, TenureError
from tenure.events import Cancelled
from tenure.lifecycle import SETTLED, Job, Status, follow
from tenure.rules import schedules
from tenure.rules.times import When, in_words, is_zone, newest, next_after
from tenure.store import enqueue, transitions
from tenure.store.audit import TICKS
from tenure.store.database import Database, Dialect, Reads, Statements
from tenure.store.duties import AHEAD
from tenure.store.refusals import unless_refused
from tenure.store.rows import read_rows
from tenure.values.names import check_kind, is_name

if TYPE_CHECKING:
    from tenure.store.reader import Reader

log = logging.getLogger(__name__)

WHEN = ("cron", "every", '"offset"', "once", "zone", "starts_at", "ends_at")
RULES = (
    *(*WHEN, "template", "time_key", "jitter", "missed", "grace", "catch_up", "catch_up_window"),
    *("overlap", "note"),
)
PAUSE = ("paused_at", "paused_by", "pause_reason")
STATE = (
    *("declared_seen_at", "cursor_at", "next_at", "last_job_id", "fired", "overlapped"),
    "missed_fires",
)
COLUMNS = (
    *("name", "edition", "declared", *RULES, *PAUSE, *STATE),
    *("created_at", "created_by", "changed_at", "changed_by"),
)
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
FIRE = ("schedule", "at", "until", "outcome", "how", "job_id", "decided_at", "actor")

KEPT_FIRES, KEPT_DAYS = 1_000, 90
"""The newest fires of a schedule are kept, and those of the last days."""

CROWD = 10
MAX_CHECKED = 500
"""Schedules that `tenure doctor` looks at."""
MAX_VERIFIED = 1_000
"""Ticks of each schedule that `unrecorded` looks for."""


def read(db: Reads, rest: str, values: Sequence[Any] = ()) -> list[schedules.Schedule]:
    """Return the schedules that the rest of a SELECT finds and that this version can read."""
    found = []
    for row in read_rows(db, COLUMNS, f"{db.dialect.table('schedule')} {rest}", values):
        fields = {name.strip('"'): value for name, value in row.items()}
        fields["at"] = fields.pop("once")
        when = When(**{name: fields.pop(name) for name in When.__struct_fields__})
        try:
            template = _read_template(fields.pop("template"))
        except msgspec.DecodeError as error:
            log.warning("schedule %s is left out: %s", fields["name"], error)
            continue
        declared = bool(fields.pop("declared"))
        found.append(schedules.Schedule(**fields, when=when, template=template, declared=declared))
    return found


_read_template = msgspec.json.Decoder(schedules.Template).decode


def is_readable(schedule: schedules.Schedule) -> bool:
    """Whether the time zone of a schedule is known on this machine."""
    return is_zone(schedule.when.zone)


def get(db: Reads, name: str, lock: str = "") -> schedules.Schedule:
    """Return a schedule; raises ScheduleNotFound."""
    check_kind(name, str, "the name of a schedule", "$.name")
    # A text with NUL is none to PostgreSQL.
    found = is_name(name) and read(db, f"WHERE name = {db.dialect.value}{lock}", (name,))
    if not found:
        raise ScheduleNotFound(name)
    return found[0]


def hold(db: Statements, name: str) -> schedules.Schedule:
    """Return a schedule, locked until the end of the transaction; raises ScheduleNotFound."""
    return get(db, name, db.dialect.hold)


def fires(db: Reads, rest: str, values: Sequence[Any]) -> list[schedules.Fire]:
    """Return the fires of the rest of a SELECT from their table."""
    found = read_rows(db, FIRE, f"{db.dialect.table('fire')} AS fire {rest}", values)
    return [
        schedules.Fire(
            **fields
            | {
                "outcome": schedules.FireOutcome(fields["outcome"]),
                "how": schedules.How(fields["how"]),
            }
        )
        for fields in found
    ]


def triggered(db: Reads, name: str, key: str, fingerprint: str) -> schedules.Fire | None:
    """Return the fire of a schedule whose job has this key; raises KeyConflict for another job.

    The job says what it was if it is not kept any more, as after the schedule was removed.
    """
    d = db.dialect
    ours = f"FROM {d.table('job')} WHERE idempotency_key = {d.value}"
    columns = f"{d.id('id')}, fingerprint, {d.time('created_at')}"
    for job_id, known, created_at in db.rows(f"SELECT {columns} {ours}", (key,)):
        if known != fingerprint:
            raise KeyConflict(key, job_id)
        where = f"WHERE job_id = {d.id_value} AND schedule = {d.value}"
        if found := fires(db, where, (job_id, name)):
            return found[0]
        at: Any = d.time_or_none(created_at)
        did, how = schedules.FireOutcome.FIRED, schedules.How.TRIGGER
        return schedules.Fire(
            schedule=name, at=at, outcome=did, how=how, job_id=job_id, decided_at=at
        )
    return None


def page(
    db: Reads, names: Sequence[str], most: int, before: datetime = LATEST
) -> list[schedules.Fire]:
    """Return the newest fires of each schedule before a time; more than `most` to end with a tick.

    It reads no other ones, however many there are.
    """
    d = db.dialect
    last = (
        f"SELECT at FROM {d.table('fire')} WHERE schedule = one.name AND at < {d.value}"
        f" ORDER BY at DESC LIMIT 1 OFFSET {most - 1}"
    )
    rest = (
        f"JOIN {d.table('schedule')} AS one ON one.name = fire.schedule"
        f" AND at < {d.value} AND at >= coalesce(({last}), {d.value})"
        f" WHERE one.name IN ({d.values(len(names))}) ORDER BY schedule, at DESC, decided_at DESC"
    )
    until = d.to_bound(before)
    return fires(db, rest, (until, until, d.to_bound(EARLIEST), *names)) if names else []


def unrecorded(db: Reads) -> list[tuple[str, str, str]]:
    """Return the ticks that were due by the present rules and are not on record, as findings.

    Of each schedule the newest `MAX_VERIFIED`, as far back as its record is kept.
    """
    d, found = db.dialect, list[tuple[str, str, str]]()
    for schedule in read(db, "ORDER BY name"):
        if not is_readable(schedule):
            continue
        where = f"WHERE schedule = {d.value} ORDER BY at LIMIT 1"
        oldest = [fire.at - schedules.INSTANT for fire in fires(db, where, (schedule.name,))]
        start = max([schedule.changed_at, *oldest])
        due = newest(schedule.when, start, schedule.cursor_at, MAX_VERIFIED)
        where = f"WHERE schedule = {d.value} AND coalesce(until, at) >= {d.value} ORDER BY at"
        values = (schedule.name, d.to_bound(due[0] if due else start))
        spans = [(fire.at, fire.until or fire.at) for fire in fires(db, where, values)]
        known = {at for at, _ in spans}
        wide = [span for span in spans if span[0] != span[1]]
        missing = [at for at in due if at not in known and not any(a <= at <= b for a, b in wide)]
        found += [(TICKS, "", f"{schedule.name} at {at.isoformat()}") for at in missing]
    return found


def open_jobs(db: Reads, names: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Return those of the last `most` jobs of each schedule that are not settled: name, id."""
    d = db.dialect
    fire, job = d.table("fire"), d.table("job")
    oldest = (
        f"SELECT at FROM {fire} WHERE schedule = name AND job_id IS NOT NULL"
        f" ORDER BY at DESC LIMIT 1 OFFSET {most - 1}"
    )
    # Not a join with all jobs: PostgreSQL would read them all to find as many as there may be.
    return db.rows(
        f"WITH one AS MATERIALIZED (SELECT name, coalesce(({oldest}), {d.value}) AS since"
        f" FROM {d.table('schedule')} WHERE name IN ({d.values(len(names))}))"
        f" SELECT name, {d.id('job_id')} FROM one JOIN {fire} ON schedule = name AND at >= since"
        f" WHERE (SELECT finished_at IS NULL FROM {job} AS job WHERE job.id = job_id)",
        (d.to_bound(EARLIEST), *names),
    )


def crowded(db: Reads, schedule: schedules.Schedule) -> bool:
    """Whether the last `CROWD` jobs of a schedule all are not settled."""
    return len(open_jobs(db, [schedule.name], CROWD)) == CROWD


def add(db: Statements, schedule: schedules.Schedule) -> bool:
    """Add a schedule. Returns False if the name is taken."""
    d = db.dialect
    names, values = ", ".join(COLUMNS), ", ".join(_value(d, column) for column in COLUMNS)
    insert = f"INSERT INTO {d.table('schedule')} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"
    return db.changed(insert, _stored(d, schedule, COLUMNS)) == 1


def save(db: Statements, schedule: schedules.Schedule, columns: Sequence[str]) -> None:
    """Write columns of a locked schedule."""
    d = db.dialect
    sets = ", ".join(f"{column} = {_value(d, column)}" for column in columns)
    values = (*_stored(d, schedule, columns), schedule.name)
    db.changed(f"UPDATE {d.table('schedule')} SET {sets} WHERE name = {d.value}", values)


def save_states(db: Statements, some: Sequence[schedules.Schedule]) -> None:
    """Write how far locked schedules have come."""
    d, columns = db.dialect, ("name", *STATE)
    db.changed(
        f"UPDATE {d.table('schedule')} AS old SET {', '.join(f'{c} = new.{c}' for c in STATE)}"
        f" FROM {d.objects('schedule', columns)} WHERE old.name = new.name",
        (_objects(d, some, columns),),
    )


def record(db: Statements, made: Sequence[schedules.Fire]) -> None:
    """Put fires on record. On record a range grows.

    A second job for a tick is an error, by the trigger of the table.
    """
    d, names = db.dialect, ", ".join(FIRE)
    db.changed(
        f"INSERT INTO {d.table('fire')} AS fire ({names})"
        f" SELECT {names} FROM {d.objects('fire', FIRE)} WHERE true"
        " ON CONFLICT (schedule, at, outcome) DO UPDATE SET until = excluded.until"
        " WHERE excluded.outcome = 'fired' OR excluded.until > coalesce(fire.until, fire.at)",
        (_objects(d, made, FIRE),),
    )


def trim(db: Statements, name: str) -> None:
    """Delete old fires of a schedule."""
    d = db.dialect
    fire, old = d.table("fire"), d.later(-KEPT_DAYS * 86_400)
    oldest = (
        f"SELECT at FROM {fire} WHERE schedule = {d.value}"
        f" ORDER BY at DESC LIMIT 1 OFFSET {KEPT_FIRES - 1}"
    )
    where = f"schedule = {d.value} AND at < {old} AND at < ({oldest})"
    db.changed(f"DELETE FROM {fire} WHERE {where}", (name, name))


def delete(db: Statements, name: str) -> None:
    d = db.dialect
    db.changed(f"DELETE FROM {d.table('schedule')} WHERE name = {d.value}", (name,))
    db.changed(f"DELETE FROM {d.table('fire')} WHERE schedule = {d.value}", (name,))


def _value(d: Dialect, column: str) -> str:
    return d.id_value if column == "last_job_id" else d.value


def _stored(d: Dialect, schedule: schedules.Schedule, columns: Sequence[str]) -> list[Any]:
    return [_bound(d, _field(schedule, column)) for column in columns]


def _field(schedule: schedules.Schedule, column: str) -> Any:
    if column == "template":
        return msgspec.json.encode(schedule.template).decode()
    if column == "once":
        return schedule.when.at
    return getattr(schedule.when if column in WHEN else schedule, column.strip('"'))


def _objects(
    d: Dialect, some: Sequence[schedules.Schedule | schedules.Fire], columns: Sequence[str]
) -> str:
    rows = [{column: _bound(d, getattr(one, column)) for column in columns} for one in some]
    return msgspec.json.encode(rows).decode()


def _bound(d: Dialect, value: Any) -> Any:
    return d.to_bound(value) if isinstance(value, datetime) else value


# --- ticks ----------------------------------------------------------------------------------------

BATCH = 100
"""Schedules that one transaction decides."""
TRIM_EVERY = 100
"""Ticks after which old fires of their schedule are looked for."""
TAKEN = (
    "schedule %s added jobs of type %s, and adds %s from now on: if another program declares it, "
    "give one of the two another name"
)
CHANGED = "schedule %s had other rules, and has those of this program from now on: %s, edition %d"
MIN_STEP_SECONDS = 60
"""Smaller steps back of the clock are waited for."""


def evaluate(
    db: Database, declared: Collection[str], defaults: schedules.Defaults, left: Collection[str]
) -> tuple[int, Mapping[str, TenureError]]:
    """Decide the due ticks of up to BATCH schedules. Call again after BATCH.

    Of the schedules in code it decides only the `declared` ones, and none of `left`. If a
    schedule or its last job is locked, it waits for the next call. Returns how many schedules
    were looked at, and what this process cannot decide, or the database refuses: name -> why.
    """
    d = db.dialect
    here = f" OR name IN ({d.values(len(declared))})" if declared else ""
    others = f" AND name NOT IN ({d.values(len(left))})" if left else ""
    due = read(
        db,
        f"WHERE next_at <= {d.later(AHEAD)} AND (NOT declared{here}){others}"
        f" AND (overlap = 'allow_all' OR next_at <= {d.now})"
        f" ORDER BY next_at, name LIMIT {BATCH} {d.skip_locked}",
        (*declared, *left),
    )
    before = _jobs_before(db, due)
    ids = {id for some in before.values() for id in some}
    busy = db.busy(sorted(ids)) if ids else set()
    free = [one for one in due if not before[one.name] & busy]
    if not free:
        return 0, {}
    done, undecided = _decide(db, free, defaults, before)
    _, refused = unless_refused(db, partial(carry_out, db), done) if done else ((), ())
    return len(free), {**undecided, **{one.schedule.name: error for one, error in refused}}


def _decide(
    db: Database,
    due: Sequence[schedules.Schedule],
    defaults: schedules.Defaults,
    before: Mapping[str, set[str]],
) -> tuple[Sequence[schedules.Advance], Mapping[str, TenureError]]:
    """Decide the due ticks of locked schedules that are not paused; nothing is written yet.

    `before` has the jobs of each, as `_jobs_before` finds them. Returns beside the decisions the
    schedules that this process cannot decide: name -> why.
    """
    now, done, undecided = db.now(), list[schedules.Advance](), dict[str, TenureError]()
    fired, held = _fired_ahead(db, due), _open_jobs(db, due, before)
    for schedule in due:
        jobs = held[schedule.name]
        try:
            had = fired.get(schedule.name, ())
            decision = schedules.decide_fires(
                schedule, now, is_open=bool(jobs), waiting=_waiting(jobs), fired=had
            )
            done.append(schedules.advance(schedule, decision, now, defaults, None, list(jobs)))
        except InvalidInput as error:
            undecided[schedule.name] = error
    return done, undecided


def carry_out(db: Database, done: Sequence[schedules.Advance]) -> list[schedules.Fire]:
    """Add the jobs of locked schedules that were decided, and record it; return the fires."""
    _cancel(db, done)
    jobs = [job for one in done for job in one.jobs]
    if plain := [job for job, parents in jobs if not parents]:
        for answer in enqueue.add(db, plain):
            if isinstance(answer, TenureError):  # its key was used meanwhile
                raise answer
    for waiting in schedules.linked_jobs(done):
        enqueue.add_linked(db, waiting, limited=False)
    failpoints.hit("schedule.between_jobs_and_cursor")
    made = [fire for one in done for fire in one.fires]
    record(db, made)
    save_states(db, [one.schedule for one in done])
    for one in done:
        if one.schedule.decided % TRIM_EVERY < len(one.fires):
            trim(db, one.schedule.name)
    return made


def _fired_ahead(db: Database, due: Sequence[schedules.Schedule]) -> Mapping[str, set[datetime]]:
    """The ticks after the cursor that have a job, by schedule: a clock was ahead, or a backfill."""
    d, found = db.dialect, dict[str, set[datetime]]()
    rest = (
        f"JOIN {d.table('schedule')} AS one ON one.name = schedule AND at > cursor_at"
        f" WHERE one.name IN ({d.values(len(due))}) AND outcome = 'fired'"
    )
    for fire in fires(db, rest, [schedule.name for schedule in due]):
        found.setdefault(fire.schedule, set()).add(fire.at)
    return found


def _jobs_before(db: Reads, due: Sequence[schedules.Schedule]) -> Mapping[str, set[str]]:
    """The ids of the jobs of each schedule on which its `overlap` depends, by schedule.

    Of several that wait for one another the last may have settled before the others.
    """
    found = {one.name: set[str]() for one in due}
    buffers = [one.name for one in due if one.overlap in ("buffer_one", "buffer_all")]
    for name, id in open_jobs(db, buffers, schedules.MAX_BUFFERED + 1) if buffers else ():
        found[name].add(id)
    for one in due:
        if one.last_job_id and one.overlap != "allow_all":
            found[one.name].add(one.last_job_id)
    return found


def _open_jobs(
    db: Database, due: Sequence[schedules.Schedule], before: Mapping[str, set[str]]
) -> Mapping[str, Mapping[str, Job]]:
    """Those of the jobs before each schedule that are not settled, locked."""
    ids = {id for one in due for id in before[one.name]}
    jobs = db.lock(sorted(ids)) if ids else {}
    held = {id: job for id, job in jobs.items() if job.status not in SETTLED}
    return {
        one.name: {id: held[id] for id in sorted(before[one.name]) if id in held} for one in due
    }


def _waiting(jobs: Mapping[str, Job]) -> int:
    # One that waits for a signal has started, so it is what others wait for.
    return sum(job.status is Status.WAITING and job.token == 0 for job in jobs.values())


def _cancel(db: Database, done: Sequence[schedules.Advance]) -> None:
    who = {one.cancels: schedules.actor_of(one.schedule.name) for one in done if one.cancels}
    now, changes = db.now(), list[tuple[Job, tuple[Job, ...]]]()
    for id, job in db.lock(sorted(who)).items() if who else ():
        if job.status not in SETTLED:
            event = Cancelled(actor=who[id], reason="the schedule is due again")
            changes.append((job, follow(job, event, now)))
    transitions.save(db, changes)


def trigger(
    db: Database,
    schedule: schedules.Schedule,
    actor: str,
    defaults: schedules.Defaults,
    key: schedules.Key | None = None,
) -> schedules.Fire:
    """Fire a locked schedule at this moment, unless it was with this key; raises KeyConflict."""
    if key and (known := triggered(db, schedule.name, *key)):
        return known
    d, v, now = db.dialect, db.dialect.value, db.now()
    at = now.replace(microsecond=now.microsecond // 1000 * 1000)
    last = f"WHERE schedule = {v} AND at >= {v} AND outcome = 'fired' ORDER BY at DESC LIMIT 1"
    for fire in fires(db, last, (schedule.name, d.to_bound(at))):
        at = fire.at + timedelta(milliseconds=1)
    return by_hand(
        db, schedule, [schedules.Tick(at=at, how=schedules.How.TRIGGER)], actor, defaults, key=key
    )[0]


def by_hand(
    db: Database,
    schedule: schedules.Schedule,
    ticks: list[schedules.Tick],
    actor: str,
    defaults: schedules.Defaults,
    most: int = schedules.MAX_BUFFERED,
    key: schedules.Key | None = None,
) -> list[schedules.Fire]:
    """Fire ticks of a locked schedule beside those due, as its `overlap` says.

    Raises InvalidInput if its job is no longer valid.
    """
    jobs = _open_jobs(db, [schedule], _jobs_before(db, [schedule]))[schedule.name]
    decided = _with_room(schedule, ticks, jobs, most)
    decision = schedules.Decision(
        ticks=tuple(decided), cursor_at=schedule.cursor_at, next_at=schedule.next_at
    )
    done = schedules.advance(schedule, decision, db.now(), defaults, actor, list(jobs), key)
    return carry_out(db, [done])


def _with_room(
    schedule: schedules.Schedule, ticks: list[schedules.Tick], jobs: Mapping[str, Job], most: int
) -> Sequence[schedules.Tick]:
    """Return ticks as `overlap` lets them be, beside jobs of the schedule that are not settled."""
    facts: Any = {"is_open": bool(jobs), "waiting": _waiting(jobs)}
    return schedules.with_room(ticks, schedule.overlap, **facts, most=most)


def backfill(
    db: Database,
    schedule: schedules.Schedule,
    ticks: Sequence[datetime],
    actor: str,
    defaults: schedules.Defaults,
) -> list[schedules.Fire]:
    """Fire those of the ticks of a locked schedule that have no job, oldest first."""
    todo = _without_job(db, schedule.name, ticks)
    return by_hand(db, schedule, todo, actor, defaults, most=schedules.MAX_FIRES)


def plan(
    read: Reader, schedule: schedules.Schedule, ticks: Sequence[datetime]
) -> Sequence[schedules.Tick]:
    """Return what `backfill` would decide now; nothing is written or locked."""
    before = _jobs_before(read, [schedule])[schedule.name]
    jobs = [job for id in sorted(before) if (job := read.get(id)) is not None]
    still_open = {job.id: job for job in jobs if job.status not in SETTLED}
    todo = _without_job(read, schedule.name, ticks)
    return _with_room(schedule, todo, still_open, schedules.MAX_FIRES)


def _without_job(db: Reads, name: str, ticks: Sequence[datetime]) -> list[schedules.Tick]:
    if not ticks:
        return []
    d, v = db.dialect, db.dialect.value
    where = f"WHERE schedule = {v} AND at BETWEEN {v} AND {v} AND outcome = 'fired'"
    values = (name, d.to_bound(ticks[0]), d.to_bound(ticks[-1]))
    known = {fire.at for fire in fires(db, where, values)}
    return [schedules.Tick(at=at, how=schedules.How.BACKFILL) for at in ticks if at not in known]


def change(
    db: Database,
    old: schedules.Schedule,
    rules: schedules.Rules,
    actor: str,
    defaults: schedules.Defaults,
    **more: Any,
) -> schedules.Schedule:
    """Give a locked schedule other rules. What is due before is decided by the old ones.

    If its old job is no longer valid, those ticks are missed: the new rules are the remedy.
    """
    try:
        catch_up_to_now(db, old, defaults)
    except InvalidInput as error:
        if not is_readable(old):
            raise
        log.warning("the ticks of schedule %s before this change are missed: %s", old.name, error)
        _add_no_jobs(db, old, schedules.FireOutcome.MISSED, schedules.RULE_OF[old.missed], defaults)
    now = db.now()
    new = replace(
        get(db, old.name),
        **{name: getattr(rules, name) for name in schedules.Rules.__struct_fields__},
        edition=old.edition + 1,
        cursor_at=now,
        next_at=None if old.paused_at else next_after(rules.when, now),
        changed_at=now,
        changed_by=actor,
        **more,
    )
    save(db, new, COLUMNS)
    return new


def set_paused(
    db: Database,
    schedule: schedules.Schedule,
    actor: str,
    defaults: schedules.Defaults,
    *,
    paused: bool,
    reason: str | None = None,
    catch_up: bool = False,
) -> schedules.Schedule:
    """Pause or resume a locked schedule; with `catch_up` the ticks of the pause are still due."""
    if paused == (schedule.paused_at is not None):
        return schedule
    if not catch_up:
        catch_up_to_now(db, schedule, defaults)
    before = get(db, schedule.name)
    after = replace(
        before,
        paused_at=db.now() if paused else None,
        paused_by=actor,
        pause_reason=reason,
        next_at=None if paused else next_after(before.when, before.cursor_at),
    )
    save(db, after, (*PAUSE, "next_at"))
    return get(db, schedule.name)


def catch_up_to_now(
    db: Database, schedule: schedules.Schedule, defaults: schedules.Defaults
) -> None:
    """Decide the ticks of a locked schedule that are due; those of a paused one as such.

    Raises InvalidInput if this process cannot: no tick is passed over.
    """
    if schedule.paused_at is None:
        due = [schedule]
        done, undecided = _decide(db, due, defaults, _jobs_before(db, due))
        for error in undecided.values():
            raise error
        carry_out(db, done)
        return
    _add_no_jobs(db, schedule, schedules.FireOutcome.PAUSED, schedules.How.DUE, defaults)


def _add_no_jobs(
    db: Database,
    schedule: schedules.Schedule,
    outcome: schedules.FireOutcome,
    how: schedules.How,
    defaults: schedules.Defaults,
) -> None:
    until = max(db.now(), schedule.cursor_at)
    ticks = schedules.ticks_between(schedule.when, schedule.cursor_at, until, outcome)
    decided = tuple(replace(tick, how=how) for tick in ticks)
    decision = schedules.Decision(ticks=decided, cursor_at=until, next_at=None)
    carry_out(db, [schedules.advance(schedule, decision, db.now(), defaults, None)])


def declare(
    db: Database, declared: Mapping[str, schedules.Rules], actor: str, defaults: schedules.Defaults
) -> None:
    """Write the schedules of a program, by name, that are not there or differ."""
    d, now = db.dialect, db.now()
    where = f"WHERE name IN ({d.values(len(declared))}) ORDER BY name{d.hold}"
    known = {schedule.name: schedule for schedule in read(db, where, tuple(declared))}
    for name, rules in sorted(declared.items()):
        old = known.get(name)
        if old is None:
            add(db, schedules.new_schedule(name, rules, actor, now, declared=True))
        elif not old.declared or schedules.rules_of(old) != rules:
            if old.template.type != rules.template.type:
                log.warning(TAKEN, name, old.template.type, rules.template.type)
            try:
                new = change(db, old, rules, actor, defaults, declared=True, declared_seen_at=now)
                log.info(CHANGED, name, in_words(rules.when), new.edition)
            except InvalidInput as error:  # where its zone is known, its ticks can be decided
                log.warning("schedule %s stays unchanged: %s", name, error)
        else:
            save(db, replace(old, declared_seen_at=now), ("declared_seen_at",))


def set_right(db: Database, after: str) -> str | None:
    """If the clock was put back, let up to BATCH schedules after a name continue from now.

    What was fired ahead of time is on record, and is not fired again. Returns the last of the
    names, None if there was none.
    """
    d, now = db.dialect, db.now()
    found = read(
        db,
        f"WHERE paused_at IS NULL AND cursor_at > {d.later(MIN_STEP_SECONDS)}"
        f" AND name > {d.value} ORDER BY name LIMIT {BATCH} {d.skip_locked}",
        (after,),
    )
    for schedule in filter(is_readable, found):
        log.warning("the clock was put back: schedule %s continues from now", schedule.name)
        next_at, edition = next_after(schedule.when, now), schedule.edition + 1
        right = replace(schedule, cursor_at=now, next_at=next_at, edition=edition)
        save(db, right, ("cursor_at", "next_at", "edition"))
    return found[-1].name if found else None


def recompute(db: Database, name: str) -> None:
    """Compute the next tick of a schedule again, by the time zones that this process knows."""
    schedule = hold(db, name)
    if schedule.paused_at is None:
        next_at = next_after(schedule.when, schedule.cursor_at)
        save(db, replace(schedule, next_at=next_at), ("next_at",))
