"""Answers that are lost, requests that come twice or late: asking again is always safe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tenure import Status, StoreUnavailable
from tests.chaos import checker
from tests.chaos.roads import ROADS, Road, road_to
from tests.support.waiting import PATIENCE, until
from tests.support.workers import completed, sweeping, transitions, working

pytestmark = pytest.mark.chaos


def database_of(kind: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{kind.rpartition('+')[2]}_url")
    return url


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """Every way to a store over a network."""
    with road_to(request.param, database_of(request.param, request), tmp_path) as made:
        yield made


@pytest.fixture(params=["http+sqlite", "http+postgres"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """The way over HTTP, to each database."""
    with road_to(request.param, database_of(request.param, request), tmp_path) as made:
        yield made


@pytest.mark.scenario(36)
def test_an_enqueue_whose_answer_was_lost_is_sent_again(road: Road, effort: int) -> None:
    for number in range(3 * effort):
        road.lose_answers_to_enqueue()
        with pytest.raises(StoreUnavailable):
            road.source.enqueue("work", {"number": number}, idempotency_key=f"key-{number}")
        (there,) = road.straight.find(limit=1)
        again = road.source.enqueue("work", {"number": number}, idempotency_key=f"key-{number}")
        assert again.id == there.id
    assert len(road.straight.find(limit=500)) == 3 * effort
    road.check(drained=False)


@pytest.mark.scenario(36)
@pytest.mark.postgres
def test_the_store_asks_again_by_itself_under_the_same_id(
    postgres_url: str, tmp_path: Path
) -> None:
    with road_to("postgres", postgres_url, tmp_path) as road:
        road.source.enqueue("work")
        road.proxy.drop_answers(b"enqueue_one")
        job = road.source.enqueue("work")
        assert road.proxy.counts["answers dropped"] == 1
        assert next(found.id for found in road.straight.find()) == job.id
        assert len(road.straight.find()) == 2
        road.check(drained=False)


@pytest.mark.scenario(37)
def test_a_report_whose_answer_was_lost_is_sent_again(road: Road) -> None:
    go_on = threading.Event()
    running = threading.Event()

    @road.straight.job(max_retries=1)
    def work() -> str:
        running.set()
        go_on.wait(PATIENCE)
        return "done"

    # No room for another job, so nothing but the report is on its way when the handler ends.
    with working(road.straight, road.source, concurrency=1):
        job = road.source.enqueue("work")
        assert running.wait(PATIENCE)
        road.lose_answers_to_report()
        go_on.set()
        until(lambda: road.proxy.counts["answers dropped"] == 1, "the answer to get lost")
        end = completed(road.straight, job)
        road.recovered(road.source.enqueue("work"))
    told = [line["answer"] for line in checker.lines(road.folder) if "answer" in line]
    assert told == ["already_recorded", "recorded"], "sent again, until the worker was told"
    assert (end.attempts, end.result) == (1, '"done"')
    assert transitions(road.straight, job) == ["enqueued", "claimed", "completed"]
    road.check()


@pytest.mark.scenario(38)
def test_leases_whose_claim_was_not_answered_run_out(road: Road) -> None:
    @road.straight.job(max_retries=2, backoff=0)
    async def work() -> None: ...

    jobs = [road.source.enqueue("work") for _ in range(20)]
    lasts = [road.source.enqueue("work", max_retries=1, priority=-1) for _ in range(2)]
    road.lose_answers_to_claim()
    with (
        sweeping(road.straight),
        working(road.straight, road.source, concurrency=6, lease_seconds=1),
    ):
        ends = [completed(road.straight, job) for job in jobs]
        # They were charged, though nobody ran them: the store cannot know that.
        for job in lasts:
            until(lambda job=job: road.straight.get(job.id).status is Status.FAILED)
    assert road.proxy.counts["answers dropped"] == 1
    assert Counter(end.attempts for end in ends) == {1: 16, 2: 4}
    lost = ["enqueued", "claimed", "lease_expired", "retried", "claimed", "completed"]
    assert all(transitions(road.straight, end.id) == lost for end in ends if end.attempts == 2)
    road.check()


@pytest.mark.scenario(39)
def test_requests_that_arrive_twice(web: Road) -> None:
    @web.straight.job
    async def work(number: int) -> None: ...

    web.proxy.repeat_requests(b"POST /jobs", times=1_000)
    web.proxy.repeat_requests(b"POST /reports", times=1_000)
    jobs = [
        web.source.enqueue("work", {"number": n}, idempotency_key=f"key-{n}", backoff=0)
        for n in range(20)
    ]
    until(lambda: len(web.proxy.copies) == 20, "the copies to be answered")
    assert len(web.straight.find(limit=500)) == 20

    # A second claim is answered to nobody, so its leases run out, like any whose worker died.
    web.proxy.repeat_requests(b"POST /leases", times=2)
    with (
        sweeping(web.straight),
        working(web.straight, web.source, concurrency=3, lease_seconds=1),
    ):
        for job in jobs:
            completed(web.straight, job)
    events = Counter(event for job in jobs for event in transitions(web.straight, job))
    assert events["completed"] == 20
    assert events["lease_expired"] >= 3
    assert web.proxy.counts["requests repeated"] > 22
    web.check()


@pytest.mark.scenario(39)
def test_claims_and_reports_that_arrive_twice(web: Road) -> None:
    made = {web.source.enqueue("work", {"number": n}).id for n in range(10)}
    url = web.proxy.url_of(web.server.url) if web.server else ""
    web.proxy.repeat_requests(b"POST /leases")
    claim = {"worker": "w", "limit": 5, "lease_seconds": 300}
    mine = httpx2.post(f"{url}/leases", json=claim).json()
    (copy,) = until(lambda: web.proxy.copies)
    others = httpx2.Response(200, content=copy.partition(b"\r\n\r\n")[2]).json()
    assert len(mine) == len(others) == 5
    assert {lease["id"] for lease in mine + others} == made

    web.proxy.repeat_requests(b"POST /reports")
    reports = [{"lease_id": lease["lease_id"], "outcome": "completed"} for lease in mine]
    first = httpx2.post(f"{url}/reports", json=reports).json()
    until(lambda: len(web.proxy.copies) == 2)
    second = httpx2.Response(200, content=web.proxy.copies[1].partition(b"\r\n\r\n")[2]).json()
    pairs = [(one["answer"], two["answer"]) for one, two in zip(first, second, strict=True)]
    assert len(pairs) == 5
    assert {tuple(sorted(pair)) for pair in pairs} == {("already_recorded", "recorded")}
    assert web.straight.verify() == []


@pytest.mark.scenario(40)
def test_a_report_that_comes_after_the_next_attempt_began(web: Road) -> None:
    job = web.source.enqueue("work", max_retries=3, backoff=0)
    url, straight = web.proxy.url_of(web.server.url), web.server.url  # type: ignore[union-attr]
    body = {"worker": "slow", "lease_seconds": 1}
    (old,) = httpx2.post(f"{url}/leases", json=body).json()
    web.proxy.hold(b"/complete")
    with ThreadPoolExecutor(1) as elsewhere:
        late = elsewhere.submit(
            httpx2.post, f"{url}/leases/{old['lease_id']}/complete", json={}, timeout=PATIENCE
        )
        until(lambda: web.proxy.counts["requests held"] == 1, "the report to be on its way")
        until(lambda: web.straight.get(job.id).status is Status.PENDING, "the lease to run out")
        body = {"worker": "next", "lease_seconds": 300}
        (new,) = httpx2.post(f"{straight}/leases", json=body).json()
        web.proxy.let_go()
        answer = late.result(PATIENCE)
    assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
    assert web.straight.get(job.id).status is Status.PROCESSING
    told = httpx2.post(f"{straight}/leases/{new['lease_id']}/complete", json={"result": "new"})
    assert told.json()["answer"] == "recorded"
    assert web.straight.get(job.id).result == '"new"'
    assert (old["token"], new["token"]) == (1, 2)
    assert web.straight.verify() == []
