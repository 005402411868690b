"""The command that follows the ledger: tail."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import completing, terminal
from tenure.cli.command import existing
from tenure.cli.options import database_option, flag, option, repeated, wide_option
from tenure.errors import StoreUnavailable
from tenure.jobs.text import first_line, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.jobs.ledger import EventFilter, LedgerEvent, Transition

LOOK_SECONDS = 0.25
AWAY_SECONDS = 2.0
MAX_LINES = 500
SEARCHED = 5_000
"""How many of the newest transitions are searched with a filter."""


@click.command()
@repeated("--type types", "TYPE", "Only jobs of this type", completing.types)
@repeated("--queue queues", "NAME", "Only jobs of this queue", completing.queue_names)
@repeated("--event events", "EVENT", "Only this event, such as failed", type=completing.EventName())
@option("--job", "ID", "Only this job.", completing.job_ids())
@option(
    "--lines",
    "N",
    "Start with the last N transitions.",
    type=click.IntRange(0, MAX_LINES),
    default=10,
)
@option("--since", "POSITION", "Start after this position in the ledger.")
@flag("--no-follow", "Stop when there is nothing more to print.")
@flag("--json as_json", "Print one JSON document on each line.")
@database_option
@wide_option
def tail(
    job: str | None, lines: int, since: str | None, no_follow: bool, as_json: bool, **several: Any
) -> None:
    """Print transitions of all jobs as they happen, until Ctrl-C.

    They are read from the ledger, so none is missed. With --json each line has a `position`:
    --since continues after it. With a filter, --lines searches the newest 5000 transitions.
    """
    from tenure.jobs.ledger import EventFilter
    from tenure.wire import responses

    wanted = EventFilter(job_id=job, **{name: given or None for name, given in several.items()})
    with existing() as app:
        if job is not None:
            app.get(job)
        try:
            for entry in _transitions(app, wanted, since, lines, follow=not no_follow):
                shown = entry.without_errors() if app.core.redaction else entry
                if as_json:
                    terminal.print_json(responses.event_body(shown), indent=-1)
                else:
                    click.echo(_line(shown.transition, shown.type, shown.queue))
        except KeyboardInterrupt:
            pass  # the usual end
        except BrokenPipeError:
            # The reader has gone. Python would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _transitions(
    app: Tenure, wanted: EventFilter, since: str | None, lines: int, *, follow: bool
) -> Iterator[LedgerEvent]:
    """Yield the transitions to start with, then the new ones."""
    if since is not None:
        position = since
    else:
        first, position = _newest(app, wanted, lines)
        yield from first
    while True:
        try:
            transitions = app.events.read(position, filter=wanted)
        except StoreUnavailable as error:
            if not follow:
                raise
            click.echo(f"{error}; trying again", err=True)
            time.sleep(AWAY_SECONDS)
            continue
        yield from transitions.events
        position = transitions.position
        if not transitions.more:
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(LOOK_SECONDS)


def _newest(app: Tenure, wanted: EventFilter, lines: int) -> tuple[Sequence[LedgerEvent], str]:
    """Return the last `lines` transitions that match, and the position after them."""
    position = app.events.end(back=SEARCHED if lines and any(astuple(wanted)) else lines)
    found: deque[LedgerEvent] = deque(maxlen=lines)
    more = lines > 0
    while more:
        transitions = app.events.read(position, filter=wanted)
        found.extend(transitions.events)
        position, more = transitions.position, transitions.more
    return found, position


def _line(entry: Transition, type: str, queue: str) -> str:
    """Write a transition on one line that fits the terminal, in the colour of its new status.

    An error that does not fit has the next line.
    """
    width = terminal.room()
    at = terminal.when(entry.at) if width == terminal.ENDLESS else entry.at.strftime("%H:%M:%SZ")
    start, event = f"{at}  {entry.job_id}  ", f"{entry.event:<13}"
    what, how = visible(f"  {type} in {queue}"), visible(f"  {_circumstances(entry)}".rstrip())
    left = max(width - len(start) - len(event), 0)
    below = ""
    if entry.detail and terminal.width_of(what + how) > left:
        below, how = "\n" + terminal.fitting(terminal.NOTE + how.strip(), width), ""
    return start + terminal.tint(event, entry.target) + terminal.fitting(what + how, left) + below


def _circumstances(entry: Transition) -> str:
    """Say what else is worth knowing about a transition."""
    from tenure.lifecycle import STORE

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
