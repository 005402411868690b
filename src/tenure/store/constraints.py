"""What the databases themselves enforce: the transitions of jobs, and the values of their rows.

From the table of transitions three things are generated, the same for both engines except for the
dialect: what holds of every row, the condition under which a change of a row is illegal, and the
ledger entry of a transition. SQLite has the first as CHECK constraints and the second as the WHEN
clause of a trigger, so a legal change costs no call there. On PostgreSQL a trigger asks both, whose
plans a session keeps.

What the values of a row may be is not from that table. It is as strict as the check of an enqueue
in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tenure import events, lifecycle
from tenure.handlers.results import MAX_RESULT_BYTES
from tenure.lifecycle import SETTLED, Guard, Rule, Status, limit_sql, room_sql
from tenure.retry import MAX_DELAY_SECONDS, MAX_DELAYS, MAX_FACTOR
from tenure.rules.jobs import MAX_PRIORITY, MAX_RETRIES
from tenure.values.names import (
    MAX_KEY_LENGTH,
    MAX_NAME_LENGTH,
    MAX_PARTITION_LENGTH,
    MAX_REASON_LENGTH,
    NAME_PATTERN,
)
from tenure.values.payload import MAX_PAYLOAD_BYTES

NEVER_CHANGES = (
    *("id", "type", "queue", "created_at", "idempotency_key", "fingerprint", "partition"),
    *("unique_key", "unique_until", "start_by", "workflow", "needs", "tags", "again_of"),
)
"""Columns that no change of a job may touch."""

SETTABLE = tuple(dict.fromkeys(column for rule in lifecycle.TRANSITIONS for column in rule.sets))
"""Columns that only some transitions may change, beside `snoozes`."""
COUNTED = ("need", "spare")
"""Columns that count what a waiting job waits for, while it waits."""


FINAL = (
    *("started_at", "finished_at", "worker", "event", "actor", "reason", "result", "last_error"),
)
"""Columns of a settled job that no setting of `followed` may change, beside the other guards."""


def quoted(*names: str) -> str:
    """SQL string literals, comma separated. Only for names from the lifecycle table."""
    return ", ".join(f"'{name}'" for name in names)


ENDS = [status for status in Status if status in SETTLED]
SETTLED_SQL = quoted(*ENDS)


def one_of(column: str, names: Iterable[str]) -> str:
    """The condition that a column has one of these values.

    In pairs: SQLite makes a table of a longer list each time it tests it. Two such CHECKs were a
    seventh of what a job costs SQLite in bulk.
    """
    values = [f"'{name}'" for name in names]
    pairs = [", ".join(values[at : at + 2]) for at in range(0, len(values), 2)]
    return "(" + " OR ".join(f"{column} IN ({pair})" for pair in pairs) + ")"


def checks(rules: Mapping[str, str]) -> str:
    """The CHECK constraints of a table, by name."""
    return ",\n    ".join(f"CONSTRAINT {name} CHECK ({rule})" for name, rule in rules.items())


def row_rules(row: str = "") -> dict[str, str]:
    """Name -> condition over the columns of a row, whatever transition led to it; never NULL.

    `row` precedes the names of columns.
    """
    is_processing, has = f"({row}status = 'processing')", f"({row}{{}} IS NOT NULL)"
    rules = {
        "known_status": one_of(f"{row}status", Status),
        "lease_while_processing": f"{is_processing} = {has.format('lease_id')}",
        "expiry_while_processing": f"{is_processing} = {has.format('lease_expires_at')}",
        "holder_while_processing": f"{row}status <> 'processing'"
        f" OR ({row}worker IS NOT NULL AND {row}started_at IS NOT NULL)",
        "finished_when_settled": f"{one_of(f'{row}status', ENDS)} = {has.format('finished_at')}",
        "failed_says_why": f"{row}status <> 'failed' OR {row}last_error IS NOT NULL",
        "attempts_within_limit": limit_sql(row),
        "waiting_for_something": f"{row}status <> 'waiting' OR coalesce({row}need, 0) > 0",
        "nothing_to_wait_for": f"{row}status NOT IN ('pending', 'processing')"
        f" OR coalesce({row}need, 0) <= 0",
        "counters_count_up": f"{row}attempts >= 0 AND {row}max_retries >= 0"
        f" AND coalesce({row}snoozes, 0) >= 0"
        f" AND {row}token >= {row}attempts + coalesce({row}snoozes, 0)",
    }
    if Guard.ATTEMPTS_LEFT in lifecycle.RULE_OF[lifecycle.RETRY].guards:
        rules["pending_has_room"] = room_sql(row)
    return rules


# --- transitions ------------------------------------------------------------------------------


def is_legal(rule: Rule) -> str:
    """The condition over OLD and NEW under which a row change is the transition of `rule`."""
    parts = [
        _between(rule),
        f"NEW.attempts = OLD.attempts + {rule.attempts}",
        f"NEW.token = OLD.token + {rule.token}",
        *(guard.sql for guard in rule.guards if guard.sql),
    ]
    if rule.snoozes:
        parts.append(f"coalesce(NEW.snoozes, 0) = coalesce(OLD.snoozes, 0) + {rule.snoozes}")
    return "(" + " AND ".join(parts) + ")"


def _between(rule: Rule) -> str:
    """The statuses of a transition, and its event where other rows have the same two.

    Without the event a change that misses the guard of one row would pass as another.
    """
    first, *others = _events(rule.source, rule.target)
    named = f" AND NEW.event = '{rule.event}'"
    if rule.event == first:
        named = f" AND NEW.event NOT IN ({quoted(*others)})" if others else ""
    return f"OLD.status = '{rule.source}' AND NEW.status = '{rule.target}'{named}"


def _events(source: Status, target: Status) -> list[str]:
    rules = lifecycle.TRANSITIONS
    return [rule.event for rule in rules if (rule.source, rule.target) == (source, target)]


def illegal_change(differs: str) -> str:
    """The condition under which an UPDATE must be refused for its status, counters and lease.

    `differs` is the engine's null-safe inequality: `IS NOT` or `IS DISTINCT FROM`.
    """
    changes = (rule for rule in lifecycle.TRANSITIONS if rule.source is not rule.target)
    legal = " OR\n        ".join(map(is_legal, changes))
    return f"NOT ({is_no_transition(differs)} OR\n        {legal})"


def is_no_transition(differs: str) -> str:
    """The condition that a change of a row is legal, and no transition.

    Of a settled job only `followed` may change: it may come to be waited for.
    """
    final = " AND ".join(f"NOT (NEW.{column} {differs} OLD.{column})" for column in FINAL)
    counted = f"NEW.followed {differs} OLD.followed AND {final}"
    return (
        "(OLD.status = NEW.status AND NEW.attempts = OLD.attempts AND NEW.token = OLD.token"
        f" AND NOT (NEW.lease_id {differs} OLD.lease_id)"
        f" AND (NOT {one_of('OLD.status', ENDS)} OR ({counted})))"
    )


def illegal_setting(differs: str) -> str:
    """The condition under which an UPDATE of `set_columns` must be refused for what it sets."""
    refused = [f"NEW.{column} {differs} OLD.{column}" for column in NEVER_CHANGES]
    unless: dict[str, list[str]] = {}  # the same for several columns
    for column in (*SETTABLE, "snoozes"):
        legal = [is_legal(rule) for rule in lifecycle.TRANSITIONS if _may_set(rule, column)]
        if column in COUNTED:
            legal.append("(OLD.status = 'waiting' AND NEW.status = 'waiting')")
        change = f"NEW.{column} {differs} OLD.{column}"
        unless.setdefault(" OR ".join(legal), []).append(change)
    refused += [f"({' OR '.join(them)}) AND NOT ({legal})" for legal, them in unless.items()]
    return "\n        OR ".join(refused)


def set_columns() -> str:
    """The columns that `illegal_setting` is about: no claim and no completion sets one of them."""
    return ", ".join((*NEVER_CHANGES, *SETTABLE, "snoozes"))


def _may_set(rule: Rule, column: str) -> bool:
    return column in rule.sets or (column == "snoozes" and rule.snoozes != 0)


def amended(differs: str, old: str, new: str) -> str:
    """The condition that a change is a transition although the status stays."""
    pairs = []
    for rule in lifecycle.TRANSITIONS:
        if rule.source is rule.target:
            changed = " OR ".join(f"{new}.{c} {differs} {old}.{c}" for c in rule.sets)
            pairs.append(
                f"({old}.status = '{rule.source}' AND {new}.status = '{rule.target}'"
                f" AND ({changed}))"
            )
    return " OR ".join(pairs)


ILLEGAL_INSERT = (
    "NOT ("
    + " OR ".join(
        " AND ".join((f"NEW.status = '{status}'", *(guard.sql for guard in guards)))
        for status, guards in lifecycle.ENTRANCES.items()
    )
    + ") OR NEW.attempts <> 0 OR NEW.token <> 0 OR NEW.snoozes IS NOT NULL"
    " OR NEW.started_at IS NOT NULL OR NEW.worker IS NOT NULL"
    " OR NEW.last_error IS NOT NULL OR NEW.result IS NOT NULL"
)
"""A new row must be pending or waiting, and untried."""

ILLEGAL_DELETE = f"OLD.status NOT IN ({SETTLED_SQL})"
"""Only a settled job may be deleted."""


def event_sql(old: str, new: str, rules: Sequence[Rule]) -> str:
    """The event of a transition of `rules`: the row names it, or the statuses decide.

    Hand-written SQL may leave `event` unchanged. Then the event is that of the first row of the
    table between the two statuses.
    """
    lines = []
    for source, target in dict.fromkeys((r.source, r.target) for r in rules):
        first, *others = _events(source, target)
        pair = f"{old}.status = '{source}' AND {new}.status = '{target}'"
        lines += [f"WHEN {pair} AND {new}.event = '{event}' THEN '{event}'" for event in others]
        lines.append(f"WHEN {pair} THEN '{first}'")
    return "CASE " + " ".join(lines) + " END"


def ledger_values(
    old: str, new: str, clock: str, larger: str, *, rules: Sequence[Rule] = lifecycle.TRANSITIONS
) -> dict[str, str]:
    """Column -> expression of the ledger entry of a transition, given the names of the two rows.

    `clock` reads the store's time, `larger` is the engine's two-argument maximum. Times that the
    transition itself wrote are taken from the row, so that row and ledger agree. Hand-written SQL
    that names neither an event nor a reason does not repeat the reason of the transition before.
    The transition is one of `rules`.
    """
    reasoned = [_between(rule) for rule in rules if rule.event in events.REASONED]
    has_reason = " OR ".join(reasoned).replace("OLD.", f"{old}.").replace("NEW.", f"{new}.")
    return {
        "job_id": f"{new}.id",
        "at": f"CASE {new}.status WHEN 'processing' THEN {new}.started_at"
        f" WHEN 'pending' THEN {clock} WHEN 'waiting' THEN {clock} ELSE {new}.finished_at END",
        "source": f"{old}.status",
        "target": f"{new}.status",
        "event": event_sql(old, new, rules),
        "attempt": f"{larger}({old}.attempts, {new}.attempts)",
        "token": f"{new}.token",
        "lease_id": f"COALESCE({new}.lease_id, {old}.lease_id)",
        "actor": f"{new}.actor",
        "detail": f"CASE WHEN {new}.status = 'failed' THEN {new}.last_error END",
        "reason": f"CASE WHEN {new}.reason IS NULL THEN NULL"
        f" WHEN {new}.status <> {old}.status AND {new}.event = {old}.event"
        f" AND {new}.reason = {old}.reason THEN NULL"
        f" WHEN {has_reason} THEN {new}.reason END",
    }


# --- values ---------------------------------------------------------------------------------------
# Conditions over the columns, by name; none is ever NULL. SQLite has them as CHECK constraints,
# which it tests for the columns that a statement sets. PostgreSQL would read and prepare a CHECK,
# or the condition of a trigger, again in every statement: those of a row took a quarter of what it
# costs to complete one job. So a trigger asks them there by one query for all rows, which each
# session keeps. `tenure verify` asks them of every row. They cost each job some time, so they say
# no more than they must: what only a reader of the JSON finds (depth, a key that is given twice) is
# left to that reader.

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
