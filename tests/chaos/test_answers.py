"""Answers that are lost, requests that come twice or late: asking again is always safe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tenure import JobContext, NewJob, Status, StoreUnavailable
from tests.chaos import checker
from tests.chaos.remote_stores import REMOTE_STORES, RemoteStore, remote_store
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_sweeper, running_worker, transitions, wait_until_completed

pytestmark = pytest.mark.chaos


def database_of(kind: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{kind.rpartition('+')[2]}_url")
    return url


@pytest.fixture(params=REMOTE_STORES)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteStore]:
    """Every way to a store over a network."""
    with remote_store(request.param, database_of(request.param, request), tmp_path) as made:
        yield made


@pytest.fixture(params=["http+sqlite", "http+postgres"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RemoteStore]:
    """The way over HTTP, to each database."""
    with remote_store(request.param, database_of(request.param, request), tmp_path) as made:
        yield made


@pytest.mark.scenario(36)
def test_an_enqueue_whose_answer_was_lost_is_sent_again(remote: RemoteStore, effort: int) -> None:
    for number in range(3 * effort):
        remote.lose_answers_to_enqueue()
        with pytest.raises(StoreUnavailable):
            remote.source.enqueue("work", {"number": number}, idempotency_key=f"key-{number}")
        (there,) = remote.direct.find(limit=1)
        again = remote.source.enqueue("work", {"number": number}, idempotency_key=f"key-{number}")
        assert again.id == there.id
    assert len(remote.direct.find(limit=500)) == 3 * effort
    remote.check(drained=False)


@pytest.mark.scenario(36)
@pytest.mark.postgres
def test_the_store_asks_again_by_itself_under_the_same_id(
    postgres_url: str, tmp_path: Path
) -> None:
    with remote_store("postgres", postgres_url, tmp_path) as remote:
        remote.source.enqueue("work")
        remote.proxy.drop_answers(b"enqueue_one")
        job = remote.source.enqueue("work")
        assert remote.proxy.counts["answers dropped"] == 1
        assert next(found.id for found in remote.direct.find()) == job.id
        assert len(remote.direct.find()) == 2
        remote.check(drained=False)


@pytest.mark.scenario(37)
@pytest.mark.parametrize("adds_jobs", [False, True], ids=["plain", "adds_jobs"])
def test_a_report_whose_answer_was_lost_is_sent_again(
    remote: RemoteStore, *, adds_jobs: bool
) -> None:
    go_on = threading.Event()
    running = threading.Event()

    @remote.direct.job(max_retries=1)
    def work(context: JobContext) -> str:
        if adds_jobs:  # if the report is recorded: unknown to the checker, which allows it once
            remote.source.record.invoke(
                "enqueue", type="next", payload={"of": context.id}, options={}
            )
            context.enqueue(NewJob("next", {"of": context.id}, {}))
        running.set()
        go_on.wait(WAIT_SECONDS)
        return "done"

    # No room for another job, so nothing but the report is on its way when the handler ends.
    with running_worker(remote.direct, remote.source, concurrency=1):
        job = remote.source.enqueue("work")
        assert running.wait(WAIT_SECONDS)
        lease_id = remote.direct.get(job.id).lease_id or ""
        remote.lose_answers_to_report(lease_id, adds_jobs=adds_jobs)
        go_on.set()
        wait_until(lambda: remote.proxy.counts["answers dropped"] == 1, "the answer to get lost")
        end = wait_until_completed(remote.direct, job)
        remote.recovered(remote.source.enqueue("work"))
    told = [line["answer"] for line in checker.lines(remote.folder) if "answer" in line]
    first, *others = told  # who asks again within the same moment may be told the first time
    assert first in {"already_recorded", "recorded"}
    assert others == ["recorded"], "sent again, until the worker was told"
    assert (end.attempts, end.result_json) == (1, '"done"')
    assert transitions(remote.direct, job) == ["enqueued", "claimed", "completed"]
    added = remote.direct.find(type="next")
    assert sum(one.payload["of"] == job.id for one in added) == int(adds_jobs), "added once"
    remote.check(drained=not adds_jobs)  # nobody runs those that were added


@pytest.mark.scenario(38)
def test_leases_whose_claim_was_not_answered_run_out(remote: RemoteStore) -> None:
    @remote.direct.job(max_retries=2, backoff=0)
    async def work() -> None: ...

    jobs = [remote.source.enqueue("work") for _ in range(20)]
    lasts = [remote.source.enqueue("work", max_retries=1, priority=-1) for _ in range(2)]
    remote.lose_answers_to_claim()
    with (
        running_sweeper(remote.direct),
        running_worker(remote.direct, remote.source, concurrency=6, lease_seconds=1),
    ):
        ends = [wait_until_completed(remote.direct, job) for job in jobs]
        # They were charged, though nobody ran them: the store cannot know that.
        for job in lasts:
            wait_until(lambda job=job: remote.direct.get(job.id).status is Status.FAILED)
    assert remote.proxy.counts["answers dropped"] == 1
    assert Counter(end.attempts for end in ends) == {1: 16, 2: 4}
    lost = ["enqueued", "claimed", "lease_expired", "retried", "claimed", "completed"]
    assert all(transitions(remote.direct, end.id) == lost for end in ends if end.attempts == 2)
    remote.check()


@pytest.mark.scenario(39)
def test_requests_that_arrive_twice(web: RemoteStore) -> None:
    @web.direct.job
    async def work(number: int) -> None: ...

    web.proxy.repeat_requests(b"POST /jobs", times=1_000)
    web.proxy.repeat_requests(b"POST /reports", times=1_000)
    jobs = [
        web.source.enqueue("work", {"number": n}, idempotency_key=f"key-{n}", backoff=0)
        for n in range(20)
    ]
    wait_until(lambda: len(web.proxy.copies) == 20, "the copies to be answered")
    assert len(web.direct.find(limit=500)) == 20

    # A second claim is answered to nobody, so its leases run out, like any whose worker died.
    web.proxy.repeat_requests(b"POST /leases", times=2)
    with (
        running_sweeper(web.direct),
        running_worker(web.direct, web.source, concurrency=3, lease_seconds=1),
    ):
        for job in jobs:
            wait_until_completed(web.direct, job)
    events = Counter(event for job in jobs for event in transitions(web.direct, job))
    assert events["completed"] == 20
    assert events["lease_expired"] >= 3
    assert web.proxy.counts["requests repeated"] > 22
    web.check()


@pytest.mark.scenario(39)
def test_claims_and_reports_that_arrive_twice(web: RemoteStore) -> None:
    made = {web.source.enqueue("work", {"number": n}).id for n in range(10)}
    url = web.proxy.url_of(web.server.url) if web.server else ""
    web.proxy.repeat_requests(b"POST /leases")
    claim = {"worker": "w", "limit": 5, "lease_seconds": 300}
    mine = httpx2.post(f"{url}/leases", json=claim).json()
    (copy,) = wait_until(lambda: web.proxy.copies)
    others = httpx2.Response(200, content=copy.partition(b"\r\n\r\n")[2]).json()
    assert len(mine) == len(others) == 5
    assert {lease["id"] for lease in mine + others} == made

    web.proxy.repeat_requests(b"POST /reports")
    reports = [{"lease_id": lease["lease_id"], "outcome": "completed"} for lease in mine]
    first = httpx2.post(f"{url}/reports", json=reports).json()
    wait_until(lambda: len(web.proxy.copies) == 2)
    second = httpx2.Response(200, content=web.proxy.copies[1].partition(b"\r\n\r\n")[2]).json()
    pairs = [(one["answer"], two["answer"]) for one, two in zip(first, second, strict=True)]
    assert len(pairs) == 5
    assert {tuple(sorted(pair)) for pair in pairs} == {("already_recorded", "recorded")}
    assert web.direct.verify() == []


@pytest.mark.scenario(40)
def test_a_report_that_comes_after_the_next_attempt_began(web: RemoteStore) -> None:
    job = web.source.enqueue("work", max_retries=3, backoff=0)
    url, straight = web.proxy.url_of(web.server.url), web.server.url  # type: ignore[union-attr]
    body = {"worker": "slow", "lease_seconds": 1}
    (old,) = httpx2.post(f"{url}/leases", json=body).json()
    web.proxy.hold(b"/reports")
    with ThreadPoolExecutor(1) as elsewhere:
        reports = [{"lease_id": old["lease_id"], "outcome": "completed"}]
        late = elsewhere.submit(httpx2.post, f"{url}/reports", json=reports, timeout=WAIT_SECONDS)
        wait_until(lambda: web.proxy.counts["requests held"] == 1, "the report to be on its way")
        wait_until(lambda: web.direct.get(job.id).status is Status.PENDING, "the lease to run out")
        body = {"worker": "next", "lease_seconds": 300}
        (new,) = httpx2.post(f"{straight}/leases", json=body).json()
        web.proxy.let_go()
        answer = late.result(WAIT_SECONDS)
    assert [verdict["answer"] for verdict in answer.json()] == ["lost"]
    assert web.direct.get(job.id).status is Status.PROCESSING
    reports = [{"lease_id": new["lease_id"], "outcome": "completed", "result": "new"}]
    assert httpx2.post(f"{straight}/reports", json=reports).json()[0]["answer"] == "recorded"
    assert web.direct.get(job.id).result_json == '"new"'
    assert (old["token"], new["token"]) == (1, 2)
    assert web.direct.verify() == []
