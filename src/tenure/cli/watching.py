"""Commands that watch the jobs: top, which `drawing` draws, and tail."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import isnan
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing, terminal
from tenure.cli.command import database_option, existing, flag, option, repeated, wide_option
from tenure.errors import StoreUnavailable
from tenure.values.text import first_line, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.rules.ledger import EventFilter, LedgerEvent, Transition

MINUTES = 60
MAX_RUNNING = 200
MAX_FAILURES = 5
MAX_QUEUES = 200
LOOK_SECONDS = 0.25
AWAY_SECONDS = 2.0
MAX_LINES = 500
SEARCHED = 5_000
"""How many of the newest transitions are searched with a filter."""


def _number(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if isnan(value):  # which is in every range
        raise click.BadParameter("give a number of seconds")
    return value


@click.command()
@option(
    "--interval",
    "SECONDS",
    "Time between two updates.",
    type=click.FloatRange(0.2, 3600),
    callback=_number,
    default=1.0,
)
@flag("--once", "Print once and exit, also on a terminal.")
@flag("--json as_json", "Print one JSON document per update.")
@database_option
def top(interval: float, once: bool, as_json: bool) -> None:
    """Watch queues, workers and failures live, until q or Ctrl-C.

    Rates are of the last whole minute; the throughput line covers the last hour.
    """
    from tenure.cli import drawing

    with existing() as app:
        try:
            if as_json:
                _print(app, None if once else interval)
            elif once or not terminal.can_act(sys.stdout):
                drawing.show(picture(app))
            else:
                with _keys(), drawing.screen() as draw:
                    _redraw(app, draw, interval)
        except KeyboardInterrupt:
            pass  # the usual end


def _print(app: Tenure, interval: float | None) -> None:
    """Print a document each `interval` seconds, or once."""
    while True:
        try:
            terminal.print_json(picture(app), indent=-1)
        except StoreUnavailable as error:
            if interval is None:
                raise
            click.echo(f"{error}; trying again", err=True)
        if interval is None:
            return
        sys.stdout.flush()
        time.sleep(interval)


def _redraw(app: Tenure, draw: Any, interval: float) -> None:
    """Draw until the user presses q."""
    while True:
        try:
            draw(picture(app), "")
        except StoreUnavailable as error:
            draw(None, f"{error}; trying again")
        keys = [sys.stdin] if sys.stdin.isatty() else []
        if select.select(keys, [], [], interval)[0] and sys.stdin.read(1) in "qQ":
            return


@contextmanager
def _keys() -> Iterator[None]:
    """Read keys at once, without echo. SIGTERM ends like Ctrl-C and restores the terminal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def picture(app: Tenure) -> dict[str, Any]:
    """Read everything that is shown, as one JSON document has it."""
    from msgspec.structs import asdict

    from tenure.app.jobs import failures_shown
    from tenure.lifecycle import ATTEMPT_ENDS
    from tenure.wire import responses

    now = app.core.clock()
    last = now.replace(second=0, microsecond=0) - timedelta(minutes=1)
    ended: Counter[Any] = Counter()
    by_event: Counter[str] = Counter()
    by_queue: Counter[str] = Counter()
    for entry in app.stats.activity(MINUTES):
        if entry.event in ATTEMPT_ENDS:
            ended[entry.minute] += entry.transitions
        if entry.minute == last:
            by_event[entry.event] += entry.transitions
            if entry.event in ATTEMPT_ENDS:
                by_queue[entry.queue] += entry.transitions
    failures = failures_shown(app.core, app.stats.failures(MAX_FAILURES), app.core.redaction)
    busy = app.queues.list(order="attention", limit=MAX_QUEUES)
    running: dict[str, list[dict[str, Any]]] = {}
    for job in app.find(status="processing", limit=MAX_RUNNING):
        doing = {"id": job.id, "type": job.type, "started_at": job.started_at}
        running.setdefault(job.worker or "", []).append(doing)
    return {
        "at": now,
        "measured_until": app.stats.measured_until(),
        "by_status": responses.stats_body(app.stats.counts()).by_status,
        "last_minute": dict(by_event),
        "ended_by_minute": [ended[last - timedelta(minutes=n)] for n in range(MINUTES - 1, -1, -1)],
        "queues": [asdict(q) | {"ended_last_minute": by_queue[q.name]} for q in busy],
        "workers": [asdict(w) | {"running": running.get(w.id, [])} for w in app.workers.list()],
        "failures": [asdict(group) for group in failures],
    }


@click.command()
@repeated("--type types", "TYPE", "Only jobs of this type", completing.types)
@command.queues("Only jobs of this queue", completing.queue_names)
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
    from tenure.rules.ledger import EventFilter
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
    from msgspec.structs import astuple

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
    start, event = f"{at}  {visible(entry.job_id)}  ", f"{entry.event:<13}"
    what, how = visible(f"  {type} in {queue}"), visible(f"  {_circumstances(entry)}".rstrip())
    left = max(width - len(start) - len(event), 0)
    below = ""
    if entry.detail and terminal.width_of(what + how) > left:
        below, how = "\n" + terminal.fitting(terminal.NOTE + how.strip(), width), ""
    return start + terminal.tint(event, entry.target) + terminal.fitting(what + how, left) + below


def _circumstances(entry: Transition) -> str:
    """Say what else is worth knowing about a transition."""
    from tenure.events import STORE

    if entry.detail:
        return f"attempt {entry.attempt}: {first_line(entry.detail)}"
    match entry.event:
        case "claimed":
            return f"attempt {entry.attempt} by {entry.actor}"
        case "completed" | "failed" | "released" | "interrupted":
            return f"attempt {entry.attempt}"
        case "retried" if entry.actor == STORE:
            return ""
    return f"by {entry.actor}" if entry.actor else ""
