"""The command that plays days of a queue's life with faults: simulate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tenure.cli.command import REFUSED, json_option, option
from tenure.cli.terminal import print_json, progress_bar
from tenure.errors import InvalidInput
from tenure.jobs.text import visible

if TYPE_CHECKING:
    from tenure.simulator import SimulationResult, SimulatorFinding

SEEDS = 1_000_000


@click.command()
@option("--seed", "N", "Seed of the first day.  [default: random]", type=int)
@option("--hours", "N", "Hours of queue time to play.", type=float, default=100.0)
@json_option
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
        _show(played)
    if played.violation is not None:
        click.get_current_context().exit(REFUSED)


def _show(played: SimulationResult) -> None:
    for figure, number in sorted(played.figures.items()):
        click.echo(f"{number:>10,}  {figure}")
    click.echo(f"\nhours {played.hours:.1f}, worlds {played.worlds}, trace {played.trace[:16]}")
    if played.violation is None:
        click.echo("No violation: no job lost, none run too often, no attempt settled twice.")
    else:
        _show_violation(played.violation)


def _show_violation(violation: SimulatorFinding) -> None:
    click.echo(f"VIOLATION after {violation.at}: {visible(violation.what)}")
    if violation.job:
        click.echo(f"\nThe last transitions of {violation.job}:")
    for transition in violation.transitions:
        click.echo(f"  {visible(transition)}")
    click.echo("\nWhat happened just before:")
    for line in violation.lines:
        click.echo(f"  {visible(line)}")
    again = f"tenure simulate --seed {violation.seed} --hours {violation.hours:g}"
    click.echo(f"\nTo play it again: {again}")
