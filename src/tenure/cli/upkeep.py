"""Commands that check and prepare the database: verify, doctor, migrate."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import click

import tenure
from tenure.cli.command import (
    REFUSED,
    application,
    database_option,
    existing,
    option,
    reading_options,
)
from tenure.cli.terminal import print_json, progress_bar, table
from tenure.jobs.text import visible

if TYPE_CHECKING:
    from tenure.jobs.findings import Violation


@click.command()
@option(
    "--limit",
    "N",
    "Most violations to list for each invariant.",
    type=click.IntRange(1),
    default=100,
)
@reading_options
def verify(limit: int, as_json: bool) -> None:
    """Check every stored job and transition against every invariant.

    Lists the violations, what each means and what to do. Exit 1 if there are any. Safe to run
    while jobs run.
    """
    with existing() as app, progress_bar("Checking", shown=not as_json) as progress:
        violations = app.verify(limit, progress=progress)
        jobs = sum(count.jobs for count in app.stats.counts())
    if as_json:
        print_json(violations)
    elif violations:
        _explain(violations, limit)
    if violations:
        click.echo(f"{len(violations)} violations", err=True)
        click.get_current_context().exit(REFUSED)
    elif not as_json:
        click.echo(f"jobs checked: {jobs}; no violation")


def _explain(violations: Sequence[Violation], limit: int) -> None:
    columns = attrgetter("job_id", "invariant", "found")
    table(("JOB", "BROKEN INVARIANT", "FOUND"), map(columns, violations))
    for invariant, advice in {found.invariant: found.advice for found in violations}.items():
        _advise(invariant, advice)
    listed = Counter(found.invariant for found in violations)
    if limit in listed.values():
        click.echo(f"\nNo more than {limit} of each invariant are listed; see --limit.")


@click.command()
@reading_options
def doctor(as_json: bool) -> None:
    """Check the set-up of this machine and the database.

    Checks what Tenure's guarantees depend on, and changes nothing. Exit 1 if there is a problem; a
    warning alone exits 0.
    """
    from tenure.jobs.findings import Check, CheckResult

    found = [
        Check("tenure", CheckResult.OK, tenure.__version__),
        Check("python", CheckResult.OK, f"{platform.python_version()} on {platform.system()}"),
        *application().check(),
    ]
    if as_json:
        print_json(found)
    else:
        table(("CHECK", "HEALTH", "FOUND"), map(attrgetter("name", "health", "found"), found))
        for check in found:
            if check.advice:
                _advise(check.name, check.advice)
    if any(check.health is CheckResult.PROBLEM for check in found):
        click.get_current_context().exit(REFUSED)


def _advise(subject: str, advice: str) -> None:
    text = f"{subject}: {visible(advice)}"
    click.echo("\n" + click.wrap_text(text, width=78, subsequent_indent="    "))


@click.command()
@database_option
def migrate() -> None:
    """Create the database schema, or upgrade it to this version."""
    with progress_bar("Upgrading the schema") as progress:
        before, after = application().migrate(progress=progress)
    was = f"was {before}" if before else "new"
    click.echo(f"schema {after} ({'as it was' if before == after else was})")
