"""Commands about what has a secret: tokens for the HTTP API, and webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import command, completing
from tenure.cli.terminal import print_json, table
from tenure.values.text import visible

if TYPE_CHECKING:
    from tenure.rules.tokens import AccessToken

tokens = command.Group("tokens", help="Create, list and revoke tokens for the HTTP API.")
webhooks = command.Group("webhooks", help="Create, list and remove webhooks: URLs that get events.")


@tokens.command("create")
@click.argument("name")
@command.repeated(
    "--scope scopes",
    "SCOPE",
    "What it allows: enqueue, work, read or admin",
    completing.words("enqueue", "work", "read", "admin"),
    required=True,
)
@command.queues(
    "Only for this queue, or for all with this beginning: 'shop.*'", completing.queue_names
)
@command.option(
    "--expires", "TIME", "Token lifetime, such as 12h or 90d.  [default: never expires]"
)
@command.answer_options
def create_token(
    name: str, scopes: Sequence[str], queues: Sequence[str], expires: str | None, as_json: bool
) -> None:
    """Create a token and print it once.

    NAME says who uses it; the history of jobs shows it for everything done with the token. Only a
    digest of the token is stored.
    """
    with command.application() as app:
        secret, made = app.tokens.create(name, scopes, queues=queues or None, expires=expires)
    if as_json:
        print_json({"token": secret, **_shown(made)})
        return
    click.echo(secret)
    click.echo("It is not shown again: keep it where only its user can read it.", err=True)


@tokens.command("list")
@command.reading_options
def list_tokens(as_json: bool) -> None:
    """List all tokens, revoked ones too, without their secrets."""
    with command.existing() as app:
        found, now = app.tokens.list(), app.core.clock()
    if as_json:
        print_json([_shown(token) for token in found])
    else:
        times = ("CREATED", "BY", "USED", "EXPIRES", "REVOKED")
        columns = attrgetter("created_at", "created_by", "used_at", "expires_at", "revoked_at")
        rows = ((t.name, t.prefix, t.scopes, t.queues or "any", *columns(t)) for t in found)
        table(("NAME", "BEGINS", "SCOPES", "QUEUES", *times), rows, now=now)


@tokens.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.token_names
)
@command.database_option
def revoke(names: Sequence[str]) -> None:
    """Revoke tokens; servers refuse them within five seconds."""
    with command.existing() as app:

        def revoke_one(name: str) -> None:
            app.tokens.revoke(name)
            click.echo(f"token {visible(name)} is revoked")

        click.get_current_context().exit(command.change_each(names, revoke_one))


def _shown(token: AccessToken) -> dict[str, Any]:
    """Return the fields of a token, without its digest."""
    return {name: value for name, value in asdict(token).items() if name != "digest"}


@webhooks.command("create")
@click.argument("name")
@click.argument("url")
@command.repeated(
    "--event events",
    "EVENT",
    "Send this event, such as failed",
    type=completing.EventName(),
    required=True,
)
@command.repeated("--type types", "TYPE", "Only for jobs of this type", completing.types)
@command.queues("Only for jobs of this queue", completing.queue_names)
@command.answer_options
def create_webhook(name: str, url: str, events: Sequence[str], as_json: bool, **only: Any) -> None:
    """Send events to URL, and print the signing secret once.

    NAME is how you list and remove the webhook. Only events from now on are sent.
    """
    with command.application() as app:
        named = {what: names or None for what, names in only.items()}
        secret, made = app.webhooks.create(name, url, events, **named)
    if as_json:
        from msgspec import structs

        print_json({"secret": secret, **structs.asdict(made)})
        return
    click.echo(secret)
    click.echo("It is not shown again. The receiver needs it to check signatures.", err=True)


@webhooks.command("list")
@command.reading_options
def list_webhooks(as_json: bool) -> None:
    """List webhooks, without their secrets."""
    with command.existing() as app:
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
@command.database_option
def remove(names: Sequence[str]) -> None:
    """Remove webhooks; events that are not delivered yet are dropped."""
    with command.existing() as app:

        def remove_one(name: str) -> None:
            app.webhooks.remove(name)
            click.echo(f"webhook {visible(name)} is removed")

        click.get_current_context().exit(command.change_each(names, remove_one))
