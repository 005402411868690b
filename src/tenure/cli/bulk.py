"""Commands about actions on all jobs that match: begun by `jobs retry` and `jobs cancel`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from tenure.cli.command import Group, database_option, existing, json_option, wide_option
from tenure.errors import InvalidInput

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.jobs.bulk_actions import Bulk
    from tenure.jobs.queries import Counted, Filter

SAMPLE = 5
"""Jobs of a preview that are shown."""


def filter_of(**given: Any) -> Filter:
    """The filter that the options of a command say."""
    from tenure.jobs.filters import checked
    from tenure.jobs.queries import Filter

    return checked(Filter(**given), at="--", between="-")


def run(
    app: Tenure,
    action: str,
    wanted: Filter,
    *,
    more: int = 1,
    dry_run: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> None:
    """Do it to all that match, once that is confirmed, and see it through to its end."""
    from tenure.cli.terminal import print_json
    from tenure.wire import responses

    found = app.count_matching(wanted, action=action)
    if dry_run:
        _preview(app, action, wanted, found, as_json)
        return
    if found.exact and not found.jobs and not (yes or as_json):
        click.echo(f"No job matches that it could {action}.")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(
                f"this would {action} {_number(found)} jobs; add --yes, or look with --dry-run",
                path="--yes",
            )
        click.confirm(f"{action.capitalize()} {_number(found)} jobs?", abort=True, err=True)
    bulk = _see_through(app, app.start_bulk(action, wanted, more_retries=more), shown=not as_json)
    if as_json:
        print_json(responses.bulk_body(bulk))
    else:
        click.echo(f"{bulk.changed} jobs changed, {bulk.refused} refused: bulk action {bulk.id}")


def _preview(app: Tenure, action: str, wanted: Filter, found: Counted, as_json: bool) -> None:
    from tenure.cli.terminal import print_json, table
    from tenure.jobs.text import first_line
    from tenure.wire import responses

    jobs = [app.redaction.job(job) for job in app.sample(wanted, action, SAMPLE)]
    if as_json:
        bodies = [responses.job_body(job) for job in jobs]
        print_json({"jobs": found.jobs, "exact": found.exact, "sample": bodies})
        return
    click.echo(f"This would {action} {_number(found)} jobs.")
    if jobs:
        rows = [
            (job.id, job.type, job.queue, job.status, first_line(job.last_error)) for job in jobs
        ]
        table(("ID", "TYPE", "QUEUE", "STATUS", "LAST ERROR"), rows)


def _number(found: Counted) -> str:
    return f"{found.jobs:,}" if found.exact else f"at least {found.jobs:,}"


def _see_through(app: Tenure, bulk: Bulk, *, shown: bool) -> Bulk:
    """Step by step to the end, with a bar. Who interrupts this leaves it to go on."""
    from tenure.cli.terminal import progress_bar

    with progress_bar(bulk.action.capitalize(), shown=shown, steady=True) as progress:
        while bulk.finished_at is None:
            bulk = app.step_bulk(bulk.id)
            progress(bulk.examined, bulk.total if bulk.exact else None, "jobs")
    return bulk


@click.group(cls=Group)
def bulk() -> None:
    """Look at actions on all jobs that match, or stop one."""


@bulk.command("list")
@click.option("--limit", type=int, default=50, show_default=True, help="How many, at most 500.")
@database_option
@json_option
@wide_option
def list_bulks(limit: int, as_json: bool) -> None:
    """List bulk actions, newest first."""
    with existing() as app:
        _show(app, app.bulks(limit), as_json, several=True)


@bulk.command()
@click.argument("id")
@database_option
@json_option
@wide_option
def show(id: str, as_json: bool) -> None:
    """Show a bulk action and how far it has come."""
    with existing() as app:
        _show(app, [app.bulk(id)], as_json)


@bulk.command()
@click.argument("id")
@database_option
@json_option
@wide_option
def stop(id: str, as_json: bool) -> None:
    """End a bulk action where it is; what it has changed stays."""
    with existing() as app:
        _show(app, [app.stop_bulk(id)], as_json)


def _show(app: Tenure, found: list[Bulk], as_json: bool, *, several: bool = False) -> None:
    from tenure.cli.terminal import print_json, table
    from tenure.jobs.text import ago
    from tenure.wire import responses

    if as_json:
        bodies = [responses.bulk_body(each) for each in found]
        print_json(bodies if several else bodies[0])
        return
    now = app.ping()
    table(
        ("ID", "ACTION", "STARTED", "ENDED", "TOTAL", "CHANGED", "REFUSED", "ACTOR"),
        [
            (
                each.id,
                each.action,
                ago(each.created_at, now),
                ago(each.finished_at, now),
                each.total,
                each.changed,
                each.refused,
                each.actor,
            )
            for each in found
        ],
        spare=("ACTOR", "STARTED"),
    )
