"""What workers do over HTTP: lease, wait for work, report, keep leases alive, hand back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.lifecycle import MAX_RETURNS
from tenure.server import build
from tests.support.http import JSON, UNKNOWN_ID, Exchange, assert_problem, claim_jobs, report


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


def asking(**more: Any) -> bytes:
    return json.dumps({"worker": "w", "limit": 5, **more}).encode()


def test_a_lease_says_what_a_worker_needs(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "payload": {"x": 1}, "timeout": 60}).json()
    (lease,) = claim_jobs(api, lease_seconds=45)
    assert lease["id"] == job["id"]
    assert lease["payload"] == {"x": 1}
    assert (lease["attempts"], lease["max_retries"], lease["token"]) == (1, 10, 1)
    assert lease["timeout"] == 60.0
    assert lease["lease_id"].startswith(f"{job['id']}.")
    shown = api.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["worker"], shown["token"]) == ("processing", "http/w", 1)
    assert shown["lease_expires_at"] == lease["lease_expires_at"]


def test_queues_and_types_narrow_a_claim(api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}, {"type": "b"}, {"type": "a", "queue": "q"}])
    assert claim_jobs(api, 9, types=["c"]) == []
    assert claim_jobs(api, 9, queues=["other"]) == []
    assert [one["type"] for one in claim_jobs(api, 9, queues=["default"], types=["b"])] == ["b"]
    assert len(claim_jobs(api, 9)) == 2


@pytest.mark.parametrize("free", [0, 2, None])
def test_a_claim_of_a_client_says_how_many_handlers_are_free(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    asked: list[Any] = []
    exchange = app.core.exchange
    monkeypatch.setattr(app.core, "exchange", lambda r, c: (asked.append(c), exchange(r, c))[1])
    claim_jobs(api, limit=3, **({} if free is None else {"free": free}))
    assert (asked[0].limit, asked[0].free) == (3, free)


BAD_CLAIMS = [
    ({}, "$"),
    ({"worker": ""}, "$.worker"),
    ({"worker": "a\nb"}, "$.worker"),
    ({"worker": "w\n"}, "$.worker"),
    ({"worker": "w", "label": "a\n"}, "$.label"),
    ({"worker": "w", "version": "1\n"}, "$.version"),
    ({"worker": "w" * 256}, "$.worker"),
    ({"worker": "w", "limit": -1}, "$.limit"),
    ({"worker": "w", "limit": 1001}, "$.limit"),
    ({"worker": "w", "free": -1}, "$.free"),
    ({"worker": "w", "lease_seconds": 0.5}, "$.lease_seconds"),
    ({"worker": "w", "lease_seconds": 86401}, "$.lease_seconds"),
    ({"worker": "w", "wait_seconds": 31}, "$.wait_seconds"),
    ({"worker": "w", "queues": ["ok", "not ok"]}, "$.queues[1]"),
    ({"worker": "w", "queues": ["ok", "tenure.webhooks"]}, "$.queues[1]"),
    ({"worker": "w", "types": "a"}, "$.types"),
    ({"worker": "w", "attempts": 0}, "$"),
]


def test_a_claim_that_is_not_understood(api: TestClient, subtests: pytest.Subtests) -> None:
    for body, path in BAD_CLAIMS:
        with subtests.test(f"{body!a:.60}"):
            assert (
                assert_problem(api.post("/leases", json=body), 400, "invalid_input")["path"] == path
            )


# --- waiting for work -----------------------------------------------------------------------------


async def asked_once(app: Tenure) -> None:
    """Wait until a worker's first claim has come to the store, which was empty."""
    async with asyncio.timeout(20):
        while not app.workers.list():  # noqa: ASYNC110 - the store has no event to wait for
            await asyncio.sleep(0)


@pytest.mark.anyio
async def test_a_claim_waits_until_there_is_work(app: Tenure) -> None:
    body = asking(wait_seconds=30)
    async with Exchange(build(app), "POST", "/leases", body) as request:
        await asked_once(app)
        assert not request.task.done()
        job = await app.enqueue_async("a")
        (lease,) = await request.end()
    assert lease["id"] == job.id


@pytest.mark.anyio
async def test_a_waiting_claim_takes_what_becomes_due(app: Tenure) -> None:
    """Nobody rings when a job becomes due: whoever waits looks by itself."""
    job = await app.enqueue_async("a", delay=0.3)
    async with Exchange(build(app), "POST", "/leases", asking(wait_seconds=30)) as request:
        (lease,) = await request.end()
    assert lease["id"] == job.id


@pytest.mark.anyio
async def test_a_claim_waits_no_longer_than_asked(app: Tenure) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with Exchange(build(app), "POST", "/leases", asking(wait_seconds=0.4)) as request:
        assert await request.end() == []
    assert 0.4 <= loop.time() - started < 5


@pytest.mark.anyio
async def test_a_stopping_server_ends_waiting_claims_at_once(app: Tenure) -> None:
    built = build(app)
    async with Exchange(built, "POST", "/leases", asking(wait_seconds=30)) as request:
        await asked_once(app)
        built.state.notifier.stop()
        assert await request.end() == []
    await app.enqueue_async("a")
    async with Exchange(built, "POST", "/leases", asking(wait_seconds=30)) as request:
        assert await request.end() == [], "a stopping server leases nothing"


@pytest.mark.anyio
async def test_nothing_is_leased_to_a_client_that_is_gone(app: Tenure) -> None:
    job = await app.enqueue_async("a")
    for wait in (0, 30):
        async with Exchange(build(app), "POST", "/leases", asking(wait_seconds=wait)) as request:
            await request.hang_up()
            await request.end()
    assert app.get(job.id).status == "pending"
    assert app.get(job.id).attempts == 0


@pytest.mark.anyio
@pytest.mark.scenario(97)
async def test_a_client_that_leaves_while_it_waits_gets_nothing(app: Tenure) -> None:
    async with Exchange(build(app), "POST", "/leases", asking(wait_seconds=30)) as request:
        await asked_once(app)
        await request.hang_up()
        await request.end()
        job = await app.enqueue_async("a")
    assert [transition.event for transition in app.history(job.id)] == ["enqueued"]


@pytest.mark.anyio
@pytest.mark.scenario(97)
async def test_what_was_leased_while_the_client_left_is_handed_back(app: Tenure) -> None:
    """The client goes between the look whether it is there and the commit of the claim."""
    job = await app.enqueue_async("a")
    built = build(app)
    request = Exchange(built, "POST", "/leases", asking())
    claim = app.core.exchange

    def exchange(*arguments: Any) -> Any:
        request._to_app.put_nowait({"type": "http.disconnect"})
        return claim(*arguments)

    app.core.exchange = exchange  # type: ignore[method-assign]
    async with request:
        await request.end()
    transitions = [transition.event for transition in app.history(job.id)]
    assert transitions == ["enqueued", "claimed", "released"]
    assert app.get(job.id).attempts == 0


# --- reports --------------------------------------------------------------------------------------


def test_an_attempt_completes_once(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a"})
    (lease,) = claim_jobs(api)
    completed = [{"lease_id": lease["lease_id"], "outcome": "completed", "result": {"x": 1}}]
    first = api.post("/reports", json=completed)
    assert first.json() == [{"lease_id": lease["lease_id"], "answer": "recorded"}]
    assert api.post("/reports", json=completed).json()[0]["answer"] == "already_recorded"
    failed = [{"lease_id": lease["lease_id"], "outcome": "failed", "error": "x"}]
    (verdict,) = api.post("/reports", json=failed).json()
    assert (verdict["answer"], verdict["recorded"]) == ("conflict", "completed")
    job = api.get(f"/jobs/{lease['id']}").json()
    assert (job["status"], job["result"]) == ("completed", {"x": 1})


def test_a_result_may_be_left_out(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a"})
    (lease,) = claim_jobs(api)
    assert report(api, lease, "completed") == "recorded"
    assert api.get(f"/jobs/{lease['id']}").json()["result"] is None


def test_a_failure_is_retried_unless_it_is_permanent(api: TestClient) -> None:
    for retryable, status in ((True, "pending"), (False, "failed")):
        api.post("/jobs", json={"type": "a"})
        (lease,) = claim_jobs(api)
        assert report(api, lease, "failed", error="no luck", retryable=retryable) == "recorded"
        job = api.get(f"/jobs/{lease['id']}").json()
        assert (job["status"], job["last_error"]) == (status, "no luck")


def test_a_release_costs_no_attempt(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a"})
    (lease,) = claim_jobs(api)
    assert report(api, lease, "released") == "recorded"
    job = api.get(f"/jobs/{lease['id']}").json()
    assert (job["status"], job["attempts"], job["token"]) == ("pending", 0, 1)


def test_an_interruption_costs_no_attempt(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "max_retries": 1}).json()
    (lease,) = claim_jobs(api)
    assert report(api, lease, "interrupted") == "recorded"
    assert api.get(f"/jobs/{job['id']}").json()["attempts"] == 0
    (again,) = claim_jobs(api)
    assert report(api, again, "interrupted") == "recorded"
    assert report(api, again, "interrupted") == "already_recorded"


def test_a_snooze_and_the_delay_of_a_failure_set_the_time(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "max_retries": 2}).json()
    (lease,) = claim_jobs(api)
    assert report(api, lease, "snoozed", delay=0) == "recorded"
    (lease,) = claim_jobs(api)
    assert (lease["attempts"], lease["token"]) == (1, 2)
    entry = {"lease_id": lease["lease_id"], "outcome": "failed", "error": "busy", "delay": 3600.5}
    assert api.post("/reports", json=[entry]).json()[0]["retry_in"] == 3600.5
    assert api.get(f"/jobs/{job['id']}").json()["status"] == "pending"
    assert claim_jobs(api) == []


@pytest.mark.parametrize("delay", [-1, 1e12, "1h"])
def test_a_delay_out_of_range_is_refused_and_the_lease_stays(api: TestClient, delay: Any) -> None:
    api.post("/jobs", json={"type": "a"})
    (lease,) = claim_jobs(api)
    entry = {"lease_id": lease["lease_id"], "outcome": "snoozed", "delay": delay}
    refused = assert_problem(api.post("/reports", json=[entry]), 400, "invalid_input")
    assert refused["path"] == "$[0].delay"
    assert api.post("/heartbeats", json=[lease["lease_id"]]).json()[0]["held"]


def test_releases_are_bounded(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a", "max_retries": 1})
    for _ in range(MAX_RETURNS + 1):
        (lease,) = claim_jobs(api)
        report(api, lease, "released")
    assert api.get(f"/jobs/{lease['id']}").json()["status"] == "failed"


def test_a_cancelled_jobs_lease_is_lost(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a"})
    (lease,) = claim_jobs(api)
    api.post(f"/jobs/{lease['id']}/cancel")
    for outcome in ("released", "completed"):
        assert report(api, lease, outcome) == "lost"
    assert api.get(f"/jobs/{lease['id']}").json()["status"] == "cancelled"


UNKNOWN = [
    "x",
    "..x",
    "a.b",
    UNKNOWN_ID,
    f"{UNKNOWN_ID}.",
    f".{'0' * 32}",
    f"{UNKNOWN_ID}.{'0' * 32}",
    f"{UNKNOWN_ID}.{'0' * 31}",
    f"{UNKNOWN_ID}.not-a-lease",
    f"{UNKNOWN_ID}.00000000-0000-0000-0000-000000000000",
    f"{UNKNOWN_ID.upper()}.{'0' * 32}",
    "é" * 100,
    "%00",
    "' OR 1=1 --",
]


def test_many_reports_have_a_verdict_each(api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}] * 4)
    leases = [lease["lease_id"] for lease in claim_jobs(api, 4)]
    reports = [
        {"lease_id": leases[0], "outcome": "completed", "result": [1]},
        {"lease_id": leases[1], "outcome": "failed", "error": "x", "retryable": False},
        {"lease_id": leases[2], "outcome": "released"},
        {"lease_id": leases[0], "outcome": "failed", "error": "x"},
        {"lease_id": leases[1], "outcome": "failed", "error": "x"},
        *({"lease_id": name, "outcome": "completed"} for name in UNKNOWN),
    ]
    verdicts = api.post("/reports", json=reports).json()
    assert [verdict["lease_id"] for verdict in verdicts] == [one["lease_id"] for one in reports]
    assert [verdict["answer"] for verdict in verdicts] == [
        "recorded",
        "recorded",
        "recorded",
        "conflict",
        "already_recorded",
        *("lost" for _ in UNKNOWN),
    ]
    assert verdicts[3]["recorded"] == "completed"
    by_status = api.get("/stats").json()["by_status"]
    assert (by_status["completed"], by_status["failed"], by_status["pending"]) == (1, 1, 1)
    assert api.post("/reports", json=[]).json() == []
    refused = api.post("/reports", json=[{"lease_id": "x", "outcome": "exploded"}])
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$[0].outcome"


# --- heartbeats -----------------------------------------------------------------------------------


def test_heartbeats_keep_leases(api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}] * 2)
    first, second = claim_jobs(api, 2, lease_seconds=5)
    beaten = api.post("/heartbeats?lease_seconds=600", json=[first["lease_id"]])
    assert beaten.json() == [{"lease_id": first["lease_id"], "held": True}]
    longer = api.get(f"/jobs/{first['id']}").json()["lease_expires_at"]
    assert longer > first["lease_expires_at"]
    names = [second["lease_id"], *UNKNOWN, first["lease_id"]]
    answers = api.post("/heartbeats?lease_seconds=700", json=names).json()
    assert [answer["lease_id"] for answer in answers] == names
    assert [answer["held"] for answer in answers] == [True, *(False for _ in UNKNOWN), True]
    assert api.get(f"/jobs/{second['id']}").json()["lease_expires_at"] > longer
    assert api.post("/heartbeats", json=[]).json() == []
    for query in ("lease_seconds=0", "lease_seconds=nan", "lease=3"):
        refused = api.post(f"/heartbeats?{query}", json=[])
        assert_problem(refused, 400, "invalid_input")


def test_heartbeats_say_which_event_ended_a_lease(api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}] * 3)
    held, cancelled, completed = claim_jobs(api, 3)
    api.post(f"/jobs/{cancelled['id']}/cancel")
    report(api, completed, "completed")
    names = [held["lease_id"], cancelled["lease_id"], completed["lease_id"]]
    assert api.post("/heartbeats", json=names).json() == [
        {"lease_id": names[0], "held": True},
        {"lease_id": names[1], "held": False, "ended_by": "cancelled"},
        {"lease_id": names[2], "held": False, "ended_by": "completed"},
    ]


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.requirement("C17")
def test_no_read_tells_a_lease(api: TestClient, app: Tenure) -> None:
    """Only who leased a job can settle it: its lease id is shown to nobody else."""
    job = api.post("/jobs", json={"type": "a"}).json()
    (lease,) = claim_jobs(api)
    secret = lease["lease_id"].partition(".")[2]
    paths = [f"/jobs/{job['id']}{part}" for part in ("", "/history", "/explain")]
    paths += ["/jobs", "/workers", "/queues", "/stats", "/metrics", "/ready"]
    for path in paths:
        assert secret not in api.get(path).text, path
    assert all(secret not in repr(transition) for transition in app.history(job["id"]))


def test_a_lease_id_that_no_database_can_hold_is_lost_too(api: TestClient) -> None:
    name = rb"\ud800\u0000.\udfff"
    report = b'[{"lease_id": "%b", "outcome": "failed", "error": "x"}]' % name
    (verdict,) = api.post("/reports", content=report, headers=JSON).json()
    assert verdict["answer"] == "lost"
    (answer,) = api.post("/heartbeats", content=b'["%b"]' % name, headers=JSON).json()
    assert answer["held"] is False
