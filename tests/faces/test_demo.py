"""The demo: every job ends, and ends the same way every time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tenure import InvalidInput, Tenure, demo
from tests.support.cli import run_cli, run_program

EXPECTED = {
    "email": {("completed", 1): 8, ("completed", 2): 2},
    "report": {("completed", 1): 5, ("completed", 2): 1},
    "payment": {("failed", 3): 4},
    "import": {("completed", 1): 3, ("completed", 2): 1},
    "fake.fail": {("failed", 2): 1},
    "fake.sleep": {("completed", 1): 2},
    "newsletter": {("cancelled", 0): 1},
}


def outcomes(outcome: demo.DemoResult) -> list[tuple[Any, ...]]:
    """What must be the same at every run, job by job."""
    return [
        (job.type, job.payload_json, job.status, job.attempts, *statuses)
        for job, statuses in outcome.jobs
    ]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> demo.DemoResult:
    return demo.run(f"sqlite:///{tmp_path_factory.mktemp('demo')}/demo.db")


def test_every_run_on_either_engine_agrees_job_by_job(
    outcome: demo.Outcome, database_url: str
) -> None:
    again = demo.run(database_url)

    assert outcomes(again) == outcomes(outcome)
    assert [outcome.violations, again.violations] == [[], []]


@pytest.mark.parametrize("type", EXPECTED)
def test_jobs_end_as_their_rules_say(outcome: demo.DemoResult, type: str) -> None:
    found: dict[tuple[str, int], int] = {}
    for job, _ in outcome.jobs:
        if job.type == type:
            end = (str(job.status), job.attempts)
            found[end] = found.get(end, 0) + 1

    assert found == EXPECTED[type]


def test_no_job_ran_more_often_than_it_may(outcome: demo.DemoResult) -> None:
    for job, statuses in outcome.jobs:
        assert job.attempts <= max(job.max_retries, 1)
        assert job.attempts == statuses.count("processing")


def test_what_a_vanished_worker_held_is_run_by_another(outcome: demo.DemoResult) -> None:
    ((rescued, statuses),) = [
        (job, statuses)
        for job, statuses in outcome.jobs
        if job.type == "import" and job.last_error is not None
    ]

    assert "worker-that-vanished" in (rescued.last_error or "")
    assert list(statuses) == [
        *("pending", "processing", "failed"),
        *("pending", "processing", "completed"),
    ]


def test_arguments_that_do_not_fit_are_not_tried_again(outcome: demo.DemoResult) -> None:
    (misfit,) = [job for job, _ in outcome.jobs if "often" in job.payload_json]

    assert (misfit.status, misfit.attempts) == ("failed", 1)
    assert "fail_times" in (misfit.last_error or "")


def test_it_wants_a_database_of_its_own(sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:
        app.enqueue("email")

    with pytest.raises(InvalidInput, match="empty database"):
        demo.run(sqlite_url)
    assert run_cli("demo", "--database", sqlite_url, "--json").exit_code == 2


# --- the command ------------------------------------------------------------------------------

LINE = re.compile(r" *(\d+)  (\S+) +(\w+) +(\d+/\d+) +(\w+(?: → \w+)*)")


def test_the_command_prints_every_job_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Nor does it touch the database that the environment names."""
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    environ = {"TMPDIR": str(elsewhere), "TENURE_DATABASE": f"sqlite:///{tmp_path}/mine.db"}
    done = run_program("demo", cwd=tmp_path, timeout=30, **environ)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [match.groups() for match in map(LINE.fullmatch, done.stdout.splitlines()) if match]
    assert [int(line[0]) for line in lines] == list(range(1, len(demo.JOBS) + 1))
    assert lines[1][1:] == (
        *("email", "completed", "2/10"),
        "pending → processing → failed → pending → processing → completed",
    )
    assert "FakeFailure: --fail-type payment: every attempt fails" in done.stdout
    assert "35 jobs: 25 completed, 9 failed, 1 cancelled." in done.stdout
    assert "verify found no violation" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_command_fits_a_terminal(tmp_path: Path) -> None:
    done = run_program("demo", cwd=tmp_path, COLUMNS="80", timeout=30)

    opening, table = done.stdout.split("\n\n", 1)
    assert done.returncode == 0
    assert max(map(len, opening.splitlines() + table.splitlines())) <= 100
    assert "pending → processing → failed →\n" in table


def test_the_command_speaks_json_and_other_encodings(tmp_path: Path) -> None:
    document = run_program("demo", "--json", cwd=tmp_path, timeout=30)
    plain = run_program("demo", cwd=tmp_path, timeout=30, PYTHONIOENCODING="latin-1")

    told = json.loads(document.stdout)
    assert len(told["jobs"]) == len(demo.JOBS)
    assert told["jobs"][0]["transitions"] == ["pending", "processing", "completed"]
    assert told["violations"] == []
    assert plain.returncode == 0, plain.stderr
    assert r"pending \u2192 processing" in plain.stdout
