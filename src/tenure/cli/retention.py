"""Commands about how long settled jobs are kept, and the one that writes them to files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing
from tenure.cli.bulk import filter_of, filter_options, number
from tenure.cli.queues import queue_doubt, type_doubt
from tenure.cli.terminal import print_json, table
from tenure.errors import InvalidInput
from tenure.values.text import quantity

if TYPE_CHECKING:
    from tenure.app.export import ExportedFile, Format

retention = command.Group("retention", help="List and set how long settled jobs are kept.")


@retention.command("list")
@command.reading_options
def list_rules(as_json: bool) -> None:
    """List the rules of types and queues.

    A rule of a type comes before one in its code (`handler`), that before one of a queue, and that
    before the settings of servers and workers.
    """
    from tenure.rules.retention import STATUSES, said

    with command.existing() as app:
        rules, now = app.retention.list(), app.core.clock()
    if as_json:
        print_json(rules)
        return
    ages = [[getattr(rule, status) for status in STATUSES] for rule in rules]
    rows = [
        (rule.subject, rule.name, *("" if age is None else said(age) for age in of))
        for rule, of in zip(rules, ages, strict=True)
    ]
    table(("OF", "NAME", *(status.upper() for status in STATUSES)), rows, now=now)


@retention.command("set")
@command.option("--type", "NAME", "The type that gets its own times.", completing.types)
@command.option("--queue", "NAME", "The queue that gets its own times.", completing.queue_names)
@command.option(
    "--completed", "AGE", "How long completed jobs are kept: 1h, 30d, forever, or none."
)
@command.option("--cancelled", "AGE", "How long cancelled jobs are kept.")
@command.option("--failed", "AGE", "How long failed jobs are kept.")
@command.flag("--yes", "Do not ask for confirmation.")
@command.database_option
def set_rule(type: str | None, queue: str | None, *, yes: bool, **ages: str | None) -> None:
    """Change how long settled jobs are kept; `none` removes a rule.

    Asks if jobs have been settled for longer than that already, and if the removed rule keeps jobs.
    """
    from tenure.app.retention import settled_before

    given: dict[str, Any] = {
        status: None if text == "none" else text for status, text in ages.items() if text
    }
    if not given:
        raise InvalidInput("say how long to keep them: --help lists the options")
    with command.application() as app:
        found = settled_before(app.core, type=type, queue=queue, ages=given)
        if found.jobs or not found.exact:
            are = "is" if found.exact and found.jobs == 1 else "are"
            perhaps = "perhaps " if None in given.values() else ""
            command.confirm(f"{perhaps}delete {number(found)} that {are} settled", yes=yes)
        rule = app.retention.set(type=type, queue=queue, **given)
        doubt = type_doubt(app, type) if type else queue_doubt(app, rule.name)
    click.echo(f"{rule.subject} {rule.name} is changed{doubt}")


# --- export ---------------------------------------------------------------------------------------

KEPT = "jobs of a workflow, jobs that others or webhooks need, and jobs that have changed since"
"""Which jobs of a file stay when the others are deleted."""


@contextmanager
def _a_folder_for_files() -> Iterator[None]:
    """Say of a folder or a file that cannot be made what is wrong with it."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno in command.NO_ROOM:
            raise
        why = f"{error.filename} cannot be written: {error.strerror}"
        raise InvalidInput(why, path="FOLDER") from error


@contextmanager
def _answer_of_some(found: list[ExportedFile], as_json: bool) -> Iterator[None]:
    """Print the files that were written before an error: their jobs may be deleted."""
    try:
        yield
    except BaseException:
        if as_json and found:
            print_json(found)
        raise


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@filter_options
@command.option(
    "--after", "ID", "Only jobs added after this job, to continue.", completing.job_ids()
)
@command.option(
    "--format",
    None,
    "Lines of JSON, or Parquet, which needs tenure[parquet].",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
)
@command.flag("--raw", "Write hidden values of payloads, results and errors, too.")
@command.flag("--delete", "Delete the jobs of each file once it is on disk.")
@command.answer_options
def export(
    folder: Path,
    after: str | None,
    format: Format,
    raw: bool,
    delete: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Write settled jobs with their history to files in FOLDER.

    The oldest come first. One job is one line of JSON, as `jobs show --json` prints it. A file has
    up to 50,000 jobs. It gets its name, that of its first and its last job, when it is on disk; no
    file is replaced. --delete keeps jobs that have changed since, and jobs that retention would
    keep. The last line names the --after with which a later export continues.
    """
    from tenure.app.export import export as export_jobs
    from tenure.values.redaction import NOTHING_HIDDEN

    filter_of(**command.known_before(filters))  # names the option that is wrong
    found: list[ExportedFile] = []
    with command.existing() as app, _a_folder_for_files(), _answer_of_some(found, as_json):
        matching = filter_of(**command.all_at(app, filters))
        redaction = NOTHING_HIDDEN if raw else app.core.redaction
        for file in export_jobs(
            app.core,
            folder,
            matching,
            after=after,
            redaction=redaction,
            format=format,
            delete=delete,
        ):
            found.append(file)
            if not as_json:
                jobs = quantity(file.jobs, "job")
                click.echo(f"{file.path}: {jobs}{_deletions(file) if delete else ''}")
    if as_json:
        print_json(found)
    elif found:
        click.echo(f"continue with --after {found[-1].last}")
    else:
        click.echo("no settled job")


def _deletions(file: ExportedFile) -> str:
    kept = file.jobs - file.deleted
    why = f"; {kept} kept: {KEPT}" if kept else ""
    return f", {file.deleted} deleted{why}"
