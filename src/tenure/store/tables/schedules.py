"""The tables of schedules and of their fires."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from tenure.errors import KeyConflict, ScheduleNotFound
from tenure.jobs.fires import INSTANT
from tenure.jobs.names import check_kind, is_name
from tenure.jobs.schedule_times import When, is_zone, newest
from tenure.jobs.schedules import Fire, FireOutcome, How, Schedule, Template
from tenure.store.audit import TICKS
from tenure.store.dialect import Dialect, Reads, Statements
from tenure.store.rows import read_rows

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


def read(db: Reads, rest: str, values: Sequence[Any] = ()) -> list[Schedule]:
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
        found.append(Schedule(**fields, when=when, template=template, declared=declared))
    return found


_read_template = msgspec.json.Decoder(Template).decode


def is_readable(schedule: Schedule) -> bool:
    """Whether the time zone of a schedule is known on this machine."""
    return is_zone(schedule.when.zone)


def get(db: Reads, name: str, lock: str = "") -> Schedule:
    """Return a schedule; raises ScheduleNotFound."""
    check_kind(name, str, "the name of a schedule", "$.name")
    # A text with NUL is none to PostgreSQL.
    found = is_name(name) and read(db, f"WHERE name = {db.dialect.value}{lock}", (name,))
    if not found:
        raise ScheduleNotFound(name)
    return found[0]


def hold(db: Statements, name: str) -> Schedule:
    """Return a schedule, locked until the end of the transaction; raises ScheduleNotFound."""
    return get(db, name, db.dialect.hold)


def fires(db: Reads, rest: str, values: Sequence[Any]) -> list[Fire]:
    """Return the fires of the rest of a SELECT from their table."""
    found = read_rows(db, FIRE, f"{db.dialect.table('fire')} AS fire {rest}", values)
    return [
        Fire(**fields | {"outcome": FireOutcome(fields["outcome"]), "how": How(fields["how"])})
        for fields in found
    ]


def triggered(db: Reads, name: str, key: str, fingerprint: str) -> Fire | None:
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
        did, how = FireOutcome.FIRED, How.TRIGGER
        return Fire(schedule=name, at=at, outcome=did, how=how, job_id=job_id, decided_at=at)
    return None


def page(db: Reads, names: Sequence[str], most: int, before: datetime = LATEST) -> list[Fire]:
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
        oldest = [fire.at - INSTANT for fire in fires(db, where, (schedule.name,))]
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


def crowded(db: Reads, schedule: Schedule) -> bool:
    """Whether the last `CROWD` jobs of a schedule all are not settled."""
    return len(open_jobs(db, [schedule.name], CROWD)) == CROWD


def add(db: Statements, schedule: Schedule) -> bool:
    """Add a schedule. Returns False if the name is taken."""
    d = db.dialect
    names, values = ", ".join(COLUMNS), ", ".join(_value(d, column) for column in COLUMNS)
    insert = f"INSERT INTO {d.table('schedule')} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"
    return db.changed(insert, _stored(d, schedule, COLUMNS)) == 1


def save(db: Statements, schedule: Schedule, columns: Sequence[str]) -> None:
    """Write columns of a locked schedule."""
    d = db.dialect
    sets = ", ".join(f"{column} = {_value(d, column)}" for column in columns)
    values = (*_stored(d, schedule, columns), schedule.name)
    db.changed(f"UPDATE {d.table('schedule')} SET {sets} WHERE name = {d.value}", values)


def save_states(db: Statements, some: Sequence[Schedule]) -> None:
    """Write how far locked schedules have come."""
    d, columns = db.dialect, ("name", *STATE)
    db.changed(
        f"UPDATE {d.table('schedule')} AS old SET {', '.join(f'{c} = new.{c}' for c in STATE)}"
        f" FROM {d.objects('schedule', columns)} WHERE old.name = new.name",
        (_objects(d, some, columns),),
    )


def record(db: Statements, made: Sequence[Fire]) -> None:
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


def _stored(d: Dialect, schedule: Schedule, columns: Sequence[str]) -> list[Any]:
    return [_bound(d, _field(schedule, column)) for column in columns]


def _field(schedule: Schedule, column: str) -> Any:
    if column == "template":
        return msgspec.json.encode(schedule.template).decode()
    if column == "once":
        return schedule.when.at
    return getattr(schedule.when if column in WHEN else schedule, column.strip('"'))


def _objects(d: Dialect, some: Sequence[Schedule | Fire], columns: Sequence[str]) -> str:
    rows = [{column: _bound(d, getattr(one, column)) for column in columns} for one in some]
    return msgspec.json.encode(rows).decode()


def _bound(d: Dialect, value: Any) -> Any:
    return d.to_bound(value) if isinstance(value, datetime) else value
