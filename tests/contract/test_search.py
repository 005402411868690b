"""Jobs are found by any property: the same ones as by looking at each, in bounded steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from tenure.events import Cancelled
from tenure.lifecycle import Job, Status
from tenure.rules.jobs import CheckedJob
from tenure.rules.search import Filter, Query, State, check_filter, query_of
from tenure.store import search
from tenure.values import ids
from tenure.values.ids import new_id
from tests.support.clock import START
from tests.support.store import (
    StoreHarness,
    new_job,
    report_completed,
    report_failed,
    report_snoozed,
)

WORDS = ["Ümlaut", "ümlaut", "100%_done", "100x_done", "back\\slash", "it's", "STRASSE", "straße"]
HOUR = timedelta(hours=1)
WORKFLOW = new_id()


class Member(CheckedJob, frozen=True, kw_only=True):
    """A job of a workflow."""

    workflow: str | None


def id_at(harness: StoreHarness, ahead: timedelta = timedelta()) -> str:
    """An id as a clock would make it that is ahead of the store's."""
    return ids.first_of(harness.clock.now, ahead)[:13] + new_id()[13:]


def fill(harness: StoreHarness) -> list[Job]:
    """Jobs of every status, type and queue, an hour and more apart; newest first."""
    made: list[str] = []
    harness.sql.run(
        "INSERT INTO {workflow} (id, created_at, created_by) VALUES (?, {now}, 'me')", WORKFLOW
    )
    for number in range(48):
        harness.clock.advance(1800)
        skew = timedelta(minutes=(number * 37) % 100 - 50)
        word = WORDS[number % len(WORDS)]
        checked_job = new_job(
            type="ab"[number % 2],
            queue="xyz"[number % 3],
            payload=json.dumps({"word": word, "n": number}, ensure_ascii=False),
            max_retries=2 if number % 12 == 5 else 1,
            run_at=harness.clock.now + 100 * HOUR if number % 12 == 11 else None,
            id=id_at(harness, skew),
            tags='["red"]' if number % 7 < 3 else None,
        )
        member = Member(**structs.asdict(checked_job), workflow=WORKFLOW)
        some = ([member], ("workflow",)) if number % 5 < 3 else ([checked_job], ())
        harness.store.write("enqueue", lambda db, some=some: db.insert(*some)).result()  # type: ignore[misc]
        made.append(checked_job.id)
        match number % 6:
            case 0:
                harness.store.apply(checked_job.id, Cancelled()).result()
            case 1 | 2:
                (lease,) = harness.claim(queues=(checked_job.queue,), types=(checked_job.type,))
                harness.report(report_failed(lease, f"Boom {word}"))
            case 3:
                (lease,) = harness.claim(queues=(checked_job.queue,), types=(checked_job.type,))
                harness.report(report_completed(lease))
            case 4:
                harness.claim(queues=(checked_job.queue,), types=(checked_job.type,))
            case 5 if checked_job.max_retries == 2:
                (lease,) = harness.claim(queues=(checked_job.queue,), types=(checked_job.type,))
                again = number % 24 == 17  # it snoozes in its next attempt
                harness.report(
                    report_failed(lease, f"Boom {word}", delay=0.0 if again else 200.0 * 3600)
                )
                if again:
                    (lease,) = harness.claim(queues=(checked_job.queue,), types=(checked_job.type,))
                    harness.report(report_snoozed(lease, delay=200.0 * 3600))
    return sorted((harness.get(id) for id in made), key=lambda job: job.id, reverse=True)


def lower(text: str | None) -> str:
    """A to Z as a to z, and nothing else."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text or "")


def plainly(job: Job, wanted: Filter, now: datetime) -> bool:
    """Whether a job fits, said as plainly as can be."""
    longer = timedelta(seconds=wanted.running_longer_than or 0)
    put_off, ended = job.event == "snoozed", job.finished_at
    states = {
        None: True,
        "scheduled": job.status == "pending"
        and (job.run_at > now and not job.last_error and not put_off),
        "ready": job.status == "pending" and job.run_at <= now,
        "retrying": job.status == "pending" and bool(job.last_error) and not put_off,
        "snoozed": job.status == "pending" and job.run_at > now and put_off,
        "blocked": job.status == "waiting",
    }
    checks = [
        states[wanted.state],
        not longer or (job.status == "processing" and (job.started_at or now) + longer <= now),
        wanted.status is None or job.status == wanted.status,
        wanted.type is None or job.type == wanted.type,
        wanted.queue is None or job.queue == wanted.queue,
        wanted.tag is None or wanted.tag in job.tags,
        wanted.workflow is None or job.workflow == wanted.workflow,
        wanted.created_after is None or job.created_at >= wanted.created_after,
        wanted.created_before is None or job.created_at < wanted.created_before,
        wanted.finished_after is None or (ended is not None and ended >= wanted.finished_after),
        wanted.finished_before is None or (ended is not None and ended < wanted.finished_before),
        wanted.error is None or lower(wanted.error) in lower(job.last_error),
        wanted.text is None or lower(wanted.text) in lower(job.payload_json),
    ]
    return all(checks)


def maybe(values: Any) -> Any:
    return st.none() | values


TEXTS = st.sampled_from([*WORDS, "boom", "%", "_", "\\", "'", '"n":1', "Strasse", "nowhere"])
TIMES = st.integers(0, 50).map(lambda n: START + n * HOUR / 2)
FILTERS = st.builds(
    Filter,
    status=maybe(st.sampled_from([str(status) for status in Status])),
    state=maybe(st.sampled_from(list(State))),
    running_longer_than=maybe(st.sampled_from(["2h", "12h"])),
    type=maybe(st.sampled_from(["a", "b", "c"])),
    queue=maybe(st.sampled_from(["x", "y"])),
    tag=maybe(st.just("red")),
    workflow=maybe(st.sampled_from([WORKFLOW, WORKFLOW, new_id()])),
    created_after=maybe(TIMES),
    created_before=maybe(TIMES),
    finished_after=maybe(TIMES),
    finished_before=maybe(TIMES),
    error=maybe(TEXTS),
    text=maybe(TEXTS),
).map(check_filter)


def pages(harness: StoreHarness, query: Query) -> Iterator[search.Page]:
    """Page by page, to the end."""
    while True:
        page = search.page(harness.store.read, query)
        yield page
        if page.next is None:
            return
        query = search._after(query, page.next)


SECOND_PAGE = check_filter(Filter(tag="red", workflow=WORKFLOW))
"""PostgreSQL was given the values of its query in another order than their places."""


def test_every_filter_finds_what_looking_at_each_job_finds(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = fill(harness)

    @settings(
        max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(FILTERS, st.integers(1, 7), st.integers(3, 20), st.booleans())
    @example(SECOND_PAGE, 1, 3, False)
    @example(check_filter(Filter(state="retrying")), 7, 20, False)
    @example(check_filter(Filter(state="snoozed")), 7, 20, False)
    def check(wanted: Filter, limit: int, rows: int, oldest_first: bool) -> None:
        monkeypatch.setattr(search, "MAX_ROWS", rows)
        monkeypatch.setattr(search, "MAX_TEXTS", rows)
        expected = [job for job in jobs if plainly(job, wanted, harness.clock.now)]
        now, off = harness.clock.now, search.put_off(harness.store.read, jobs)
        assert [job for job in jobs if search.fits(wanted, job, now, off)] == expected
        in_order = expected[::-1] if oldest_first else expected
        query = query_of(wanted, limit=limit, oldest_first=oldest_first)
        found = list(pages(harness, query))
        assert [job for page in found for job in page.jobs] == in_order
        assert all(page.searched_all or len(page.jobs) < limit for page in found)
        assert search.all_of(harness.store.read, query) == in_order[:limit]
        some, _ = search.some_ids(harness.store.read, replace(query, limit=500))
        assert list(some) == [job.id for job in in_order][: len(some)]
        count = search.count(harness.store.read, query, 5)
        assert count.jobs <= min(len(expected), 5)
        assert not count.exact or count.jobs == len(expected)

    check()


def test_a_page_looks_at_a_bounded_number_of_rows(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is rare is not found in the first page, but where to go on is."""
    monkeypatch.setattr(search, "MAX_ROWS", 10)
    monkeypatch.setattr(search, "MAX_TEXTS", 4)
    rare = harness.add(type="rare")
    harness.add_all(*[new_job(type="mail") for _ in range(25)])
    found = list(pages(harness, Query(type="rare", limit=5)))
    assert [len(page.jobs) for page in found] == [0, 0, 1]
    assert [page.searched_all for page in found] == [False, False, True]
    assert len(list(pages(harness, Query(text="nowhere", limit=5)))) == 7
    assert search.count(harness.store.read, Query(type="rare"), 5) == search.Counted(1, exact=True)
    monkeypatch.setattr(search, "MAX_SPANS", 2)
    assert search.count(harness.store.read, Query(type="rare"), 5) == search.Counted(0, exact=False)
    assert search.count(harness.store.read, Query(type="mail"), 5) == search.Counted(5, exact=False)
    # Few wait: they are found at once, wherever they are.
    for lease in harness.claim(limit=26):
        if lease.id != rare.id:
            harness.report(report_completed(lease))
        else:
            waiting = harness.add(type="wait")
    harness.add_all(*[new_job(type="mail") for _ in range(5)])
    harness.store.apply(waiting.id, Cancelled()).result()
    page = search.page(harness.store.read, Query(status="processing", limit=5))
    assert [job.id for job in page.jobs] == [rare.id]
    assert page.next is None


def test_hidden_values_cannot_be_searched_for(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is found, nor where a page ends, nor how many there are tells of them."""
    monkeypatch.setattr(search, "MAX_TEXTS", 6)
    monkeypatch.setattr(search, "AT_ONCE", 2)
    for number in range(20):
        secret = "hunter2" if number % 3 else "other77"
        lease = harness.take(payload=f'{{"password":"{secret}","to":"ann"}}', max_retries=1)
        harness.report(report_failed(lease, f"login with {secret} failed"))

    def told(**wanted: Any) -> list[Any]:
        query = Query(limit=3, hidden=("password",), **wanted)
        found = [(len(page.jobs), page.next, page.searched_all) for page in pages(harness, query)]
        return [*found, search.count(harness.store.read, query, 3)]

    for field in ("text", "error"):
        assert told(**{field: "hunter2"}) == told(**{field: "no such thing"})
        assert search.count(harness.store.read, Query(**{field: "hunter2"}), 50).jobs == 13
    assert sum(n for n, *_ in told(text="ANN")[:-1]) == 20
    assert sum(n for n, *_ in told(error="login with")[:-1]) == 20


def test_only_a_to_z_have_a_second_case(harness: StoreHarness) -> None:
    """Also where redacted texts are compared outside of the database."""
    harness.add(payload='{"to":"ÉVA İ"}')
    for text, jobs in (("éva", 0), ("ÉVA", 1), ("Éva", 1), ("i", 0), ("İ", 1), ("VA", 1)):
        for hidden in ((), ("password",)):
            query = Query(limit=3, text=text, hidden=hidden)
            assert sum(len(page.jobs) for page in pages(harness, query)) == jobs, (text, hidden)
