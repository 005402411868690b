"""Hand-written SQL: what the values of a job may be. The database is as strict as an enqueue,
except for retry policies.
"""

from __future__ import annotations

from typing import Any

import pytest

from tenure.retry import RetryPolicy
from tenure.values.findings import no_progress
from tests.contract.situations import DRESS, NEW_ID, accepted, refused
from tests.support.store import StoreHarness, report_failed

GOOD: list[tuple[str, Any]] = [
    ("id", "01a2136a-f5a6-72ea-a3c2-bbf630af6602"),
    ("type", "A-b_9:c.d"),
    ("type", "a" * 128),
    ("queue", "_"),
    ("queue", "mail.send"),
    ("payload", '{"a": [1, {"b": null}], "ü": "\\ud83d\\ude00"}'),
    ("payload", '{"a":"' + "x" * (2**20 - 8) + '"}'),
    ("priority", 100),
    ("priority", -100),
    ("timeout", 0.001),
    ("timeout", None),
    ("backoff", "{}"),
    ("backoff", '{"base":1,"factor":2.5,"cap":315360000}'),
    ("backoff", '{"delays":[10,0.5,315360000]}'),
    ("backoff", None),
    ("idempotency_key", "k" * 255),
    ("idempotency_key", "!~"),
    ("actor", "ümlaut of somebody"),
    ("max_retries", 1_000),
]
BAD: list[tuple[str, Any]] = [
    ("id", "01a2136a-f5a6-42ea-a3c2-bbf630af6602"),
    ("id", "01a2136a-f5a6-72ea-a3c2-bbf630af6602\0"),
    ("type", ""),
    ("type", "a" * 129),
    ("type", ".a"),
    ("type", "a."),
    ("type", "a..b"),
    ("type", "-a"),
    ("type", ":a"),
    ("type", "a/b"),
    ("type", "a b"),
    ("type", "a\n"),
    ("type", "ä"),
    ("type", "\x1b[31m"),
    ("type", "<script>"),
    ("type", "a\0"),
    ("type", "a\0 é"),
    ("queue", ""),
    ("queue", "a/b"),
    ("queue", "q\x07"),
    ("queue", "default\0"),
    ("payload", ""),
    ("payload", "{not json"),
    ("payload", "[1]"),
    ("payload", '"text"'),
    ("payload", "null"),
    ("payload", "{'a': 1}"),
    ("payload", '{"a": NaN}'),
    ("payload", '{"a":"' + "x" * (2**20 - 7) + '"}'),
    ("payload", '{"a":"' + "ü" * (2**19) + '"}'),
    ("priority", 101),
    ("priority", -101),
    ("timeout", 0.0),
    ("timeout", -1.0),
    ("timeout", float("inf")),
    ("timeout", 1e9),
    ("idempotency_key", ""),
    ("idempotency_key", "a b"),
    ("idempotency_key", "k" * 256),
    ("idempotency_key", "schlüssel"),
    ("idempotency_key", "k\0é"),
    ("again_of", "01a2136a-f5a6-72ea-a3c2-bbf630af6602\0"),
    ("actor", "x" * 1_001),
    ("max_retries", 1_001),
]
CHANGES: list[tuple[str, Any]] = [
    ("priority", 101),
    ("timeout", 0.0),
    ("actor", "x" * 1_001),
    ("worker", "x" * 1_001),
]


def statement(column: str) -> tuple[str, list[Any]]:
    """An insert of a job whose `column` is to be given, and the values of the others."""
    others = {"id": NEW_ID, "type": "mail"}
    others.pop(column, None)
    names = [*others, column]
    marks = ", ".join("?" * len(names))
    columns = f"{', '.join(names)}, run_at, created_at"
    return f"INSERT INTO {{job}} ({columns}) VALUES ({marks}, {{now}}, {{now}})", [*others.values()]


def test_what_an_enqueue_accepts_is_accepted(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for column, value in GOOD:
        with subtests.test(f"{column} {value!a:.30}"):
            insert, others = statement(column)
            accepted(harness, insert, *others, value)


@pytest.mark.scenario(95)
@pytest.mark.requirement("C13")
def test_what_an_enqueue_refuses_is_refused(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    for column, value in BAD:
        with subtests.test(f"{column} {value!a:.30}"):
            insert, others = statement(column)
            refused(harness, insert, *others, value)


def test_changes_are_refused_too(harness: StoreHarness) -> None:
    lease = harness.take()
    job = harness.add()
    for id in (lease.id, job.id):
        for column, value in CHANGES:
            refused(harness, f"UPDATE {{job}} SET {column} = ? WHERE id = ?", value, id)
    for result in ("nonsense", "", '"' + "x" * 2**16 + '"'):
        refused(
            harness,
            "UPDATE {job} SET status = 'completed', lease_id = NULL, lease_expires_at = NULL,"
            " finished_at = {now}, result = ? WHERE id = ?",
            result,
            lease.id,
        )


def test_a_retry_may_raise_the_limit_beyond_that_of_an_enqueue(harness: StoreHarness) -> None:
    lease = harness.take(max_retries=1)
    harness.report(report_failed(lease))
    back = f"UPDATE {{job}} SET status = 'pending', {DRESS['pending']}, max_retries = 1500"
    accepted(harness, f"{back} WHERE id = ?", lease.id)


@pytest.mark.parametrize(
    "backoff",
    [
        "",
        "nonsense",
        "[]",
        "null",
        '{"base":"1"}',
        '{"base":-1}',
        '{"cap":null}',
        '{"factor":1001}',
        '{"delays":10}',
        '{"delays":null}',
        '{"delays":["10"]}',
        '{"delays":[10,-1]}',
        '{"delays":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}',
    ],
)
def test_a_wrong_policy_acts_as_the_default_and_verify_names_it(
    harness: StoreHarness, backoff: str
) -> None:
    insert, others = statement("backoff")
    harness.sql.run(insert, *others, backoff)
    assert harness.get(NEW_ID).backoff == RetryPolicy()
    (violation,) = harness.store.read.violations(10, no_progress)
    assert NEW_ID in violation
    harness.sql.run("UPDATE {job} SET backoff = NULL WHERE id = ?", NEW_ID)
