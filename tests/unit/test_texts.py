"""A job's payload and result are values, decoded once and only if somebody asks."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from tenure.lifecycle import Job
from tests.support.programs import run

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


FIRST_VALUES = """
import types
from msgspec import Struct
from tenure.handlers.results import read_result
from tenure.wire.responses import EventBody, LeaseBody, StatsBody
from tenure.wire.transport import Transport
from tests.support.first_reads import read_in_forks


class Line(Struct):
    count: int = 0
    next: "Line | None" = None


class Bill(Struct):
    lines: list[Line] = []
    names: dict[str, list[Line]] = {}


KINDS = [Bill, list[Bill], Line, EventBody, LeaseBody, StatsBody]
LINK = Transport('http://127.0.0.1:1', None, 1, tracing=False, blocks=True)
ANSWER = types.SimpleNamespace(content=b'{"lines": [{"count": 1, "next": {}}]}')

read_in_forks(lambda kind: {read}, KINDS)
"""


@pytest.mark.parametrize(
    "read", ["read_result(ANSWER.content.decode(), kind, '')", "LINK.read(ANSWER, '/', kind)"]
)
def test_first_values_of_a_type_that_threads_read_at_once(read: str) -> None:
    """msgspec learns a type from its first value, and lets other threads in meanwhile."""
    assert run([sys.executable, "-c", FIRST_VALUES.replace("{read}", read)]).returncode == 0
