"""What the values of a row of the job table may be, as strict as the check of an enqueue in Python.

Conditions over the columns, by name; none is ever NULL. SQLite has them as CHECK constraints,
which it tests for the columns that a statement sets. PostgreSQL would read and prepare a CHECK,
or the condition of a trigger, again in every statement: those of a row took a quarter of what it
costs to complete one job. So a trigger asks them there by one query for all rows, which each
session keeps. `tenure verify` asks them of every row. They cost each job
some time, so they say no more than they must: what only a reader of the JSON finds (depth, a key
that is given twice) is left to that reader.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenure.jobs.enqueue import MAX_PRIORITY, MAX_RETRIES
from tenure.jobs.names import (
    MAX_KEY_LENGTH,
    MAX_NAME_LENGTH,
    MAX_PARTITION_LENGTH,
    MAX_REASON_LENGTH,
    NAME_PATTERN,
)
from tenure.jobs.payload import MAX_PAYLOAD_BYTES
from tenure.jobs.results import MAX_RESULT_BYTES
from tenure.retry import MAX_DELAY_SECONDS, MAX_DELAYS, MAX_FACTOR

MAX_LABEL_STORED = 1_000
"""Characters of an actor or a worker. Over HTTP, the name of a token may precede a label."""

VALUES_OF_A_JOB = ("id", "type", "queue", "payload", "priority", "timeout", "idempotency_key")
"""The columns of these conditions that no transition changes."""

LEFT_TO_VERIFY = ("backoff_is_a_policy", "texts_have_no_nul")
"""Conditions that no insert tests: of the 17 µs that a job takes in bulk, to see that a policy is
JSON would take 1, and to call `is_policy` 8. A policy that cannot be read acts as the default.
On SQLite, to look for a NUL takes 1 for each KB of a payload; such a job fails alone."""

NO_NUL = "instr({}, char(0)) = 0"
"""What GLOB, length and JSON functions of SQLite do not see: they read a text up to its first NUL.
PostgreSQL has no such texts."""
TEXTS = ("actor", "worker", "reason", "last_error", "payload", "result", "tags", "backoff")
"""Columns that may have a NUL on SQLite until `verify` finds it: each text that another condition
does not search for one."""

FIRST_TIME, LAST_TIME = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, in milliseconds since 1970."""


TIMES = ("run_at", "created_at", "started_at", "finished_at", "lease_expires_at", "start_by")
"""Columns of times, which must be within these years: no client could read others."""

MAX_TAGS_LENGTH = 8_000
"""Characters of the tags of a job, as JSON."""
ANY_UUID = "xxxxxxxx-xxxx-7xxx-xxxx-xxxxxxxxxxxx".replace("x", "[0-9a-f]")
"""What SQLite takes for a UUID of version 7."""


def sqlite_values() -> dict[str, str]:
    """Return name -> condition in the SQL of SQLite."""
    policy = _policy(
        *("json_type(backoff, '$.{}')", "backoff ->> '{}'", "json_each(backoff, '$.delays') one"),
        "one.type IN ('integer', 'real') AND one.value",
    )
    # An UPDATE tests the constraints of the columns that it sets: so each time has its own.
    times = {
        f"{time}_in_reach": f"{time} IS NULL OR {time} BETWEEN {FIRST_TIME} AND {LAST_TIME}"
        for time in TIMES
    }
    return _plain_values("") | {
        **in_reach(),
        **times,
        "reason_is_short": f"reason IS NULL OR length(reason) <= {MAX_REASON_LENGTH}",
        # A sweep could not save a job whose id is not UTF-8, and no page could follow one that
        # Python refuses. It takes 0.3 of the 12 µs that a job takes in bulk.
        "id_is_a_uuid_7": f"id GLOB '{ANY_UUID}' AND {NO_NUL.format('id')}",
        "type_is_a_name": _sqlite_name("type"),
        "queue_is_a_name": f"queue = 'default' OR ({_sqlite_name('queue')})",
        "key_is_visible_ascii": "idempotency_key IS NULL"
        f" OR ({_sqlite_key('idempotency_key')})"
        " OR (substr(idempotency_key, 1, length(queue) + 1) = queue || ' '"
        f" AND {_sqlite_key('substr(idempotency_key, length(queue) + 2)')})",
        "payload_is_a_json_object": "CASE WHEN json_valid(payload)"
        " THEN json_type(payload) = 'object' ELSE false END"
        f" AND length(CAST(payload AS BLOB)) <= {MAX_PAYLOAD_BYTES}",
        "tags_are_a_list": "tags IS NULL OR CASE WHEN json_valid(tags)"
        f" THEN json_type(tags) = 'array' ELSE false END AND length(tags) <= {MAX_TAGS_LENGTH}",
        "partition_is_short_text": "partition IS NULL OR (length(partition) BETWEEN 1 AND"
        f" {MAX_PARTITION_LENGTH} AND partition NOT GLOB '*[' || char(1) || '-' || char(31)"
        f" || char(127) || '-' || char(159) || ']*' AND {NO_NUL.format('partition')})",
        "again_of_is_an_id": "again_of IS NULL"
        f" OR (again_of GLOB '{ANY_UUID}' AND {NO_NUL.format('again_of')})",
        "texts_have_no_nul": " AND ".join(
            f"({column} IS NULL OR {NO_NUL.format(column)})" for column in TEXTS
        ),
        "result_is_json": "result IS NULL OR (json_valid(result)"
        f" AND length(CAST(result AS BLOB)) <= {MAX_RESULT_BYTES})",
        "backoff_is_a_policy": "backoff IS NULL OR CASE WHEN json_valid(backoff)"
        f" THEN json_type(backoff) = 'object' AND {policy} ELSE false END",
    }


def in_reach(row: str = "") -> dict[str, str]:
    """Return name -> condition on values that a transition may change. `row` precedes columns."""
    return {
        # A claim reads every lane of a queue: `store/lanes.py`.
        "priority_in_reach": f"{row}priority BETWEEN {-MAX_PRIORITY} AND {MAX_PRIORITY}",
        "actor_is_short": f"{row}actor IS NULL OR length({row}actor) <= {MAX_LABEL_STORED}",
        "worker_is_short": f"{row}worker IS NULL OR length({row}worker) <= {MAX_LABEL_STORED}",
    }


def postgres_times(row: str) -> str:
    """Return the condition, in the SQL of PostgreSQL, that all TIMES can be read."""
    times = ", ".join(f"{row}{time}" for time in TIMES)
    first, end = "'0001-01-01 00:00+00'", "'10000-01-01 00:00+00'"
    return f"least({times}) >= {first} AND greatest({times}) < {end}"


def postgres_values(json_type: str, schema: str, row: str = "") -> dict[str, str]:
    """Return name -> condition in the SQL of PostgreSQL.

    `json_type` is a call that returns the type of a JSON text, `{}`. `row` precedes the names
    of columns.
    """
    key, backoff, result = f"{row}idempotency_key", f"{row}backoff", f"{row}result"
    return _plain_values(row) | {
        "id_is_a_uuid_7": f"get_byte(uuid_send({row}id), 6) >> 4 = 7",
        "type_is_a_name": _postgres_name(f"{row}type"),
        "queue_is_a_name": f"{row}queue = 'default' OR ({_postgres_name(f'{row}queue')})",
        "key_is_visible_ascii": f"{key} IS NULL OR {_postgres_key(key)}"
        f" OR (left({key}, length({row}queue) + 1) = {row}queue || ' '"
        f" AND {_postgres_key(f'substr({key}, length({row}queue) + 2)')})",
        "payload_is_a_json_object": f"coalesce({json_type.format(f'{row}payload')}, '') = 'object'"
        f" AND octet_length({row}payload) <= {MAX_PAYLOAD_BYTES}",
        "tags_are_a_list": f"{row}tags IS NULL OR (length({row}tags) <= {MAX_TAGS_LENGTH}"
        f" AND coalesce({json_type.format(f'{row}tags')}, '') = 'array')",
        "partition_is_short_text": f"{row}partition IS NULL OR {row}partition ~"
        f" '^[^\\u0001-\\u001f\\u007f-\\u009f]{{1,{MAX_PARTITION_LENGTH}}}$'",
        "result_is_json": f"{result} IS NULL OR ({json_type.format(result)} IS NOT NULL"
        f" AND octet_length({result}) <= {MAX_RESULT_BYTES})",
        "backoff_is_a_policy": f"{backoff} IS NULL OR {schema}.is_policy({backoff})",
    }


def postgres_policy(text: str) -> str:
    """Return the condition, in the SQL of PostgreSQL, that JSON is a policy, or an error."""
    policy = _policy(
        *(f"json_typeof({text}::json -> '{{}}')", f"({text}::json ->> '{{}}')::numeric"),
        f"json_array_elements({text}::json -> 'delays') AS one(wait)",
        "CASE json_typeof(one.wait) WHEN 'number' THEN one.wait::text::numeric ELSE -1 END",
    )
    return f"CASE WHEN json_typeof({text}::json) = 'object' THEN {policy} ELSE false END"


def _plain_values(row: str) -> dict[str, str]:
    """The conditions that both engines read the same way."""
    return {
        "timeout_in_range": f"{row}timeout IS NULL OR"
        f" ({row}timeout > 0 AND {row}timeout <= {MAX_DELAY_SECONDS:.0f})",
        # An operator's retry may raise it.
        "limit_in_range": f"{row}max_retries <= {MAX_RETRIES} OR {row}token > 0",
    }


def _sqlite_name(column: str) -> str:
    """`NAME_PATTERN` without a regular expression, in few steps for each character."""
    return (
        f"length({column}) BETWEEN 1 AND {MAX_NAME_LENGTH} AND {NO_NUL.format(column)}"
        f" AND {column} NOT GLOB '*[^-.0-:A-Z_a-z]*' AND {column} NOT GLOB '[.:-]*'"
        f" AND instr({column} || '.', '..') = 0"
    )


# The key of a caller with rights to some queues is stored behind its queue and a space.
def _sqlite_key(text: str) -> str:
    return (
        f"length({text}) BETWEEN 1 AND {MAX_KEY_LENGTH} AND {text} NOT GLOB '*[^!-~]*'"
        f" AND {NO_NUL.format(text)}"
    )


def _postgres_key(text: str) -> str:
    return f"{text} ~ '^[!-~]{{1,{MAX_KEY_LENGTH}}}$'"


def _postgres_name(column: str) -> str:
    """Names that SQL need not quote are a part of these names, and quicker to test."""
    return (
        f"length({column}) <= {MAX_NAME_LENGTH}"
        f" AND ({column} = quote_ident({column}) OR {column} ~ '{NAME_PATTERN}')"
    )


def _policy(kind: str, value: str, each: str, wait: str) -> str:
    """The condition that each member of a backoff is absent or in its range, so `each` delay."""
    conditions = []
    wide = f"0 AND {MAX_DELAY_SECONDS:.0f}"
    ranges = {"base": wide, "cap": wide, "factor": f"1 AND {MAX_FACTOR:.0f}"}
    for name, reach in ranges.items():
        found, number = kind.format(name), value.format(name)
        conditions.append(
            f"CASE WHEN {found} IS NULL THEN true WHEN {found} IN ('number', 'integer', 'real')"
            f" THEN {number} BETWEEN {reach} ELSE false END"
        )
    found = kind.format("delays")
    conditions.append(
        f"CASE WHEN {found} IS NULL THEN true WHEN {found} = 'array' THEN (SELECT count(*) <="
        f" {MAX_DELAYS} AND count(*) = count(*) FILTER (WHERE {wait} BETWEEN {wide})"
        f" FROM {each}) ELSE false END"
    )
    return "(" + " AND ".join(conditions) + ")"


def enforced(rules: Mapping[str, str]) -> dict[str, str]:
    """Return the rules that the databases enforce."""
    return {name: rule for name, rule in rules.items() if name not in LEFT_TO_VERIFY}


def unfit(rules: Mapping[str, str]) -> str:
    """Return the condition that one of the rules does not hold."""
    return "NOT (" + " AND ".join(f"({rule})" for rule in rules.values()) + ")"


def broken(rules: Mapping[str, str]) -> str:
    """Return SQL for the name of the first rule that does not hold, NULL if all do."""
    cases = " ".join(f"WHEN NOT ({rule}) THEN '{name}'" for name, rule in rules.items())
    return f"CASE {cases} END"
