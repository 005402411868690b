"""A job's payload and result are values, decoded once and only if somebody asks."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from tenure.lifecycle import Job

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(id="a", type="t", created_at=NOW, run_at=NOW)


def test_values_are_decoded_once_and_do_not_survive_a_change() -> None:
    job = replace(JOB, payload_json='{"to":["ann"]}', result_json='{"sent":2}')
    assert not vars(job)  # nothing is decoded before it is asked for
    assert (job.payload, job.result) == ({"to": ["ann"]}, {"sent": 2})
    assert job.payload is job.payload
    changed = replace(job, payload_json='{"to":[]}', result_json=None)
    assert (changed.payload, changed.result) == ({"to": []}, None)
    assert job == replace(job)  # decoded values are no part of it


def test_a_job_without_a_result_has_none() -> None:
    assert (JOB.payload, JOB.result) == ({}, None)
