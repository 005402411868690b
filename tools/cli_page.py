"""Write docs/reference/cli.md from the commands themselves: `python tools/cli_page.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from tenure.cli import cli

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"

HEAD = """\
# Command line

This page is written by `tools/cli_page.py` from the commands themselves; a test fails when the two
differ. `tenure COMMAND --help` says the same in the terminal, and `python -m tenure` is `tenure`.

## Which database

Every command that uses one takes `--database URL`, before or after its name. Without it, the
database is `TENURE_DATABASE`, else `database` in the file that `TENURE_CONFIG` names, else
`sqlite:///tenure.db`. A server or worker without any of these uses the database of its `--app`;
with one of them, the applications it loads are put on that database too. With `--server`, a worker
needs no database. `demo` uses a throw-away one, unless `--database` names an empty one. Every other
setting is on [its own page](settings.md).

## Output

Answers go to standard output, errors and logs to standard error. Without `--json` an answer is a
table or a few lines for people: on a terminal no row is wrapped. Where there is no room, columns
are left out, with a note, and long texts end in `…`; `--wide` shows all, and nothing is cut on its
way to a file or another program. Statuses have colours on a terminal, unless `NO_COLOR` is set or
`TERM` is `dumb`. `--json` prints one JSON document, in the shapes of the [HTTP API](http.md); `jobs
show` prints `{"job": …, "history": […], "explanation": …}`, and `tail` and
`top` a document on each line.
Texts that come from jobs cannot act on the terminal: control characters, escape sequences and
direction marks are shown as escapes, in JSON too.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | refused by a job's status, a full queue, a used key; violations or problems were found |
| 2 | bad input: an unknown option, a payload, a name, an address, a module that is not there |
| 3 | no such job |
| 4 | the database or the server is not there or does not answer, or the schema does not fit |
| 130 | interrupted; `top`, `tail`, `serve` and `worker`, which are meant to be, end with 0 |

An error is printed as what happened, where, and what to do next. Only a fault in Tenure or in the
application that `--app` names ends in a traceback. A command that takes several jobs goes on after
a refusal; the first one sets the exit code. Commands that read or change jobs need a database that
is there, so that a mistyped address makes no file. Those that begin something make one: `migrate`,
`enqueue`, `serve`, `worker`, the settings of `queues`, and `create` of `tokens` and `webhooks`.

## Completion

`tenure completion` prints a script for bash (4.4 or newer), zsh or fish, and its help says where to
put it. Beside commands and options it completes statuses and events, and from the database the
names of queues, types, tokens and webhooks and the ids of recent jobs. A database that does not
answer within a second is not waited for.
"""

FAKE_HANDLERS = """\
## Fake handlers

With `--fake-handlers`, every type that has no handler succeeds at once, whatever its payload,
except for the rules given by `--fail-type` and `--fail-every`. Nothing is left to chance: the same
jobs started in the same order fail in the same way. Some types have a behaviour of their own:

| type | payload | what it does |
|---|---|---|
| `fake.flaky` | `{"fail_times": k}` | fails the first k attempts |
| `fake.sleep` | `{"seconds": s}` | sleeps |
| `fake.fail` | any | fails every attempt |
| `fake.crash` | `{"crash_times": k}` | kills its worker in the first k attempts (1) |

`fake.crash` sends SIGKILL to the process it runs in, which under `tenure serve` is the server.
The lease runs out, and the next attempt is another worker's.
"""


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


def section(name: str, command: click.Command) -> str:
    """The part of the page about one command."""
    context = click.Context(command, info_name=name)
    arguments = [
        parameter.make_metavar(context)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    text = inspect.cleandoc(command.help or "")
    rows = [
        f"| {_code(record[0])} | {record[1]} |"
        for option in command.params
        if isinstance(option, click.Option)
        and option.name != "database"  # every command has it
        and (record := option.get_help_record(context))
    ]
    title = " ".join(("tenure", name, *arguments))
    table = "\n".join(("", "| option | meaning |", "|---|---|", *rows, "")) if rows else ""
    return f"### `{title}`\n\n{text}\n{table}"


def _code(option: str) -> str:
    return "`" + option.replace("|", "\\|") + "`"


def page() -> str:
    """The whole page."""
    sections = [section(name, command) for name, command in commands(cli)]
    return "\n".join((HEAD, "## Commands\n", *sections, FAKE_HANDLERS))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
