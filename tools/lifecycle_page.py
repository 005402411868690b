"""Write docs/reference/lifecycle.md from the lifecycle table: `python tools/lifecycle_page.py`."""

from __future__ import annotations

from pathlib import Path

from tenure import lifecycle
from tenure.lifecycle import FIRST_EVENT, SETTLED, Rule, Status

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "lifecycle.md"


def diagram() -> str:
    """The state machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> pending: {FIRST_EVENT}"]
    lines += [
        f"    {rule.source} --> {rule.target}: {rule.event}" for rule in lifecycle.TRANSITIONS
    ]
    lines += [f"    {status} --> [*]" for status in Status if status in SETTLED]
    return "\n".join(lines)


def effects(rule: Rule) -> str:
    """Return what a transition needs and changes beside the status, in words."""
    needs = "; ".join(guard.words for guard in rule.guards) or "nothing else"
    changes = [
        f"{name} {change:+d}"
        for name, change in (("attempts", rule.attempts), ("token", rule.token))
        if change
    ]
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

- A claim adds 1 to `attempts`. A failure with `attempts >= max_retries` is
  permanent: `max_retries` 3 means three attempts in all, 0 and 1 both mean one.
- A failure that may be tried again passes through `failed` to `pending` in the same transaction, so
  `failed` at rest is final. Both transitions are in the ledger.
- `token` rises by one with every claim and never falls: give it to outside systems as a fencing
  token. A release takes the attempt back but not the token, so `token - attempts` counts releases.
- An operator's retry of a failed job raises `max_retries`; the same guard applies to it. Completed
  and cancelled jobs never run again.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
