"""How `tenure demo` tells what happened: every job with its attempts, outcome and moves."""

from __future__ import annotations

import textwrap
from collections import Counter

import click

from tenure.cli.terminal import attempts, print_json, room
from tenure.demo import Outcome, Story
from tenure.jobs.text import first_line, visible
from tenure.wire import responses

OPENING = """\
A few dozen jobs, one worker, one store. Payments always fail, and so does the first attempt of
every sixth job that starts; a worker that vanished holds one import; one job is cancelled.
"""
LINE = "{number:>3}  {type:<15} {status:<10} {tries:<5}  "
ARROW = " → "
ENDLESS = 200
SHORTEST = 20


def as_json(outcome: Outcome) -> None:
    """Print the outcome as one JSON document."""
    print_json(
        {
            "jobs": [
                {"job": responses.job_body(story.job), "transitions": story.statuses}
                for story in outcome.stories
            ],
            "violations": outcome.violations,
        }
    )


def show(outcome: Outcome) -> None:
    """Print a line or two for each job, then the sums."""
    head = LINE.format(number="#", type="TYPE", status="STATUS", tries="TRIES")
    click.echo(f"{head}TRANSITIONS, AND THE LAST ERROR IF THERE WAS ONE")
    for number, story in enumerate(outcome.stories, 1):
        _tell(number, story)
    sums = Counter(story.job.status for story in outcome.stories)
    runs = sum(story.job.attempts for story in outcome.stories)
    told = ", ".join(f"{count} {status}" for status, count in sums.most_common())
    click.echo(f"\n{len(outcome.stories)} jobs: {told}. {runs} attempts in all.")
    for violation in outcome.violations:
        click.echo(f"VIOLATION {violation.job_id} {violation.invariant}: {violation.found}")
    if not outcome.violations:
        click.echo("verify found no violation: no job lost, none run more often than allowed.")


def _tell(number: int, story: Story) -> None:
    job = story.job
    start = LINE.format(
        number=number,
        type=visible(job.type),
        status=job.status,
        tries=attempts(job.attempts, job.max_retries),
    )
    below = " " * len(start)
    width = (room() or ENDLESS) - len(start)
    transitions = ARROW.join(story.statuses)
    if len(transitions) > width:  # then an attempt on each line
        transitions = transitions.replace(f"{ARROW}pending", f"{ARROW.rstrip()}\n{below}pending")
    click.echo(start + transitions)
    if job.last_error:
        error = visible(first_line(job.last_error))
        lines = textwrap.wrap(error, max(width, SHORTEST), max_lines=2, placeholder=" …")
        click.echo("\n".join(below + line for line in lines))
