"""Jobs and times in the JSON that SQL reads and answers, on each engine.

It has ASCII characters only, so the encoding of a caller's connection does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from typing import Any

from tenure.jobs.enqueue import CheckedJob
from tenure.lifecycle import Job
from tenure.store.borrowed.drivers import Ask
from tenure.store.rows import ADDED, COLUMNS, TIMED, UNIQUE, job_of, parts, write_policy
from tenure.store.sqlite.connection import to_millis
from tenure.store.sqlite.connection import to_time as of_millis

_PAIRS = ", ".join(f"'{column}', {column}" for column in (*COLUMNS, "fingerprint"))
SQLITE_JOB = f"json_object({_PAIRS})"
"""A row of `tenure_job` as JSON."""
SQLITE_OBJECTS = "(SELECT value FROM json_each({p}) LIMIT -1) WHERE true"
"""The objects of a JSON list, of which many values are read: without LIMIT and WHERE, SQLite would
write an object as text again for each of them."""

SHARE = "FOR SHARE OF job"
SPELLING = {
    "postgres": {
        "{json}": "CAST(CAST({p} AS text) AS json)",
        "{id}": "CAST(CAST({p} AS text) AS uuid)",
        "{now}": "{s}clock()",
        "{utc}": "AT TIME ZONE 'UTC'",
        "{row}": "row_to_json(job)",
        "{object}": "json_build_object",
        "{array}": "json_build_array",
        "{list}": "json_agg",
        "{nested}": "",
        "{uuid}": "uuid",
        "{time}": "timestamptz",
        "{text}": "text",
        "{lock}": "FOR NO KEY UPDATE",
        "{share}": SHARE,
    },
    "sqlite": {
        "{json}": "{p}",
        "{id}": "{p}",
        "{now}": "(SELECT at FROM tenure_now)",
        "{utc}": "",
        "{row}": SQLITE_JOB,
        "{object}": "json_object",
        "{array}": "json_array",
        "{list}": "json_group_array",
        "{nested}": "json",
        "{uuid}": "text",
        "{time}": "integer",
        "{text}": "BLOB",
        "{lock}": "",
        "{share}": "",
    },
}
"""How each engine spells what is in braces in a statement for both.

`{json}` and `{id}` are the parameter, `{row}` is the row `job` as JSON, `{nested}` is around the
JSON of a subquery, and `{text}` is the type in which JSON is answered.
"""


@cache
def spelled(statement: str, engine: str) -> str:
    """Return a statement for both engines as one of them spells it."""
    for name, text in SPELLING[engine].items():
        statement = statement.replace(name, text)
    return statement


def ask(engine: str, statement: str, value: str | None = None) -> Ask:
    """Return the question that a statement for both engines is."""
    return Ask(spelled(statement, engine), value)


def job_in(engine: str, values: dict[str, Any]) -> Job:
    """Return the job of a row, given by column."""
    return job_of([values[name] for name in COLUMNS], of_millis if engine == "sqlite" else of_iso)


def time_in(engine: str, value: Any) -> datetime:
    return of_millis(value) if engine == "sqlite" else of_iso(value)


def of_iso(text: str) -> datetime:
    """Read a time of PostgreSQL."""
    return datetime.fromisoformat(text).astimezone(UTC)


def millis(value: Any) -> Any:
    """Return a value as SQLite stores it."""
    return to_millis(value) if isinstance(value, datetime) else value


def written(value: object) -> str:
    """Return JSON in ASCII."""
    return json.dumps(value, default=datetime.isoformat)


def sent(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of one statement after the other."""
    return parts(rows, lambda row: row.get("payload", ""))


SENT = (*ADDED, *chain.from_iterable(TIMED.items()), "traceparent")


def document(checked_job: CheckedJob) -> dict[str, Any]:
    """Return what is said of a job to add."""
    more = UNIQUE if checked_job.unique_key else ()
    return {
        **{name: getattr(checked_job, name) for name in (*SENT, *more)},
        "backoff": write_policy(checked_job.backoff),
    }
