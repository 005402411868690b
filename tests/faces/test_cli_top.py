"""tenure top: one picture for a program or a file, a live one on a terminal."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import pytest

from tenure import StoreUnavailable, Tenure
from tenure.cli import watching
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.cli import PROGRAM, Terminal, output_of, run_cli


@pytest.fixture
def app(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """An application with a job that failed, one that runs and one that waits."""
    for name in ("TENURE_CONFIG", "COLUMNS", "TENURE_REDACT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    with Tenure(sqlite_url) as made:
        for type in ("payment", "email"):
            made.enqueue(type, queue="money", max_retries=1)
            (lease,) = made.core.claim(
                ClaimRequest(worker="w", limit=1, lease_seconds=60, label="host:1")
            ).leases
            if type == "payment":
                error = "shop.Refused: [bold]no\x1b[J\nTraceback"
                made.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error=error)])
        made.enqueue("report", delay="1h")
        while made.core.measure():
            pass
        yield made


def test_a_picture_holds_what_the_store_says(app: Tenure) -> None:
    shown = json.loads(output_of("top", "--once", "--json"))

    assert shown["by_status"] == {
        "waiting": 0,
        "pending": 1,
        "processing": 1,
        "completed": 0,
        "failed": 1,
        "cancelled": 0,
    }
    assert {queue["name"]: queue["processing"] for queue in shown["queues"]} == {
        "default": 0,
        "money": 1,
    }
    (worker,) = shown["workers"]
    assert (worker["label"], [job["type"] for job in worker["running"]]) == ("host:1", ["email"])
    (failure,) = shown["failures"]
    assert (failure["type"], failure["attempts"]) == ("payment", 1)
    assert len(shown["ended_by_minute"]) == 60


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_picture_fits_and_nothing_in_it_acts(app: Tenure, columns: str) -> None:
    shown = output_of("top", "--once", COLUMNS=columns)

    assert max(map(len, shown.splitlines())) <= int(columns)
    line = next(line for line in shown.splitlines() if "peak" in line)
    bars, _, words = line.partition("  ")
    assert re.fullmatch(r"\d ended/min, peak \d", words)
    assert len(bars) == min(60, int(columns) - len("  0 ended/min, peak 0"))
    for part in ("pending", "money", "host:1", "1 email", "Refused: [bold]no\\x1b[J"):
        assert part in shown
    assert "\x1b" not in shown


def test_what_is_redacted_is_in_no_picture(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = app.enqueue("login", {"password": "'canary' and 12345"}, max_retries=1)
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    error = "Refused: 'canary' and 12345 is wrong\nTraceback"
    app.core.report([Report(secret.id, lease.lease_id, Outcome.FAILED, error=error)])
    while app.core.measure():
        pass
    monkeypatch.setenv("TENURE_REDACT", "password")

    for shown in (output_of("top", "--once"), output_of("top", "--once", "--json")):
        assert "Refused: [redacted] is wrong" in shown
        assert "Refused: [bold]no" in shown, "what has nothing to hide is shown as it is"
        for part in ("canary", "12345", "Traceback", "…"):
            assert part not in shown.rpartition("FAILED")[2]


def test_a_failure_whose_last_job_is_gone_says_nothing(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENURE_REDACT", "password")
    app.core.prune({"failed": 0})

    assert [f["error"] for f in json.loads(output_of("top", "--once", "--json"))["failures"]] == [
        "[redacted]"
    ]


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM], ids=["q", "ctrl-c", "sigterm"])
def test_it_is_drawn_again_until_it_is_ended(
    app: Tenure, sqlite_url: str, end: str | signal.Signals
) -> None:
    live = (*PROGRAM, "top", "--interval", "0.2")
    with Terminal(*live, columns=100, TENURE_DATABASE=sqlite_url) as terminal:
        terminal.wait_for("money")
        app.enqueue("email", queue="parcels")
        terminal.wait_for("parcels")
        if isinstance(end, str):
            terminal.type(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.wait_for_exit() == 0
    assert terminal.shown.rindex("\x1b[?1049l") > terminal.shown.rindex("\x1b[?1049h")
    assert "Traceback" not in terminal.shown.split("\x1b[?1049l")[-1]


def test_an_outage_ended_what_prints_json(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tail` and the picture on a terminal went on."""
    looks = []

    def look(app: Tenure) -> dict[str, str]:
        looks.append(app)
        if len(looks) == 3:
            raise KeyboardInterrupt
        if len(looks) == 1:
            raise StoreUnavailable("the connection was lost")
        return {"at": "now"}

    monkeypatch.setattr(watching, "picture", look)
    result = run_cli("top", "--json", "--interval", "0.2")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"at": "now"}
    assert result.stderr == "the connection was lost; trying again\n"
    looks.clear()
    assert run_cli("top", "--json", "--once").exit_code == 4


def test_an_interval_that_is_no_number(app: Tenure) -> None:
    result = run_cli("top", "--interval", "nan")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_terminal_that_can_do_nothing_gets_one_picture(app: Tenure, sqlite_url: str) -> None:
    with Terminal(*PROGRAM, "top", TERM="dumb", TENURE_DATABASE=sqlite_url) as terminal:
        assert terminal.wait_for_exit() == 0
    assert "money" in terminal.shown
    assert "\x1b[" not in terminal.shown.replace("\\x1b[", "")
