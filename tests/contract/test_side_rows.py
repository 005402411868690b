"""What belongs to a job beside its row: bounded, kept as it is, and deleted with the job."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.support.raw_sql import RawSql, Refused
from tests.support.store import StoreHarness, report_completed

OTHER = "0190163d-8694-739b-aea5-966c26f8ad92"
ROWS = {
    "step": "(job_id, name, number, token, at, result) VALUES (?, 'charge', 0, 1, {now}, '1')",
    "checkpoint": "(job_id, token, number, at, state) VALUES (?, 1, 0, {now}, '{\"after\":1}')",
    "signal": "(job_id, name, number, at, key) VALUES (?, 'approved', 0, {now}, 'k')",
    "wait": "(job_id, name, number) VALUES (?, 'approved', 0)",
    "signal_token": "(digest, job_id, name, at) VALUES ('d', ?, 'approved', {now})",
    "dependency": f"(child, parent) VALUES (?, '{OTHER}')",
}


def fill(raw: RawSql, job_id: str) -> None:
    for table, row in ROWS.items():
        raw.run(f"INSERT INTO {{{table}}} {row}", job_id)


def count(raw: RawSql) -> dict[str, int]:
    return {table: raw.value(f"SELECT count(*) FROM {{{table}}}") for table in ROWS}


def test_the_side_rows_of_a_job_are_deleted_with_it(unaudited_harness: StoreHarness) -> None:
    harness, raw = unaudited_harness, unaudited_harness.sql
    lease, other = harness.take(), harness.take()
    fill(raw, lease.id)
    raw.run("INSERT INTO {step} " + ROWS["step"], other.id)
    raw.run("UPDATE {job} SET followed = 1 WHERE id = ?", lease.id)
    harness.report(report_completed(lease))
    assert count(raw) == dict.fromkeys(ROWS, 1) | {"step": 2}
    raw.run("DELETE FROM {job} WHERE id = ?", lease.id)
    assert count(raw) == dict.fromkeys(ROWS, 0) | {"step": 1}


def test_a_step_stays_as_it_is(harness: StoreHarness) -> None:
    lease, raw = harness.take(), harness.sql
    fill(raw, lease.id)
    for statement in (
        "UPDATE {step} SET result = '2'",
        "UPDATE {step} SET token = 2",
        "INSERT INTO {step} (job_id, name, number, token, at, result)"
        " SELECT job_id, name, number, token, at, '2' FROM {step} WHERE true"
        " ON CONFLICT (job_id, name) DO UPDATE SET result = '2'",
    ):
        with suppress(Refused):  # SQLite ignores the last one
            raw.run(statement)
    if raw.engine == "sqlite":
        raw.run("INSERT OR REPLACE INTO {step} " + ROWS["step"].replace("'1'", "'2'"), lease.id)
    assert raw.run("SELECT token, result FROM {step}") == [(1, "1")]
    harness.report(report_completed(lease))


def test_only_a_job_that_runs_takes_a_step(harness: StoreHarness) -> None:
    job = harness.add()
    for job_id in (job.id, OTHER):
        with pytest.raises(Refused, match="only a job that is processing has steps"):
            harness.sql.run("INSERT INTO {step} " + ROWS["step"], job_id)


OUT_OF_BOUNDS = {
    "no name": "step (job_id, name, number, token, at) VALUES (?, '', 0, 1, {now})",
    "long name": f"step (job_id, name, number, token, at) VALUES (?, '{'n' * 256}', 0, 1, {{now}})",
    "result": "step (job_id, name, number, token, at, result) VALUES"
    f" (?, 's', 0, 1, {{now}}, '{'r' * 65537}')",
    "payload": "signal (job_id, name, number, at, payload) VALUES"
    f" (?, 's', 0, {{now}}, '{'é' * 524289}')",
    "number": "signal (job_id, name, number, at) VALUES (?, 's', -1, {now})",
    "meets": f"dependency (child, parent, meets) VALUES (?, '{OTHER}', 'maybe')",
    "status": f"overdue (parent, status, after) VALUES (?, 'pending', '{OTHER}')",
}


def test_values_of_side_rows_are_bounded(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    lease = harness.take()
    for name, row in OUT_OF_BOUNDS.items():
        table, rest = row.split(" ", 1)
        with subtests.test(name), pytest.raises(Refused):
            harness.sql.run(f"INSERT INTO {{{table}}} {rest}", lease.id)


def test_a_job_cannot_wait_for_itself(harness: StoreHarness) -> None:
    job = harness.add()
    with pytest.raises(Refused):
        harness.sql.run("INSERT INTO {dependency} (parent, child) VALUES (?, ?)", job.id, job.id)
