"""Commands that create, list and remove webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from tenure.cli import completing
from tenure.cli.command import (
    Group,
    application,
    database_option,
    existing,
    json_option,
    reading_options,
    repeated,
)
from tenure.cli.terminal import print_json, table


@click.group(cls=Group)
def webhooks() -> None:
    """Create, list and remove webhooks: URLs that get events."""


@webhooks.command()
@click.argument("name")
@click.argument("url")
@repeated(
    "--event events",
    "EVENT",
    "Send this event, such as failed",
    type=completing.EventName(),
    required=True,
)
@repeated("--type types", "TYPE", "Only for jobs of this type", completing.types)
@repeated("--queue queues", "NAME", "Only for jobs of this queue", completing.queue_names)
@database_option
@json_option
def create(name: str, url: str, events: Sequence[str], as_json: bool, **only: Any) -> None:
    """Send events to URL, and print the signing secret once.

    NAME is how you list and remove the webhook. Only events from now on are sent.
    """
    with application() as app:
        secret, made = app.webhooks.create(name, url, events, **only)
    if as_json:
        print_json({"secret": secret, **asdict(made)})
        return
    click.echo(secret)
    click.echo("It is not shown again. The receiver needs it to check signatures.", err=True)


@webhooks.command("list")
@reading_options
def list_webhooks(as_json: bool) -> None:
    """List webhooks, without their secrets."""
    with existing() as app:
        found, now = app.webhooks.list(), app.core.clock()
    if as_json:
        print_json(found)
        return
    rows = [
        (w.name, w.url, w.events, w.types or "any", w.queues or "any", w.created_at, w.created_by)
        for w in found
    ]
    table(("NAME", "URL", "EVENTS", "TYPES", "QUEUES", "CREATED", "BY"), rows, now=now)


@webhooks.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.webhook_names
)
@database_option
def remove(names: Sequence[str]) -> None:
    """Remove webhooks; events that are not delivered yet are dropped."""
    with existing() as app:
        for name in names:
            app.webhooks.remove(name)
            click.echo(f"webhook {name} is removed")
