"""The command that shows queues live: top. It reads what `drawing` draws."""

from __future__ import annotations

import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from tenure.cli.command import existing
from tenure.cli.options import database_option, flag, option
from tenure.cli.terminal import print_json
from tenure.errors import StoreUnavailable

if TYPE_CHECKING:
    from tenure.app.app import Tenure

MINUTES = 60
MAX_RUNNING = 200
MAX_FAILURES = 5


@click.command()
@option(
    "--interval",
    "SECONDS",
    "Time between two updates.",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
)
@flag("--once", "Print once and exit, as without a terminal.")
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
                print_json(picture(app), indent=-1)
                while not once:
                    sys.stdout.flush()
                    time.sleep(interval)
                    print_json(picture(app), indent=-1)
            elif once or not drawing.can_be_redrawn():
                drawing.show(picture(app))
            else:
                with _keys(), drawing.screen() as draw:
                    _redraw(app, draw, interval)
        except KeyboardInterrupt:
            pass  # the usual end


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
    from tenure.app.core import failures_shown
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
        "queues": [
            {**asdict(queue), "ended_last_minute": by_queue[queue.name]}
            for queue in app.queues.list()
        ],
        "workers": [
            {**asdict(worker), "running": running.get(worker.id, [])}
            for worker in app.workers.list()
        ],
        "failures": [
            asdict(group)
            for group in failures_shown(
                app.core, app.stats.failures(MAX_FAILURES), app.core.redaction
            )
        ],
    }
