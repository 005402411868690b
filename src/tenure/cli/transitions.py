"""How transitions are printed: the history of one job, and one line for any job."""

from __future__ import annotations

from collections.abc import Sequence

from tenure.cli.terminal import NOTE, apart, fitting, room, table, tint, when, width_of
from tenure.jobs.ledger import Transition
from tenure.jobs.text import first_line, visible
from tenure.lifecycle import STORE


def time_line(history: Sequence[Transition]) -> None:
    """Print the history of a job: when, how long after the one before, by whom, and errors."""
    earlier = [None, *(entry.at for entry in history)]
    table(
        ("AT", "AFTER", "EVENT", "FROM", "TO", "ATTEMPT", "BY"),
        [
            (
                when(entry.at),
                None if before is None else apart(before, entry.at),
                entry.event,
                entry.source,
                entry.target,
                entry.attempt,
                entry.actor,
            )
            for entry, before in zip(history, earlier, strict=False)
        ],
        spare=("FROM",),
        notes=[first_line(entry.detail) for entry in history],
    )


def line(entry: Transition, type: str, queue: str) -> str:
    """Write a transition on one line that fits the terminal, in the colour of its new status.

    An error that does not fit has the next line.
    """
    at = when(entry.at) if room() is None else entry.at.strftime("%H:%M:%SZ")
    start = f"{at}  {entry.job_id}  "
    event = f"{entry.event:<13}"
    what, how = f"  {type} in {queue}", f"  {_circumstances(entry)}".rstrip()
    width = room()
    if width is None:
        return start + tint(event, entry.target) + visible(what + how)
    left = max(width - len(start) - len(event), 0)
    if entry.detail and width_of(visible(what + how)) > left:
        below = "\n" + fitting(NOTE + visible(how.strip()), width)
        return start + tint(event, entry.target) + fitting(visible(what), left) + below
    return start + tint(event, entry.target) + fitting(visible(what + how), left)


def _circumstances(entry: Transition) -> str:
    """Say what else is worth knowing about a transition."""
    if entry.detail:
        return f"attempt {entry.attempt}: {first_line(entry.detail)}"
    match entry.event:
        case "claimed":
            return f"attempt {entry.attempt} by {entry.actor}"
        case "completed" | "failed" | "released":
            return f"attempt {entry.attempt}"
        case "retried" if entry.actor == STORE:
            return ""
    return f"by {entry.actor}" if entry.actor else ""
