"""`tenure move`: all jobs to another database."""

from __future__ import annotations

import click

from tenure.cli.command import flag
from tenure.cli.terminal import progress_bar
from tenure.cli.upkeep import print_checks
from tenure.errors import InvalidInput
from tenure.values.text import visible


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@flag("--check only_check", "Only say what would stop it, and how much there is to move.")
@flag("--abort", "Undo what was done on both sides. Not possible after the switch.")
def move(source: str, target: str, only_check: bool, abort: bool) -> None:
    """Move all jobs to PostgreSQL while workers continue.

    Copies everything, compares all rows, verifies the copy, then switches: writes wait for less
    than two seconds, and from then on SOURCE refuses every write and names TARGET. Workers on
    SOURCE end with exit code 4. If it is killed or interrupted, repeat the command to continue.
    """
    from tenure.app import moving

    if only_check and abort:
        raise InvalidInput("give one of them", path="--check, --abort")
    if abort:
        moving.abort(source, target)
        click.echo("undone: the jobs are where they were")
    elif only_check:
        print_checks(moving.check_move(source, target))
    else:
        with progress_bar("Moving", steady=True) as progress:
            moving.move(source, target, progress, lambda text: click.echo(visible(text)))
