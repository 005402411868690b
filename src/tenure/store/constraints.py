"""What the databases themselves enforce, generated from the table of transitions.

Three things are generated, the same for both engines except for the dialect: the CHECK constraints
of the job table, the condition under which a change of a row is illegal, and the ledger entry of a
transition. The condition is the WHEN clause of a trigger, so a legal change costs no call.
"""

from __future__ import annotations

from tenure import lifecycle
from tenure.jobs.enqueue import MAX_PRIORITY
from tenure.lifecycle import LIMIT_SQL, ROOM_SQL, SETTLED, Guard, Rule, Status

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
        # A claim reads every lane of a queue: `store/lanes.py`.
        "priority_in_reach": f"priority BETWEEN {-MAX_PRIORITY} AND {MAX_PRIORITY}",
        "counters_count_up": "attempts >= 0 AND token >= attempts AND max_retries >= 0",
    }
    if Guard.ATTEMPTS_LEFT in lifecycle.RULE_OF[lifecycle.RETRY].guards:
        rules["pending_has_room"] = ROOM_SQL
    return ",\n    ".join(f"CONSTRAINT {name} CHECK ({rule})" for name, rule in rules.items())


def is_legal(rule: Rule) -> str:
    """The condition over OLD and NEW under which a row change is the transition of `rule`."""
    parts = [
        f"OLD.status = '{rule.source}'",
        f"NEW.status = '{rule.target}'",
        f"NEW.attempts = OLD.attempts + {rule.attempts}",
        f"NEW.token = OLD.token + {rule.token}",
        *(guard.sql for guard in rule.guards if guard.sql),
    ]
    return "(" + " AND ".join(parts) + ")"


def illegal_change(differs: str) -> str:
    """The condition under which an UPDATE must be refused.

    `differs` is the engine's null-safe inequality: `IS NOT` or `IS DISTINCT FROM`.
    """
    legal = " OR\n        ".join(is_legal(rule) for rule in lifecycle.TRANSITIONS)
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
"""A new row must be pending and untried."""

ILLEGAL_DELETE = f"OLD.status NOT IN ({SETTLED_SQL})"
"""Only a settled job may be deleted."""


def event_sql(old: str, new: str) -> str:
    """The event of a legal transition: the row names it, or the statuses decide.

    Hand-written SQL may leave `event` unchanged. Then the event is that of the first row of the
    table between the two statuses.
    """
    cases: dict[tuple[str, str], list[str]] = {}
    for rule in lifecycle.TRANSITIONS:
        cases.setdefault((rule.source, rule.target), []).append(rule.event)
    lines = []
    for (source, target), events in cases.items():
        pair = f"{old}.status = '{source}' AND {new}.status = '{target}'"
        lines += [f"WHEN {pair} AND {new}.event = '{e}' THEN '{e}'" for e in events[1:]]
        lines.append(f"WHEN {pair} THEN '{events[0]}'")
    return "CASE " + " ".join(lines) + " END"


def ledger_values(old: str, new: str, clock: str, larger: str) -> dict[str, str]:
    """Column -> expression of the ledger entry of a transition, given the names of the two rows.

    `clock` reads the store's time, `larger` is the engine's two-argument maximum. Times that the
    transition itself wrote are taken from the row, so that row and ledger agree.
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
