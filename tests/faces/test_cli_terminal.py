"""What reaches a terminal: aligned tables that fit, and no character that could act."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tenure import Tenure
from tenure.cli import terminal
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.values import text
from tests.support.cli import output_on_terminal, run_cli

NOW = datetime(2026, 1, 1, tzinfo=UTC)

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "window title": "\x1b]0;owned\x07",
    "clear screen": "\x1b[2J\x1b[H",
    "control sequence in one byte": "\x9b31m",
    "backspaces": "safe\b\b\b\bevil",
    "carriage return": "failed\rcompleted",
    "direction": "abc\u202ecba",
    "isolate": "\u2066x\u2069",
    "line separator": "one\u2028two",
    "tab and bell": "a\tb\a",
    "delete": "a\x7f",
    "invisible": "a\u200bb\ufeff",
    "beyond the basic plane": "a\U000e0041b",
}


def acting(text: str) -> list[str]:
    """The characters of an output that could do something to a terminal."""
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> str:
    text: str = request.param
    return text


@pytest.fixture
def failed(sqlite_url: str, hostile: str) -> Iterator[str]:
    """The id of a job that is as hostile as a job can be."""
    with Tenure(sqlite_url, actor="test") as app:
        job = app.enqueue("hostile", {"text": hostile, hostile: [hostile]}, max_retries=1)
        request = ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")
        (lease,) = app.core.claim(request).leases
        error = f"{hostile}\nsecond line {hostile}"
        app.core.report([Report(job.id, lease.lease_id, Outcome.FAILED, error=error)])
        yield job.id


@pytest.mark.scenario(95)
@pytest.mark.requirement("C13")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_texts_of_jobs_cannot_act(
    sqlite_url: str, failed: str, hostile: str, flags: list[str]
) -> None:
    for command in (["jobs", "list"], ["jobs", "show", failed], ["explain", failed], ["stats"]):
        result = run_cli(*command, *flags, "--database", sqlite_url, COLUMNS="300")

        assert result.exit_code == 0
        assert not acting(result.output), command
        if flags and command[:2] == ["jobs", "show"]:
            shown = json.loads(result.stdout)["job"]
            assert shown["payload"] == {"text": hostile, hostile: [hostile]}
            assert shown["last_error"] == f"{hostile}\nsecond line {hostile}"


def test_texts_of_errors_cannot_act(sqlite_url: str, hostile: str) -> None:
    Tenure(sqlite_url).open().close()
    for arguments in (
        ["jobs", "show", hostile],
        ["jobs", "cancel", hostile],
        ["enqueue", hostile],
        ["queues", "pause", hostile],
        ["worker", "--app", f"{hostile}:app"],
    ):
        result = run_cli(*arguments, "--database", sqlite_url)

        assert result.exit_code in (2, 3)
        assert not acting(result.output), arguments


# --- tables -----------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_columns_are_aligned_and_numbers_stand_to_the_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.table(("NAME", "JOBS", "NOTE"), [("a", 5, "x"), ("longer", 12345, None)])

    assert printed(capsys) == ["NAME     JOBS  NOTE", "a           5  x", "longer  12345  -"]


def test_an_empty_table_is_its_heads(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(("ID", "TYPE"), [])

    assert printed(capsys) == ["ID  TYPE"]


def test_wide_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(("A", "B"), [("日本", "x"), ("e\u0301", "y"), ("abcd", "z")])

    assert printed(capsys) == ["A     B", "日本  x", "e\u0301     y", "abcd  z"]


def test_a_table_fits_the_terminal_but_for_its_first_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.table(("ID", "TYPE", "ERROR"), [("i" * 20, "short", "e" * 100), ("j", "日" * 9, "")])

    lines = printed(capsys)

    assert lines[1].startswith("i" * 20 + "  ")
    assert lines[1].endswith("…")
    assert max(map(terminal.width_of, lines)) <= 40


ROW = ("i" * 36, "a" * 12, "", "completed", "e" * 30)


def test_columns_are_left_out_before_everything_is_cut_to_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    terminal.table(("ID", "TYPE", "EMPTY", "STATUS", "ERROR"), [ROW], spare=("TYPE", "ERROR"))

    out, err = capsys.readouterr()

    assert out.splitlines()[0].split() == ["ID", "STATUS", "ERROR"]
    assert err == "(no room for TYPE: --wide shows all)\n"


@pytest.mark.parametrize("columns", [0, 1, 20, 38, 41, 60, 80])
def test_no_row_is_wrapped_but_for_its_first_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.table(("ID", "T", "X", "STATUS", "ERROR"), [ROW], notes=["n" * 100])

    least = len(ROW[0]) + 4 * len("  …")  # what a column cannot be made smaller than
    room = columns or 80  # no width at all is taken for the usual one
    assert max(map(len, printed(capsys))) <= max(room, least)


def test_cutting_a_huge_text_takes_no_time_to_speak_of() -> None:
    assert terminal.fitting("ж日" * 500_000, 5) == "ж日ж…"


def test_statuses_have_colours_on_a_terminal_that_wants_them() -> None:
    table = "from tenure.cli.terminal import table; table(('A', 'STATUS'), [('failed', 'failed')])"
    for environ, coloured in (
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ):
        shown = output_on_terminal(sys.executable, "-c", table, **environ)

        assert ("failed  \x1b[31mfailed\x1b[0m" in shown) is coloured, environ
        assert ("\x1b" in shown) is coloured, environ


def test_nothing_is_cut_on_the_way_to_another_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.table(("ID", "ERROR"), [("i", "e" * 500)])

    assert printed(capsys)[1] == "i   " + "e" * 500


@pytest.mark.parametrize(
    ("seconds", "spoken"),
    [
        (0.4, "0s ago"),
        (59, "59s ago"),
        (61, "1m 1s ago"),
        (3_725, "1h 2m ago"),
        (93_784, "1d 2h ago"),
        (-90, "in 1m 30s"),
    ],
)
def test_times_are_told_in_the_units_that_matter(seconds: float, spoken: str) -> None:
    assert text.ago(NOW - timedelta(seconds=seconds), NOW) == spoken


def test_no_time_is_a_dash() -> None:
    assert text.ago(None, NOW) == terminal.when(None) == "-"
    assert terminal.when(NOW) == "2026-01-01 00:00:00Z"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("ValueError: no\nTraceback", "ValueError: no"),
        ("shop.jobs.Refused: no", "Refused: no"),
        ("shop.jobs.Refused", "Refused"),
        ("see www.example.com: down", "see www.example.com: down"),
        ("", ""),
        (None, ""),
    ],
)
def test_an_error_in_one_line(error: str | None, line: str) -> None:
    assert text.first_line(error) == line


@pytest.mark.parametrize(("made", "limit", "text"), [(0, 3, "0/3"), (1, 0, "1/1"), (1, 1, "1/1")])
def test_attempts_of_those_allowed(made: int, limit: int, text: str) -> None:
    assert terminal.attempts(made, limit) == text
