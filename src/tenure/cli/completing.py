"""Completion in the shell: the script that switches it on, and what can be completed.

Names come from the database if it answers at once. A user who presses Tab waits, and everything
that is printed appears in the middle of the line. So a database is asked for a moment only, on a
thread that is then abandoned; it is never created, and its errors are not shown.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from click import shell_completion as shells
from click.shell_completion import CompletionItem

import tenure
from tenure.cli.command import application
from tenure.errors import TenureError
from tenure.values.names import is_name
from tenure.values.text import visible

VARIABLE = "_TENURE_COMPLETE"
"""The shell asks the program for completions with this variable, which click names."""
PATIENCE_SECONDS = 1.0
MAX_OFFERED = 50
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Items = Iterable[tuple[str, str]]


class _WithEquals(shells.ShellComplete):
    """Also completes the value in `--option=value`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        # zsh and fish put what they get in the place of the whole word.
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions([word for word in args if word != "="], incomplete)
        if option.startswith("--") and equals:
            for item in found:
                item.value = f"{option}={item.value}"
        return found


@shells.add_completion_class
class _Bash(_WithEquals, shells.BashComplete):
    pass


@shells.add_completion_class
class _Zsh(_WithEquals, shells.ZshComplete):
    # A new user's .zshrc has not switched completion on, and `compdef` comes with that.
    source_template = shells.ZshComplete.source_template.replace(
        "    compdef ",
        "    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n    compdef ",
    )


@shells.add_completion_class
class _Fish(_WithEquals, shells.FishComplete):
    # Descriptions hold commas, too.
    source_template = shells.FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


SHELLS: Mapping[str, type[shells.ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that switches completion on in a shell.

    \b
    bash  echo 'eval "$(tenure completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(tenure completion zsh)"' >> ~/.zshrc
    fish  tenure completion fish > ~/.config/fish/completions/tenure.fish

    Then start a new shell. Queues, types, tokens and recent jobs are completed from the database.
    """
    root = click.get_current_context().find_root().command
    click.echo(SHELLS[shell](root, {}, "tenure", VARIABLE).source())


def words(*choices: str) -> Complete:
    """Complete one of these words."""
    return lambda _context, _parameter, typed: _matching(typed, ((word, "") for word in choices))


def statuses(_context: click.Context, _parameter: click.Parameter, typed: str) -> Any:
    from tenure.lifecycle import Status

    return _matching(typed, ((str(status), "") for status in Status))


def states(_context: click.Context, _parameter: click.Parameter, typed: str) -> Any:
    from tenure.rules.search import State

    return _matching(typed, ((str(state), "") for state in State))


class EventName(click.ParamType):  # type: ignore[type-arg]
    """An event of the lifecycle, which is imported only if a value is given."""

    name = "event"

    def convert(self, value: str, param: Any, ctx: click.Context | None) -> str:
        from tenure.lifecycle import EVENTS

        if value not in EVENTS:
            self.fail(f"{value!r} is not one of {', '.join(EVENTS)}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: Any, incomplete: str) -> Any:
        from tenure.lifecycle import EVENTS

        return _matching(incomplete, ((event, "") for event in EVENTS))


def _from_database(read: Callable[[tenure.Tenure], Items]) -> Complete:
    """Complete what `read` finds in the database; nothing if it is slow or fails."""

    def complete(context: click.Context, _: click.Parameter, typed: str) -> list[CompletionItem]:
        try:
            with context.scope(cleanup=False):  # the context knows --database
                app = application()
        except TenureError:  # settings that cannot be read
            return []
        from tenure.app.upkeep import is_usable

        answers: list[list[CompletionItem]] = []

        def look() -> None:
            with contextlib.suppress(Exception):
                if is_usable(app):  # a Tab makes no database, and brings none up to date
                    # The shell may run what is on its line, so only names are offered.
                    found = ((name, visible(help)) for name, help in read(app) if is_name(name))
                    answers.append(_matching(typed, found))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        return answers[0][:MAX_OFFERED] if answers else []

    return complete


queue_names = _from_database(lambda app: ((queue.name, "") for queue in app.queues.list()))
types = _from_database(
    lambda app: ((type, "") for type in sorted({count.type for count in app.stats.counts()}))
)
webhook_names = _from_database(lambda app: ((hook.name, hook.url) for hook in app.webhooks.list()))
schedule_names = _from_database(
    lambda app: ((each.name, each.template.type) for each in app.schedules.list())
)
token_names = _from_database(
    lambda app: (
        (token.name, " ".join(token.scopes))
        for token in app.tokens.list()
        if token.revoked_at is None
    )
)


def job_ids(*statuses: str) -> Complete:
    """Complete the id of a recent job, by default whatever its status."""

    def read(app: tenure.Tenure) -> Items:
        for status in statuses or (None,):
            for job in app.find(status=status, limit=MAX_OFFERED):
                yield job.id, f"{job.type} {job.status}"

    return _from_database(read)


def _matching(typed: str, found: Items) -> list[CompletionItem]:
    return [CompletionItem(word, help=help) for word, help in found if word.startswith(typed)]
