"""Commands about jobs: add them, list them, show one, say why it waits, wait, retry, cancel.

The options that describe a job to add are those of `enqueue` and of schedules.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing, terminal
from tenure.cli.bulk import bulk_options, change_all, filter_of, filter_options, preview
from tenure.errors import InvalidInput, TenureError
from tenure.values.names import RESERVED
from tenure.values.text import ago, first_line, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.lifecycle import Job
    from tenure.rules.explain import Explanation
    from tenure.rules.ledger import Transition
    from tenure.rules.search import Order

job_options = command.together(
    command.option(
        "--queue", "NAME", "Queue of the job.  [default: that of its type]", completing.queue_names
    ),
    click.option("--priority", type=int, help="Smaller runs first, -100 to 100."),
    click.option("--max-retries", type=int, help="Attempts in all, with the first."),
    click.option("--start-by", help="Cancel it if it has not started by then: 10m, or a time."),
    command.option("--timeout", "TIME", "Longest time that one attempt may run: 30s, 5m."),
    command.option(
        "--backoff",
        "TIME|JSON",
        "Wait before the first retry, then tripled; or each wait: 10s,1m,10m; or an object of "
        "base, factor and cap.",
    ),
    command.repeated("--tag tags", "TAG", "A word to find the job by, such as customer:17"),
    command.option("--partition", "TEXT", "What divides the queue, such as a tenant."),
)
"""What an enqueue may say of its job, but when it runs."""


unique_options = command.together(
    command.repeated(
        "--unique-by", "NAME", "A payload value: one unsettled job of the type with it"
    ),
    command.option("--unique-until", "settled|started", "How long the earlier job counts."),
    command.option(
        "--on-conflict", "WORD", "If there is one: return, error, replace or reschedule."
    ),
)
"""With which other jobs the job is the same."""
UNIQUE = {"unique_by": "by", "unique_until": "until", "on_conflict": "on_conflict"}


parent_options = command.together(
    command.repeated(
        "--depends-on", "ID[:HOW]", "Job that must end before: completed, settled, failed"
    ),
    command.option("--needs", "all|any|N", "How many of those jobs.  [default: all]"),
)
"""What the job depends on."""


def options_given(given: dict[str, Any], payload: str | None) -> Any:
    """Return what was given of the options, and the payload as a value."""
    from tenure.values.payload import MAX_PAYLOAD_BYTES

    options = {name: value for name, value in given.items() if value not in (None, ())}
    rule = {field: options.pop(name) for name, field in UNIQUE.items() if name in options}
    if rule:
        options["unique"] = rule
    if "depends_on" in options:
        parts = [one.partition(":") for one in options["depends_on"]]
        options["depends_on"] = [
            {"job_id": id, "meets": meets or "completed"} for id, _, meets in parts
        ]
    needs = str(options.get("needs", ""))
    if needs.isdecimal() and len(needs) < 16:
        options["needs"] = int(needs)
    backoff = options.get("backoff", "")
    if backoff.startswith("{"):
        options["backoff"] = _json(backoff.encode(), "$.backoff")
    elif "," in backoff:
        options["backoff"] = backoff.split(",")
    if payload == "-":
        options["payload"] = _json(sys.stdin.buffer.read(MAX_PAYLOAD_BYTES + 1), "$.payload")
    elif payload is not None:  # arguments that are not valid UTF-8 must be refused, not changed
        options["payload"] = _json(payload.encode("utf-8", "surrogatepass"), "$.payload")
    return options


def _json(data: bytes, at: str) -> object:
    """Decode a JSON text by the rules of the HTTP API; `at` is its path in error messages."""
    from tenure.values.payload import parse

    try:
        return parse(data)
    except InvalidInput as flaw:
        path = at + flaw.path.removeprefix("$")
        raise flaw.__class__(flaw.message, path=path, code=flaw.code) from None


# --- commands -------------------------------------------------------------------------------------

SHOWN = (
    *("id", "type", "queue", "status", "attempts", "priority", "timeout", "idempotency_key"),
    *("worker", "token", "created_at", "run_at", "start_by", "started_at", "finished_at"),
    *("lease_expires_at", "again_of", "partition", "workflow"),
)
"""What `jobs show` prints of a job, if it is set, in this order."""
OUTCOMES = {"completed": 0, "failed": 1, "cancelled": 6}
TIME_OVER = 5


@click.command()
@click.argument("type", shell_complete=completing.types)
@click.argument("payload", default="{}")
@job_options
@command.option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@command.option(
    "--run-at", "WHEN", "Earliest start: 2026-01-31T12:00:00Z.", callback=command.time_given
)
@unique_options
@parent_options
@command.option(
    "--key idempotency_key", "TEXT", "Idempotency key: using it again prints the same job."
)
@command.flag(
    "--wait", "Wait until it is settled, and print its result; exit codes as `jobs wait`."
)
@command.answer_options
def enqueue(type: str, payload: str, wait: bool, as_json: bool, **given: Any) -> None:
    """Add a job of TYPE, and print its id once it is on disk.

    PAYLOAD is a JSON object; `-` reads it from standard input.  [default: {}]

    Options that you omit come from the type, as its workers and servers have stored it.
    """
    from tenure.rules.jobs import NewJob

    options = options_given(given, payload)
    new_job = NewJob(type, options.pop("payload"), options)
    with command.application() as app:
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
    from tenure.rules.stats import queues_instead

    with suppress(TenureError):  # the job is added, and its id is printed
        if queues := queues_instead(job.type, job.queue, app.workers.list()):
            click.echo(
                f"Caution: workers run {job.type} from queue {', '.join(queues)} only, and this job"
                f" is in {job.queue}. Give --queue, or start a worker for {job.queue}",
                err=True,
            )


ORDER = click.Choice(["newest", "oldest"])

jobs = command.Group("jobs", help="List, show, retry and cancel jobs.")


@jobs.command("list")
@filter_options
@command.option("--limit", None, "Most jobs to list, up to 500.", type=int, default=50)
@command.option(
    "--before", "ID", "Only jobs older than this job: the next page.", completing.job_ids()
)
@command.option(
    "--after",
    "ID",
    "Only jobs newer than this job: the next page, oldest first.",
    completing.job_ids(),
)
@command.option("--order", None, "Which jobs come first.", type=ORDER, default="newest")
@command.reading_options
def list_jobs(limit: int, order: Order, as_json: bool, **given: Any) -> None:
    """List jobs, newest first."""
    from tenure.wire import responses

    place = {name: given.pop(name) for name in ("before", "after")}
    filter_of(**command.known_before(given))  # names the option that is wrong
    with command.existing() as app:
        jobs = app.find(limit=limit, order=order, **place, **command.all_at(app, given))
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
@click.argument("id", type=command.Id(), shell_complete=completing.job_ids())
@command.reading_options
def show(id: str, as_json: bool) -> None:
    """Show a job, its history, and why it is not running."""
    from msgspec.structs import replace

    from tenure.app.jobs import progress_shown, steps_shown, transitions_shown
    from tenure.wire import responses
    from tenure.wire.kept import steps_body

    with command.existing() as app:
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
@click.argument("id", type=command.Id(), shell_complete=completing.job_ids())
@command.answer_options
def explain(id: str, as_json: bool) -> None:
    """Say why a job is not running, and what you can do."""
    from msgspec.structs import replace

    with command.existing() as app:
        reason, job = app.explain(id), app.get(id)
        reason = replace(reason, text=app.core.redaction.text(reason.text, job))
    if as_json:
        terminal.print_json(reason)
        return
    sentence, _, traceback = reason.text.partition("\n")
    click.echo(click.wrap_text(command.as_called(visible(sentence)), width=terminal.room()))
    if traceback:
        click.echo(terminal.excerpt(traceback))
    for line in advice(job, reason):
        click.echo(visible(line))


@jobs.command()
@click.argument(
    "ids",
    type=command.Id(),
    nargs=-1,
    metavar="[ID...]",
    shell_complete=completing.job_ids("failed"),
)
@command.option("--more", None, "Attempts to add to the limit.", type=int, default=1)
@command.flag("--from-scratch", "Delete its steps, checkpoint and signals; only by id.")
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
    type=command.Id(),
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
    "ids", type=command.Id(), nargs=-1, required=True, shell_complete=completing.job_ids("waiting")
)
@command.answer_options
def unblock(ids: Sequence[str], as_json: bool) -> None:
    """Let waiting jobs run now, whatever they wait for.

    A job that waits for a signal runs its handler, which then waits for the signal again.
    """
    with command.existing() as app:
        _each(app, app.unblock, ids, as_json)


@jobs.command()
@click.argument(
    "ids",
    type=command.Id(),
    nargs=-1,
    metavar="[ID...]",
    shell_complete=completing.job_ids("pending"),
)
@bulk_options
def run_now(ids: Sequence[str], **given: Any) -> None:
    """Run pending jobs that are not due: by id, or all that match.

    Of all that match, snoozed jobs run only with --state snoozed.
    """
    _change("run_now", ids, {}, **given)


@jobs.command()
@click.argument("id", type=command.Id(), shell_complete=completing.job_ids("pending"))
@command.option("--payload", "JSON", "A new payload, before the first attempt; `-` reads it.")
@click.option("--priority", type=int, help="Smaller runs first, -100 to 100.")
@click.option("--max-retries", type=int, help="Attempts in all, with the first.")
@command.option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@command.option(
    "--run-at", "WHEN", "Earliest start: 2026-01-31T12:00:00Z.", callback=command.time_given
)
@command.option("--timeout", "TIME|none", "Longest time that one attempt may run.")
@command.option("--backoff", "TIME|JSON", "Wait before the first retry, or a policy.")
@command.reason_option
@command.answer_options
def amend(id: str, reason: str | None, as_json: bool, **given: Any) -> None:
    """Change a pending job. What you omit stays unchanged."""
    changes = options_given(given, given.pop("payload"))
    if changes.get("timeout") == "none":
        changes["timeout"] = None
    with command.existing() as app:
        _each(app, partial(app.amend, reason=reason, **changes), [id], as_json)


@jobs.command()
@click.argument("id", type=command.Id(), shell_complete=completing.job_ids())
@command.option("--payload", "JSON", "Another payload; `-` reads it.  [default: that of the job]")
@command.option("--queue", "NAME", "Another queue.", completing.queue_names)
@command.option("--delay", "TIME", "Earliest start, from now: 30s, 1h30m.")
@command.answer_options
def run_again(id: str, as_json: bool, **given: Any) -> None:
    """Add a new job like an earlier one, and print its id."""
    options = options_given(given, given.pop("payload"))
    with command.existing() as app:
        _show_added(app, app.run_again(id, options.pop("payload", None), **options), as_json)


@jobs.command()
@click.argument("id", type=command.Id(), shell_complete=completing.job_ids())
@command.option(
    "--timeout", "TIME", "Longest time to wait: 30s, 5m.  [default: as long as it takes]"
)
@command.answer_options
def wait(id: str, timeout: str | None, as_json: bool) -> None:
    """Wait until a job is settled, and print its result.

    The exit code is 0 if it completed, 1 if it failed, 6 if it was cancelled, and 5 if it is not
    settled in time. The job then continues.
    """
    with command.existing() as app:
        finish(app, id, timeout, as_json=as_json)


def finish(app: Tenure, job_id: str, timeout: str | None, *, as_json: bool) -> None:
    """Wait for a job, print how it ended, and exit with the code for that."""
    from tenure.wire import responses

    try:
        job = app.core.redaction.job(app.wait(job_id, timeout))
    except TimeoutError as error:
        click.echo(f"Error: {error}", err=True)
        click.get_current_context().exit(TIME_OVER)
    if as_json:
        terminal.print_json(responses.job_body(job))
    elif job.status == "completed":
        click.echo(visible(job.result_json or "null"))
    else:
        why = f": {first_line(job.last_error)}" if job.status == "failed" else ""
        click.echo(visible(f"job {job.id} {job.event}{why}"), err=True)
    click.get_current_context().exit(OUTCOMES[job.status])


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
    filter_of(**command.known_before(chosen))
    with command.existing() as app:
        matching = filter_of(**command.all_at(app, chosen))
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

    code = command.change_each(ids, change_one)
    if as_json:
        terminal.print_json([responses.job_body(job) for job in changed])
    click.get_current_context().exit(code)


# --- advice ---------------------------------------------------------------------------------------

ACTIONS = {"retry": "run it again", "cancel": "cancel it", "run_now": "run it now"}
REMEDIES = {
    "no_worker": "start a worker: {program} worker{app}",
    "no_worker_for_queue": "start a worker: {program} worker{app} --queue {queue}",
    "no_worker_for_type": "start a worker: {program} worker{app} --queue {queue}",
    "behind_others": "start another worker: {program} worker{app} --queue {queue}",
    "queue_paused": "resume the queue: {program} queues resume {queue}",
    "type_paused": "resume the type: {program} types resume {type}",
    "partition_paused": "resume it: {program} queues partition --resume {queue} {partition}",
    "halted": "pass over that job: {program} queues partition --pass-over {queue} {partition}",
    "queue_waits": "end the wait: {program} queues resume {queue}",
    "partition_waits": "end the wait: {program} queues partition --resume {queue} {partition}",
    "queue_full": "change its limit: {program} queues limit {queue} --max-running N",
    "queue_rate": "change its rate: {program} queues limit {queue} --rate N/TIME",
    "partition_full": (
        "change its limit: {program} queues partition --max-running N {queue} {partition}"
    ),
    "partition_rate": (
        "change what each partition may do: {program} queues limit {queue} --per-partition "
        "max_running=N,rate=N/TIME"
    ),
    "suspended": "send the signal: {program} signals send {id} {signal}",
    "locked": "see which transactions may have jobs locked: {program} doctor",
    "cancelled": "add a job like it: {program} jobs run-again {id}",
    "expired": "add a job like it: {program} jobs run-again {id}",
}
"""By the reason of an explanation: what to do, and the command that does it."""
OF_DELIVERIES = "see the webhooks: {program} webhooks list"
"""What to do where the queue of a webhook starts no delivery: its receiver has to answer."""
UNBLOCK = "let it run without them: {program} jobs unblock {id}"


def advice(job: Job, explanation: Explanation) -> Iterator[str]:
    """Yield what can be done about a job, each with its command."""
    from tenure.rules.search import EVENT_OF

    where = {"id": job.id, "queue": job.queue, "type": job.type, "partition": job.partition or ""}
    where["signal"] = explanation.signal or ""
    quoted = {name: shlex.quote(value) for name, value in where.items()}
    if where["partition"].startswith("-"):
        quoted["partition"] = f"-- {quoted['partition']}"  # else it is an option
    quoted["program"] = command.program()
    quoted["app"] = "" if command.application_of_host() else " --app MODULE:NAME"
    remedy = REMEDIES.get(explanation.reason)
    if explanation.reason == "queue_waits" and job.type.startswith(RESERVED):
        remedy = OF_DELIVERIES
    if remedy:
        yield f"You can {remedy.format(**quoted)}"
    for id in explanation.jobs:
        yield f"You can look at job {id}: {command.program()} explain {id}"
    if explanation.reason == "blocked":
        yield f"You can {UNBLOCK.format(**quoted)}"
    for action, event in EVENT_OF.items():
        if event in explanation.legal_events and (
            action != "run_now" or explanation.reason == "not_due"
        ):
            verb = action.replace("_", "-")
            yield f"You can {ACTIONS[action]}: {command.program()} jobs {verb} {job.id}"
