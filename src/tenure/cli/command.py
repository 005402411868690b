"""What all commands share: --database, --json, --wide, and how errors end the program."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from tenure.errors import (
    BulkNotFound,
    InvalidInput,
    JobNotFound,
    SchemaMismatch,
    StoreUnavailable,
    TenureError,
)
from tenure.jobs.text import visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure

Decorator = Callable[[Any], Any]

REFUSED = 1
EXIT_CODES: Mapping[type[TenureError], int] = {
    InvalidInput: 2,
    JobNotFound: 3,
    BulkNotFound: 3,
    StoreUnavailable: 4,
    SchemaMismatch: 4,
}
"""By class of error; every other error of the tree is a refusal."""
INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

DATABASE = "tenure.database"
WIDE = "tenure.wide"
READ_VARIABLES = ("TENURE_DATABASE", "TENURE_CONFIG", "TENURE_REDACT")


class Group(click.Group):
    """A group of commands that turns errors into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TenureError as error:
            complain(error)
            ctx.exit(exit_code(error))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            click.echo(f"Error: the output could not be written: {error.strerror}", err=True)
            ctx.exit(REFUSED)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def complain(error: TenureError) -> None:
    """Print an error to standard error."""
    click.echo(f"Error: {visible(' '.join(str(error).split()))}", err=True)
    if isinstance(error, StoreUnavailable):
        click.echo("`tenure doctor` says what is wrong with a database.", err=True)


def exit_code(error: TenureError) -> int:
    """Return the exit code for an error, by its class or the nearest one above it."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), REFUSED)


# --- options and applications -------------------------------------------------------------------


def option(
    flags: str, metavar: str | None, help: str, complete: Any = None, **more: Any
) -> Decorator:
    """Make an option that has a value, with completion of that value."""
    return click.option(
        *flags.split(),
        metavar=metavar,
        help=help,
        shell_complete=complete,
        show_default=True,
        **more,
    )


def repeated(flags: str, metavar: str, help: str, complete: Any = None, **more: Any) -> Decorator:
    """Make an option that may be given several times; its last flag names the values."""
    return option(flags, metavar, f"{help}; may be repeated.", complete, multiple=True, **more)


def together(*options: Decorator) -> Decorator:
    """Make one decorator of several options, which help lists in this order."""
    return lambda command: reduce(lambda done, add: add(done), reversed(options), command)


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a value beside the command's arguments, under its option before the command too."""
    if value is not None:
        ctx.meta[f"tenure.{parameter.name}"] = value


database_option = click.option(
    "--database",
    metavar="URL",
    expose_value=False,
    callback=_keep,
    help="sqlite:///jobs.db or postgresql://host/name; also before the command.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
wide_option = click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=_keep,
    help="Print all columns and whole texts, even if the terminal is too narrow.",
)
reading_options = together(database_option, json_option, wide_option)
"""The options of a command that prints a table."""


def chosen_database() -> str | None:
    """Return the value of --database, before or after the command."""
    value: str | None = click.get_current_context().meta.get(DATABASE)
    return value


def application() -> Tenure:
    """Make the application on the chosen database; its actor is the user who is logged in."""
    from tenure.app.app import Tenure
    from tenure.settings import load

    # Nothing else is read: a PORT that means something else must not keep `stats` from working.
    known = {name: os.environ[name] for name in READ_VARIABLES if name in os.environ}
    found = load({"database": chosen_database()}, known)
    return Tenure(found.database, actor=operator(), redact=found.redact)


def existing() -> Tenure:
    """Open the application on a database that exists, so that a mistyped address makes no file."""
    return application().open(make=False)


def operator() -> str:
    """Return the actor for the ledger: `cli:name@machine`."""
    import getpass
    import socket

    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        name = str(os.getuid())
    label = f"cli:{name}@{socket.gethostname()}"
    return label if label.isprintable() and len(label) <= 255 else "cli"
