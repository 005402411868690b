"""Actions on all jobs that match, which `jobs retry` and `jobs cancel` start."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing
from tenure.cli.terminal import print_json, progress_bar, table
from tenure.values.text import first_line, quantity, worded

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.rules.search import Bulk, Counted, Filter


filter_options = command.together(
    command.option("--status", "STATUS", "Only jobs with this status.", completing.statuses),
    command.option(
        *("--state", "STATE"),
        "Only jobs scheduled, ready, retrying, snoozed or blocked.",
        completing.states,
    ),
    command.option("--running-longer-than", "TIME", "Only jobs claimed more than so long ago: 5m."),
    command.option("--type", "TYPE", "Only jobs of this type.", completing.types),
    command.option("--queue", "NAME", "Only jobs of this queue.", completing.queue_names),
    command.option("--tag", "TAG", "Only jobs with this tag."),
    command.option("--partition", "TEXT", "Only jobs of this partition."),
    command.option("--workflow", "ID", "Only jobs of this workflow."),
    command.past_option("--created-after", "Only jobs added at or after this time"),
    command.past_option("--created-before", "Only jobs added before this time"),
    command.past_option("--finished-after", "Only jobs settled at or after this time"),
    command.past_option("--finished-before", "Only jobs settled before this time"),
    command.option(
        "--error", "TEXT", "Only jobs with this text in their last error or its traceback."
    ),
    command.option("--text", "TEXT", "Only jobs with this text in their payload."),
)
"""The options that select jobs."""

bulk_options = command.together(
    filter_options,
    command.reason_option,
    command.flag("--dry-run", "Only print how many jobs match, and a few of them; not with ids."),
    command.flag("--yes", "Do not ask for confirmation."),
    command.answer_options,
)
"""The options of a command that can change many jobs."""


def filter_of(**given: Any) -> Filter:
    """Make the filter that the options of a command describe."""
    from tenure.rules.search import Filter, check_filter

    return check_filter(Filter(**given), at="--", between="-")


def preview(app: Tenure, action: str, matching: Filter, as_json: bool) -> None:
    """Print how many jobs match that the action could change, and a few of them."""
    from tenure.wire import responses

    found = app.core.count(matching, action=action)
    jobs = [app.core.redaction.job(job) for job in app.bulk.sample(matching, action)]
    snoozed = _snoozed(app, action, matching)
    if as_json:
        bodies = [responses.job_body(job) for job in jobs]
        more = {} if snoozed is None else {"snoozed": snoozed}
        print_json({"jobs": found.jobs, "exact": found.exact, **more, "sample": bodies})
        return
    click.echo(f"This would {worded(action, number(found))}.")
    if jobs:
        rows = [
            (job.id, job.type, job.queue, job.status, first_line(job.last_error)) for job in jobs
        ]
        table(("ID", "TYPE", "QUEUE", "STATUS", "LAST ERROR"), rows)
    _say_left(snoozed)


def change_all(
    app: Tenure, action: str, matching: Filter, *, yes: bool, as_json: bool, **how: Any
) -> None:
    """Apply the action to all jobs that match, after a confirmation, and wait for its end.

    `how` is what `app.bulk.start` takes beside.
    """
    found = app.core.count(matching, action=action)
    if found.exact and not found.jobs and not (yes or as_json):
        click.echo(f"No job matches that it could {worded(action)}.")
        _say_left(_snoozed(app, action, matching))
        return
    _say_left(_snoozed(app, action, matching), err=True)
    command.confirm(worded(action, number(found)), yes=yes, instead=", or look with --dry-run")
    finish(app, app.bulk.start(action, matching, **how), as_json)


def finish(app: Tenure, bulk: Bulk, as_json: bool) -> None:
    """Carry out an action that was started, and print its outcome."""
    from tenure.wire import responses

    doing = worded(bulk.action).capitalize()
    with progress_bar(doing, shown=not as_json, steady=True) as progress:
        while bulk.finished_at is None:  # if this is interrupted, a server finishes it
            bulk = app.bulk.step(bulk.id)
            progress(bulk.examined, bulk.total if bulk.exact else None, "jobs")
    if as_json:
        print_json(responses.bulk_body(bulk))
    else:
        changed = quantity(bulk.changed, "job")
        click.echo(f"{changed} changed, {bulk.refused} refused: bulk action {bulk.id}")


def _snoozed(app: Tenure, action: str, matching: Filter) -> Counted | None:
    """Count the jobs that match, but that the action leaves because they are snoozed."""
    from msgspec.structs import replace

    from tenure.rules.search import State, action_of, leaves_snoozed

    if not leaves_snoozed(action_of(action), matching):
        return None
    return app.core.count(replace(matching, state=State.SNOOZED), action=action)


def _say_left(snoozed: Counted | None, *, err: bool = False) -> None:
    if snoozed and (snoozed.jobs or not snoozed.exact):
        them = "is snoozed, and left out. --state snoozed selects it"
        if snoozed.jobs != 1 or not snoozed.exact:
            them = "are snoozed, and left out. --state snoozed selects them"
        click.echo(f"{number(snoozed).capitalize()} {them}.", err=err)


def number(found: Counted) -> str:
    """Say how many jobs were counted."""
    return f"{'' if found.exact else 'at least '}{quantity(found.jobs, 'job')}"


bulk = command.Group("bulk", help="List, show and stop actions on all jobs that match.")


@bulk.command("list")
@command.option("--limit", None, "Most actions to list, up to 500.", type=int, default=50)
@command.reading_options
def list_bulks(limit: int, as_json: bool) -> None:
    """List bulk actions, newest first."""
    with command.existing() as app:
        _show(app, app.bulk.list(limit), as_json, several=True)


@bulk.command()
@click.argument("id", type=command.Id())
@command.reading_options
def show(id: str, as_json: bool) -> None:
    """Show a bulk action and its progress."""
    with command.existing() as app:
        _show(app, [app.bulk.get(id)], as_json)


@bulk.command()
@click.argument("id", type=command.Id())
@command.reading_options
def stop(id: str, as_json: bool) -> None:
    """Stop a bulk action; jobs that it has changed stay changed."""
    with command.existing() as app:
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
