"""How `tenure` starts: at once, with help for everything, and the same under both names."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import tenure
from tenure import errors
from tenure.cli import cli
from tenure.cli.command import EXIT_CODES, REFUSED, exit_code
from tests.support.cli import clean_environment, run_cli, run_program

SLOW = ("asyncio", "jinja2", "msgspec", "psycopg", "sqlite3", "starlette", "uvicorn", "uvloop")

LOADED = """
import sys
from tenure.cli import cli
try:
    cli(["--help"])
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command there is, with the words that call it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [["stats"], ["--help"], ["stats", "--help"]])
def test_a_disk_that_is_full_is_no_traceback(sqlite_url: str, command: list[str]) -> None:
    tenure.Tenure(sqlite_url).open().close()
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tenure", "--database", sqlite_url, *command],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=clean_environment(),
        )
    assert ended.returncode == REFUSED
    assert ended.stderr == "Error: the output could not be written: No space left on device\n"


@pytest.mark.parametrize("port", ["9" * 5000, "65536", "http"])
def test_what_is_no_port_for_probes(port: str) -> None:
    result = run_cli("worker", "jobs:app", "--health", port)
    assert result.exit_code == 2
    assert "give a port, as in 8081" in result.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_the_caller_closed_is_no_error(sqlite_url: str, closed: str) -> None:
    """As of a job of cron: without it, each table was an AttributeError."""
    tenure.Tenure(sqlite_url).open().close()
    script = f'exec "$0" -m tenure stats --database "$1" {closed}'
    ended = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, sqlite_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    assert (ended.returncode, ended.stderr) == (0, "")


ALL = [pytest.param(path, command, id=" ".join(path)) for path, command in commands(cli)]


def test_help_imports_no_more_than_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    loaded = set(done.stderr.split())

    assert "tenure.cli" in loaded
    assert "Usage: " in done.stdout
    assert not loaded & set(SLOW)
    assert {name for name in loaded if name.startswith("tenure.") and ".cli" not in name} == {
        *(
            "tenure.errors",
            "tenure.values",
            "tenure.values.findings",
            "tenure.values.names",
            "tenure.values.text",
        )
    }


def test_public_names_are_imported_when_they_are_used() -> None:
    for name in tenure.__all__:
        assert getattr(tenure, name).__name__ == name
    assert set(tenure.__all__) <= set(dir(tenure))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tenure.nothing


def test_the_module_runs_as_the_program_does() -> None:
    done = run_program("--version")

    assert done.returncode == 0
    assert done.stdout == f"tenure {tenure.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_commands_and_exit_codes(flag: str) -> None:
    result = run_cli(flag)

    assert result.exit_code == 0
    for name in cli.commands:
        assert f"\n  {name} " in result.stdout
    for code in {0, 130, REFUSED, *EXIT_CODES.values()}:
        assert f"\n    {code:<4} " in result.stdout


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_and_option_has_help(path: tuple[str, ...], command: click.Command) -> None:
    result = run_cli(*path, "--help")

    assert result.exit_code == 0
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
    assert "..." not in command.get_short_help_str(63), "the first line is too long for the list"


READS = {"jobs list", "jobs show", "explain", "queues list", "stats", "verify", "doctor"}


def test_every_read_has_json() -> None:
    with_json = {
        " ".join(path)
        for path, command in commands(cli)
        if any(option.name == "as_json" for option in command.params)
    }

    assert with_json >= READS


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["jobs", "nonsense"], ["enqueue"], ["stats", "--nonsense"], ["jobs", "retry"]],
)
def test_a_call_that_makes_no_sense_is_bad_input(arguments: list[str]) -> None:
    result = run_cli(*arguments)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("no"), 2),
        (errors.PayloadTooLarge("no"), 2),
        (errors.JobNotFound("id"), 3),
        (errors.StoreUnavailable("no"), 4),
        (errors.SchemaMismatch("no"), 4),
        (errors.IllegalTransition("id", "completed", "retried", ()), 1),
        (errors.KeyConflict("key", "id"), 1),
        (errors.QueueFull("mail", 1), 1),
        (errors.Unauthorized("no"), 1),
    ],
)
def test_exit_codes(error: errors.TenureError, code: int) -> None:
    assert exit_code(error) == code


class Interrupted(io.BytesIO):
    """A standard input at which somebody presses Ctrl-C."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size:
            raise KeyboardInterrupt
        return b""  # click asks for nothing, to learn whether bytes come


def test_an_interrupted_command_has_an_exit_code_of_its_own(sqlite_url: str) -> None:
    result = run_cli("enqueue", "email", "-", "--database", sqlite_url, stdin=Interrupted())

    assert result.exit_code == 130


PRODUCER = """
import sys
from tenure import Tenure

app = Tenure(sys.argv[1])

@app.job
def send(to: str) -> None: ...

send.enqueue("ann")
print(*sorted(sys.modules))
"""


def test_a_program_that_adds_jobs_imports_no_event_loop(sqlite_url: str) -> None:
    """What takes longest to import is for workers, servers and coroutines."""
    done = subprocess.run(
        [sys.executable, "-c", PRODUCER, sqlite_url],
        check=True,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    loaded = set(done.stdout.split())
    assert "tenure.store.commit" in loaded
    assert loaded.isdisjoint({"asyncio", "psycopg", "ssl", "tomllib", "tenure.webhooks.request"})
