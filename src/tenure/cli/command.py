"""What all commands share: options, the application that they use, how errors end the program.

The options are --database, --json and --wide, and what makes the others. Times are read as the
command line takes them: a date and a time, and for what is past, how long ago.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from tenure import errors
from tenure.values.text import visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure

DATABASE = "tenure.database"
APPLICATION = "tenure.application"
"""Where a program that has these commands puts its `Tenure`, in the `meta` of its context."""
PROGRAM = "tenure.program"
"""Where it puts how the commands are called there, such as `flask tenure`."""
WIDE = "tenure.wide"
Decorator = Callable[[Any], Any]


class Id(click.ParamType):  # type: ignore[type-arg]
    """An id as people copy it: with spaces or quotes around it, or in capitals."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id as Tenure writes it."""
        from tenure.values.ids import is_id

        tidy = str(value).strip(" \t\r\n,;'\"").lower()
        return tidy if is_id(tidy) else str(value)


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


def queues(help: str, complete: Any) -> Decorator:
    """Make the option --queue, which names one queue each time that it is given."""
    return repeated("--queue queues", "NAME", help, complete, callback=_without_commas)


def _without_commas(
    ctx: click.Context, parameter: click.Parameter, names: Sequence[str]
) -> Sequence[str]:
    if any("," in name for name in names):
        raise click.BadParameter("no name has a comma: give --queue once for each queue")
    return names


def flag(flags: str, help: str, **more: Any) -> Decorator:
    """Make an option without a value."""
    return click.option(*flags.split(), is_flag=True, help=help, **more)


def together(*options: Decorator) -> Decorator:
    """Make one decorator of several options, which help lists in this order."""
    return lambda command: reduce(lambda done, add: add(done), reversed(options), command)


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep a value beside the command's arguments, under its option before the command too."""
    if value is not None:
        ctx.meta[f"tenure.{parameter.name}"] = value


database_option = option(
    "--database",
    "URL",
    "sqlite:///jobs.db or postgresql://host/name; also before the command.",
    expose_value=False,
    callback=_keep,
)
json_option = flag("--json as_json", "Print one JSON document.")
wide_option = flag(
    "--wide",
    "Print all columns and whole texts, even if the terminal is too narrow.",
    expose_value=False,
    callback=_keep,
)
reason_option = option("--reason", "TEXT", "Why, for the ledger.")
answer_options = together(database_option, json_option)
"""The options of a command whose answer may be asked for as JSON."""
reading_options = together(answer_options, wide_option)
"""The options of a command that prints a table."""


# --- application and errors -----------------------------------------------------------------------

REFUSED = 1
EXIT_CODES: Mapping[type[errors.TenureError], int] = {
    errors.InvalidInput: 2,
    errors.JobNotFound: 3,
    errors.BulkNotFound: 3,
    errors.ScheduleNotFound: 3,
    errors.WorkflowNotFound: 3,
    errors.StoreUnavailable: 4,
    errors.SchemaMismatch: 4,
    errors.StoreMoved: 4,
}
"""By class of error; every other error of the tree is a refusal."""
INTERRUPTED = 130
STANDARD = (
    *("starlette", "uvicorn", "httptools", "jinja2", "prometheus_client", "rich"),
    "watchfiles",
)
"""What the extra `standard` adds, by the names that are imported."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
READ_VARIABLES = ("TENURE_DATABASE", "TENURE_MIGRATE", "TENURE_CONFIG", "TENURE_REDACT")


class Group(click.Group):
    """A group of commands that turns errors into a message and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _output(ctx):  # of --help
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _output(ctx):
                return super().invoke(ctx)
        except errors.TenureError as error:
            ctx.exit(complain(error))
        except ModuleNotFoundError as error:
            if error.name not in STANDARD:
                raise
            missing = f"this command needs {error.name}: pip install 'tenure[standard]'"
            ctx.exit(complain(errors.InvalidInput(missing)))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args[0].startswith("-"):
                raise
            said = error.format_message() + self._instead(ctx, args[0])
            raise click.UsageError(said, ctx) from error

    def _instead(self, ctx: click.Context, wanted: str) -> str:
        """Say which commands there are instead of one that there is not."""
        if ctx.parent is not None:
            return f" `{ctx.command_path}` has {', '.join(self.commands)}."
        groups = {n: c for n, c in self.commands.items() if isinstance(c, click.Group)}
        having = (name for name, group in groups.items() if wanted in group.commands)
        found = [f"`{ctx.command_path} {name} {wanted}`" for name in having]
        return f" Perhaps {', '.join(found)}?" if found else ""


@contextmanager
def _output(ctx: click.Context) -> Iterator[None]:
    """Say that the output could not be written, if that is so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        click.echo(f"Error: the output could not be written: {error.strerror}", err=True)
        ctx.exit(REFUSED)


def confirm(would: str, *, yes: bool, instead: str = "") -> None:
    """Ask before what cannot be undone; raises InvalidInput where no terminal can answer.

    `would` says what it does, and `instead` what else one can do than to add --yes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise errors.InvalidInput(f"this would {would}; add --yes{instead}", path="--yes")
    click.confirm(f"{would.capitalize()}?", abort=True, err=True)


def change_each(names: Sequence[str], change: Callable[[str], None]) -> int:
    """Change what has these names or ids; return the exit code.

    The first refusal sets it, and the others still change.
    """
    code = 0
    for name in names:
        try:
            change(name)
        except errors.TenureError as error:
            said = complain(error, name)
            code = code or said
            if isinstance(error, errors.StoreUnavailable) and not error._is_locked:
                code = said  # nor will it answer for the others
                break
    return code


def complain(error: errors.TenureError, about: str = "") -> int:
    """Print an error to standard error, and return its exit code."""
    text = " ".join(str(error).split())
    if about and about not in text:
        text = f"{about}: {text}"
    click.echo(f"Error: {as_called(visible(text))}", err=True)
    if isinstance(error, errors.StoreUnavailable):
        click.echo(as_called("`tenure doctor` says what is wrong with a database."), err=True)
    return exit_code(error)


def exit_code(error: errors.TenureError) -> int:
    """Return the exit code for an error, by its class or the nearest one above it."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), REFUSED)


def chosen_database() -> str | None:
    """Return the value of --database, before or after the command, else that of the host."""
    value: str | None = click.get_current_context().meta.get(DATABASE)
    host = application_of_host()
    return host.database if value is None and host is not None else value


def lend(context: click.Context, app: Tenure) -> None:
    """Let the commands of a context use the application of the program that has them."""
    context.meta[APPLICATION] = app
    context.meta[PROGRAM] = context.command_path


def program() -> str:
    """Return how these commands are called here: `tenure`, or for example `flask tenure`."""
    found: str = click.get_current_context().meta.get(PROGRAM, "tenure")
    return found


def as_called(text: str) -> str:
    """Return a text in which advised commands begin with what calls them here."""
    return text.replace("`tenure ", f"`{program()} ")


def application_of_host() -> Tenure | None:
    """Return the application of the program that has these commands, such as `flask`."""
    found: Tenure | None = click.get_current_context().meta.get(APPLICATION)
    return found


def application() -> Tenure:
    """Make the application on the chosen database; its actor is the user who is logged in."""
    from tenure.app.app import Tenure
    from tenure.settings import load

    host = application_of_host()
    if host is not None and chosen_database() == host.database:
        host.core.actor = operator()
        return host  # it knows the options of its types
    # Nothing else is read: a PORT that means something else must not keep `stats` from working.
    known = {name: os.environ[name] for name in READ_VARIABLES if name in os.environ}
    found = load({"database": chosen_database()}, known)
    # A connection that is lost is replaced, or an error says so: no line of the pool adds to that.
    logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())
    return Tenure(found.database, migrate=found.migrate, actor=operator(), redact=found.redact)


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


# --- times ----------------------------------------------------------------------------------------

Past = datetime | timedelta
"""A time, or how long it is before the time of the store: only that one decides."""
ZONED = "write it with a zone, such as 2026-01-31T12:00:00Z"


def time_given(_: click.Context, given: click.Parameter, text: str | None) -> datetime | None:
    """Read a time; the callback of an option."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise errors.InvalidInput(f"not a time; {ZONED}", path=given.opts[0]) from None


def past_given(_: click.Context, given: click.Parameter, text: str | None) -> Past | None:
    """Read a time, `now`, or how long ago a time is; the callback of an option or an argument.

    A number needs its unit: without, it may be meant as a year.
    """
    from tenure.values.durations import seconds

    if text is None:
        return None
    if text == "now":
        return timedelta()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        advice = f"not a time; {ZONED}, or how long ago, such as 2h or 3d, or now"
        if not text[-1:].isalpha():
            raise errors.InvalidInput(advice, path=given.opts[0]) from None
    try:
        return timedelta(seconds=seconds(text))
    except errors.InvalidInput:
        raise errors.InvalidInput(advice, path=given.opts[0]) from None


def past_option(flags: str, help: str) -> Decorator:
    """Make an option that takes such a time."""
    said = f"{help}: 2h (ago), now, 2026-01-31T12:00:00Z."
    return option(flags, "WHEN", said, callback=past_given)


def at(app: Tenure, past: Past) -> datetime:
    """Return the time that is meant, by the store's clock if it is how long ago."""
    return app.core.clock() - past if isinstance(past, timedelta) else past


def all_at(app: Tenure, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the times that are meant."""
    some = {key: at(app, past) for key, past in options.items() if isinstance(past, timedelta)}
    return {**options, **some}


def known_before(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose values are known before the store is asked for its time."""
    return {key: value for key, value in options.items() if not isinstance(value, timedelta)}
