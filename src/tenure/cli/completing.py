"""Completion in the shell: the script that switches it on, and what may stand where.

Names come from the database where that is quick. Nothing may go wrong here: whoever presses Tab
waits, and reads whatever is printed, in the middle of their line. So a database is asked for a
moment only, on a thread that is then left behind, is never made, and is silent where it fails.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from tenure.errors import TenureError

if TYPE_CHECKING:
    from tenure.app.app import Tenure

PROGRAM = "tenure"
VARIABLE = "_TENURE_COMPLETE"
"""By this variable the shell asks the program for completions; click's name for it."""
PATIENCE_SECONDS = 1.0
MAX_OFFERED = 50


# --- what click's own classes lack ----------------------------------------------------------------


class _WithEquals(ShellComplete):
    """Completes what stands behind `--option=`, too."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """What may stand there; zsh and fish put it in the place of the whole word."""
        option, equals, _ = incomplete.partition("=")
        found = super().get_completions([word for word in args if word != "="], incomplete)
        if option.startswith("--") and equals:
            for item in found:
                item.value = f"{option}={item.value}"
        return found


@add_completion_class
class _Bash(_WithEquals, BashComplete):
    pass


@add_completion_class
class _Zsh(_WithEquals, ZshComplete):
    # A new user's .zshrc has not switched completion on, and `compdef` comes with that.
    source_template = ZshComplete.source_template.replace(
        "    compdef ",
        "    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n    compdef ",
    )


@add_completion_class
class _Fish(_WithEquals, FishComplete):
    # Descriptions hold commas, too.
    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


SHELLS: Mapping[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


# --- the command ----------------------------------------------------------------------------------

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Items = Iterable[tuple[str, str]]


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that switches completion on in a shell.

    \b
    bash  echo 'eval "$(tenure completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(tenure completion zsh)"' >> ~/.zshrc
    fish  tenure completion fish > ~/.config/fish/completions/tenure.fish

    Then begin a new shell. Queues, types, tokens and recent jobs are completed from the database.
    """
    root = click.get_current_context().find_root().command
    click.echo(SHELLS[shell](root, {}, PROGRAM, VARIABLE).source())


# --- what may stand where -------------------------------------------------------------------------


def words(*choices: str) -> Complete:
    """Complete one of these."""
    return lambda _context, _parameter, begun: _matching(begun, ((word, "") for word in choices))


def statuses(_context: click.Context, _parameter: click.Parameter, begun: str) -> Any:
    """Complete a status."""
    from tenure.lifecycle import Status

    return _matching(begun, ((str(status), "") for status in Status))


def queue_names(context: click.Context, _parameter: click.Parameter, begun: str) -> Any:
    """Complete the name of a queue that has jobs or settings."""
    return _from_database(context, begun, lambda app: ((queue.name, "") for queue in app.queues()))


def types(context: click.Context, _parameter: click.Parameter, begun: str) -> Any:
    """Complete a type that there are jobs of."""
    return _from_database(
        context,
        begun,
        lambda app: ((type, "") for type in sorted({count.type for count in app.stats()})),
    )


def token_names(context: click.Context, _parameter: click.Parameter, begun: str) -> Any:
    """Complete the name of a token that is not revoked."""
    return _from_database(
        context,
        begun,
        lambda app: (
            (token.name, " ".join(token.scopes))
            for token in app.tokens.list()
            if token.revoked_at is None
        ),
    )


def webhook_names(context: click.Context, _parameter: click.Parameter, begun: str) -> Any:
    """Complete the name of a webhook."""
    return _from_database(
        context, begun, lambda app: ((hook.name, hook.url) for hook in app.webhooks.list())
    )


def job_ids(*standing: str) -> Complete:
    """Complete the id of a recent job, of one that has one of these statuses if any are given."""

    def found(app: Tenure) -> Items:
        for status in standing or (None,):
            for job in app.find(status=status, limit=MAX_OFFERED):
                yield job.id, f"{job.type} {job.status}"

    return lambda context, _parameter, begun: _from_database(context, begun, found)


def _matching(begun: str, found: Items) -> list[CompletionItem]:
    return [CompletionItem(word, help=help) for word, help in found if word.startswith(begun)]


def _from_database(
    context: click.Context, begun: str, ask: Callable[[Tenure], Items]
) -> list[CompletionItem]:
    """What the database has that begins like that; nothing if it takes too long or fails."""
    from tenure.cli.command import application

    answers: list[list[CompletionItem]] = []

    try:
        with context.scope(cleanup=False):  # which says what --database is
            app = application()
    except TenureError:  # settings that cannot be read
        return []

    def look() -> None:
        with contextlib.suppress(Exception):
            if app.is_current():  # a Tab makes no database, and brings none up to date
                answers.append(_matching(begun, ask(app)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return answers[0][:MAX_OFFERED] if answers else []
