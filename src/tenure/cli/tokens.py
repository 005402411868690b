"""Commands that create, list and revoke tokens for the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from tenure.cli import completing
from tenure.cli.command import (
    Group,
    application,
    database_option,
    existing,
    json_option,
    option,
    reading_options,
    repeated,
)
from tenure.cli.terminal import print_json, table

if TYPE_CHECKING:
    from tenure.tokens.scopes import AccessToken


@click.group(cls=Group)
def tokens() -> None:
    """Create, list and revoke tokens for the HTTP API."""


@tokens.command()
@click.argument("name")
@repeated(
    "--scope scopes",
    "SCOPE",
    "What it allows: enqueue, work, read or admin",
    completing.words("enqueue", "work", "read", "admin"),
    required=True,
)
@option("--expires", "TIME", "Token lifetime, such as 12h or 90d.  [default: never expires]")
@database_option
@json_option
def create(name: str, scopes: Sequence[str], expires: str | None, as_json: bool) -> None:
    """Create a token and print it once.

    NAME says who uses it; the history of jobs shows it for everything done with the token. Only a
    digest of the token is stored.
    """
    with application() as app:
        secret, made = app.tokens.create(name, scopes, expires=expires)
    if as_json:
        print_json({"token": secret, **_shown(made)})
        return
    click.echo(secret)
    click.echo("It is not shown again: keep it where only its user can read it.", err=True)


@tokens.command("list")
@reading_options
def list_tokens(as_json: bool) -> None:
    """List all tokens, revoked ones too, without their secrets."""
    with existing() as app:
        found, now = app.tokens.list(), app.core.clock()
    if as_json:
        print_json([_shown(token) for token in found])
    else:
        heads = ("NAME", "BEGINS", "SCOPES", "CREATED", "BY", "USED", "EXPIRES", "REVOKED")
        columns = attrgetter(
            *("name", "prefix", "scopes", "created_at", "created_by"),
            *("used_at", "expires_at", "revoked_at"),
        )
        table(heads, map(columns, found), now=now)


@tokens.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.token_names
)
@database_option
def revoke(names: Sequence[str]) -> None:
    """Revoke tokens; servers refuse them within five seconds."""
    with existing() as app:
        for name in names:
            app.tokens.revoke(name)
            click.echo(f"token {name} is revoked")


def _shown(token: AccessToken) -> dict[str, Any]:
    """Return the fields of a token, without its digest."""
    return {name: value for name, value in asdict(token).items() if name != "digest"}
