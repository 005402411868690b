"""The PostgreSQL database to which `tenure move` copies the jobs.

Its guards refuse a job that enters with a history, and its tables are closed to everybody until the
switch. Both are triggers. A transaction that copies switches them off, which only the owner of the
tables can and which locks them, and on again before it commits. So nobody else ever meets a table
without its guards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tenure import failpoints
from tenure.errors import MoveRefused
from tenure.store.constraints import SETTLED_SQL
from tenure.store.moving.postgres_rows import PostgresRows, keys_as, quoted, same_key
from tenure.store.moving.rows import Columns, Digest, Row, Source
from tenure.store.moving.tables import JOB, OF_JOBS, Table
from tenure.store.postgres import schema

# isort: split
import psycopg

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEPT = ("ready", "ended", "arrival", "slot", "tag")
"""Tables that hold what follows from jobs."""
ARRIVED_TOGETHER = 500

MARK = """
CREATE TABLE {s}.move_copy (
    id text NOT NULL, copied_to text NOT NULL, compared boolean NOT NULL)"""
GUARDS = """
SELECT c.relname, string_agg(format('ENABLE %%s TRIGGER %%I',
    CASE g.tgenabled WHEN 'A' THEN 'ALWAYS' WHEN 'R' THEN 'REPLICA' ELSE '' END, g.tgname), ', ')
FROM pg_trigger AS g JOIN pg_class AS c ON c.oid = g.tgrelid
WHERE c.relnamespace = to_regnamespace(%s) AND NOT g.tgisinternal AND g.tgenabled <> 'D'
GROUP BY c.relname"""

# The planner knows nothing of new tables. OFFSET 0 keeps it from reading one of them whole for each
# job.
JOBS = "CROSS JOIN LATERAL (SELECT * FROM {s}.job WHERE job.id = copied.id OFFSET 0) AS j"
RUNNING = "(SELECT DISTINCT unnest(ids) AS id FROM {s}.arrival WHERE status = 'processing')"
TURN = """(
    SELECT CASE WHEN l.partitioned THEN coalesce(j.partition, '') END
    FROM {s}.queue_limit AS l WHERE l.queue = j.queue)"""


def _deletion(table: str, found: str, same: str) -> str:
    """Return SQL that deletes the rows of a table, `t`, that belong to what is `found`."""
    return f"""
DELETE FROM {{s}}.{table} WHERE ctid = ANY (ARRAY(
    SELECT old.ctid FROM {found}
        CROSS JOIN LATERAL (SELECT ctid FROM {{s}}.{table} AS t WHERE {same} OFFSET 0) AS old))"""


def _slots(found: str) -> str:
    """Return SQL that gives slots to jobs."""
    return f"""
INSERT INTO {{s}}.slot (queue, partition, job_id)
SELECT j.queue, coalesce(j.partition, ''), j.id FROM {found} AS copied {JOBS}
WHERE j.status = 'processing'
    AND (SELECT {{s}}.sets_limits(l) FROM {{s}}.queue_limit AS l WHERE l.queue = j.queue)"""


FORGET = (
    _deletion(
        "ready",
        f"copied {JOBS}",
        "(t.queue, t.priority, t.run_at, t.id) = (j.queue, j.priority, j.run_at, j.id)",
    ),
    _deletion(
        "slot",
        f"copied {JOBS}",
        "(t.queue, t.partition, t.job_id) = (j.queue, coalesce(j.partition, ''), j.id)",
    ),
    _deletion("ended", f"copied {JOBS}", "(t.status, t.id) = (j.status, j.id)"),
    _deletion(
        "tag",
        f"copied {JOBS} CROSS JOIN LATERAL json_array_elements_text(j.tags::json) AS one",
        "(t.tag, t.job_id) = (one.value, j.id)",
    ),
    *(
        _deletion(table.name, "copied", f"t.{table.key[0]} = copied.id")
        for table in (JOB, *OF_JOBS)
    ),
)
FOLLOW = (
    f"""
INSERT INTO {{s}}.ready (queue, priority, run_at, id, type, start_by, partition)
SELECT j.queue, j.priority, j.run_at, j.id, j.type, j.start_by, {TURN}
FROM copied {JOBS} WHERE j.status = 'pending'""",
    _slots("copied"),
    f"""
INSERT INTO {{s}}.ended (status, id)
SELECT j.status, j.id FROM copied {JOBS} WHERE j.status IN ('failed', 'cancelled')""",
    f"""
INSERT INTO {{s}}.tag (tag, job_id)
SELECT DISTINCT one.value, j.id
FROM copied {JOBS} CROSS JOIN LATERAL json_array_elements_text(j.tags::json) AS one
WHERE j.tags IS NOT NULL""",
    f"""
INSERT INTO {{s}}.arrival (status, at, ids)
SELECT status, min(at), array_agg(id) FROM (
    SELECT j.status, j.id, coalesce(j.lease_expires_at, j.finished_at, j.start_by) AS at,
        row_number() OVER (PARTITION BY j.status) / {ARRIVED_TOGETHER} AS part
    FROM copied {JOBS}
    WHERE j.status IN ('processing', {SETTLED_SQL})
        OR (j.status = 'waiting' AND j.start_by IS NOT NULL)
) AS one GROUP BY status, part""",
)
"""What the guards would write for these jobs."""

MOVE_UP = """
UPDATE {s}.transition SET xid = %s::text::xid8 WHERE xid = %s::text::xid8 AND seq = ANY (%s)"""

REFILL = (
    f"""
UPDATE {{s}}.ready AS r SET partition = {TURN}
FROM {{s}}.job AS j
WHERE j.id = r.id AND r.queue = ANY (%s) AND r.partition IS DISTINCT FROM {TURN}""",
    "DELETE FROM {s}.slot WHERE queue = ANY (%s)",
    _slots(RUNNING) + " AND j.queue = ANY (%s)",
    "UPDATE {s}.limit_edition SET edition = nextval('{s}.limit_edition_seq')"
    " WHERE %s::text[] <> '{}'",
)
"""What follows from a change of the limits of queues (parameter)."""


class Mark(NamedTuple):
    """Whose copy this is, up to which job all were copied, and whether all rows were compared."""

    id: str
    copied_to: str
    compared: bool


class Target(PostgresRows):
    """A schema that is copied to, and later the schema of the jobs."""

    types: Mapping[str, Columns]
    """The columns that are copied, by table."""

    def mark(self) -> Mark | None:
        """Return what is copied, None if this is no copy."""
        if not self.exists("move_copy"):
            return None
        return Mark(*self.rows("SELECT id, copied_to, compared FROM {s}.move_copy")[0])

    def compared(self) -> None:
        """Note that the copy was equal to the source: each later change is compared by itself."""
        self.rows("UPDATE {s}.move_copy SET compared = true")

    def create(self, url: str, id: str, message: str) -> None:
        """Make the schema, closed to everybody with `message`."""
        with self.transaction():
            self.connection.execute(schema.script(url, 0, begin=False).encode())
            self.rows(MARK)
            self.rows("INSERT INTO {s}.move_copy VALUES (%s, '', false)", (id,))
            self.close_all(message)
        self._tables = {}

    def drop(self) -> None:
        """Remove the schema and all that is in it."""
        self.rows("DROP SCHEMA {s} CASCADE")
        self._tables = {}

    def open(self) -> None:
        """Open the tables to everybody: the jobs are here from now on."""
        with self.transaction():
            self.rows("DROP FUNCTION {s}.refuse_all() CASCADE")
            self.rows("DROP TABLE {s}.move_copy")

    @contextmanager
    def unguarded(self, tables: Sequence[str]) -> Iterator[None]:
        """Copy to these tables in the block, which is one transaction."""
        with self.transaction():
            guards = {t: on for t, on in self.rows(GUARDS, (self.address.quoted,)) if t in tables}
            for table in guards:
                self.rows(f"ALTER TABLE {{s}}.{table} DISABLE TRIGGER USER")
            yield
            for table, on in guards.items():
                self.rows(f"ALTER TABLE {{s}}.{table} {on}")
        failpoints.hit("move.after_copy")

    def copy_jobs(
        self, source: Source, ids: Sequence[str], *, copied_to: str = "", check: bool = False
    ) -> None:
        """Copy jobs with all that belongs to them; those that do not exist any more are deleted.

        `copied_to` is noted in the same transaction. `check` reads the copies again and compares.
        """
        keys = json.dumps([[id] for id in ids])
        with self.unguarded([JOB.name, *(table.name for table in OF_JOBS), *KEPT]):
            self.rows("CREATE TEMPORARY TABLE copied (id uuid) ON COMMIT DROP")
            self._put("pg_temp.copied", {"id": "uuid"}, [(id,) for id in ids])
            for statement in FORGET:
                self.rows(statement)
            for table in (JOB, *OF_JOBS):
                self._copy(source, table, keys, check)
            for statement in FOLLOW:
                self.rows(statement)
            if copied_to:
                self.rows("UPDATE {s}.move_copy SET copied_to = %s", (copied_to,))

    def copy_rows(self, source: Source, table: Table, keys: str, *, check: bool = False) -> None:
        """Copy the rows of another table that have these keys; likewise."""
        with self.unguarded([table.name, *KEPT, "limit_edition"]):
            found = keys_as(table, self.types[table.name])
            self.rows(_deletion(table.name, found, same_key(table)), (keys,))
            self._copy(source, table, keys, check)
            if table.name == "queue_limit":
                queues = [queue for (queue,) in json.loads(keys)]
                for statement in REFILL:
                    self.rows(statement, (queues,))

    def _copy(self, source: Source, table: Table, keys: str, check: bool) -> None:
        columns = self.types[table.name]
        rows = list(source.read(table, columns, keys))
        try:
            self._put(f"{{s}}.{table.name}", columns, rows)
        except psycopg.DataError as error:
            raise MoveRefused(
                f"a row of {table.name} cannot be stored there: {error.diag.message_primary},"
                f" {error.diag.context}. `tenure verify` finds values that no enqueue accepts"
            ) from error
        if check and (copied := Digest(self.read(table, columns, keys))) != Digest(rows):
            raise MoveRefused(f"a copy in {table.name} differs: {Digest(rows)} became {copied}")

    def place(self, source: Source) -> None:
        """Let statistics and webhooks go on in the ledger where they are on the source.

        A place there is a transaction and a number. Here every entry has the number that it had,
        and instead of the transaction how many of those places are before it. So each of them has
        the same entries before it and after it, and all entries are before those that follow.
        """
        (measured, millis), hooks = source.measured(), source.webhooks()
        places = sorted({measured, *(place for _, place in hooks)})
        last = source.last_seq()
        with self.unguarded(["transition", "measured", "webhook"]):
            self.rows("UPDATE {s}.transition SET xid = '0' WHERE xid > '0'")
            for before, place in enumerate(places):
                values = (str(before + 1), str(before), source.seqs_after(place))
                self.rows(MOVE_UP, values)
            of_stats = (str(places.index(measured)), last, millis)
            self.rows(
                "UPDATE {s}.measured SET xid = %s::text::xid8, seq = %s, millis = %s", of_stats
            )
            for name, place in hooks:
                here = f"{places.index(place)}.{last}"
                self.rows("UPDATE {s}.webhook SET position = %s WHERE name = %s", (here, name))
            if last:
                self.rows("SELECT setval('{s}.transition_seq_seq', %s)", (last,))

    def _put(self, table: str, columns: Columns, rows: Iterable[Row]) -> None:
        times = [at for at, type in enumerate(columns.values()) if type == "timestamptz"]
        statement = self.sql(f"COPY {table} ({quoted(list(columns))}) FROM STDIN")
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                cells = list(row)
                for at in times:
                    if cells[at] is not None:
                        cells[at] = EPOCH + timedelta(microseconds=cells[at])
                copy.write_row(cells)
