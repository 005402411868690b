"""tenure tail: the ledger as it is written, from any place in it, until nobody wants more."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tenure import Tenure
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.cli import PROGRAM, Terminal, clean_environment, output_of, run_cli
from tests.support.programs import Program


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """An application; commands find its database in the environment."""
    for name in ("TENURE_CONFIG", "COLUMNS", "TENURE_REDACT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    with Tenure(database_url, actor="test") as made:
        yield made


def fail_one(app: Tenure, error: str) -> None:
    """Have a worker claim the next job and fail it."""
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error=error)])


def documents(*arguments: str) -> list[dict[str, Any]]:
    """What `tail --json` prints of what there is."""
    told = output_of("tail", "--no-follow", "--json", *arguments)
    return [json.loads(line) for line in told.splitlines()]


def test_it_begins_with_the_last_moves_and_goes_on_behind_any_position(app: Tenure) -> None:
    jobs = [app.enqueue("email", {"n": n}) for n in range(4)]
    app.cancel(jobs[0].id)

    last = documents("--lines", "2")
    assert [(transition["event"], transition["job_id"]) for transition in last] == [
        ("enqueued", jobs[3].id),
        ("cancelled", jobs[0].id),
    ]
    assert documents("--since", last[0]["position"]) == last[1:]
    assert documents("--since", last[1]["position"]) == documents("--lines", "0") == []
    assert len(documents("--lines", "500")) == 5
    assert (last[1]["type"], last[1]["from"], last[1]["to"]) == ("email", "pending", "cancelled")


def test_it_prints_only_what_is_wanted(app: Tenure) -> None:
    email, report = app.enqueue("email", queue="mail"), app.enqueue("report")
    app.cancel(email.id)
    wanted = {
        ("--type", "report"): [report.id],
        ("--queue", "mail"): [email.id, email.id],
        ("--event", "cancelled"): [email.id],
        ("--job", report.id): [report.id],
        ("--type", "report", "--queue", "mail"): [],
    }

    for flags, ids in wanted.items():
        assert [transition["job_id"] for transition in documents(*flags)] == ids
    assert [transition["event"] for transition in documents("--queue", "mail", "--lines", "1")] == [
        "cancelled"
    ]


def test_one_line_says_what_happened(app: Tenure) -> None:
    job = app.enqueue("email", queue="mail", max_retries=1)
    fail_one(app, "shop.Refused: no \x1b[31m\nTraceback")

    enqueued, claimed, failed = output_of("tail", "--no-follow").splitlines()

    assert enqueued.endswith(f"{job.id}  enqueued       email in mail  by test")
    assert claimed.endswith("claimed        email in mail  attempt 1 by w")
    assert failed.endswith("failed         email in mail  attempt 1: Refused: no \\x1b[31m")


def test_an_error_that_has_no_room_stands_below(app: Tenure) -> None:
    job = app.enqueue("newsletter", queue="evening", max_retries=1)
    fail_one(app, "shop.Refused: no \x1b[31m" + "because " * 20)

    _, _, failed, error = output_of("tail", "--no-follow", COLUMNS="80").splitlines()

    assert failed.endswith(f"{job.id}  failed         newsletter in e…")
    assert error.startswith("    attempt 1: Refused: no \\x1b[31mbecause because ")
    assert max(len(failed), len(error)) <= 80


def test_what_is_redacted_is_not_in_its_errors(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENURE_REDACT", "secret")
    app.enqueue("email", {"secret": "hush-hush"}, max_retries=1)
    fail_one(app, "no good: hush-hush")

    assert "hush" not in output_of("tail", "--no-follow") + output_of(
        "tail", "--no-follow", "--json"
    )


def test_a_position_of_nowhere_and_a_job_that_is_not_there(app: Tenure) -> None:
    assert run_cli("tail", "--since", "yesterday").exit_code == 2
    assert run_cli("tail", "--job", "17").exit_code == 3
    assert run_cli("tail", "--event", "done").exit_code == 2


@pytest.mark.parametrize("option", ["--type", "--queue"])
def test_what_is_no_name(app: Tenure, option: str) -> None:
    """An argument that was no Unicode text was an error of the database's driver."""
    result = run_cli("tail", "--no-follow", option, "\udc80")
    assert result.exit_code == 2
    assert "not a name for a" in result.stderr


def test_it_follows_until_ctrl_c(app: Tenure, database_url: str) -> None:
    app.enqueue("first")
    with Terminal(*PROGRAM, "tail", columns=80, TENURE_DATABASE=database_url) as terminal:
        terminal.wait_for("first")
        app.cancel(app.enqueue("second" * 20).id)
        shown = terminal.wait_for("\x1b[35mcancelled")
        terminal.type("\x03")
        assert terminal.wait_for_exit() == 0
    assert "Traceback" not in terminal.shown
    assert max(len(line.split("\x1b")[0]) for line in shown.splitlines()) <= 80


def test_it_ends_when_nobody_reads_any_more(app: Tenure, database_url: str) -> None:
    app.enqueue("email")
    with Program(
        [*PROGRAM, "tail", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(TENURE_DATABASE=database_url),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "enqueued"
        process.stdout.close()
        app.enqueue("email")
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_a_signal_ends_it_as_ctrl_c_does(sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:
        app.enqueue("email")
    with Program(
        [*PROGRAM, "tail"],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(TENURE_DATABASE=sqlite_url),
    ) as process:
        assert process.stdout is not None
        assert "email" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
