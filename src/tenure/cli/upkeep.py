"""Commands that check or prepare: verify, doctor, simulate, migrate."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import click

import tenure
from tenure.cli import command
from tenure.cli.terminal import print_json, progress_bar, table
from tenure.errors import InvalidInput
from tenure.values.findings import Check, CheckResult, Violation
from tenure.values.text import quantity, visible

if TYPE_CHECKING:
    from tenure.simulator import SimulationResult

SEEDS = 1_000_000


@click.command()
@command.option(
    "--limit",
    "N",
    "Most violations to list for each invariant.",
    type=click.IntRange(1, 10_000),
    default=100,
)
@command.reading_options
def verify(limit: int, as_json: bool) -> None:
    """Check every stored job and transition against every invariant.

    Lists the violations, what each means and what to do. Exit 1 if there are any. Safe to run
    while jobs run. For each limit of a queue it prints the largest number reached.
    """
    seen: list[str] = []
    with command.existing() as app, progress_bar("Checking", shown=not as_json) as progress:
        violations = app.verify(limit, progress=progress, seen=seen.append)
        jobs = sum(count.jobs for count in app.stats.counts())
    if as_json:
        print_json(violations)
    elif violations:
        _explain(violations, limit)
    if violations:
        click.echo(quantity(len(violations), "violation"), err=True)
        click.get_current_context().exit(command.REFUSED)
    elif not as_json:
        click.echo(f"jobs checked: {jobs}; no violation")
        for sentence in seen:
            click.echo(f"largest seen: {visible(sentence)}")


def _explain(violations: Sequence[Violation], limit: int) -> None:
    columns = attrgetter("job_id", "invariant", "found")
    table(("JOB", "BROKEN INVARIANT", "FOUND"), map(columns, violations))
    for invariant, advice in {found.invariant: found.advice for found in violations}.items():
        _advise(invariant, advice)
    if limit in Counter(found.invariant for found in violations).values():
        click.echo(f"\nNo more than {limit} of each invariant are listed; see --limit.")


@click.command()
@command.reading_options
def doctor(as_json: bool) -> None:
    """Check the set-up of this machine and the database.

    Checks what Tenure's guarantees depend on, and changes nothing. Exit 1 if there is a problem; a
    warning alone exits 0.
    """
    found = [
        Check("tenure", CheckResult.OK, tenure.__version__),
        Check("python", CheckResult.OK, f"{platform.python_version()} on {platform.system()}"),
        *command.application().check(),
    ]
    print_checks(found, as_json)


def print_checks(found: Sequence[Check], as_json: bool = False) -> None:
    """Print checks with advice. Exit 1 if there is a problem."""
    if as_json:
        print_json(found)
    else:
        table(("CHECK", "HEALTH", "FOUND"), map(attrgetter("name", "health", "found"), found))
        for check in found:
            if check.advice:
                _advise(check.name, check.advice)
    if any(check.health is CheckResult.PROBLEM for check in found):
        click.get_current_context().exit(command.REFUSED)


def _advise(subject: str, advice: str) -> None:
    text = f"{subject}: {command.as_called(visible(advice))}"
    click.echo("\n" + click.wrap_text(text, width=78, subsequent_indent="    "))


@click.command()
@command.option("--seed", "N", "Seed of the first day.  [default: random]", type=int)
@command.option("--hours", "N", "Hours of queue time to play.", type=float, default=100.0)
@command.json_option
def simulate(seed: int | None, hours: float, as_json: bool) -> None:
    """Simulate days of crashes and lost answers in seconds.

    Runs the real store in memory, in virtual time, and checks every commit against the rules. The
    same seed plays the same events again. Exit 1 if a rule was broken.
    """
    import secrets

    from tenure import simulator

    if not 0 < hours <= 1_000_000:
        raise InvalidInput("give a number above 0, at most 1000000", path="--hours")
    if seed is None:
        seed = secrets.randbelow(SEEDS)
    if not as_json:
        click.echo(f"Simulating {hours:g} hours of queue time from seed {seed} ...")
    with progress_bar("Playing", shown=not as_json, steady=True) as progress:
        played = simulator.simulate(
            seed, hours, lambda done: progress(round(done), round(hours), "hours of queue time")
        )
    if as_json:
        print_json(played)
    else:
        _show_simulated(played)
    if played.violation is not None:
        click.get_current_context().exit(command.REFUSED)


def _show_simulated(played: SimulationResult) -> None:
    for figure, number in sorted(played.figures.items()):
        click.echo(f"{number:>10,}  {figure}")
    click.echo(f"\nhours {played.hours:.1f}, worlds {played.worlds}, trace {played.trace[:16]}")
    violation = played.violation
    if violation is None:
        click.echo("No violation: no job lost, none run too often, no attempt settled twice.")
        return
    click.echo(f"VIOLATION after {violation.at}: {visible(violation.what)}")
    if violation.job:
        click.echo(f"\nThe last transitions of {violation.job}:")
    for transition in violation.transitions:
        click.echo(f"  {visible(transition)}")
    click.echo("\nWhat happened just before:")
    for line in violation.lines:
        click.echo(f"  {visible(line)}")
    again = f"{command.program()} simulate --seed {violation.seed} --hours {violation.hours:g}"
    click.echo(f"\nTo play it again: {again}")


@click.command()
@command.flag("--sql as_sql", "Print the SQL that would run, and change nothing.")
@command.option(
    "--engine",
    "sqlite|postgres",
    "With --sql: all that a new database needs, without connecting.",
    type=click.Choice(["sqlite", "postgres"]),
)
@command.database_option
def migrate(as_sql: bool, engine: str | None) -> None:
    """Create the database schema, or upgrade it to this version.

    Processes of the version before keep working. Run printed SQL with psql or sqlite3 -bail.
    """
    if as_sql or engine:
        from tenure.app.upkeep import migration_sql

        click.echo(migration_sql(command.application(), engine), nl=False)
        return
    with progress_bar("Upgrading the schema") as progress:
        before, after = command.application().migrate(progress=progress)
    was = f"was {before}" if before else "new"
    click.echo(f"schema {after} ({'as it was' if before == after else was})")
