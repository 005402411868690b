"""The command line. A command reads its arguments, makes one call and prints the answer.

Only click is imported at the start, so that `tenure --help` answers at once. Each command imports
what it needs when it runs.
"""

from __future__ import annotations

import os
import sys

import click

import tenure
from tenure.cli.bulk import bulk
from tenure.cli.command import Group, database_option
from tenure.cli.completing import VARIABLE, completion
from tenure.cli.jobs import enqueue, explain, jobs
from tenure.cli.moving import move
from tenure.cli.queues import queues, stats, types, workers
from tenure.cli.retention import export, retention
from tenure.cli.running import demo, serve, worker
from tenure.cli.schedules import schedules
from tenure.cli.signals import signals
from tenure.cli.tokens import tokens, webhooks
from tenure.cli.upkeep import doctor, migrate, simulate, verify
from tenure.cli.watching import tail, top
from tenure.cli.workflows import workflows

EPILOG = """\b
Exit codes:
  0    done
  1    refused, or violations or problems found, or the job that was waited for failed
  2    bad input: an option, a payload, a name
  3    no such job
  4    the database or the server does not answer, or does not fit
  5    the job that was waited for is not settled in time
  6    the job that was waited for was cancelled
  130  interrupted

The database is --database, else TENURE_DATABASE, else sqlite:///tenure.db.
"""


COMMANDS = (
    *(serve, worker, demo),
    *(enqueue, jobs, explain, bulk, workflows, signals, schedules, queues, types, workers, stats),
    *(retention, export, top, tail),
    *(tokens, webhooks, verify, doctor, migrate, move, simulate),
    completion,
)


@click.group(
    cls=Group,
    commands=COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(tenure.__version__, prog_name="tenure", message="%(prog)s %(version)s")
@database_option
def cli() -> None:
    """A job queue that keeps every job it accepts and runs none more often than allowed."""


def main() -> None:
    """The `tenure` program."""
    if os.getpid() == 1:  # others need not import it
        from tenure import forks

        forks.end_at_sigterm()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # its caller closed it; now no other file gets its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for the whole run
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    cli(complete_var=VARIABLE)
