"""Commands about schedules and their fires."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing
from tenure.cli.jobs import job_options, options_given
from tenure.cli.terminal import print_json, table, when
from tenure.values.text import visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.rules.schedules import Fire, Schedule
    from tenure.rules.times import Preview

OVERLAPS = ("allow_all", "skip", "buffer_one", "buffer_all", "cancel_other")
OF_THE_JOB = (
    *("queue", "priority", "max_retries", "start_by", "timeout", "backoff", "tags", "partition"),
)

schedules = command.Group(
    "schedules", help="Add, show, change, pause, trigger and backfill schedules."
)

a_name = click.argument("name", shell_complete=completing.schedule_names)


def overlap_option(default: str) -> command.Decorator:
    said = f"What to do while the last job is not settled: {', '.join(OVERLAPS)}."
    return command.option(
        "--overlap", "RULE", f"{said}  [default: {default}]", completing.words(*OVERLAPS)
    )


count_option = click.option(
    "--count", default=5, help="How many of the next ticks.", show_default=True
)
when_options = command.together(
    command.option(
        "--cron", "TEXT", "Minute, hour, day of month, month, day of week: '10 3 * * *'."
    ),
    command.option("--every", "TIME", "An interval: 90s, 1h."),
    command.option("--offset", "TIME", "How long after the multiples of --every."),
    command.option("--at", "WHEN", "Once: 2026-01-31T12:00:00Z.", callback=command.time_given),
    command.option(
        "--zone", "NAME", "The time zone of --cron, such as Europe/Berlin.  [default: UTC]"
    ),
    command.option("--starts-at", "WHEN", "No tick before this time.", callback=command.time_given),
    command.option("--ends-at", "WHEN", "No tick after this time.", callback=command.time_given),
)
schedule_options = command.together(
    when_options,
    job_options,
    command.option(
        "--time-key", "FIELD", "The field of the payload that gets the time of the tick."
    ),
    command.option("--jitter", "TIME", "Put each job off by up to this much."),
    command.option(
        "--missed", "RULE", "Which missed ticks still get a job: one (the last), all, skip."
    ),
    command.option(
        "--grace", "TIME", "How late a tick may be before it is missed.  [default: 60s]"
    ),
    click.option("--catch-up", type=int, help="Of --missed all, at most so many.  [default: 100]"),
    command.option("--catch-up-window", "TIME", "Of --missed all, only ticks that are not older."),
    overlap_option("allow_all"),
    command.option("--note", "TEXT", "What it is for."),
)


@schedules.command("list")
@command.reading_options
def list_schedules(as_json: bool) -> None:
    """List the schedules, by name."""
    from tenure.rules.times import in_words

    found: list[Schedule] = []
    with command.existing() as app:
        while page := app.schedules.list(after=found[-1].name if found else ""):
            found += page
        bodies, now = [_body(app, each) for each in found], app.core.clock()
    rows = [
        (
            *(each.name, in_words(each.when), each.template.type),
            each.next_at or (None if each.paused_at else "ended"),
            *(each.paused_at, each.fired, each.missed_fires, each.overlapped),
        )
        for each in found
    ]
    heads = ("NAME", "WHEN", "TYPE", "NEXT", "PAUSED", "FIRED", "MISSED", "OVERLAPPED")
    notes = [each.pause_reason or "" for each in found]
    print_json(bodies) if as_json else table(heads, rows, now=now, notes=notes)


@schedules.command()
@a_name
@count_option
@command.answer_options
def show(name: str, count: int, as_json: bool) -> None:
    """Show a schedule, its next ticks, and its unusual days."""
    with command.existing() as app:
        _print(app, app.schedules.get(name), as_json, count)


@schedules.command()
@when_options
@count_option
@command.answer_options
def preview(count: int, as_json: bool, **given: Any) -> None:
    """Say when a schedule would be due; nothing is stored."""
    with command.application() as app:
        found = app.schedules.preview(count, **options_given(given, None))
    print_json(found) if as_json else _print_times(found)


@schedules.command()
@click.argument("name")
@click.argument("type", shell_complete=completing.types)
@click.argument("payload", default="{}")
@schedule_options
@command.answer_options
def create(name: str, type: str, payload: str, as_json: bool, **given: Any) -> None:
    """Add a schedule of jobs of TYPE.

    PAYLOAD is a JSON object. Say when it is due: by --cron, --every or --at.
    """
    with command.application() as app:
        _print(app, app.schedules.create(name, **_arguments(type, payload, given)), as_json)


@schedules.command()
@a_name
@click.argument("type", required=False, shell_complete=completing.types)
@click.argument("payload", default="{}")
@schedule_options
@click.option("--edition", type=int, help="Change it only if it still has this edition.")
@command.answer_options
def edit(name: str, type: str | None, payload: str, as_json: bool, **given: Any) -> None:
    """Change a schedule. What you omit stays.

    TYPE makes it another job: give its PAYLOAD and its options with it.
    """
    from tenure.rules.jobs import NewJob

    changes = _arguments(type, payload, given)
    with command.existing() as app:
        if of_the_job := changes.pop("options", None):
            old = app.schedules.get(name)
            job = old.template
            changes["job"] = NewJob(job.type, job.payload, job.options | of_the_job)
            changes.setdefault("edition", old.edition)
        _print(app, app.schedules.update(name, **changes), as_json)


@schedules.command()
@a_name
@command.reason_option
@command.database_option
def pause(name: str, reason: str | None) -> None:
    """Pause a schedule: its ticks add no jobs."""
    with command.existing() as app:
        app.schedules.pause(name, reason=reason)
    click.echo(f"schedule {name} is paused")


@schedules.command()
@a_name
@command.flag("--catch-up", "Treat the ticks since the pause as --missed of the schedule says.")
@command.database_option
def resume(name: str, catch_up: bool) -> None:
    """Resume a paused schedule: its ticks add jobs again."""
    with command.existing() as app:
        app.schedules.resume(name, catch_up=catch_up)
    click.echo(f"schedule {name} is resumed")


@schedules.command()
@a_name
@click.option("--edition", type=int, help="Delete it only if it still has this edition.")
@command.database_option
def delete(name: str, edition: int | None) -> None:
    """Delete a schedule and the record of its fires. Its jobs stay."""
    with command.existing() as app:
        app.schedules.delete(name, edition=edition)
    click.echo(f"schedule {name} is deleted")


@schedules.command()
@a_name
@overlap_option("as the schedule says")
@command.answer_options
def trigger(name: str, overlap: Any, as_json: bool) -> None:
    """Add the job of a schedule now, and print its id."""
    with command.existing() as app:
        fire = app.schedules.trigger(name, overlap=overlap)
    print_json(fire) if as_json else click.echo(fire.job_id or fire.outcome)


@schedules.command()
@a_name
@click.argument("start", callback=command.past_given)
@click.argument("end", callback=command.past_given)
@overlap_option("buffer_all")
@command.option("--queue", "NAME", "Another queue for these jobs.", completing.queue_names)
@click.option("--priority", type=int, help="Another priority for these jobs.")
@command.flag("--dry-run", "Only list the ticks.")
@command.reading_options
def backfill(
    name: str, start: command.Past, end: command.Past, as_json: bool, **given: Any
) -> None:
    """Add the jobs of past ticks that have none, and list them.

    The ticks are those from START, before END: times, how long ago they are (3d), or `now`. A time
    without a zone is in that of the schedule.
    """
    options = {name: value for name, value in given.items() if value is not None}
    with command.existing() as app:
        made = app.schedules.backfill(
            name, _zoned(app, name, start), _zoned(app, name, end), **options
        )
        if made or as_json:
            _print_fires(app, name, made, as_json)
        else:
            click.echo("no past tick in that time is without a job")


@schedules.command()
@a_name
@click.option("--limit", default=50, help="Most fires to list, up to 500.", show_default=True)
@command.past_option("--before", "Only ticks before this time")
@command.reading_options
def fires(name: str, limit: int, before: command.Past | None, as_json: bool) -> None:
    """List the past ticks of a schedule and their outcomes.

    A time without a zone is in that of the schedule.
    """
    with command.existing() as app:
        until = None if before is None else _zoned(app, name, before)
        _print_fires(app, name, app.schedules.fires(name, limit=limit, before=until), as_json)


def _arguments(type: str | None, payload: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given as the arguments of `app.schedules`.

    Without a type, `options` are those of the job.
    """
    from tenure.rules.jobs import NewJob

    options: dict[str, Any] = options_given(given, payload)
    payload = options.pop("payload")
    of_the_job: Any = {name: options.pop(name) for name in OF_THE_JOB if name in options}
    job = {"options": of_the_job} if type is None else {"job": NewJob(type, payload, of_the_job)}
    return {**job, **options}


def _zoned(app: Tenure, name: str, given: command.Past) -> datetime:
    from tenure.rules.times import zone_of

    time = command.at(app, given)
    zone = zone_of(app.schedules.get(name).when.zone)
    return time if time.tzinfo else time.replace(tzinfo=zone)


def _body(app: Tenure, schedule: Schedule) -> Any:
    from tenure.wire.requests import schedule_body

    return schedule_body(schedule, app.core.redaction)


def _print(app: Tenure, schedule: Schedule, as_json: bool, count: int = 5) -> None:
    import msgspec

    from tenure.rules.times import preview

    body = _body(app, schedule)
    if as_json:
        print_json(body)
        return
    for field, value in msgspec.structs.asdict(body).items():
        if value not in (None, 0):
            text = when(value) if isinstance(value, datetime) else value
            text = text if isinstance(text, str) else msgspec.json.encode(text).decode()
            click.echo(f"{field + ':':<17} {visible(text)}")
    if schedule.paused_at is not None:
        click.echo("It is paused: none of these ticks adds a job until it is resumed.")
    _print_times(preview(schedule.when, app.core.clock(), count))


def _print_times(preview: Preview) -> None:
    click.echo(preview.in_words)
    for time in preview.times:
        click.echo(f"  {time:%a} {time.isoformat(' ', 'seconds')}")
    if not preview.times:
        click.echo("  no more ticks")
    for day in preview.unusual_days:
        click.echo(f"  unusual: {day}")


def _print_fires(app: Tenure, name: str, found: Sequence[Fire], as_json: bool) -> None:
    from tenure.app.jobs import statuses_of
    from tenure.rules.times import zone_of

    zone, status = zone_of(app.schedules.get(name).when.zone), statuses_of(app.core, found)
    rows = [
        (
            each.at.astimezone(zone).isoformat(" ", "seconds"),
            each.until and each.until.astimezone(zone).isoformat(" ", "seconds"),
            *(each.outcome, each.how, each.job_id, status.get(each.job_id or "")),
        )
        for each in found
    ]
    heads = ("TICK", "UNTIL", "OUTCOME", "HOW", "JOB", "STATUS")
    print_json(found) if as_json else table(heads, rows)
