"""How far long commands have come: shown on a terminal, told to Python, and nowhere else."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tenure import NewJob, Tenure, demo
from tests.support.cli import PROGRAM, Terminal, run_program

BAR = """
from tenure.cli.terminal import progress_bar
with progress_bar({options}) as progress:
    input()
    progress(1_234, 5_678, "[bold]leases")
    input()
print("through")
"""


class Recorder:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int | None, str]] = []

    def __call__(self, done: int, total: int | None, doing: str) -> None:
        self.all.append((done, total, doing))


def bare(shown: str) -> str:
    """What a terminal was sent, without its escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def python(options: str, **environ: Any) -> Terminal:
    return Terminal(sys.executable, "-c", BAR.format(options=options), columns=80, **environ)


def through(terminal: Terminal) -> str:
    """Press return for each `input`; all that was shown."""
    terminal.type("\n\n")
    assert terminal.wait_for_exit() == 0, terminal.shown
    return terminal.shown


def test_a_bar_says_what_is_done_how_much_of_it_and_what_now() -> None:
    with python("'Checking'") as terminal:
        before = bare(terminal.wait_for("Checking"))
        terminal.type("\n")
        shown = bare(terminal.wait_for("leases"))
        end = through(terminal)
    assert "/" not in before, "nobody knows how much there is"
    bars = r"\r(. Checking [━╸╺]+ +1,234/5,678 \d:\d\d:\d\d \[bold\]leases)"
    (bar, *_) = re.findall(bars, shown)
    assert len(bar) <= 80
    assert "\x1b[2Kthrough" in end, "its line is wiped before the answer"


def test_the_cursor_stays_for_who_is_killed_meanwhile() -> None:
    with python("'Checking'") as terminal:
        terminal.wait_for("Checking")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_for_exit() == -signal.SIGTERM
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("options", "environ"),
    [("'Checking', shown=False", {}), ("'Checking'", {"TERM": "dumb"})],
    ids=["not asked for", "a terminal that can do nothing"],
)
def test_nothing_is_shown_where_nothing_should_be(options: str, environ: dict[str, str]) -> None:
    with python(options, **environ) as terminal:
        shown = through(terminal)
    assert shown.split() == ["through"]


def test_a_bar_needs_no_colours() -> None:
    with python("'Checking'", NO_COLOR="1") as terminal:
        shown = through(terminal)
    assert "1,234/5,678" in bare(shown)
    assert not re.search(r"\x1b\[[0-9;]*m", shown)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def database(sqlite_url: str) -> str:
    """A database with some jobs."""
    with Tenure(sqlite_url) as app:
        app.enqueue_many([NewJob("mail", {"n": n}, {}) for n in range(700)])
    return sqlite_url


COMMANDS = {
    "verify": (["verify"], "41/42", "jobs checked: 700"),
    "bulk": (["jobs", "cancel", "--status", "pending", "--yes"], "700/700", "700 jobs changed"),
    "migrate": (["migrate"], r"0/1 .*schema 1", "schema 1"),
    "demo": (["demo"], "35/35", "no job lost"),
    "simulate": (["simulate", "--seed", "1", "--hours", "20"], "20/20", "No violation"),
}
FRESH = ("migrate", "demo")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_takes_long_has_a_bar_on_a_terminal(
    database: str, tmp_path: Path, name: str
) -> None:
    arguments, bar, answer = COMMANDS[name]
    url = f"sqlite:///{tmp_path}/fresh.db" if name in FRESH else database
    with Terminal(*PROGRAM, *arguments, columns=80, TENURE_DATABASE=url) as terminal:
        assert terminal.wait_for_exit() == 0, terminal.shown
    shown = bare(terminal.shown)
    assert re.search(rf"[━╸╺] +{bar}", shown), terminal.shown
    assert answer in shown.rpartition("━")[2], "the answer comes when the bar is gone"


def test_nothing_of_it_is_in_a_pipe(database: str) -> None:
    """One command is enough: all of them draw their bar with one function."""
    arguments, _, answer = COMMANDS["verify"]
    ended = run_program(*arguments, TENURE_DATABASE=database, TERM="xterm", FORCE_COLOR="1")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert answer in ended.stdout
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "migrate"])
def test_a_program_that_asks_for_json_gets_no_bar(database: str, tmp_path: Path, name: str) -> None:
    arguments, *_ = COMMANDS[name]
    url = f"sqlite:///{tmp_path}/fresh.db" if name in FRESH else database
    with Terminal(*PROGRAM, *arguments, "--json", TENURE_DATABASE=url) as terminal:
        assert terminal.wait_for_exit() == 0, terminal.shown
    assert "\x1b" not in terminal.shown


# --- what Python is told --------------------------------------------------------------------------


@pytest.mark.each_engine
def test_verify_tells_each_check_before_it_is_made(database_url: str) -> None:
    told = Recorder()
    with Tenure(database_url) as app:
        app.verify(progress=told)
    names = ["the ledger of each job", "each job", "leases", "idempotency keys", "unique keys"]
    names += ["tags", "counts", "fires of schedules"]
    followed = ["jobs that were skipped", "jobs whose end is not counted everywhere", "followers"]
    followed += ["circles of jobs", "steps", "jobs that wait for signals", "workflows"]
    if database_url.startswith("sqlite"):
        names += ["jobs that wait for others", *followed]
        names += ["ticks of schedules", "tables and indexes"]
    else:
        names += ["where jobs are looked for", "jobs that wait for others"]
        names += ["gates of jobs with many parents", *followed, "ticks of schedules"]
    assert [doing for _, _, doing in told.all] == names
    done = [done for done, _, _ in told.all]
    assert done == sorted(set(done))
    assert {total for _, total, _ in told.all} == {done[-1] + 1}


def test_migrate_tells_each_step_and_none_where_there_is_none(database_url: str) -> None:
    told = Recorder()
    app = Tenure(database_url)
    _, version = app.migrate(progress=told)
    steps = len(told.all)
    assert [(done, total) for done, total, _ in told.all] == [(n, steps) for n in range(steps)]
    assert told.all[-1][2] == f"schema {version}"
    app.migrate(progress=told)
    assert len(told.all) == steps


def test_the_demo_tells_how_many_jobs_are_settled(sqlite_url: str) -> None:
    told = Recorder()
    demo.run(sqlite_url, told)
    done = [done for done, _, _ in told.all]
    assert done == sorted(done)
    assert told.all[-1] == (35, 35, "settled")
