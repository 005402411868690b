"""The command that follows the ledger: tail."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

import click

from tenure.cli import completing
from tenure.cli.command import database_option, existing, wide_option
from tenure.errors import StoreUnavailable

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.jobs.ledger import EventFilter, LedgerEvent

LOOK_SECONDS = 0.25
AWAY_SECONDS = 2.0
MAX_LINES = 500
LOOKED_THROUGH = 5_000
"""How many of the newest moves are looked through for those that are wanted."""
EVENTS = (
    *("enqueued", "claimed", "completed", "failed", "lease_expired", "retried", "released"),
    "cancelled",
)
"""Those of the lifecycle, which `--help` does not wait for; a test compares them."""


@click.command()
@click.option(
    "--type",
    "types",
    metavar="TYPE",
    multiple=True,
    shell_complete=completing.types,
    help="Only moves of jobs of this type; may be repeated.",
)
@click.option(
    "--queue",
    "queues",
    metavar="NAME",
    multiple=True,
    shell_complete=completing.queue_names,
    help="Only moves of jobs of this queue; may be repeated.",
)
@click.option(
    "--event",
    "events",
    type=click.Choice(EVENTS),
    metavar="EVENT",
    multiple=True,
    help="Only these moves, such as failed; may be repeated.",
)
@click.option(
    "--job",
    metavar="ID",
    shell_complete=completing.job_ids(),
    help="Only moves of this job.",
)
@click.option(
    "--lines",
    type=click.IntRange(0, MAX_LINES),
    metavar="N",
    default=10,
    show_default=True,
    help="Begin with the last N moves.",
)
@click.option("--since", metavar="POSITION", help="Begin after this position of the ledger.")
@click.option("--no-follow", is_flag=True, help="End when there is nothing more to print.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on each line.")
@database_option
@wide_option
def tail(
    types: Sequence[str],
    queues: Sequence[str],
    events: Sequence[str],
    job: str | None,
    lines: int,
    since: str | None,
    no_follow: bool,
    as_json: bool,
) -> None:
    """Print the moves of all jobs as they happen, until Ctrl-C.

    What happened is read from the ledger, so no move is missed. Each line of --json has the
    `position` of its move: --since goes on behind it. Filters look through the newest 5000 moves
    for the --lines to begin with.
    """
    from tenure.jobs.ledger import EventFilter

    wanted = EventFilter(
        types=tuple(types) or None,
        queues=tuple(queues) or None,
        events=tuple(events) or None,
        job_id=job,
    )
    with existing() as app:
        if job is not None:
            app.get(job)
        show = _as_json if as_json else _as_line
        try:
            for told in _transitions(app, wanted, since, lines, follow=not no_follow):
                show(told.without_errors() if app.redaction else told)
        except KeyboardInterrupt:
            pass  # which is how it is meant to end
        except BrokenPipeError:
            # Nobody reads any more. Python would complain when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _transitions(
    app: Tenure, wanted: EventFilter, since: str | None, lines: int, *, follow: bool
) -> Iterator[LedgerEvent]:
    """What there is to begin with, then what happens."""
    if since is not None:
        position = since
    else:
        first, position = _newest(app, wanted, lines)
        yield from first
    while True:
        try:
            transitions = app.transitions(position, wanted=wanted)
        except StoreUnavailable as error:
            if not follow:
                raise
            click.echo(f"{error}; trying again", err=True)
            time.sleep(AWAY_SECONDS)
            continue
        yield from transitions.told
        position = transitions.position
        if not transitions.more:
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(LOOK_SECONDS)


def _newest(app: Tenure, wanted: EventFilter, lines: int) -> tuple[Sequence[LedgerEvent], str]:
    """The last `lines` moves that are wanted, and the position behind them."""
    position = app.ledger_end(back=LOOKED_THROUGH if lines and any(astuple(wanted)) else lines)
    found: deque[LedgerEvent] = deque(maxlen=lines)
    more = lines > 0
    while more:
        transitions = app.transitions(position, wanted=wanted)
        found.extend(transitions.told)
        position, more = transitions.position, transitions.more
    return found, position


def _as_json(told: LedgerEvent) -> None:
    from tenure.cli.terminal import print_json_line
    from tenure.wire import responses

    print_json_line(responses.event_body(told))


def _as_line(told: LedgerEvent) -> None:
    from tenure.cli.transitions import line

    click.echo(line(told.transition, told.type, told.queue))
