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

`tools/cli_page.py` writes this page from the commands. A test fails if the page is not current.
`tenure COMMAND --help` prints the same in the terminal. `python -m tenure` is the same as `tenure`.

## Which database

Every command that uses a database takes `--database URL`, before or after its name. Without it, the
command uses the first of these: `TENURE_DATABASE`, the `database` in the file that `TENURE_CONFIG`
names, `sqlite:///tenure.db`.

- A server or worker without these settings uses the database of its `--app`. With one of them, it
  uses that database for the applications that it loads.
- A worker with `--server` needs no database.
- `demo` uses a temporary database, unless `--database` names an empty one.

All other settings are in [Settings](settings.md).

## Output

Answers go to standard output. Errors and logs go to standard error.

- Without `--json`, an answer is a table or a few lines for people. On a terminal, rows are not
  wrapped: if a table is too wide, columns are left out, with a note, and long texts end in `…`.
  `--wide` shows everything. Output to a file or to another program is never cut.
- Statuses have colours on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
- `--json` prints one JSON document, in the format of the [HTTP API](http.md). `jobs show` prints
  `{"job": …, "history": […], "explanation": …}`. `tail` and `top` print one document per line.
- Texts from jobs cannot control the terminal. Control characters, escape sequences and direction
  marks are shown as escapes, also in JSON.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | refused by a job's status, a full queue or a used key; violations, problems or a failed job |
| 2 | invalid input: an unknown option, a payload, a name, an address, a missing module |
| 3 | no such job |
| 4 | the database or server does not exist or does not answer, or the schema does not fit |
| 5 | the job that was waited for is not settled in time |
| 6 | the job that was waited for was cancelled |
| 130 | interrupted; but `top`, `tail`, `serve` and `worker` end with 0 |

An error message says what happened, where, and what to do next. Only a bug in Tenure or in the
application of `--app` prints a traceback. If one of several ids or names is
refused, or locked by a transaction, the command continues with the next; the first error sets the
exit code.

Commands that read or change jobs need an existing database, so that a wrong address does not create
a file. These commands create the database: `migrate`, `enqueue`, `serve`, `worker`, the settings of
`queues`, and `create` of `tokens` and `webhooks`.

## Completion

`tenure completion` prints a script for bash (4.4 or newer), zsh or fish. Its help says where to put
the script. It completes commands, options, statuses and events. From the database, it completes the
names of queues, types, tokens and webhooks, and the ids of recent jobs. It waits one second at most
for the database.
"""

FAKE_HANDLERS = """\
## Fake handlers

With `--fake-handlers`, a job of a type without a handler succeeds at once, whatever its payload.
It fails only by the rules of `--fail-type` and `--fail-every`. Nothing is random: the same jobs,
started in the same order, fail in the same way. Some types have special behaviour:

| type | payload | what it does |
|---|---|---|
| `fake.flaky` | `{"fail_times": k}` | fails the first k attempts |
| `fake.sleep` | `{"seconds": s}` | sleeps |
| `fake.fail` | any | fails every attempt |
| `fake.crash` | `{"crash_times": k}` | kills its worker in the first k attempts (1) |

`fake.crash` sends SIGKILL to its own process, which is the server under `tenure serve`. After the
lease has ended, another worker runs the next attempt.
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
