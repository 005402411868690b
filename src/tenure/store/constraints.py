"""What the databases themselves enforce, generated from the lifecycle table.

Three things are generated, the same for both engines but for dialect: the CHECK constraints of the
job table, the condition under which a change of a row is illegal (it stands in the WHEN clause of
a trigger, so a legal move costs no trigger call), and the ledger entry of a move.
"""

from __future__ import annotations

from tenure.lifecycle import (
    LIMIT_SQL,
    MAX_RELEASES,
    ROOM_SQL,
    SETTLED,
    TRANSITIONS,
    Rule,
    Status,
    budget_sql,
)

NEVER_CHANGES = ("id", "type", "queue", "payload", "created_at", "idempotency_key", "fingerprint")
"""Columns that no change of a job may touch."""


def quoted(*names: str) -> str:
    """SQL string literals, comma separated. Only for names from the lifecycle table."""
    return ", ".join(f"'{name}'" for name in names)


SETTLED_SQL = quoted(*(s for s in Status if s in SETTLED))


def checks() -> str:
    """The CHECK constraints of the job table, in SQL both engines read the same way."""
    rules = {
        "known_status": f"status IN ({quoted(*Status)})",
        "lease_while_processing": "(status = 'processing') = (lease_id IS NOT NULL)",
        "expiry_while_processing": "(status = 'processing') = (lease_expires_at IS NOT NULL)",
        "holder_while_processing": "status <> 'processing'"
        " OR (worker IS NOT NULL AND started_at IS NOT NULL)",
        "finished_when_settled": f"(status IN ({SETTLED_SQL})) = (finished_at IS NOT NULL)",
        "failed_says_why": "status <> 'failed' OR last_error IS NOT NULL",
        "attempts_within_limit": LIMIT_SQL,
        "pending_has_room": ROOM_SQL,
        "counters_count_up": "attempts >= 0 AND token >= attempts AND max_retries >= 0",
    }
    return ",\n    ".join(f"CONSTRAINT {name} CHECK ({rule})" for name, rule in rules.items())


def is_legal(transition: Rule) -> str:
    """The condition over OLD and NEW under which a row change is `move`."""
    parts = [
        f"OLD.status = '{transition.source}'",
        f"NEW.status = '{transition.target}'",
        f"NEW.attempts = OLD.attempts + {transition.attempts}",
        f"NEW.token = OLD.token + {transition.token}",
    ]
    if transition.budget:
        parts.append(budget_sql("NEW"))
    if transition.event == "released":
        parts.append(f"OLD.token - OLD.attempts < {MAX_RELEASES}")
    return "(" + " AND ".join(parts) + ")"


def illegal_change(differs: str) -> str:
    """The condition under which an UPDATE must be refused.

    `differs` is the engine's null-safe inequality: `IS NOT` or `IS DISTINCT FROM`.
    """
    legal = " OR\n        ".join(is_legal(transition) for transition in TRANSITIONS)
    changed = " OR ".join(f"NEW.{c} {differs} OLD.{c}" for c in NEVER_CHANGES)
    stays = (
        f"(OLD.status = NEW.status AND OLD.status NOT IN ({SETTLED_SQL})"
        " AND NEW.attempts = OLD.attempts AND NEW.token = OLD.token"
        f" AND NOT (NEW.lease_id {differs} OLD.lease_id))"
    )
    return f"NOT ({stays} OR\n        {legal}) OR {changed}"


ILLEGAL_INSERT = (
    "NEW.status <> 'pending' OR NEW.attempts <> 0 OR NEW.token <> 0"
    " OR NEW.started_at IS NOT NULL OR NEW.worker IS NOT NULL"
    " OR NEW.last_error IS NOT NULL OR NEW.result IS NOT NULL"
)
"""A job enters as pending and untried, or not at all."""

ILLEGAL_DELETE = f"OLD.status NOT IN ({SETTLED_SQL})"
"""Only a settled job may go."""


def event_sql(old: str, new: str) -> str:
    """The event of a legal move. The row names it; where it does not, the statuses tell.

    Hand-written SQL may leave `event` as it was: then the first move of the table between the two
    statuses is what happened.
    """
    cases: dict[tuple[str, str], list[str]] = {}
    for transition in TRANSITIONS:
        cases.setdefault((transition.source, transition.target), []).append(transition.event)
    lines = []
    for (source, target), events in cases.items():
        pair = f"{old}.status = '{source}' AND {new}.status = '{target}'"
        lines += [f"WHEN {pair} AND {new}.event = '{e}' THEN '{e}'" for e in events[1:]]
        lines.append(f"WHEN {pair} THEN '{events[0]}'")
    return "CASE " + " ".join(lines) + " END"


def ledger_values(old: str, new: str, clock: str, larger: str) -> dict[str, str]:
    """Column -> expression of the ledger entry for a move, given the names of the two rows.

    `clock` reads the store's time, `larger` is the engine's two-argument maximum. The times that
    the move itself wrote are taken from the row, so that row and ledger agree.
    """
    return {
        "job_id": f"{new}.id",
        "at": f"CASE {new}.status WHEN 'processing' THEN {new}.started_at"
        f" WHEN 'pending' THEN {clock} ELSE {new}.finished_at END",
        "source": f"{old}.status",
        "target": f"{new}.status",
        "event": event_sql(old, new),
        "attempt": f"{larger}({old}.attempts, {new}.attempts)",
        "token": f"{new}.token",
        "lease_id": f"COALESCE({new}.lease_id, {old}.lease_id)",
        "actor": f"{new}.actor",
        "detail": f"CASE WHEN {new}.status = 'failed' THEN {new}.last_error END",
    }
