"""Actions on all jobs that match, which `jobs retry` and `jobs cancel` start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from tenure.cli.command import Group, existing, reading_options
from tenure.cli.terminal import print_json, progress_bar, table
from tenure.errors import InvalidInput
from tenure.jobs.text import first_line

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.jobs.bulk_actions import Bulk
    from tenure.jobs.queries import Counted, Filter

SAMPLE = 5
"""Jobs that a preview shows."""


def filter_of(**given: Any) -> Filter:
    """Make the filter that the options of a command describe."""
    from tenure.jobs.queries import Filter, check_filter

    return check_filter(Filter(**given), at="--", between="-")


@dataclass(frozen=True)
class BulkChoice:
    """An action on all jobs that match, as `jobs retry` and `jobs cancel` read it."""

    action: str
    matching: Filter
    more: int  # attempts that a retry adds
    dry_run: bool
    yes: bool

    def run(self, app: Tenure, *, as_json: bool) -> None:
        """Apply the action to all jobs that match, after a confirmation, and wait for its end."""
        from tenure.wire import responses

        found = app.core.count(self.matching, action=self.action)
        if self.dry_run:
            _preview(app, self, found, as_json)
            return
        if found.exact and not found.jobs and not (self.yes or as_json):
            click.echo(f"No job matches that it could {self.action}.")
            return
        if not self.yes:
            self._confirm(_number(found))
        started = app.bulk.start(self.action, self.matching, more_retries=self.more)
        bulk = _finish(app, started, shown=not as_json)
        if as_json:
            print_json(responses.bulk_body(bulk))
        else:
            click.echo(
                f"{bulk.changed} jobs changed, {bulk.refused} refused: bulk action {bulk.id}"
            )

    def _confirm(self, number: str) -> None:
        if not sys.stdin.isatty():
            raise InvalidInput(
                f"this would {self.action} {number} jobs; add --yes, or look with --dry-run",
                path="--yes",
            )
        click.confirm(f"{self.action.capitalize()} {number} jobs?", abort=True, err=True)


def _preview(app: Tenure, request: BulkChoice, found: Counted, as_json: bool) -> None:
    from tenure.wire import responses

    jobs = [
        app.core.redaction.job(job)
        for job in app.bulk.sample(request.matching, request.action, SAMPLE)
    ]
    if as_json:
        bodies = [responses.job_body(job) for job in jobs]
        print_json({"jobs": found.jobs, "exact": found.exact, "sample": bodies})
        return
    click.echo(f"This would {request.action} {_number(found)} jobs.")
    if jobs:
        table(
            ("ID", "TYPE", "QUEUE", "STATUS", "LAST ERROR"),
            [(job.id, job.type, job.queue, job.status, first_line(job.last_error)) for job in jobs],
        )


def _number(found: Counted) -> str:
    return f"{found.jobs:,}" if found.exact else f"at least {found.jobs:,}"


def _finish(app: Tenure, bulk: Bulk, *, shown: bool) -> Bulk:
    """Take the action step by step to its end, with a bar. Interrupted, a server finishes it."""
    with progress_bar(bulk.action.capitalize(), shown=shown, steady=True) as progress:
        while bulk.finished_at is None:
            bulk = app.bulk.step(bulk.id)
            progress(bulk.examined, bulk.total if bulk.exact else None, "jobs")
    return bulk


@click.group(cls=Group)
def bulk() -> None:
    """List, show and stop actions on all jobs that match."""


@bulk.command("list")
@click.option(
    "--limit", type=int, default=50, show_default=True, help="Most actions to list, up to 500."
)
@reading_options
def list_bulks(limit: int, as_json: bool) -> None:
    """List bulk actions, newest first."""
    with existing() as app:
        _show(app, app.bulk.list(limit), as_json, several=True)


@bulk.command()
@click.argument("id")
@reading_options
def show(id: str, as_json: bool) -> None:
    """Show a bulk action and its progress."""
    with existing() as app:
        _show(app, [app.bulk.get(id)], as_json)


@bulk.command()
@click.argument("id")
@reading_options
def stop(id: str, as_json: bool) -> None:
    """Stop a bulk action; jobs that it has changed stay changed."""
    with existing() as app:
        _show(app, [app.bulk.stop(id)], as_json)


def _show(app: Tenure, found: list[Bulk], as_json: bool, *, several: bool = False) -> None:
    from tenure.wire import responses

    if as_json:
        bodies = [responses.bulk_body(each) for each in found]
        print_json(bodies if several else bodies[0])
        return
    heads = ("ID", "ACTION", "STARTED", "ENDED", "TOTAL", "CHANGED", "REFUSED", "ACTOR")
    columns = ("id", "action", "created_at", "finished_at", "total", "changed", "refused", "actor")
    rows = map(attrgetter(*columns), found)
    table(heads, rows, now=app.core.clock(), spare=("ACTOR", "STARTED"))
