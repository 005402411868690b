"""Tags: words by which jobs are found, and changed together."""

from __future__ import annotations

from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import InvalidInput, KeyConflict
from tenure.lifecycle import Job
from tenure.rules.search import Filter, query_of
from tenure.store import search
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness, report_completed


def found(harness: StoreHarness, **wanted: object) -> list[str]:
    query = query_of(Filter(**wanted))  # type: ignore[arg-type]
    return [job.id for job in search.all_of(harness.store.read, query)]


def add(app: Tenure, *tags: str, **options: object) -> Job:
    return app.enqueue("work", tags=tags, **options)  # type: ignore[arg-type]


def test_jobs_are_found_by_a_tag(
    harness: StoreHarness, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_ROWS", 3)
    tagged = [add(app, "b", "customer:17", "b", queue=f"q{n % 2}") for n in range(8)]
    for _ in range(5):
        add(app)
        add(app, "other")
    assert tagged[0].tags == ("b", "customer:17")
    assert tagged == [harness.get(job.id) for job in tagged]
    newest = [job.id for job in reversed(tagged)]
    assert found(harness, tag="customer:17") == newest
    assert found(harness, tag="customer:17", queue="q1") == newest[::2]
    assert found(harness, tag="customer:17", status="pending") == newest
    assert found(harness, tag="customer:17", status="failed") == []
    assert found(harness, tag="customer") == []
    assert app.count(tag="customer:17").jobs == 8


def test_all_jobs_of_a_tag_are_cancelled(harness: StoreHarness, app: Tenure) -> None:
    tagged = [add(app, "import-7") for _ in range(3)]
    harness.report(report_completed(*harness.claim(limit=1)))
    other = add(app, "import-8")
    bulk = app.cancel(tag="import-7", reason="wrong file")
    assert (bulk.changed, bulk.finished_at is not None) == (2, True)
    assert [harness.get(job.id).status for job in tagged].count("cancelled") == 2
    assert harness.history(tagged[-1].id)[-1].reason == "wrong file"
    assert harness.get(other.id).status == "pending"


def test_the_tags_of_a_job_go_with_it(harness: StoreHarness, app: Tenure) -> None:
    job = add(app, "a", "b")
    assert harness.sql.run("SELECT count(*) FROM {tag} WHERE job_id = ?", job.id) == [(2,)]
    app.cancel(job.id)
    harness.clock.advance(10)
    harness.sql.run("DELETE FROM {job} WHERE id = ?", job.id)
    harness.sql.run("DELETE FROM {transition} WHERE job_id = ?", job.id)
    assert harness.sql.run("SELECT count(*) FROM {tag}") == [(0,)]


def test_tags_are_part_of_what_a_key_stands_for(app: Tenure) -> None:
    first = add(app, "a", "b", idempotency_key="k")
    assert add(app, "b", "a", idempotency_key="k") == first
    with pytest.raises(KeyConflict):
        add(app, "a", idempotency_key="k")


def test_what_is_no_tag_is_refused(app: Tenure, subtests: pytest.Subtests) -> None:
    wrong: list[Any] = [[""], ["two words"], ["x" * 129], [7], "abc", [f"{n}" for n in range(21)]]
    for tags in wrong:
        with subtests.test(str(tags)):
            with pytest.raises(InvalidInput) as refused:
                app.enqueue("work", tags=tags)
            assert refused.value.path == "$.tags"


INSERT = (
    "INSERT INTO {job} (id, type, run_at, created_at, tags)"
    " SELECT '018f0000-0000-7000-8000-000000000001', 'work', run_at, created_at, ?"
    " FROM {job} LIMIT 1"
)


def test_a_tag_that_sql_writes_twice_counts_once(harness: StoreHarness) -> None:
    harness.add()
    harness.sql.run(INSERT, '["b", "a", "b"]')
    assert harness.sql.run("SELECT tag FROM {tag} ORDER BY tag") == [("a",), ("b",)]


def test_sql_cannot_write_other_tags(harness: StoreHarness, subtests: pytest.Subtests) -> None:
    harness.add()
    for tags in ("{}", "no json", '["two words"]', '[""]', f'["{"x" * 129}"]'):
        with subtests.test(tags), pytest.raises(Refused):
            harness.sql.run(INSERT, tags)
