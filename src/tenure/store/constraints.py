"""What the databases themselves enforce, generated from the table of transitions.

Three things are generated, the same for both engines except for the dialect: what holds of every
row, the condition under which a change of a row is illegal, and the ledger entry of a transition.
SQLite has the first as CHECK constraints and the second as the WHEN clause of a trigger, so a legal
change costs no call there. On PostgreSQL a trigger asks both, whose plans a session keeps.

What the values of a row may be is not from that table: see `row_values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tenure import events, lifecycle
from tenure.lifecycle import SETTLED, Guard, Rule, Status, limit_sql, room_sql

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
