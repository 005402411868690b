"""Commands about queues and types, and the counts of their jobs."""

from __future__ import annotations

from operator import attrgetter

import click

from tenure.cli import completing
from tenure.cli.command import Group, application, existing
from tenure.cli.options import database_option, reading_options, reason_option
from tenure.cli.terminal import Cell, print_json, table, used
from tenure.errors import InvalidInput

queues = Group("queues", help="List, pause, resume and limit queues.")


@queues.command("list")
@reading_options
def list_queues(as_json: bool) -> None:
    """List queues that have unfinished jobs or settings."""
    with existing() as app:
        found, now = app.queues.list(), app.core.clock()
    if as_json:
        print_json(found)
    else:
        columns = ("name", "pending", "processing", "oldest_due_at", "paused_at", "max_pending")
        heads = ("QUEUE", "PENDING", "PROCESSING", "OLDEST DUE", "PAUSED", "LIMIT")
        notes = [queue.pause_reason or "" for queue in found]
        table(heads, map(attrgetter(*columns), found), now=now, notes=notes)


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@reason_option
@database_option
def pause(name: str, reason: str | None) -> None:
    """Stop starting jobs of a queue; running jobs continue."""
    with application() as app:
        app.queues.pause(name, reason=reason)
    click.echo(f"queue {name} is paused")


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@database_option
def resume(name: str) -> None:
    """Start jobs of a paused queue again."""
    with application() as app:
        app.queues.resume(name)
    click.echo(f"queue {name} is resumed")


@queues.command()
@click.argument("name", shell_complete=completing.queue_names)
@click.argument("most", metavar="NUMBER|none")
@database_option
def limit(name: str, most: str) -> None:
    """Refuse new jobs while NUMBER are pending; `none` lifts it."""
    if most != "none" and not (most.isascii() and most.isdigit() and len(most) < 16):
        raise InvalidInput("give a whole number of pending jobs, or none", path="NUMBER")
    wanted = None if most == "none" else int(most)
    with application() as app:
        app.queues.limit(name, max_pending=wanted)
    holds = "has no limit" if wanted is None else f"holds at most {wanted}"
    click.echo(f"queue {name} {holds}")


types = Group("types", help="List, pause and resume types of jobs.")


@types.command("list")
@reading_options
def list_types(as_json: bool) -> None:
    """List the known types of jobs, with their options.

    Workers and servers store what `@app.job` says. Enqueues by name use it.
    """
    with existing() as app:
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
@reason_option
@database_option
def pause_type(name: str, reason: str | None) -> None:
    """Stop starting jobs of a type; running jobs continue."""
    with application() as app:
        app.types.pause(name, reason=reason)
    click.echo(f"type {name} is paused")


@types.command("resume")
@click.argument("name", shell_complete=completing.types)
@database_option
def resume_type(name: str) -> None:
    """Start jobs of a paused type again."""
    with application() as app:
        app.types.resume(name)
    click.echo(f"type {name} is resumed")


def _seconds(timeout: float | None) -> str:
    return "" if timeout is None else f"{timeout:g}s"


@click.command()
@reading_options
def workers(as_json: bool) -> None:
    """List the workers that asked for jobs lately."""
    with existing() as app:
        found, now = app.workers.list(), app.core.clock()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            *(worker.label or worker.id, worker.since_at, worker.slots, worker.leases),
            "any" if worker.queues is None else ", ".join(worker.queues),
            *(worker.version or "", worker.seen_at, "stopping" if worker.stopping else "working"),
        )
        for worker in found
    ]
    table(("WORKER", "SINCE", "SLOTS", "JOBS", "QUEUES", "VERSION", "SEEN", "STATE"), rows, now=now)


@click.command()
@reading_options
def stats(as_json: bool) -> None:
    """Count jobs by queue, type and status."""
    from tenure.wire import responses

    with existing() as app:
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
