"""What is read or leased at once is bounded in bytes, not only in jobs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from tenure.lifecycle import Job
from tenure.retry import RetryPolicy
from tenure.rules.reports import MAX_BYTES, is_full
from tenure.rules.search import Query
from tenure.store import reader as store_reader
from tenure.store import search
from tenure.store.postgres import reader
from tests.support.effort import on_either_engine
from tests.support.store import StoreHarness, new_job, report_completed, report_failed

MEBIBYTE = 2**20
PAYLOAD = '{"text":"%s"}' % ("é" * (MEBIBYTE // 2 - 50))
PEAK_BYTES = 4 * MAX_BYTES
"""What Python may allocate for a page: its rows, its jobs and their texts."""


def walked(harness: StoreHarness, **fields: Any) -> list[list[Job]]:
    """The pages of a query."""
    pages: list[list[Job]] = []
    before: str | None = None
    while True:
        page = search.page(harness.store.read, Query(limit=500, before=before, **fields))
        pages.append(list(page.jobs))
        if page.next is None:
            return pages
        before = page.next


def peak_of(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@on_either_engine(
    "fields",
    [{}],
    [{"status": "pending"}],
    [{"type": "mail"}],
    [{"text": "ÉÉ".lower()}],
    [{"text": "text", "hidden": ("card",)}],
)
def test_a_page_ends_at_a_number_of_bytes(harness: StoreHarness, fields: dict[str, Any]) -> None:
    added = harness.add_all(*[new_job(payload=PAYLOAD) for _ in range(30)])
    pages = walked(harness, **fields)
    assert [job.id for page in pages for job in page] == [one.job.id for one in added][::-1]
    most = MAX_BYTES // len(PAYLOAD.encode()) + 1
    assert [len(page) for page in pages[:3]] == [most] * 3
    assert peak_of(lambda: search.page(harness.store.read, Query(limit=500, **fields))) < PEAK_BYTES


def test_a_claim_ends_at_a_number_of_bytes(harness: StoreHarness) -> None:
    for queue in ("a", "b"):
        harness.add_all(*[new_job(queue=queue, payload=PAYLOAD) for _ in range(12)])
    harness.add_all(*[new_job(queue="c", priority=1) for _ in range(30)])
    most = MAX_BYTES // len(PAYLOAD.encode()) + 1
    counts: list[int] = []
    while leases := harness.claim(1_000):
        counts.append(len(leases))
        assert is_full(leases) == (len(leases) == most), "a worker asks again at once if it is full"
        assert all(lease.payload in (PAYLOAD, "{}") for lease in leases)
        assert sum(len(lease.payload.encode()) for lease in leases) < 2 * MAX_BYTES
    assert counts[0] == most
    assert sum(counts) == 54


def test_results_count_and_a_job_of_any_size_is_shown(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        harness.add_all(new_job())
        (lease,) = harness.claim()
        harness.report(report_completed(lease, '"%s"' % ("x" * 60_000)))
    for module in (search, reader):
        monkeypatch.setattr(module, "MAX_BYTES", 50_000)
    assert [len(page) for page in walked(harness) if page] == [1, 1, 1]


def test_a_history_shows_so_many_characters_of_errors(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "MAX_DETAILS", 250)
    (added,) = harness.add_all(new_job(max_retries=4, backoff=RetryPolicy(base=0, cap=0)))
    for number in range(4):
        (lease,) = harness.claim()
        harness.report(report_failed(lease, f"{number}" + "x" * 99))
    shown = [entry.detail[:1] for entry in harness.store.read.history(added.job.id) if entry.detail]
    assert shown == ["(", "(", "2", "3"]


def test_counting_goes_past_what_a_page_holds(harness: StoreHarness) -> None:
    harness.add_all(*[new_job(payload=PAYLOAD) for _ in range(20)])
    query = Query(text="text", hidden=("card",))
    assert search.count(harness.store.read, query, 1_000).jobs == 20
    assert search.count(harness.store.read, query, 15).exact is False
    assert len(search.all_of(harness.store.read, Query(limit=20))) == 20
