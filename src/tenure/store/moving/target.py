"""The PostgreSQL database to which `tenure move` copies the jobs.

Its guards refuse a job that enters with a history, and its tables refuse all writes until the
switch. Both are triggers. A transaction that copies switches them off, and on again before it
commits. Only the owner of the tables can do this, and it locks them. So no other transaction ever
sees a table without its guards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tenure import failpoints
from tenure.errors import MoveRefused
from tenure.store.constraints import SETTLED_SQL
from tenure.store.moving import sides
from tenure.store.postgres import schema

# isort: split
import psycopg

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ARRIVED_TOGETHER = 500

GUARDS = """
SELECT string_agg(
    format('ALTER TABLE %%s ENABLE ALWAYS TRIGGER %%I', c.oid::regclass, tgname), '; ')
FROM pg_trigger JOIN pg_class AS c ON c.oid = tgrelid
WHERE relnamespace = to_regnamespace('{s}') AND NOT tgisinternal AND relname = ANY (%s)"""
FORGET_TAGS = "ALTER TABLE {s}.job ENABLE ALWAYS TRIGGER job_untagged"

# What follows from jobs `t`, as the guards write it.
READY = """
INSERT INTO {s}.ready (queue, priority, run_at, id, type, start_by, partition)
SELECT t.queue, t.priority, t.run_at, t.id, t.type, t.start_by,
    CASE WHEN l.partitioned THEN coalesce(t.partition, '') END
FROM t LEFT JOIN {s}.queue_limit AS l ON l.queue = t.queue WHERE t.status = 'pending'"""
SLOTS = """
INSERT INTO {s}.slot (queue, partition, job_id)
SELECT t.queue, coalesce(t.partition, ''), t.id
FROM t JOIN {s}.queue_limit AS l ON l.queue = t.queue AND {s}.sets_limits(l)
WHERE t.status = 'processing'"""
ENDED = """
INSERT INTO {s}.ended (status, id)
SELECT t.status, t.id FROM t WHERE t.status IN ('failed', 'cancelled')"""
TAGS = """
INSERT INTO {s}.tag (tag, job_id)
SELECT DISTINCT one.value, t.id FROM t CROSS JOIN json_array_elements_text(t.tags::json) AS one"""
ARRIVALS = f"""
INSERT INTO {{s}}.arrival (status, at, ids)
SELECT status, min(at), array_agg(id) FROM (
    SELECT t.status, t.id, coalesce(t.lease_expires_at, t.finished_at, t.start_by) AS at,
        row_number() OVER (PARTITION BY t.status) / {ARRIVED_TOGETHER} AS part
    FROM t
    WHERE t.status IN ('processing', {SETTLED_SQL})
        OR (t.status = 'waiting' AND t.start_by IS NOT NULL)
) AS one GROUP BY status, part"""
ROWS = {
    "ready": "(queue, priority, run_at, id) = (t.queue, t.priority, t.run_at, t.id)",
    "slot": "(queue, partition, job_id) = (t.queue, coalesce(t.partition, ''), t.id)",
    "ended": "(status, id) = (t.status, t.id)",
    **{table.name: f"{table.key[0]} = t.id" for table in (sides.JOB, *sides.OF_JOBS)},
}
"""Table -> how an index finds the rows of jobs `t`."""
FOLLOWING = ("ready", "slot", "ended", "arrival", "tag", "limit_edition")
# Only where there are limits: else every claim would look for them from then on.
EDITION = """
UPDATE {s}.limit_edition SET edition = nextval('{s}.limit_edition_seq')
WHERE EXISTS (SELECT FROM {s}.queue_limit)"""


def deletion(table: str, found: str, alias: str = "t") -> str:
    """Return SQL that deletes the rows of a table that are `found`."""
    ids = f"ARRAY(SELECT {alias}.ctid FROM {found})"
    return f"DELETE FROM {{s}}.{table} WHERE ctid = ANY ({ids})"


def removal(table: str, same: str) -> str:
    """Return SQL that deletes the rows of jobs `t`."""
    found = f"SELECT ctid FROM {{s}}.{table} WHERE {same} OFFSET 0"
    return deletion(table, f"t CROSS JOIN LATERAL ({found}) AS old", "old")


def over_jobs(statements: Iterable[str]) -> str:
    """Return one statement of many, for `jobs`: each takes a turn of the server and of this."""
    named = (f"s{number} AS ({statement})" for number, statement in enumerate(statements))
    return f"WITH t AS MATERIALIZED (SELECT t.* FROM {{jobs}}), {', '.join(named)} SELECT 1"


FORGET = over_jobs(map(removal, ROWS, ROWS.values()))
FOLLOW = over_jobs((READY, SLOTS, ENDED, TAGS, ARRIVALS))
PLACES = "SELECT seq, xid::text::bigint FROM {s}.transition WHERE xid > '0'"
SET_PLACES = """
UPDATE {s}.transition AS t SET xid = one.xid::text::xid8
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS one (seq, was, xid)
WHERE (t.xid, t.seq) = (one.was::text::xid8, one.seq)"""
PLACED = ("transition", "measured", "webhook")
"""Tables that `place` writes."""


def _said(error: psycopg.Error) -> str:
    """Return what the server said of a value, or what the driver did before it sent it."""
    said = error.diag.message_primary or str(error)
    return ", ".join(filter(None, (said, error.diag.context)))


class Mark(NamedTuple):
    """Whose copy this is, up to which job all were copied, and whether all rows were compared."""

    id: str
    source: str
    copied_to: str
    compared: bool

    def is_of(self, source: sides.Source) -> bool:
        """Whether this is a copy of a source: what it may continue, and drop."""
        state = source.state()
        return self.source == source.name or (state is not None and state.id == self.id)


class Target(sides.PostgresSide):
    """A schema that is copied to, and later the schema of the jobs."""

    checks = False
    """Whether each copy is read again: after the comparison of all rows, nothing else does that."""

    def mark(self) -> Mark | None:
        """Return what is copied, None if this is no copy."""
        if "move_copy" not in self.every_table():
            return None
        return Mark(*self.rows("SELECT * FROM {s}.move_copy")[0])

    def set_mark(self, mark: Mark) -> None:
        copied = "UPDATE {s}.move_copy SET copied_to = %s, compared = %s"
        self.rows(copied, (mark.copied_to, mark.compared))

    def create(self, mark: Mark, message: str) -> None:
        """Make the schema. Until `open`, its tables refuse every write with `message`."""
        values = (
            "%s::text AS id, %s::text AS source, %s::text AS copied_to, %s::boolean AS compared"
        )
        with self.transaction():
            self.connection.execute(schema.script(self.url, 0, begin=False).encode())
            self.rows(f"CREATE TABLE {{s}}.move_copy AS SELECT {values}", mark)
            vars(self).pop("tables", None)  # they are new
            self.refuse_writes(message)

    def drop(self) -> None:
        """Remove the schema and all that is in it."""
        with self.locked(self.every_table(), "ACCESS EXCLUSIVE"):
            self.rows("DROP SCHEMA {s} CASCADE")

    def open(self) -> None:
        """Open the tables: the jobs are here from now on."""
        with self.transaction():
            self.rows("DROP FUNCTION {s}.refuse_all() CASCADE")
            self.rows("DROP TABLE {s}.move_copy")

    @contextmanager
    def copying(self, tables: Iterable[str]) -> Iterator[None]:
        """Copy to these tables in the block, which is one transaction."""
        names = [*tables, *FOLLOWING]
        with self.transaction():
            ((guards,),) = self.rows(GUARDS, (names,))
            self.rows("; ".join(f"ALTER TABLE {{s}}.{name} DISABLE TRIGGER USER" for name in names))
            self.rows(FORGET_TAGS)
            yield
            self.rows(guards)
        failpoints.hit("move.after_copy")

    def copy_jobs(self, source: sides.Source, ids: Sequence[str]) -> None:
        """Copy jobs with all that belongs to them; delete copies whose job no longer exists."""
        keys, jobs = json.dumps([[id] for id in ids]), self.having(sides.JOB)
        self.rows(FORGET.replace("{jobs}", jobs), (keys,))
        for table in (sides.JOB, *sides.OF_JOBS):
            self._add(source, table, keys)
        self.rows(FOLLOW.replace("{jobs}", jobs), (keys,))

    def copy_rows(self, source: sides.Source, table: sides.Table, keys: str | None = None) -> None:
        """Copy the rows of another table, those with these keys or all; likewise."""
        if keys is None:
            self.rows(f"DELETE FROM {{s}}.{table.name}")
        else:
            self.rows(deletion(table.name, self.having(table)), (keys,))
        self._add(source, table, keys)
        if table.name == "queue_limit":
            self.rows(EDITION)

    def _add(self, source: sides.Source, table: sides.Table, keys: str | None) -> None:
        with closing(source.read(table, keys)) as read:
            rows = list(read) if self.checks else read
            try:
                self._put(table.name, self.types[table.name], rows)
            except psycopg.DataError as error:
                raise MoveRefused(
                    f"a row of {table.name} cannot be stored there: {_said(error)}."
                    " `tenure verify` finds values that no enqueue accepts"
                ) from error
        if self.checks and (is_now := sides.digest(self.read(table, keys))) != sides.digest(rows):
            raise MoveRefused(
                f"a copy in {table.name} differs: {sides.digest(rows)} became {is_now}"
            )

    def _put(self, table: str, columns: sides.Columns, rows: Iterable[sides.Row]) -> None:
        times = [at for at, type in enumerate(columns.values()) if type == "timestamptz"]
        names = ", ".join(f'"{column}"' for column in columns)
        statement = self.address.sql(f"COPY {{s}}.{table} ({names}) FROM STDIN")
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                cells = list(row)
                for at in times:
                    if cells[at] is not None:
                        cells[at] = EPOCH + timedelta(microseconds=cells[at])
                copy.write_row(cells)

    def place(self, source: sides.Source) -> None:
        """Let statistics and webhooks continue at their places on the source: PLACED.

        There, a place is a transaction and a number. Here an entry keeps its number. In place of
        its transaction it gets the count of these places that are before it. So each place has the
        same entries before it and after it, and every copied entry is before every new one.
        """
        at, last = source.places(), source.one(source.last_seq)
        places = sorted(set(at.values()))
        wanted: dict[int, int] = {}
        for before, place in enumerate(places, 1):
            wanted.update(dict.fromkeys(source.seqs_after(place), before))
        found = dict(self.rows(PLACES))
        wrong = [  # few, if they were set a moment before: perhaps none was measured for hours
            (seq, found.get(seq, 0), wanted.get(seq, 0))
            for seq in wanted.keys() | found.keys()
            if found.get(seq) != wanted.get(seq)
        ]
        if wrong:
            self.rows(SET_PLACES, tuple(map(list, zip(*wrong, strict=True))))
        here = {name: str(places.index(place)) for name, place in at.items()}
        millis = source.one(f"SELECT millis FROM {source.d.table('measured')}")
        measured = "UPDATE {s}.measured SET xid = %s::text::xid8, seq = %s, millis = %s"
        self.rows(measured, (here.pop(""), last, millis))
        for name, xid in here.items():
            position = f"{xid}.{last}"
            self.rows("UPDATE {s}.webhook SET position = %s WHERE name = %s", (position, name))
        if last:
            self.rows("SELECT setval('{s}.transition_seq_seq', %s)", (last,))
