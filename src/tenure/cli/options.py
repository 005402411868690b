"""The options that commands share: --database, --json and --wide, and how the others are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import click

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
        from tenure.jobs.ids import is_id

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
