"""Write docs/reference/lifecycle.md from the lifecycle table: `python tools/lifecycle_page.py`."""

from __future__ import annotations

from pathlib import Path

from tenure.lifecycle import FIRST_EVENT, MAX_RELEASES, SETTLED, TRANSITIONS, Rule, Status

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "lifecycle.md"


def diagram() -> str:
    """The state machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> pending: {FIRST_EVENT}"]
    lines += [
        f"    {transition.source} --> {transition.target}: {transition.event}"
        for transition in TRANSITIONS
    ]
    lines += [f"    {status} --> [*]" for status in Status if status in SETTLED]
    return "\n".join(lines)


def effects(transition: Rule) -> str:
    """Return what a transition needs and changes beside the status, in words."""
    parts = []
    if transition.holder_only:
        parts.append("the caller presents the job's current lease")
    if transition.budget:
        parts.append("`attempts < max_retries`")
    if transition.event == "released":
        parts.append(f"`token - attempts < {MAX_RELEASES}`")
    if transition.event == "claimed":
        parts.append("`run_at` has come and the queue is not paused")
    if transition.event == "lease_expired":
        parts.append("`lease_expires_at` has passed, tested again in the same write")
    needs = "; ".join(parts) or "nothing else"
    changes = [
        f"{name} {change:+d}"
        for name, change in (("attempts", transition.attempts), ("token", transition.token))
        if change
    ]
    return f"{needs} | {', '.join(changes) or '-'}"


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{rule.event}` | {rule.source} → {rule.target} | {rule.caused_by} | {effects(rule)} |"
        for rule in TRANSITIONS
    ]
    return f"""# The life of a job

This page is written by `tools/lifecycle_page.py` from the table in `src/tenure/lifecycle.py`; a
test fails when the two differ. The databases' triggers come from the same table.

```mermaid
{diagram()}
```

| event | move | caused by | needs | changes |
|---|---|---|---|---|
{chr(10).join(rows)}

- `attempts` is charged when a job is claimed. A failure with `attempts >= max_retries` is
  permanent: `max_retries` 3 means three attempts in all, 0 and 1 both mean one.
- A failure that may be tried again passes through `failed` to `pending` in the same transaction, so
  `failed` at rest is final. Both moves are in the ledger.
- `token` rises by one with every claim and never falls: give it to outside systems as a fencing
  token. A released attempt is refunded, its token is not, so `token - attempts` counts releases.
- An operator's retry of a failed job raises `max_retries`, and then obeys the same guard. Completed
  and cancelled jobs never run again.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
