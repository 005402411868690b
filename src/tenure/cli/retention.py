"""Commands about how long settled jobs of types and queues are kept."""

from __future__ import annotations

from typing import Any

import click

from tenure.cli import completing
from tenure.cli.bulk import number
from tenure.cli.command import Group, application, confirm, existing
from tenure.cli.known import queue_doubt, type_doubt
from tenure.cli.options import database_option, flag, option, reading_options
from tenure.cli.terminal import print_json, table
from tenure.errors import InvalidInput

retention = Group("retention", help="List and set how long settled jobs are kept.")


@retention.command("list")
@reading_options
def list_rules(as_json: bool) -> None:
    """List the rules of types and queues.

    A rule of a type comes before one in its code (`handler`), that before one of a queue, and that
    before the settings of servers and workers.
    """
    from tenure.jobs.retention import STATUSES, said

    with existing() as app:
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
@option("--type", "NAME", "The type that gets its own times.", completing.types)
@option("--queue", "NAME", "The queue that gets its own times.", completing.queue_names)
@option("--completed", "AGE", "How long completed jobs are kept: 1h, 30d, forever, or none.")
@option("--cancelled", "AGE", "How long cancelled jobs are kept.")
@option("--failed", "AGE", "How long failed jobs are kept.")
@flag("--yes", "Do not ask for confirmation.")
@database_option
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
    with application() as app:
        found = settled_before(app.core, type=type, queue=queue, ages=given)
        if found.jobs or not found.exact:
            are = "is" if found.exact and found.jobs == 1 else "are"
            perhaps = "perhaps " if None in given.values() else ""
            confirm(f"{perhaps}delete {number(found)} that {are} settled", yes=yes)
        rule = app.retention.set(type=type, queue=queue, **given)
        doubt = type_doubt(app, type) if type else queue_doubt(app, rule.name)
    click.echo(f"{rule.subject} {rule.name} is changed{doubt}")
