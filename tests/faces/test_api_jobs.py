"""Jobs over HTTP: adding, once only, listing, looking at, changing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.lifecycle import Status, legal_events
from tenure.server import build
from tests.support.http import UNKNOWN_ID, Exchange, assert_problem, claim_jobs, report

FIELDS = {
    *("id", "type", "queue", "status", "payload", "priority", "attempts", "max_retries"),
    *("last_error", "result", "run_at", "created_at", "started_at", "finished_at"),
    *("worker", "lease_expires_at", "token"),
}


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


def test_a_job_is_added_and_shown(api: TestClient, app: Tenure) -> None:
    body = {"type": "send.email", "payload": {"to": "a@example.com", "n": [1, 2.5, None, "é"]}}
    response = api.post("/jobs", json=body)
    assert response.status_code == 201
    job = response.json()
    assert job.keys() >= FIELDS
    assert job["payload"] == body["payload"]
    assert (job["status"], job["attempts"], job["max_retries"]) == ("pending", 0, 10)
    assert job["created_at"].endswith("Z")
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert api.get(response.headers["location"]).json() == job
    assert app.get(job["id"]).type == "send.email"
    assert app.history(job["id"])[0].actor == "http"


def test_every_option_arrives(api: TestClient) -> None:
    job = api.post(
        "/jobs",
        json={
            "type": "a",
            "queue": "mail",
            "priority": -5,
            "max_retries": 0,
            "run_at": "2040-01-01T02:00:00.5+02:00",
            "timeout": "1h30m",
            "backoff": {"base": "2s", "factor": 3, "cap": "PT5M"},
            "idempotency_key": "order-17",
        },
    ).json()
    assert job["queue"] == "mail"
    assert (job["priority"], job["max_retries"], job["timeout"]) == (-5, 0, 5400.0)
    assert job["run_at"] == "2040-01-01T00:00:00.500000Z"
    assert job["backoff"] == {"base": 2.0, "factor": 3.0, "cap": 300.0, "delays": []}
    assert job["idempotency_key"] == "order-17"


def test_null_is_as_left_out(api: TestClient) -> None:
    """Clients in typed languages write every field, and null for those that are not set."""
    names = ("delay", "run_at", "start_by", "partition", "tags", "depends_on", "idempotency_key")
    new = {"type": "t", **dict.fromkeys(names)}
    job = api.post("/jobs", json=new).raise_for_status().json()
    (other,) = api.post("/jobs/batch", json=[new]).raise_for_status().json()
    assert job["run_at"] == job["created_at"]
    for one in (job, other):
        assert (one["partition"], one["tags"], one["idempotency_key"]) == (None, [], None)


def test_a_backoff_may_be_its_base_alone(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "backoff": "5s"}).json()
    assert job["backoff"] == {"base": 5.0, "factor": 3.0, "cap": 3600.0, "delays": []}


@pytest.mark.parametrize("given", [["10s", 60, "PT10M"], {"delays": ["10s", 60, "PT10M"]}])
def test_a_backoff_may_be_a_list_of_delays(api: TestClient, given: object) -> None:
    job = api.post("/jobs", json={"type": "a", "backoff": given}).json()
    assert job["backoff"]["delays"] == [10.0, 60.0, 600.0]
    again = api.post("/jobs", json={"type": "a", "backoff": job["backoff"]}).json()
    assert again["backoff"] == job["backoff"]


def test_whole_numbers_may_be_written_as_floats(api: TestClient) -> None:
    assert api.post("/jobs", json={"type": "a", "max_retries": 2.0}).json()["max_retries"] == 2
    refused = api.post("/jobs", json={"type": "a", "max_retries": 2.5})
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$.max_retries"


# --- once only ------------------------------------------------------------------------------------


def test_a_key_makes_one_job(api: TestClient) -> None:
    key = {"Idempotency-Key": "order-17"}
    first = api.post("/jobs", json={"type": "a", "payload": {"n": 1}}, headers=key)
    again = api.post("/jobs", json={"payload": {"n": 1}, "type": "a"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    other = api.post("/jobs", json={"type": "a", "payload": {"n": 2}}, headers=key)
    body = assert_problem(other, 422, "idempotency_key_reused")
    assert body["job_id"] == first.json()["id"]
    assert body["idempotency_key"] == "order-17"
    assert "order-17" not in body["detail"]
    assert len(api.get("/jobs").json()) == 1


def test_the_key_is_the_same_in_header_and_body(api: TestClient) -> None:
    first = api.post("/jobs", json={"type": "a"}, headers={"Idempotency-Key": "k"})
    again = api.post("/jobs", json={"type": "a", "idempotency_key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)


def test_fifty_identical_requests_at_once_make_one_job(api: TestClient) -> None:
    def post(_: int) -> tuple[int, str]:
        headers = {"Idempotency-Key": "k"}
        response = api.post("/jobs", json={"type": "a", "payload": {"n": 1}}, headers=headers)
        return response.status_code, response.json()["id"]

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert sorted(status for status, _ in answers) == [200] * 49 + [201]
    assert len({job_id for _, job_id in answers}) == 1
    assert len(api.get("/jobs").json()) == 1


@pytest.mark.parametrize("key", ["", "a b", "é", "k" * 256])
def test_what_is_no_key_is_refused(api: TestClient, key: str) -> None:
    headers = [("Idempotency-Key", key.encode())]
    refused = api.post("/jobs", json={"type": "a"}, headers=headers)
    assert assert_problem(refused, 400, "invalid_input")["path"] == "Idempotency-Key"
    assert api.get("/jobs").json() == []


def test_two_keys_are_refused(api: TestClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert_problem(api.post("/jobs", json={"type": "a"}, headers=headers), 400, "invalid_input")


# --- many at once ---------------------------------------------------------------------------------


def test_a_batch_is_added_in_order(api: TestClient) -> None:
    response = api.post("/jobs/batch", json=[{"type": f"t{n}"} for n in range(20)])
    assert response.status_code == 201
    assert [job["type"] for job in response.json()] == [f"t{n}" for n in range(20)]
    assert api.post("/jobs/batch", json=[]).json() == []


def test_a_batch_is_all_or_nothing(api: TestClient) -> None:
    refused = api.post("/jobs/batch", json=[{"type": "a"}, {"type": "no good"}])
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$[1].type"
    refused = api.post("/jobs/batch", json=[{"type": "a"}, {"type": "b", "priority": "high"}])
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$[1].priority"
    refused = api.post("/jobs/batch", json=[{"type": "a", "backoff": {"factor": 0.5}}])
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$[0].backoff.factor"
    api.put("/queues/narrow/limit", json={"max_pending": 1})
    full = api.post("/jobs/batch", json=[{"type": "a"}, *[{"type": "b", "queue": "narrow"}] * 2])
    assert_problem(full, 429, "queue_full")
    assert api.get("/jobs").json() == []


def test_a_full_queue_says_so(api: TestClient) -> None:
    api.put("/queues/narrow/limit", json={"max_pending": 1})
    assert api.post("/jobs", json={"type": "a", "queue": "narrow"}).status_code == 201
    full = api.post("/jobs", json={"type": "a", "queue": "narrow"})
    body = assert_problem(full, 429, "queue_full")
    assert (body["queue"], body["max_pending"]) == ("narrow", 1)
    assert "narrow" not in body["detail"]
    assert int(full.headers["retry-after"]) >= 1
    api.put("/queues/narrow/limit", json={"max_pending": None})
    assert api.post("/jobs", json={"type": "a", "queue": "narrow"}).status_code == 201


@pytest.mark.anyio
async def test_requests_that_come_together_share_commits(postgres_url: str) -> None:
    """Group commit reaches through HTTP: no thread hop lies between a request and the committer."""
    with Tenure(postgres_url) as app:
        built = build(app)
        requests = [Exchange(built, "POST", "/jobs", b'{"type": "a"}') for _ in range(64)]
        async with contextlib.AsyncExitStack() as open_requests:
            for request in requests:
                await open_requests.enter_async_context(request)
            jobs = [await request.end() for request in requests]
        assert len({job["id"] for job in jobs}) == 64
        transactions = {
            event.transition.position.partition(".")[0] for event in app.events.read().events
        }
        assert len(transactions) <= 16


# --- listing --------------------------------------------------------------------------------------


def test_pages_follow_one_another(api: TestClient) -> None:
    made = api.post("/jobs/batch", json=[{"type": "a"} for _ in range(7)]).json()
    newest_first = [job["id"] for job in reversed(made)]
    seen: list[str] = []
    page = "/jobs?limit=3&type=a"
    while page:
        response = api.get(page)
        seen += [job["id"] for job in response.json()]
        link = response.headers.get("link", "")
        assert 'rel="next"' in link or not link
        page = link.partition("<")[2].partition(">")[0]
    assert seen == newest_first


def test_no_next_page_after_the_last(api: TestClient) -> None:
    assert api.get("/jobs").json() == []
    assert "link" not in api.get("/jobs").headers
    api.post("/jobs", json={"type": "a"})
    assert "link" not in api.get("/jobs?limit=2").headers


def test_filters(api: TestClient) -> None:
    wanted = [{"type": "a"}, {"type": "b", "queue": "q"}, {"type": "a", "queue": "q"}]
    first, second, third = api.post("/jobs/batch", json=wanted).json()
    api.post(f"/jobs/{first['id']}/cancel")

    def ids(query: str) -> list[str]:
        return [job["id"] for job in api.get(f"/jobs?{query}").json()]

    assert ids("type=a") == [third["id"], first["id"]]
    assert ids("queue=q") == [third["id"], second["id"]]
    assert ids("status=cancelled") == [first["id"]]
    assert ids("status=pending&type=a&queue=q") == [third["id"]]
    assert ids("type=none") == []


BAD_QUERIES = [
    "limit=0",
    "limit=501",
    "limit=ten",
    "limit=",
    "limit=1&limit=2",
    "status=done",
    "status=null",
    "statsu=failed",
    "type=no%20good",
    "queue=",
    "cursor=x",
    "cursor=0190163d86947f9b",
]


@pytest.mark.requirement("C22")
def test_a_query_that_is_not_understood_is_refused(
    api: TestClient, subtests: pytest.Subtests
) -> None:
    for query in BAD_QUERIES:
        with subtests.test(query):
            body = assert_problem(api.get(f"/jobs?{query}"), 400, "invalid_input")
            assert body["path"].startswith("query")


# --- one job --------------------------------------------------------------------------------------


def test_the_history_is_the_ledger(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "max_retries": 1}).json()
    (lease,) = claim_jobs(api)
    report(api, lease, "failed", error="no luck")
    history = api.get(f"/jobs/{job['id']}/history").json()
    transitions = [
        (transition["event"], transition["from"], transition["to"]) for transition in history
    ]
    assert transitions == [
        ("enqueued", None, "pending"),
        ("claimed", "pending", "processing"),
        ("failed", "processing", "failed"),
    ]
    assert history[-1]["detail"] == "no luck"
    assert history[-1]["attempt"] == 1


def test_a_job_is_explained(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "delay": "1h"}).json()
    told = api.get(f"/jobs/{job['id']}/explain").json()
    assert told["reason"] == "not_due"
    assert told["legal_events"] == list(legal_events(Status.PENDING))


NO_JOBS = [UNKNOWN_ID, "x", "%2e%2e", UNKNOWN_ID.upper(), "%00", "é" * 300]
CALLS_OF_A_JOB = [
    ("GET", "/jobs/{}"),
    ("GET", "/jobs/{}/history"),
    ("GET", "/jobs/{}/explain"),
    ("POST", "/jobs/{}/cancel"),
    ("POST", "/jobs/{}/retry"),
]


def test_a_job_that_is_not_there(api: TestClient, subtests: pytest.Subtests) -> None:
    for method, path in CALLS_OF_A_JOB:
        for job_id in NO_JOBS:
            with subtests.test(f"{method} {path} {job_id:.20}"):
                response = api.request(method, path.format(job_id))
                assert response.status_code == 404
                assert response.json()["code"] == "job_not_found"


def test_a_conflict_names_the_legal_moves(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a"}).json()
    body = assert_problem(api.post(f"/jobs/{job['id']}/retry"), 409, "illegal_transition")
    assert body["status_of_job"] == "pending"
    assert body["event"] == "retried"
    assert body["legal_events"] == list(legal_events(Status.PENDING))
    assert api.post(f"/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    body = assert_problem(api.post(f"/jobs/{job['id']}/cancel"), 409, "illegal_transition")
    assert (body["status_of_job"], body["legal_events"]) == ("cancelled", [])
    assert body["job_id"] == job["id"]
    assert body["instance"] == f"/jobs/{job['id']}/cancel"


def test_an_operator_retries_a_failed_job(api: TestClient) -> None:
    job = api.post("/jobs", json={"type": "a", "max_retries": 1}).json()
    (lease,) = claim_jobs(api)
    report(api, lease, "failed", error="x")
    retried = api.post(f"/jobs/{job['id']}/retry", json={"more_retries": 3})
    assert retried.status_code == 200
    assert retried.json()["status"] == "pending"
    assert retried.json()["max_retries"] == 4
    assert api.get(f"/jobs/{job['id']}/history").json()[-1]["actor"] == "http"
    refused = api.post(f"/jobs/{job['id']}/retry", json={"more_retries": 0})
    assert_problem(refused, 400, "invalid_input")


# --- paths and methods ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/jobs", "GET, HEAD, POST"),
        ("GET", "/jobs/batch", "POST"),
        ("PUT", f"/jobs/{UNKNOWN_ID}", "GET, HEAD, PATCH"),
        ("GET", "/leases", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("BREW", "/stats", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    api: TestClient, method: str, path: str, allowed: str
) -> None:
    response = api.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/job", "/jobs/", "/jobs//", "/docs", "/jobs/a/b/c"])
def test_an_unknown_path(api: TestClient, path: str) -> None:
    assert_problem(api.get(path), 404, "not_found")


def test_head_is_get_without_a_body(api: TestClient) -> None:
    response = api.head("/health")
    assert response.status_code == 200


class FakeDatetime(datetime):
    """As that of freezegun, which msgspec does not write as JSON."""


def test_jobs_are_shown_while_freezegun_replaces_times(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests of programs do both; every answer with a job was an internal error."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("tenure.") and vars(module).get("datetime") is datetime:
            monkeypatch.setattr(module, "datetime", FakeDatetime)
    added = api.post("/jobs", json={"type": "see", "delay": 0}).json()
    assert api.get("/jobs").json() == [added]
    assert claim_jobs(api)[0]["id"] == added["id"]
