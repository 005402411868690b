"""What all commands share: --database, --json, --wide, and how errors end the program."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

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
    from tenure.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

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
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return REFUSED


# --- options and applications -------------------------------------------------------------------


def option(
    flags: str, metavar: str, help: str, complete: Any = None, **more: Any
) -> Callable[[Command], Command]:
    """Make an option that has a value, with completion of that value."""
    names = flags.split()
    return click.option(*names, metavar=metavar, help=help, shell_complete=complete, **more)


def _keep_database(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[DATABASE] = value


database_option = click.option(
    "--database",
    metavar="URL",
    expose_value=False,
    callback=_keep_database,
    help="sqlite:///jobs.db or postgresql://host/name; also before the command.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def _keep_wide(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[WIDE] = value


wide_option = click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=_keep_wide,
    help="Print all columns and whole texts, even if the terminal is too narrow.",
)


def reading_options(command: Command) -> Command:
    """Add the options of a command that prints a table: --database, --json and --wide."""
    return database_option(json_option(wide_option(command)))


def settings_of(**flags: Any) -> Settings:
    """Load the settings of this command: its flags, the environment, the configuration file."""
    from tenure import settings

    return settings.load({"database": chosen_database(), **flags}, os.environ)


def chosen_database() -> str | None:
    """Return the value of --database, before or after the command."""
    value: str | None = click.get_current_context().meta.get(DATABASE)
    return value


def database_given(database: str) -> bool:
    """Return True if the user chose the database, False if it is the default."""
    from tenure.settings import DEFAULT_DATABASE

    given = chosen_database() is not None or "TENURE_DATABASE" in os.environ
    return given or database != DEFAULT_DATABASE


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
