"""The command that shows jobs through success, retry and failure: demo."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import click

from tenure.cli.command import REFUSED, chosen_database, database_option, json_option
from tenure.cli.terminal import attempts, print_json, progress_bar, room
from tenure.jobs.text import first_line, visible

if TYPE_CHECKING:
    from tenure.demo import DemoResult

OPENING = """\
A few dozen jobs, one worker, one store. Payments always fail, and so does the first attempt of
every sixth job that starts; a worker that vanished holds one import; one job is cancelled.
"""
MIN_ERROR_WIDTH = 20


@click.command()
@database_option
@json_option
def demo(as_json: bool) -> None:
    """Run a few dozen jobs through success, retry and failure.

    Uses a throw-away SQLite file, or --database if that is empty. Ends in a few seconds, with the
    same result every time.
    """
    import tempfile

    from tenure import demo
    from tenure.telemetry import logs
    from tenure.wire import responses

    logs.configure(level="error")
    if not as_json:
        click.echo(OPENING)
    with (
        tempfile.TemporaryDirectory(prefix="tenure-demo-") as folder,
        progress_bar("Running jobs", shown=not as_json) as progress,
    ):
        result = demo.run(chosen_database() or f"sqlite:///{folder}/demo.db", progress)
    if as_json:
        jobs = [{"job": responses.job_body(job), "transitions": of} for job, of in result.jobs]
        print_json({"jobs": jobs, "violations": result.violations})
    else:
        _show(result)
    if result.violations:
        click.get_current_context().exit(REFUSED)


def _show(result: DemoResult) -> None:
    """Print a line or more for each job, then the sums."""
    line = "{:>3}  {:<15} {:<10} {:<5}  {}"
    click.echo(
        line.format(
            *("#", "TYPE", "STATUS", "TRIES", "TRANSITIONS, AND THE LAST ERROR IF THERE WAS ONE")
        )
    )
    below = " " * len(line.format(0, "", "", "", ""))
    width = room() - len(below)
    for number, (job, statuses) in enumerate(result.jobs, 1):
        tries = attempts(job.attempts, job.max_retries)
        transitions = " → ".join(statuses)
        if len(transitions) > width:  # then each attempt has a line
            transitions = transitions.replace(" → pending", f" →\n{below}pending")
        click.echo(line.format(number, visible(job.type), job.status, tries, transitions))
        error = visible(first_line(job.last_error))
        for part in textwrap.wrap(
            error, max(width, MIN_ERROR_WIDTH), max_lines=2, placeholder=" …"
        ):
            click.echo(below + part)
    sums = Counter(job.status for job, _ in result.jobs).most_common()
    runs = sum(job.attempts for job, _ in result.jobs)
    ends = ", ".join(f"{count} {status}" for status, count in sums)
    click.echo(f"\n{len(result.jobs)} jobs: {ends}. {runs} attempts in all.")
    for violation in result.violations:
        click.echo(f"VIOLATION {violation.job_id} {violation.invariant}: {violation.found}")
    if not result.violations:
        click.echo("verify found no violation: no job lost, none run more often than allowed.")
