"""Commands about workflows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from tenure.cli import command
from tenure.cli.bulk import finish
from tenure.cli.completing import words
from tenure.cli.terminal import print_json, table, when
from tenure.values.text import visible

if TYPE_CHECKING:
    from tenure.rules.workflows import Shape, Tie

STATUSES = ("running", "completed", "failed", "cancelled")
ARROWS = {"completed": "-->", "settled": "-. settled .->", "failed": "-. failed .->"}

workflows = command.Group(
    "workflows", help="Show, cancel and retry workflows, and draw their graphs."
)

an_id = click.argument("id", type=command.Id())


@workflows.command("list")
@command.option("--status", "STATUS", f"Only these: {', '.join(STATUSES)}.", words(*STATUSES))
@command.option("--name", "NAME", "Only workflows of this name.")
@click.option("--limit", default=50, help="Most workflows to list, up to 500.", show_default=True)
@command.option("--before", "ID", "Only workflows that are older than this one.")
@command.reading_options
def list_workflows(
    status: str | None, name: str | None, limit: int, before: str | None, as_json: bool
) -> None:
    """List workflows, newest first."""
    with command.existing() as app:
        page = app.workflows.list(status=status, name=name, limit=limit, before=before)
        now = app.core.clock()
    rows = [
        (*(one.id, one.name, one.status, one.key), one.created_at, one.created_by, one.finished_at)
        for one in page.workflows
    ]
    heads = ("ID", "NAME", "STATUS", "KEY", "CREATED", "BY", "FINISHED")
    print_json(page.workflows) if as_json else table(heads, rows, now=now, spare=("BY",))


@workflows.command()
@an_id
@command.answer_options
def show(id: str, as_json: bool) -> None:
    """Show a workflow, with the number of its jobs by status."""
    with command.existing() as app:
        found = app.workflows.get(id)
    if as_json:
        print_json(found)
        return
    facts = {
        "id": found.id,
        "name": found.name,
        "key": found.key,
        "status": found.status,
        "jobs": _counts(found.jobs or {}),
        "created": f"{when(found.created_at)} by {found.created_by}",
        "finished": found.finished_at and when(found.finished_at),
    }
    for name, value in facts.items():
        if value:
            click.echo(f"{name + ':':<9} {visible(value)}")


@workflows.command()
@an_id
@command.flag("--everything", "Also the jobs that all wait for a failure, or for any ending.")
@command.reason_option
@command.answer_options
def cancel(id: str, everything: bool, reason: str | None, as_json: bool) -> None:
    """Cancel the jobs of a workflow."""
    with command.existing() as app:
        finish(app, app.workflows.cancel(id, everything=everything, reason=reason), as_json)


@workflows.command()
@an_id
@click.option("--more-retries", default=1, help="Attempts to add.", show_default=True)
@command.reason_option
@command.answer_options
def retry(id: str, more_retries: int, reason: str | None, as_json: bool) -> None:
    """Retry the failed jobs of a workflow.

    Jobs that were skipped because of them wait again.
    """
    with command.existing() as app:
        finish(app, app.workflows.retry(id, more_retries=more_retries, reason=reason), as_json)


@workflows.command()
@an_id
@command.flag("--mermaid", "Print a flowchart for Mermaid.")
@command.reading_options
def graph(id: str, mermaid: bool, as_json: bool) -> None:
    """Show what waits for what. Jobs of one type with the same parents and children are one line.

    A workflow with too many different jobs is shown by type.
    """
    from tenure.app.jobs import shape_shown, types_shown

    with command.existing() as app:
        found = app.workflows.get(id)
        shape = shape_shown(app.core, found.id)
        types = {} if shape else types_shown(app.core, found.id)
    if as_json:
        print_json(shape or {"types": types})
    elif shape is None:
        rows = [(type, sum(by.values()), _counts(by)) for type, by in types.items()]
        table(("TYPE", "JOBS", "STATUSES"), rows)
    elif mermaid:
        click.echo("\n".join(_flowchart(shape)))
    else:
        _print(shape)


def _print(shape: Shape) -> None:
    after = defaultdict[int, list[str]](list)
    for tie in shape.ties:
        after[tie.child].append(_parent(tie))
    rows = [
        (number, stack.type, stack.jobs, _counts(stack.statuses), after[number - 1])
        for number, stack in enumerate(shape.stacks, 1)
    ]
    table(("NUMBER", "TYPE", "JOBS", "STATUSES", "AFTER"), rows)


def _parent(tie: Tie) -> str:
    return str(tie.parent + 1) + ("" if tie.meets == "completed" else f":{tie.meets}")


def _flowchart(shape: Shape) -> Iterable[str]:
    yield "flowchart TD"
    for number, stack in enumerate(shape.stacks, 1):
        times = f" ({stack.jobs})" if stack.jobs > 1 else ""
        words = _counts(stack.statuses) if stack.jobs > 1 else next(iter(stack.statuses))
        yield f'    n{number}["{visible(stack.type)}{times}<br/>{words}"]'
    for parent, child, meets, _ in shape.ties:
        yield f"    n{parent + 1} {ARROWS.get(meets, '-.->')} n{child + 1}"


def _counts(by_status: Mapping[str, int]) -> str:
    return ", ".join(f"{jobs} {status}" for status, jobs in by_status.items() if jobs)
