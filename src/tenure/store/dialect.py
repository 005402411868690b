"""How an engine spells what the statements of both have in common.

Each engine has one `Dialect`. The statements of `tables/` and the searches are written over it;
what an engine does in its own way, above all the hot path, is in the engine's `statements.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from tenure.jobs.queue_rights import ANY_REST, Patterns


class Dialect(Struct, frozen=True, kw_only=True):
    """What differs between the engines. Names in braces in a template are filled in at use."""

    engine: str  # `sqlite` or `postgres`
    prefix: str  # of the name of every table
    value: str  # a parameter
    id_value: str  # a parameter that is the id of a job or of a bulk action
    id_column: str  # template: a `column` of ids as text
    time_column: str  # template: a `column` of times as `to_time` reads it
    now: str  # the store's clock
    duration: str  # template: what so many `seconds` (SQL) add to a time
    pending: str  # a FROM item: id, queue, priority, run_at and type of the pending jobs
    turns: str  # a FROM item: the pending jobs of queues whose partitions take turns, by partition
    processing: str  # a FROM item: the processing jobs, as `job`
    expiring: str  # FROM ... WHERE and the time at which leases may end, of what the sweep reads
    ruled: str  # a FROM item: a row at least if retention has to go by rules
    late: str  # FROM ... WHERE: one row at least if a job has to expire
    skip_locked: str  # at the end of a SELECT: lock its rows to change them, skip locked ones
    free_to_delete: str  # the same to delete them: skip also what a foreign key holds
    folded: str  # template: whether a `column` in lower case (A to Z only) contains the parameter
    is_id: Callable[[str], bool]  # whether a text can be the id of a stored job
    to_time: Callable[[Any], datetime]  # read a stored time
    to_bound: Callable[[datetime | None], Any]  # write a time with which stored times are compared

    # The rest is for statistics: `t` is an entry of the ledger, `j` its job.
    place: str  # the place of an entry in the ledger, or of `measured`, as a SELECT reads it
    order: Sequence[str]  # the columns of a place
    settled: str  # no entry will be added before `t`
    after: str  # `t` is after a place (parameters)
    up_to: str  # `t` is not after a place (parameters)
    is_at: str  # `measured` is at a place (parameters)
    set_place: str  # put `measured` at a place (parameters)
    since: str  # `t` is after `measured`
    lost: str  # the place of `measured` is none of this ledger
    with_job: str  # join the job of `t`
    minute: str  # the minute of `t`
    millis: str  # template: a `time` in milliseconds
    span: str  # template: the seconds from `start` to `end`
    first_line: str  # the first line of `t.detail`
    last_job: str  # the job of the last of the entries of a group
    json_rows: str  # a FROM item: the rows of one JSON parameter, as `new.value`
    json_objects: str  # template: see `objects`
    tags: str  # a FROM item after `job`: each of its tags, as `one.value`
    hold: str  # at the end of a SELECT: lock its rows
    packs: bool  # whether many rows are better read as one JSON value
    moved: str  # the source of what refuses all writes after `tenure move`, NULL if none does
    broken_value: str  # SQL for the name of a condition on values that a job breaks, or NULL
    hold_jobs: str = ""  # the statement after which no other transaction changes jobs
    hold_starts: str = ""  # the statement after which no other one starts jobs of limited queues
    look: str = ""  # the statement of `duties.look`, where the schema has it

    def table(self, name: str) -> str:
        return self.prefix + name

    def objects(self, table: str, columns: Sequence[str]) -> str:
        """Return a FROM item: the objects of one JSON parameter as rows of a table, `new`."""
        cells = ", ".join(f"value ->> '{column}' AS {column}" for column in columns)
        return self.json_objects.format(table=self.table(table), cells=cells)

    def later(self, seconds: str | int) -> str:
        """Return the time so many seconds after now, NULL if they are NULL."""
        return f"{self.now} + {self.duration.format(seconds=seconds)}"

    def values(self, count: int) -> str:
        """Return a list of parameters."""
        return ", ".join([self.value] * count)

    def ids(self, count: int) -> str:
        """Return a list of parameters that are ids."""
        return ", ".join([self.id_value] * count)

    def in_queues(self, column: str, patterns: Patterns | None) -> tuple[str, list[Any]]:
        """Return the condition that a `column` of queues fits patterns, and its values.

        It says what `queue_rights.includes` says.
        """
        if patterns is None:
            return "1 = 1", []
        either, values = [], list[Any]()
        for pattern in patterns:
            begins = pattern.endswith(ANY_REST)
            part = f"substr({column}, 1, {len(pattern) - 1})" if begins else column
            either.append(f"{part} = {self.value}")
            values.append(pattern.removesuffix(ANY_REST))
        return f"({' OR '.join(either)})", values

    def pause(self, table: str, where: str) -> str:
        """Return an UPDATE: whether it pauses, by whom, why, the values of `where`, and whether."""
        v = self.value
        return (
            f"UPDATE {self.table(table)} SET paused_at = CASE WHEN {v} THEN {self.now} END,"
            f" paused_by = {v}, pause_reason = {v} WHERE {where} AND (paused_at IS NULL) = {v}"
        )

    def time(self, column: str) -> str:
        return self.time_column.format(column=column)

    def as_id(self, text: str) -> str:
        return self.id_value.replace(self.value, text)

    def id(self, column: str) -> str:
        """Return a column of ids as text."""
        return self.id_column.format(column=column)

    def time_or_none(self, stored: Any) -> datetime | None:
        """Read a stored time that may be NULL."""
        return None if stored is None else self.to_time(stored)


class Reads(Protocol):
    """A connection that executes statements in a dialect."""

    dialect: Dialect

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute a statement and return the rows of its answer."""


class Statements(Reads, Protocol):
    """A connection that also writes, inside a transaction."""

    def changed(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return how many rows it changed."""
