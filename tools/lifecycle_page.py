"""Write docs/reference/lifecycle.md from the lifecycle table: `python tools/lifecycle_page.py`."""

from __future__ import annotations

from pathlib import Path

from tenure import lifecycle
from tenure.lifecycle import FIRST_EVENT, SETTLED, Rule, Status

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "lifecycle.md"


def diagram() -> str:
    """The state machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {status}: {FIRST_EVENT}" for status in lifecycle.ENTRANCES]
    for pair in dict.fromkeys((rule.source, rule.target) for rule in lifecycle.TRANSITIONS):
        events = [r.event for r in lifecycle.TRANSITIONS if (r.source, r.target) == pair]
        lines.append(f"    {pair[0]} --> {pair[1]}: {', '.join(events)}")
    lines += [f"    {status} --> [*]" for status in Status if status in SETTLED]
    return "\n".join(lines)


def effects(rule: Rule) -> str:
    """Return what a transition needs and changes beside the status, in words."""
    needs = "; ".join(guard.words for guard in rule.guards) or "nothing else"
    changes = [
        f"{name} {change:+d}"
        for name, change in (
            *(("attempts", rule.attempts), ("token", rule.token), ("snoozes", rule.snoozes)),
        )
        if change
    ]
    changes += [f"`{column}`" for column in rule.sets]
    return f"{needs} | {', '.join(changes) or '-'}"


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{rule.event}` | {rule.source} → {rule.target} | {rule.caused_by} | {effects(rule)} |"
        for rule in lifecycle.TRANSITIONS
    ]
    return f"""# The life of a job

This page is written by `tools/lifecycle_page.py` from the table in `src/tenure/lifecycle.py`; a
test fails when the two differ. The databases' triggers come from the same table.

```mermaid
{diagram()}
```

| event | transition | caused by | needs | changes |
|---|---|---|---|---|
{chr(10).join(rows)}

- A job enters as `pending`, or as `waiting` if `need >= 1`. `waiting` is for something else that
  has to happen first, never for a time alone: a job that is not due is `pending`.
- A claim adds 1 to `attempts`. A failure with `attempts >= max_retries` is permanent:
  `max_retries` 3 means three attempts in all, 0 and 1 both mean one.
- A failure that may be tried again passes through `failed` to `pending` in the same transaction.
  So `failed` at rest is final: its attempts are used up, or the worker gave up. Both transitions
  are in the ledger.
- `token` rises by one with every claim and never falls: give it to outside systems as a fencing
  token. Releases, interruptions, snoozes and suspensions take the attempt back but not the token,
  so `token - attempts - snoozes` counts releases and interruptions. One too many is a failure.
- An operator's retry of a failed job raises `max_retries`; the same guard applies to it. A
  completed job never runs again. A cancelled one does only if it was `skipped`.
- Several rows have the same two statuses. In SQL the column `event` says which of them a change is;
  a change that names none of them is the first. A pending job whose columns are set by SQL is
  `amended`.
- The sweep also amends jobs: after a clock was set back, it corrects their times.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
