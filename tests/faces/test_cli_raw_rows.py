"""Rows that raw SQL wrote: what they hold may be seen in a terminal, and may not act there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenure import Tenure
from tests.support.cli import PROGRAM, clean_environment, run_cli
from tests.support.programs import run
from tests.support.raw_sql import RawSql

HOSTILE = "\x1b]0;owned\x07\nFAKE $(touch owned) `id`\u202e"
BROKEN = "01a2136a-f5a6-72ea-a3c2-bbf630af6601"


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database in which each text that can be hostile is, and one payload is no JSON."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Tenure(url) as app:
        app.enqueue("email", queue="mail")
        app.tokens.create("shop", ["enqueue"])
    raw = RawSql(url)
    raw.drop_triggers()
    raw.drop_checks()
    names = "id, type, queue, run_at, created_at, actor, payload"
    for id, text, payload in ((HOSTILE, HOSTILE, "{}"), (BROKEN, "broken", "not json \x1b[31m")):
        values = (id, text, text, 1, 1, text, payload)
        raw.run(f"INSERT INTO {{job}} ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", *values)
        raw.run(
            "INSERT INTO {transition} (job_id, at, target, event, attempt, token, actor)"
            " VALUES (?, 1, 'pending', 'enqueued', 0, 0, ?)",
            *(id, text),
        )
    raw.run("UPDATE tenure_access SET name = ?", HOSTILE)
    raw.close()
    return url


@pytest.mark.scenario(95)
@pytest.mark.requirement("C13")
@pytest.mark.parametrize("columns", ["40", "300"])
@pytest.mark.parametrize(
    "command",
    [
        ["tail", "--no-follow"],
        ["tail", "--no-follow", "--json"],
        ["tokens", "revoke", HOSTILE],
        ["tokens", "list"],
        ["jobs", "list"],
        ["jobs", "list", "--limit", "3"],
        ["jobs", "list", "--json"],
        ["jobs", "show", BROKEN],
        ["jobs", "show", BROKEN, "--json"],
    ],
    ids=" ".join,
)
def test_rows_of_raw_sql_cannot_act_on_a_terminal(
    database: str, command: list[str], columns: str
) -> None:
    result = run_cli(*command, "--database", database, COLUMNS=columns)

    assert [c for c in result.output if not c.isprintable() and c != "\n"] == []
    assert not any(line.startswith("FAKE") for line in result.output.splitlines())
    assert "Traceback" not in result.output
    assert result.exit_code in (0, 1)


def test_a_payload_that_is_no_json_is_shown_as_damaged_among_its_neighbours(database: str) -> None:
    shown = run_cli("jobs", "list", "--json", "--database", database)
    assert shown.exit_code == 0
    assert "tenure:damaged" in shown.output

    listed = run_cli("jobs", "list", "--database", database)
    assert listed.exit_code == 0
    assert "email" in listed.output

    mail = run_cli("jobs", "list", "--json", "--queue", "mail", "--database", database)
    assert [job["type"] for job in json.loads(mail.output)] == ["email"]


@pytest.mark.parametrize("line", ["tenure jobs list --type ", "tenure tokens revoke "])
def test_completion_offers_nothing_that_is_no_name(database: str, line: str) -> None:
    done = run(
        PROGRAM,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(
            _TENURE_COMPLETE="bash_complete",
            COMP_WORDS=line,
            COMP_CWORD=str(line.count(" ")),
            TENURE_DATABASE=database,
        ),
    )
    wanted = "plain,broken\nplain,email\n" if "--type" in line else "\n"
    assert done.stdout == wanted
