"""Commands about queues, types and workers, and the counts of their jobs.

Queues, types and partitions can have settings before their first job, so no name is refused.
Answers say if the name is not known: it may be misspelt. Ask for this doubt before the change: a
type that is paused is known from then on.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing
from tenure.cli.terminal import Cell, print_json, table
from tenure.errors import InvalidInput, TenureError
from tenure.values.names import check_name, check_pause_reason, nearest

if TYPE_CHECKING:
    from datetime import datetime

    from tenure.app.app import Tenure
    from tenure.rules.stats import QueueState, WorkerState

MAX_PARTITIONS = 1_000
"""Partitions among which the nearest name is searched."""


def queue_doubt(app: Tenure, name: str) -> str:
    """Return what to add to an answer about a queue: nothing if a job, type or worker names it."""
    from tenure.rules.tokens import includes

    with suppress(TenureError):  # the change itself says what is wrong
        named = {count.queue for count in app.stats.counts()}
        named |= {type.queue for type in app.types.list()}
        limited = [worker for worker in app.workers.list() if worker.queues is not None]
        named |= {queue for worker in limited for queue in worker.queues or ()}
        taken = any(worker.serves(name) or includes(worker.queues, name) for worker in limited)
        if name not in named and not taken:
            return f"; no job, type or worker names this queue yet{_nearest(name, named)}"
    return ""


def type_doubt(app: Tenure, name: str) -> str:
    """Return what to add to an answer about a type: nothing if a job or a program has it."""
    with suppress(TenureError):
        named = {count.type for count in app.stats.counts()}
        named |= {type.name for type in app.types.list()}
        named |= {type for worker in app.workers.list() for type in worker.types or ()}
        if name not in named:
            return f"; no job, handler or worker has this type yet{_nearest(name, named)}"
    return ""


def partition_doubt(app: Tenure, queue: str, name: str) -> str:
    """Return what to add to an answer about a partition: nothing if jobs have it."""
    if doubt := queue_doubt(app, queue):
        return doubt
    with suppress(TenureError):
        found = app.count(at_most=1, queue=queue, partition=name) if name else None
        if found is not None and found.exact and not found.jobs:
            others = {each.partition for each in app.queues.partitions(queue, MAX_PARTITIONS)}
            return f"; no job of the queue has this partition yet{_nearest(name, others - {name})}"
    return ""


def _nearest(name: str, others: Collection[str]) -> str:
    near = nearest(name, others)
    return f", the nearest is {near}" if near else ""


# --- commands -------------------------------------------------------------------------------------

queues = command.Group("queues", help="List, pause, resume and limit queues.")


@queues.command("list")
@command.reading_options
def list_queues(as_json: bool) -> None:
    """List queues that have unfinished jobs or settings."""
    with command.existing() as app:
        found, now = app.queues.list(), app.core.clock()
    if as_json:
        print_json(found)
    else:
        from tenure.rules.stats import limits_of

        columns = ("name", "pending", "processing", "oldest_due_at", "paused_at", "max_pending")
        heads = ("QUEUE", "PENDING", "PROCESSING", "OLDEST DUE", "PAUSED", "MAX PENDING", "LIMITS")
        notes = [queue.pause_reason or "" for queue in found]
        rows = [(*attrgetter(*columns)(each), limits_of(each, now)) for each in found]
        table(heads, rows, now=now, notes=notes)


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@command.reason_option
@command.database_option
def pause(name: str, reason: str | None) -> None:
    """Stop starting jobs of a queue; running jobs continue."""
    with command.application() as app:
        doubt = queue_doubt(app, name)
        app.queues.pause(name, reason=reason)
    click.echo(f"queue {name} is paused{doubt}")


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@command.database_option
def resume(name: str) -> None:
    """Start jobs of a paused queue again."""
    from tenure.rules.stats import rest_of

    with command.application() as app:
        queue = _state_of(app, name)
        held = queue is not None and (queue.paused_at or rest_of(queue, app.core.clock()))
        doubt = queue_doubt(app, name)
        app.queues.resume(name)
    click.echo(f"queue {name} {'is resumed' if held else 'was not paused'}{doubt}")


def _state_of(app: Tenure, name: str) -> QueueState | None:
    check_name(name, "queue", "$.queue")
    return next((each for each in app.queues.list(search=name) if each.name == name), None)


LIMITS = command.together(
    command.option("--max-pending", "N", "Refuse new jobs while N are pending."),
    command.option("--max-running", "N", "Process at most N at once, on all machines together."),
    command.option("--rate", "N/TIME", "Start at most N in any period of TIME: 900/1m."),
    command.option("--burst", "N", "How many of a rate may start at once."),
    command.option(
        "--per-partition",
        "LIMITS",
        "For each partition, max_running=N,rate=N/TIME,burst=N, or only `turns`.",
    ),
    command.option(
        "--ordered", "halt|pass", "Run a partition in order; after a failure halt it, or not."
    ),
)


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@LIMITS
@command.database_option
def limit(name: str, **given: str | None) -> None:
    """Change limits of a queue, for all workers; `none` removes one."""
    if not (wanted := {key: _limit(key, text) for key, text in given.items() if text}):
        raise InvalidInput("give a limit: --help lists them", path="NAME")
    with command.application() as app:
        doubt = queue_doubt(app, name)
        app.queues.limit(name, **wanted)
    said = ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in given.items() if text)
    click.echo(f"queue {name}: {said}{doubt}")


def _limit(key: str, text: str) -> Any:
    if text == "none":
        return None
    if key in ("rate", "ordered"):
        return text
    if key != "per_partition":
        return _number(text, key)
    from tenure.rules.queues import PerPartition

    parts = [] if text == "turns" else [part.partition("=") for part in text.split(",")]
    if unknown := {key for key, _, _ in parts} - {"max_running", "rate", "burst"}:
        raise InvalidInput(f"no such limit: {', '.join(sorted(unknown))}", path="--per-partition")
    return PerPartition(**{key: _limit(key, value) for key, _, value in parts})


def _number(text: str, of: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise InvalidInput("give a whole number, or none", path=f"--{of.replace('_', '-')}")


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@command.option("--limit", "N", "How many to list.", type=click.IntRange(1, 1_000), default=20)
@command.reading_options
def partitions(name: str, limit: int, as_json: bool) -> None:
    """List the partitions of a queue with limits, the fullest first."""
    with command.existing() as app:
        found, now = app.queues.partitions(name, limit), app.core.clock()
    if as_json:
        print_json(found)
        return
    columns = ("pending", "running", "max_running", "weight", "paused_at", "resume_at", "halted_by")
    heads = ("PARTITION", "PENDING", "RUNNING", "LIMIT", "WEIGHT", "PAUSED", "WAITS", "HALTED BY")
    rows = [(one.partition, *attrgetter(*columns)(one)) for one in found]
    table(heads, rows, now=now, notes=[one.pause_reason or "" for one in found])


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@click.argument("partition")
@command.option("--max-running", "N", "Process at most N at once; `none`: as for others.")
@command.option("--weight", "N", "How many jobs its turn has, 1 to 1,000; `none`: 1.")
@command.flag("--pause", "Stop starting its jobs.")
@command.flag("--resume", "Start its jobs again.")
@command.flag("--pass-over", "Continue after the failed job that halts it.")
@command.reason_option
@command.database_option
def partition(
    name: str,
    partition: str,
    pause: bool,
    resume: bool,
    pass_over: bool,
    reason: str | None,
    **given: str | None,
) -> None:
    """Change what differs for a partition of a queue."""
    wanted: dict[str, Any] = {key: _limit(key, text) for key, text in given.items() if text}
    if sum((pause, resume)) > 1 or not (wanted or pause or resume or pass_over):
        raise InvalidInput("say what to change: --help lists it", path="PARTITION")
    check_pause_reason(reason, pauses=pause, path="--reason", option="--pause")
    with command.application() as app:
        doubt = partition_doubt(app, name, partition)
        if wanted:
            app.queues.limit_partition(name, partition, **wanted)
        if pause:
            app.queues.pause_partition(name, partition, reason=reason)
        if resume:
            app.queues.resume_partition(name, partition)
        passed = app.queues.pass_over(name, partition) if pass_over else None
    click.echo(f"partition {partition} of queue {name} is changed{doubt}")
    if pass_over:
        click.echo(f"passed over {passed}" if passed else "no failed job halts it")


types = command.Group("types", help="List, pause and resume types of jobs.")


@types.command("list")
@command.reading_options
def list_types(as_json: bool) -> None:
    """List the known types of jobs, with their options.

    Workers and servers store what `@app.job` says. Enqueues by name use it.
    """
    with command.existing() as app:
        found, now = app.types.list(), app.core.clock()
    if as_json:
        print_json(found)
    else:
        columns = attrgetter("name", "queue", "priority", "max_retries")
        rows = (
            (*columns(each), _seconds(each.timeout), each.seen_at, each.paused_at) for each in found
        )
        heads = ("TYPE", "QUEUE", "PRIORITY", "RETRIES", "TIMEOUT", "SEEN", "PAUSED")
        table(heads, rows, now=now, notes=[each.pause_reason or "" for each in found])


@types.command("pause")
@click.argument("name", shell_complete=completing.types)
@command.reason_option
@command.database_option
def pause_type(name: str, reason: str | None) -> None:
    """Stop starting jobs of a type; running jobs continue."""
    with command.application() as app:
        doubt = type_doubt(app, name)
        app.types.pause(name, reason=reason)
    click.echo(f"type {name} is paused{doubt}")


@types.command("resume")
@click.argument("name", shell_complete=completing.types)
@command.database_option
def resume_type(name: str) -> None:
    """Start jobs of a paused type again."""
    with command.application() as app:
        paused = {type.name for type in app.types.list() if type.paused_at is not None}
        doubt = type_doubt(app, name)
        app.types.resume(name)
    click.echo(f"type {name} {'is resumed' if name in paused else 'was not paused'}{doubt}")


def _seconds(timeout: float | None) -> str:
    return "" if timeout is None else f"{timeout:g}s"


def _state(worker: WorkerState, now: datetime) -> str:
    from tenure.rules.explain import is_live

    if not is_live(worker, now):
        return "silent"
    return "stopping" if worker.stopping else "working"


@click.command()
@command.reading_options
def workers(as_json: bool) -> None:
    """List the workers that asked for jobs lately."""
    with command.existing() as app:
        found, now = app.workers.list(), app.core.clock()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(worker.label or worker.id, worker.since_at, worker.slots, worker.leases),
            "any" if worker.queues is None else ", ".join(worker.queues),
            *(worker.version or "", worker.seen_at, _state(worker, now)),
        )
        for worker in found
    ]
    table(("WORKER", "SINCE", "SLOTS", "JOBS", "QUEUES", "VERSION", "SEEN", "STATE"), rows, now=now)


@click.command()
@command.reading_options
def stats(as_json: bool) -> None:
    """Count jobs by queue, type and status."""
    from tenure.rules.stats import used
    from tenure.wire import responses

    with command.existing() as app:
        counts = app.stats.counts()
    body = responses.stats_body(counts)
    if as_json:
        print_json(body)
        return
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for count in counts:
        rows.setdefault((count.queue, count.type), {})[count.status] = count.jobs
    by_status = used(body.by_status)
    statuses = list(by_status)
    lines: list[tuple[Cell, ...]] = [
        (queue, type, *(found.get(status, 0) for status in statuses), sum(found.values()))
        for (queue, type), found in sorted(rows.items())
    ]
    lines.append(("total", "", *by_status.values(), body.total))
    table(("QUEUE", "TYPE", *(s.upper() for s in statuses), "TOTAL"), lines)
