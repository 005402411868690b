"""Commands about jobs: add them, list them, show one, say why it waits, retry, cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import completing, outcomes, terminal
from tenure.cli.bulk import bulk_options, change_all, filter_of, filter_options, preview
from tenure.cli.command import Group, application, as_called, change_each, existing
from tenure.cli.new_job import job_options, options_given, parent_options, unique_options
from tenure.cli.options import Id, answer_options, flag, option, reading_options, reason_option
from tenure.cli.outcomes import finish
from tenure.cli.times import all_at, known_before, time_given
from tenure.errors import TenureError
from tenure.jobs.text import ago, first_line, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.jobs.ledger import Transition
    from tenure.jobs.queries import Order
    from tenure.lifecycle import Job

SHOWN = (
    *("id", "type", "queue", "status", "attempts", "priority", "timeout", "idempotency_key"),
    *("worker", "token", "created_at", "run_at", "start_by", "started_at", "finished_at"),
    *("lease_expires_at", "again_of", "partition", "workflow"),
)
"""What `jobs show` prints of a job, if it is set, in this order."""


@click.command()
@click.argument("type", shell_complete=completing.types)
@click.argument("payload", default="{}")
@job_options
@option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@option("--run-at", "WHEN", "Earliest start: 2026-01-31T12:00:00Z.", callback=time_given)
@unique_options
@parent_options
@option("--key idempotency_key", "TEXT", "Idempotency key: using it again prints the same job.")
@flag("--wait", "Wait until it is settled, and print its result; exit codes as `jobs wait`.")
@answer_options
def enqueue(type: str, payload: str, wait: bool, as_json: bool, **given: Any) -> None:
    """Add a job of TYPE, and print its id once it is on disk.

    PAYLOAD is a JSON object; `-` reads it from standard input.  [default: {}]

    Options that you omit come from the type, as its workers and servers have stored it.
    """
    from tenure.jobs.enqueue import NewJob

    options = options_given(given, payload)
    new_job = NewJob(type, options.pop("payload"), options)
    with application() as app:
        job = app.enqueue_many([new_job])[0]
        if not wait:
            _show_added(app, job, as_json)
            return
        if not as_json:
            click.echo(job.id)
        _warn_if_nowhere(app, job)
        finish(app, job.id, None, as_json=as_json)


def _show_added(app: Tenure, job: Job, as_json: bool) -> None:
    from tenure.wire import responses

    if as_json:
        terminal.print_json(responses.job_body(app.core.redaction.job(job)))
    else:
        click.echo(job.id)
    _warn_if_nowhere(app, job)


def _warn_if_nowhere(app: Tenure, job: Job) -> None:
    """Say if the workers that run jobs of this type take from other queues only."""
    from tenure.jobs.stats import queues_instead

    with suppress(TenureError):  # the job is added, and its id is printed
        if queues := queues_instead(job.type, job.queue, app.workers.list()):
            click.echo(
                f"Caution: workers run {job.type} from queue {', '.join(queues)} only, and this job"
                f" is in {job.queue}. Give --queue, or start a worker for {job.queue}",
                err=True,
            )


ORDER = click.Choice(["newest", "oldest"])

jobs = Group("jobs", help="List, show, retry and cancel jobs.")


@jobs.command("list")
@filter_options
@option("--limit", None, "Most jobs to list, up to 500.", type=int, default=50)
@option("--before", "ID", "Only jobs older than this job: the next page.", completing.job_ids())
@option(
    "--after",
    "ID",
    "Only jobs newer than this job: the next page, oldest first.",
    completing.job_ids(),
)
@option("--order", None, "Which jobs come first.", type=ORDER, default="newest")
@reading_options
def list_jobs(limit: int, order: Order, as_json: bool, **given: Any) -> None:
    """List jobs, newest first."""
    from tenure.wire import responses

    place = {name: given.pop(name) for name in ("before", "after")}
    filter_of(**known_before(given))  # names the option that is wrong
    with existing() as app:
        jobs = app.find(limit=limit, order=order, **place, **all_at(app, given))
        found, now = [app.core.redaction.job(job) for job in jobs], app.core.clock()
    if as_json:
        terminal.print_json([responses.job_body(job) for job in found])
        return
    rows = [
        (
            *(job.id, job.type, job.queue, job.status),
            terminal.attempts(job.attempts, job.max_retries),
            *(job.created_at, first_line(job.last_error)),
        )
        for job in found
    ]
    heads = ("ID", "TYPE", "QUEUE", "STATUS", "TRIES", "CREATED", "LAST ERROR")
    terminal.table(heads, rows, now=now, spare=("QUEUE", "CREATED", "LAST ERROR"))
    if len(found) == limit:
        cursor = "--before" if order == "newest" else "--order oldest --after"
        click.echo(f"next page: {cursor} {visible(found[-1].id)}", err=True)


@jobs.command()
@click.argument("id", type=Id(), shell_complete=completing.job_ids())
@reading_options
def show(id: str, as_json: bool) -> None:
    """Show a job, its history, and why it is not running."""
    from msgspec.structs import replace

    from tenure.app.shown import progress_shown, steps_shown, transitions_shown
    from tenure.wire import responses
    from tenure.wire.kept import steps_body

    with existing() as app:
        now = app.core.clock()
        stored, reason = app.get(id), app.explain(id)
        job = app.core.redaction.job(stored)
        reason = replace(reason, text=app.core.redaction.text(reason.text, stored))
        history = transitions_shown(app.history(id), stored, app.core.redaction)
        said = progress_shown(app.core, [stored], app.core.redaction).get(id)
        kept = steps_shown(app.core, stored, app.core.redaction)
    if as_json:
        entries = [responses.TransitionBody.of(entry) for entry in history]
        shown = responses.job_body(job, said)
        more = {"steps": steps_body(kept)} if kept.steps or kept.state_at else {}
        terminal.print_json({"job": shown, "history": entries, "explanation": reason, **more})
        return
    facts: dict[str, object] = {name: getattr(job, name) for name in SHOWN}
    facts["attempts"] = terminal.attempts(job.attempts, job.max_retries)
    facts |= {"tags": " ".join(job.tags) or None, "progress": said}
    for name, value in facts.items():
        if isinstance(value, datetime):
            click.echo(f"{name:<18}{terminal.when(value)}  ({ago(value, now)})")
        elif value is not None:
            click.echo(f"{name:<18}{terminal.tint(visible(str(value)))}")
    texts = {"payload": job.payload_json, "result": job.result_json, "checkpoint": kept.state_json}
    for name, text in texts.items():
        if text is not None:
            click.echo(f"{name}\n{terminal.excerpt(terminal.laid_out(text))}")
    if job.last_error is not None:
        click.echo(f"last_error\n{terminal.excerpt(job.last_error)}")
    click.echo()
    if kept.steps:
        rows = [(one.number, one.name, one.at, one.result_json or "null") for one in kept.steps]
        terminal.table(("STEP", "NAME", "AT", "RESULT"), rows)
        click.echo()
    _time_line(history)
    why = click.wrap_text(visible(first_line(reason.text)), width=terminal.room())
    click.echo(f"\n{why}")


def _time_line(history: Sequence[Transition]) -> None:
    """Print the history of a job: when, how long after the one before, by whom, and errors."""
    rows = [
        (
            entry.at,
            terminal.apart(before.at, entry.at) if before else None,
            *(entry.event, entry.source, entry.target, entry.attempt, entry.actor),
        )
        for entry, before in zip(history, (None, *history), strict=False)
    ]
    heads = ("AT", "AFTER", "EVENT", "FROM", "TO", "ATTEMPT", "BY")
    terminal.table(
        heads,
        rows,
        spare=("FROM",),
        notes=[first_line(entry.detail or entry.reason) for entry in history],
    )


@click.command()
@click.argument("id", type=Id(), shell_complete=completing.job_ids())
@answer_options
def explain(id: str, as_json: bool) -> None:
    """Say why a job is not running, and what you can do."""
    from msgspec.structs import replace

    from tenure.cli.advice import advice

    with existing() as app:
        reason, job = app.explain(id), app.get(id)
        reason = replace(reason, text=app.core.redaction.text(reason.text, job))
    if as_json:
        terminal.print_json(reason)
        return
    sentence, _, traceback = reason.text.partition("\n")
    click.echo(click.wrap_text(as_called(visible(sentence)), width=terminal.room()))
    if traceback:
        click.echo(terminal.excerpt(traceback))
    for line in advice(job, reason):
        click.echo(visible(line))


@jobs.command()
@click.argument(
    "ids", type=Id(), nargs=-1, metavar="[ID...]", shell_complete=completing.job_ids("failed")
)
@option("--more", None, "Attempts to add to the limit.", type=int, default=1)
@flag("--from-scratch", "Delete its steps, checkpoint and signals; only by id.")
@bulk_options
def retry(ids: Sequence[str], more: int, *, from_scratch: bool, **given: Any) -> None:
    """Run failed jobs again: by id, or all that match."""
    if from_scratch and not ids:
        raise click.UsageError("--from-scratch needs the ids of the jobs")
    how = {"from_scratch": True} if from_scratch else {}
    _change("retry", ids, {"more_retries": more, **how}, **given)


@jobs.command()
@click.argument(
    "ids",
    type=Id(),
    nargs=-1,
    metavar="[ID...]",
    shell_complete=completing.job_ids("pending", "processing"),
)
@bulk_options
def cancel(ids: Sequence[str], **given: Any) -> None:
    """Cancel jobs: by id, or all that match."""
    _change("cancel", ids, {}, **given)


@jobs.command()
@click.argument(
    "ids", type=Id(), nargs=-1, required=True, shell_complete=completing.job_ids("waiting")
)
@answer_options
def unblock(ids: Sequence[str], as_json: bool) -> None:
    """Let waiting jobs run now, whatever they wait for.

    A job that waits for a signal runs its handler, which then waits for the signal again.
    """
    with existing() as app:
        _each(app, app.unblock, ids, as_json)


@jobs.command()
@click.argument(
    "ids", type=Id(), nargs=-1, metavar="[ID...]", shell_complete=completing.job_ids("pending")
)
@bulk_options
def run_now(ids: Sequence[str], **given: Any) -> None:
    """Run pending jobs that are not due: by id, or all that match.

    Of all that match, snoozed jobs run only with --state snoozed.
    """
    _change("run_now", ids, {}, **given)


@jobs.command()
@click.argument("id", type=Id(), shell_complete=completing.job_ids("pending"))
@option("--payload", "JSON", "A new payload, before the first attempt; `-` reads it.")
@click.option("--priority", type=int, help="Smaller runs first, -100 to 100.")
@click.option("--max-retries", type=int, help="Attempts in all, with the first.")
@option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@option("--run-at", "WHEN", "Earliest start: 2026-01-31T12:00:00Z.", callback=time_given)
@option("--timeout", "TIME|none", "Longest time that one attempt may run.")
@option("--backoff", "TIME|JSON", "Wait before the first retry, or a policy.")
@reason_option
@answer_options
def amend(id: str, reason: str | None, as_json: bool, **given: Any) -> None:
    """Change a pending job. What you omit stays unchanged."""
    changes = options_given(given, given.pop("payload"))
    if changes.get("timeout") == "none":
        changes["timeout"] = None
    with existing() as app:
        _each(app, partial(app.amend, reason=reason, **changes), [id], as_json)


@jobs.command()
@click.argument("id", type=Id(), shell_complete=completing.job_ids())
@option("--payload", "JSON", "Another payload; `-` reads it.  [default: that of the job]")
@option("--queue", "NAME", "Another queue.", completing.queue_names)
@option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@answer_options
def run_again(id: str, as_json: bool, **given: Any) -> None:
    """Add a new job like an earlier one, and print its id."""
    options = options_given(given, given.pop("payload"))
    with existing() as app:
        _show_added(app, app.run_again(id, options.pop("payload", None), **options), as_json)


def _change(
    action: str,
    ids: Sequence[str],
    how: dict[str, Any],
    *,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    reason: str | None,
    **filters: Any,
) -> None:
    """Retry or cancel each job of `ids`, or all jobs that match; `how` are options of the verb."""
    how = {**how, "reason": reason}
    chosen = {name: value for name, value in filters.items() if value is not None}
    if bool(ids) == bool(chosen):
        raise click.UsageError("name jobs by their ids or by options such as --status, not by both")
    if ids and dry_run:
        raise click.UsageError("--dry-run is for jobs that match options, not for ids")
    filter_of(**known_before(chosen))
    with existing() as app:
        matching = filter_of(**all_at(app, chosen))
        if ids:
            verbs = {"retry": app.retry, "cancel": app.cancel}
            change: Any = verbs.get(action, partial(app.amend, delay=0))
            _each(app, partial(change, **how), ids, as_json)
        elif dry_run:
            preview(app, action, matching, as_json)
        else:
            change_all(app, action, matching, yes=yes, as_json=as_json, **how)


def _each(app: Tenure, change: Callable[[str], Job], ids: Sequence[str], as_json: bool) -> None:
    """Change each job, print what has changed, and end the command."""
    from tenure.wire import responses

    changed: list[Job] = []

    def change_one(id: str) -> None:
        changed.append(app.core.redaction.job(change(id)))
        if not as_json:
            click.echo(f"{changed[-1].id}  {changed[-1].status}")

    code = change_each(ids, change_one)
    if as_json:
        terminal.print_json([responses.job_body(job) for job in changed])
    click.get_current_context().exit(code)


jobs.add_command(outcomes.wait)
