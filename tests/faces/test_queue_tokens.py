"""Tokens for some queues: each call and each page shows and changes those queues only."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.app.app import limited_to
from tenure.app.stats import Statistics
from tenure.client import Client
from tenure.dashboard import push, site
from tenure.errors import Forbidden, InvalidInput, JobNotFound
from tenure.http import guard
from tenure.http.call import Route
from tenure.http.routes import ROUTES
from tenure.rules.jobs import TypeOptions
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.retention import DeclaredType
from tenure.rules.search import Filter
from tenure.rules.tokens import Scope
from tenure.server import build
from tests.support.cli import cli_json, output_of
from tests.support.http import (
    UNKNOWN_ID,
    Exchange,
    ServerProcess,
    api_client,
    assert_problem,
    claim_jobs,
    post_form,
)
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_completed

OWN = ("mail", "shop.*")
FOREIGN = ("billing", "foreign.type", "foreign text", "foreign error", "foreign-host")
"""What a token for the queues `OWN` must never see."""


@dataclass
class Tenants:
    """A database with jobs of two tenants, and a server."""

    app: Tenure
    api: TestClient
    ids: list[str]  # a pending, a running and a failed job of the other tenant
    bulk: str  # an action of the other tenant
    lease: str  # of the other tenant

    def sees_nothing_in(self, text: str) -> bool:
        return not any(part in text for part in (*FOREIGN, *self.ids, self.bulk))


@pytest.fixture
def tenants(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenants]:
    monkeypatch.setattr(guard, "PAUSE_SECONDS", -1)
    with Tenure(database_url) as app:
        payload = {"note": "foreign text"}
        for _ in range(3):
            app.enqueue("foreign.type", payload, queue="billing", max_retries=1)
        claim = ClaimRequest(worker="foreign-host", limit=2, lease_seconds=60, queues=("billing",))
        failing, running = app.core.claim(claim).leases
        error = "foreign error"
        app.core.report([Report(failing.id, failing.lease_id, Outcome.FAILED, error=error)])
        app.queues.limit("billing", max_pending=100)
        app.core.declare({"foreign.type": TypeOptions(queue="billing")})
        bulk = app.bulk.start("retry", Filter(queue="billing")).id
        app.bulk.stop(bulk)
        app.enqueue("own.type", queue="mail")
        app.enqueue("own.type", queue="shop.a")
        while app.core.measure():
            pass
        secret, _ = app.tokens.create("shop", ["admin"], queues=OWN)
        ids = [job.id for job in app.find(queue="billing")]
        with api_client(app) as api:
            api.headers["Authorization"] = f"Bearer {secret}"
            lease = f"{running.id}.{running.lease_id}"
            yield Tenants(app, api, ids, bulk, lease)
        assert app.verify() == []


# --- each call of the API -------------------------------------------------------------------------

NEW = {"type": "foreign.type", "queue": "billing"}
AIMED: dict[str, tuple[Any, Any]] = {
    "health": (None, 200),
    "ready": (None, 200),
    "describe": (None, 200),
    "createJob": (NEW, 403),
    "createJobs": ([{"type": "own.type", "queue": "mail"}, NEW], 403),
    "listJobs": (None, 200),
    "countJobs": (None, 200),
    **dict.fromkeys(["showJob", "showHistory", "showSteps", "explainJob"], (None, 404)),
    **dict.fromkeys(["cancelJob", "retryJob", "unblockJob", "runJobAgain"], (None, 404)),
    "amendJob": ({"priority": 1}, 404),
    **dict.fromkeys(["listParents", "listFollowers"], (None, 404)),
    "listWorkflows": (None, 200),
    "createWorkflow": ({"jobs": [NEW]}, 403),
    "addToWorkflow": ({"jobs": [{"type": "own.type", "queue": "mail"}]}, 404),
    **dict.fromkeys(["showWorkflow", "showGraph"], (None, 404)),
    **dict.fromkeys(["cancelWorkflow", "retryWorkflow"], (None, 404)),
    **dict.fromkeys(["sendSignal", "listSignals"], (None, 404)),
    **dict.fromkeys(["useSignalToken", "showSignalToken"], (None, 404)),
    "startBulk": ({"action": "cancel", "filter": {"queue": "billing"}}, 403),
    "listBulks": (None, 200),
    "showBulk": (None, 404),
    "stopBulk": (None, 404),
    "leaseJobs": ({"worker": "w", "queues": ["mail", "billing"]}, 403),
    # Only the holder knows the second half of a lease id. Without it, nothing is there.
    **dict.fromkeys(["completeLease", "releaseLease", "interruptLease", "renewLease"], (None, 409)),
    "failLease": ({"error": "no"}, 409),
    "snoozeLease": ({"delay": 1}, 409),
    "reportMany": ([], 200),
    "renewLeases": ([], 200),
    "recordProgress": ([], 200),
    "loadSteps": (None, 409),
    "findSignal": ("?number=1", 409),
    "showParents": (None, 409),
    "keepSignalToken": ({"digest": "0" * 64, "name": "a"}, 409),
    "recordStep": ({"name": "a", "number": 1}, 409),
    "keepState": ({"number": 1, "state": 1}, 409),
    "streamEnds": (None, 400),  # without a worker; the worker of a token is its own
    **dict.fromkeys(["pauseType", "resumeType", "keepType"], ({}, 403)),
    **dict.fromkeys(["listSchedules", "showSchedule", "listFires", "nextTicks"], (None, 403)),
    **dict.fromkeys(["deleteSchedule", "pauseSchedule", "resumeSchedule"], (None, 403)),
    "triggerSchedule": (None, 403),
    "putSchedule": ({"job": {"type": "own.type"}, "every": 60}, 403),
    "backfillSchedule": ({"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}, 403),
    "previewSchedule": ({"every": 60}, 200),
    "listQueues": (None, 200),
    "listRules": (None, 200),
    "keepQueue": ({"failed": 60}, 403),
    "pauseQueue": (None, 403),
    "resumeQueue": (None, 403),
    "limitQueue": ({"max_pending": 0}, 403),
    "listPartitions": (None, 403),
    "setPartition": ({"partition": "acme", "weight": 2}, 403),
    "passOver": ({"partition": "acme"}, 403),
    "declareType": ({"queue": "billing"}, 403),
    "listTypes": (None, 200),
    "listWorkers": (None, 200),
    "showStats": (None, 200),
    "showMetrics": (None, 200),
    "streamEvents": ("?queue=billing", 403),
}
"""What each call, aimed at the other tenant, answers: a new route fails until it says so here."""


def aim(tenants: Tenants, route: Route, job_id: str) -> httpx2.Response:
    """Make a call about the other tenant."""
    sent, _ = AIMED[route.name]
    there = {"id": tenants.bulk if "/bulk" in route.path else job_id, "name": "billing"}
    guess = tenants.lease.partition(".")[0] + "." + "0" * 32
    path = route.path.format(lease=guess, token="x" * 22, signal="x", **there)
    if isinstance(sent, str):
        path, sent = path + sent, None
    return tenants.api.request(route.method, path, json=sent)


@pytest.mark.requirement("C16")
def test_each_call_shows_and_changes_nothing_of_other_queues(
    tenants: Tenants, subtests: pytest.Subtests
) -> None:
    def state() -> Any:
        app = tenants.app
        jobs = [app.get(job_id) for job_id in tenants.ids]
        return jobs, [q for q in app.queues.list() if q.name == "billing"], app.bulk.list()

    before = state()
    for route in ROUTES:
        with subtests.test(route.name):
            for job_id in tenants.ids:
                _shows_nothing(tenants, route, aim(tenants, route, job_id))
            assert state() == before


def _shows_nothing(tenants: Tenants, route: Route, response: httpx2.Response) -> None:
    assert response.status_code == AIMED[route.name][1], response.text
    if response.status_code == 200:
        assert tenants.sees_nothing_in(response.text), response.text
    if response.status_code == 403:
        told = assert_problem(response, 403, "forbidden")["detail"]
        if route.path.startswith("/schedules") or route.name in (
            "pauseType",
            "resumeType",
            "keepType",
        ):
            assert "a token for every queue" in told
        else:
            assert "mail, shop.*" in told
            assert "name one of them as the queue" in told


def test_a_foreign_job_looks_like_one_that_never_was(tenants: Tenants) -> None:
    def refusal(job_id: str) -> Any:
        return tenants.api.get(f"/jobs/{job_id}").json() | {"request_id": ""}

    never = "0190163d-8694-739b-aea5-966c26f8ad90"
    foreign = tenants.ids[0]
    assert str(refusal(foreign)).replace(foreign, never) == str(refusal(never))
    own = tenants.app.find(queue="mail")[0].id  # and a foreign worker like none
    assert tenants.app.explain(own).reason == "no_worker_for_queue"
    assert tenants.api.get(f"/jobs/{own}/explain").json()["reason"] == "no_worker"


def test_own_queues_are_shown_and_changed(tenants: Tenants) -> None:
    api = tenants.api
    assert {job["queue"] for job in api.get("/jobs").json()} == {"mail", "shop.a"}
    assert api.get("/jobs", params={"queue": "mail"}).json()[0]["queue"] == "mail"
    assert api.get("/jobs/count").json() == {"jobs": 2, "exact": True}
    assert api.get("/stats").json()["total"] == 2
    assert [queue["name"] for queue in api.get("/queues").json()] == ["mail", "shop.a"]
    assert api.post("/queues/shop.new/pause").json()["paused_at"]
    made = api.post("/jobs", json={"type": "a", "queue": "shop.new"})
    assert made.status_code == 201
    job = made.json()["id"]
    assert api.get(f"/jobs/{job}/explain").json()["reason"] == "queue_paused"
    assert api.post(f"/jobs/{job}/cancel").json()["status"] == "cancelled"
    assert_problem(api.post("/jobs", json={"type": "a"}), 403, "forbidden")  # queue `default`
    assert_problem(api.get("/jobs", params={"queue": "billing"}), 403, "forbidden")
    assert_problem(api.get("/jobs/count", params={"queue": "shop"}), 403, "forbidden")


def test_a_reason_names_no_job_of_another_queue(tenants: Tenants) -> None:
    own = tenants.app.enqueue("own.type", queue="mail", delay="1h")
    both = [tenants.ids[0], own.id]
    child = tenants.app.enqueue("own.type", queue="mail", depends_on=both)
    said = tenants.api.get(f"/jobs/{child.id}/explain").json()["text"]
    assert "2 jobs" in said
    assert own.id in said
    assert "a job of another queue (" in said
    assert tenants.ids[0] in tenants.app.explain(child.id).text


def test_a_bulk_action_without_a_queue_is_held_to_the_queues(tenants: Tenants) -> None:
    asked = {"action": "cancel", "filter": {"created_before": "2999-01-01T00:00:00Z"}}
    started = tenants.api.post("/bulk", json=asked).json()
    assert started["total"] == 2
    while tenants.app.bulk.step(started["id"]).finished_at is None:
        pass
    shown = tenants.api.get(f"/bulk/{started['id']}").json()
    assert (shown["changed"], shown["refused"]) == (2, 0)
    assert [bulk["id"] for bulk in tenants.api.get("/bulk").json()] == [started["id"]]
    assert all(tenants.app.get(job_id).status != "cancelled" for job_id in tenants.ids)
    narrower, _ = tenants.app.tokens.create("mail", ["read"], queues=["mail"])
    assert tenants.api.get("/bulk", headers={"Authorization": f"Bearer {narrower}"}).json() == []


def test_the_queue_of_a_type_is_not_told(tenants: Tenants) -> None:
    """The jobs of a type may go to a queue that the caller neither named nor may see."""
    for sent in (
        tenants.api.post("/jobs", json={"type": "foreign.type"}),
        tenants.api.put("/types/foreign.type", json={"queue": "mail"}),
    ):
        assert "billing" not in assert_problem(sent, 403, "forbidden")["detail"]


def test_keys_of_other_queues_tell_nothing(tenants: Tenants) -> None:
    old = tenants.app.enqueue("a", queue="billing", idempotency_key="k")
    same = {"type": "a", "queue": "mail", "idempotency_key": "k"}
    made = tenants.api.post("/jobs", json=same)
    assert made.status_code == 201
    assert made.json()["id"] != old.id
    again = tenants.api.post("/jobs", json=same)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    assert tenants.api.post("/jobs", json={**same, "queue": "shop.a"}).status_code == 201
    conflict = tenants.api.post("/jobs", json={**same, "payload": {"n": 1}})
    assert assert_problem(conflict, 422, "idempotency_key_reused")["job_id"] == made.json()["id"]
    assert tenants.app.enqueue("a", queue="billing", idempotency_key="k") == old


@pytest.mark.requirement("C18")
def test_leases_are_of_these_queues(tenants: Tenants) -> None:
    leased = claim_jobs(tenants.api, limit=10)
    assert {lease["queue"] for lease in leased} == {"mail", "shop.a"}
    assert claim_jobs(tenants.api, limit=10) == []
    tenants.app.enqueue("a", queue="shop.late")
    assert claim_jobs(tenants.api, queues=["shop.late"])[0]["queue"] == "shop.late"
    (worker,) = tenants.api.get("/workers").json()
    assert (worker["id"], worker["leases"]) == ("token:shop/w", 3)
    report = {"lease_id": leased[0]["lease_id"], "outcome": "completed"}
    assert tenants.api.post("/reports", json=[report]).json()[0]["answer"] == "recorded"


def test_a_worker_of_every_queue_is_shown_with_its_leases_here(tenants: Tenants) -> None:
    claim = ClaimRequest(worker="all", limit=9, lease_seconds=60, queues=("mail", "billing"))
    tenants.app.core.claim(claim)
    (worker,) = tenants.api.get("/workers").json()
    assert (worker["queues"], worker["leases"]) == (["mail"], 1)


def test_a_worker_of_no_queue_here_is_not_shown(tenants: Tenants) -> None:
    """Nor one that names more queues than are kept, or that has none yet."""
    many = [f"tenant-{number}" for number in range(30)]
    secret, _ = tenants.app.tokens.create("tenant", ["work"], queues=["tenant-*"])
    headers = {"Authorization": f"Bearer {secret}"}
    for name, queues in (("none", []), ("many", many), ("pattern", None)):
        claimed = tenants.api.post(
            "/leases", json={"worker": name, "queues": queues}, headers=headers
        )
        assert claimed.json() == []
    assert tenants.api.get("/workers").json() == []
    assert claim_jobs(tenants.api)
    shown = {worker.id: worker.queues for worker in tenants.app.workers.list()}
    assert shown["token:tenant/pattern"] == ("tenant-*",)
    assert shown["token:tenant/none"] == ()
    (worker,) = tenants.api.get("/workers").json()
    assert worker["queues"] == ["mail", "shop.*", "shop.a"]


def test_events_of_these_queues(tenants: Tenants) -> None:
    asyncio.run(_events_of_these_queues(tenants))


async def _events_of_these_queues(tenants: Tenants) -> None:
    headers = {"authorization": tenants.api.headers["Authorization"]}
    start = tenants.app.events.read(limit=1).position
    async with Exchange(
        build(tenants.app), "GET", "/events", headers=headers, query=f"after={start}"
    ) as stream:
        await stream.wait_for(b'"queue":"shop.a"')
        tenants.app.enqueue("foreign.type", queue="billing")
        tenants.app.enqueue("own.type", queue="mail", actor="at the end")
        await stream.wait_for(b"at the end")
    assert tenants.sees_nothing_in(stream.answered.decode())


# --- the dashboard --------------------------------------------------------------------------------


@pytest.fixture
def browser(tenants: Tenants) -> TestClient:
    token = tenants.api.headers.pop("Authorization").removeprefix("Bearer ")
    assert post_form(tenants.api, "/ui/sign-in", {"token": token}).status_code == 303
    return tenants.api


REFUSED = {
    "/ui/new": 422,  # it names no type
    **dict.fromkeys(("/ui/jobs/{id}/again", "/ui/jobs/{id}/amend", "/ui/jobs/{id}/run-now"), 404),
    "/ui/jobs/{id}/signal": 404,
    "/ui/samples": 403,
    "/ui/jobs": 303,  # with a message that says how many were changed
    "/ui/jobs/{id}/retry": 404,
    "/ui/jobs/{id}/cancel": 404,
    "/ui/queues/{name}/pause": 403,
    "/ui/queues/{name}/resume": 403,
    "/ui/queues/{name}/limit": 403,
    **{f"/ui/queues/{{name}}/partition/{act}": 403 for act in ("limit", "pause", "resume")},
    "/ui/queues/{name}/partition/pass-over": 403,
    **dict.fromkeys(("/ui/types/{name}/pause", "/ui/types/{name}/resume"), 403),
    **dict.fromkeys(("/ui/schedules/{name}/pause", "/ui/schedules/{name}/resume"), 403),
    "/ui/schedules/{name}/trigger": 403,
    "/ui/bulk": 403,
    "/ui/bulk/{id}/stop": 404,
    **dict.fromkeys(("/ui/workflows/{id}/cancel", "/ui/workflows/{id}/retry"), 404),
}


@pytest.mark.requirement("C16")
def test_each_page_shows_these_queues_only(
    tenants: Tenants, browser: TestClient, subtests: pytest.Subtests
) -> None:
    for path in site.PAGES:
        with subtests.test(path):
            _shows_these_queues_only(tenants, browser, path)


def _shows_these_queues_only(tenants: Tenants, browser: TestClient, path: str) -> None:
    there = tenants.bulk if "/bulk" in path else tenants.ids[0]
    page = browser.get(path.format(id=there, part="payload", name="billing"))
    others = 403 if "schedules" in path or "{name}" in path else 200  # of jobs in any queue
    assert page.status_code == (404 if "{id}" in path else others)
    asked = there if "{id}" in path else "billing" if page.status_code == 403 else " "
    assert tenants.sees_nothing_in(page.text.replace(asked, ""))  # but what it has asked for
    if path in ("/ui/queues", "/ui/jobs"):
        assert "shop.a" in page.text


def test_each_button_changes_these_queues_only(
    tenants: Tenants, browser: TestClient, subtests: pytest.Subtests
) -> None:
    def state() -> Any:
        app = tenants.app
        return app.find(queue="billing"), app.bulk.list(), app.queues.list()

    before = state()
    fields = {"action": "cancel", "id": tenants.ids[0], "queue": "billing"}
    fields |= {"max_pending": "7", "weight": "2"}
    for path in site.ACTIONS:
        with subtests.test(path):
            there = tenants.bulk if "/bulk" in path else tenants.ids[0]
            answer = post_form(browser, path.format(id=there, name="billing"), fields)
            assert answer.status_code == REFUSED[path]
            assert state() == before


def test_the_live_stream_names_these_queues_only(
    tenants: Tenants, browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "NOTIFY_SECONDS", 0.02)
    asyncio.run(_live_stream_of_these_queues(tenants, browser))


async def _live_stream_of_these_queues(tenants: Tenants, browser: TestClient) -> None:
    headers = {"cookie": f"tenure_session={browser.cookies['tenure_session']}"}
    async with Exchange(build(tenants.app), "GET", "/ui/live", headers=headers) as stream:
        await stream.wait_for(b"hello")
        foreign = tenants.app.enqueue("foreign.type", queue="billing")
        own = tenants.app.enqueue("own.type", queue="mail")
        await stream.wait_for(own.id.encode())
    assert foreign.id.encode() not in stream.answered


# --- what stands behind it ------------------------------------------------------------------------


def test_what_cannot_be_limited_is_refused(app_on_each_engine: Tenure) -> None:
    limited = limited_to(app_on_each_engine, OWN)
    for verb in (
        limited.tokens.list,
        lambda: limited.tokens.create("more", ["admin"]),
        limited.webhooks.list,
        lambda: limited.webhooks.create("all", "https://example.com", ["failed"]),
        limited.stats.recount,
        limited.verify,
        limited.core.sweep,
        lambda: limited.core.prune({}),
        lambda: limited.wait(UNKNOWN_ID),
    ):
        with pytest.raises(Forbidden, match="every queue"):
            verb()
    assert limited_to(app_on_each_engine, None) is app_on_each_engine


def test_a_transaction_of_the_caller_is_for_these_queues(app: Tenure) -> None:
    foreign, own = app.enqueue("work", queue="billing"), app.enqueue("work", queue="mail")
    with closing(sqlite3.connect(app.database.removeprefix("sqlite:///"))) as connection:
        connection.execute("BEGIN")
        within = limited_to(app, OWN).within(connection)
        assert within.get(own.id) == own
        for verb in (within.get, within.cancel):
            with pytest.raises(JobNotFound):
                verb(foreign.id)
        with pytest.raises(Forbidden):
            within.enqueue("work", queue="billing")
        assert within.cancel(own.id).status == "cancelled"


def test_statistics_are_of_these_queues(tenants: Tenants) -> None:
    app, limited = tenants.app, limited_to(tenants.app, OWN)
    for numbers in (Statistics.counts, Statistics.activity, Statistics.totals):
        assert {one.queue for one in numbers(app.stats)} == {"billing", "mail", "shop.a"}
        assert {one.queue for one in numbers(limited.stats)} == {"mail", "shop.a"}
    assert [group.queue for group in app.stats.failures()] == ["billing"]
    assert limited.stats.failures() == []
    assert {job.queue for job in limited.bulk.sample(Filter(), "cancel")} == {"mail", "shop.a"}
    late = ClaimRequest(worker="w", limit=1, lease_seconds=0.001, queues=("billing",))
    assert app.core.claim(late).leases
    wait_until(app.stats.late_leases, "a lease to run out")
    assert limited.stats.late_leases() == 0


def test_a_token_for_queues(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    shop = ("tokens", "create", "shop", "--scope", "enqueue")
    made = cli_json(*shop, "--queue", "shop.*", "--queue", "mail")
    assert made["queues"] == ["mail", "shop.*"]
    output_of("tokens", "create", "all", "--scope", "read")
    assert "mail shop.*" in output_of("tokens", "list")
    with Tenure(database_url) as app:
        assert [token.queues for token in app.tokens.list()] == [None, OWN]
        assert app.tokens.list()[1].caller.queues == OWN


@pytest.mark.parametrize(
    "queues",
    [
        ["*"],
        ["ten*"],
        ["tenure.*"],
        ["tenure.webhooks"],
        ["a*b"],
        ["a b*"],
        [""],
        "mail",
        ["a"] * 101,
    ],
)
def test_what_are_no_queues_of_a_token(app: Tenure, queues: Any) -> None:
    with pytest.raises(InvalidInput, match="queues"):
        app.tokens.create("shop", [Scope.READ], queues=queues)


def test_a_remote_worker_with_such_a_token(app_on_each_engine: Tenure) -> None:
    app = app_on_each_engine

    @app.job(queue="shop.orders")
    def double(number: int) -> int:
        return 2 * number

    foreign = app.enqueue("double", {"number": 1}, queue="billing")
    secret, _ = app.tokens.create("shop", ["work", "enqueue"], queues=["shop.*"])
    with ServerProcess(app.database) as server, Client(server.url, secret) as client:
        job = client.enqueue("double", {"number": 21}, queue="shop.orders")
        with running_worker(app, client):
            assert wait_until_completed(app, job).result_json == "42"
    assert app.get(foreign.id).status == "pending"


def test_a_remote_worker_says_which_types_the_server_did_not_take(
    app_on_each_engine: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    """Another tenant's came first, or the queue is not its own: nothing was said."""
    app = app_on_each_engine
    app.core.declare({"taken": DeclaredType(queue="billing")})
    secret, _ = app.tokens.create("shop", ["work"], queues=["shop.*"])
    mine = {name: DeclaredType(queue="shop.orders") for name in ("own", "taken")}
    with ServerProcess(app.database) as server, Client(server.url, secret) as client:
        client.declare({**mine, "elsewhere": DeclaredType()})
        client.declare({"own": mine["own"]})
    (said,) = [one.getMessage() for one in caplog.records if one.name.startswith("tenure.wire")]
    assert said.startswith("2 types could not be made known to the server: elsewhere, taken;")
    known = {type.name: type.queue for type in app.types.list()}
    assert known == {"own": "shop.orders", "taken": "billing"}


def test_what_tenants_share_is_as_the_page_says(app: Tenure) -> None:
    tokens = {
        name: {"Authorization": f"Bearer {app.tokens.create(name, scopes, queues=queues)[0]}"}
        for name, scopes, queues in (
            ("a", ["work", "enqueue"], ["a"]),
            ("b", ["work"], ["b"]),
            ("all", ["enqueue"], None),
        )
    }
    with api_client(app) as api:

        def put(who: str, queue: str) -> int:
            body = {"queue": queue, "priority": 7}
            return api.put("/types/email", json=body, headers=tokens[who]).status_code

        assert (put("a", "a"), put("b", "b"), put("a", "a")) == (200, 403, 200)

        def add(who: str, **more: Any) -> str:
            job = {"type": "email", "queue": "a"} | more
            return str(api.post("/jobs", json=job, headers=tokens[who]).json()["id"])

        unique = {"unique": {"by": "one"}}
        for same in ({"idempotency_key": "k"}, unique):
            first = add("a", **same)
            assert add("a", **same) == first
            assert add("all", **same) != first
        assert add("all", unique={"by": "one", "across_queues": False}) == first

        lease = {"worker": "w", "limit": 1}
        (leased,) = api.post("/leases", json=lease, headers=tokens["a"]).json()
        report = {"lease_id": leased["lease_id"], "outcome": "completed"}
        (verdict,) = api.post("/reports", json=[report], headers=tokens["b"]).json()
        assert verdict["answer"] == "recorded"


def test_one_server_holds_each_token_to_its_queues(tenants: Tenants) -> None:
    secret, _ = tenants.app.tokens.create("billing", ["read"], queues=["billing"])
    headers = {"Authorization": f"Bearer {secret}"}
    for _ in range(2):
        shown = tenants.api.get("/queues", headers=headers).json()
        assert [queue["name"] for queue in shown] == ["billing"]
        assert "billing" not in tenants.api.get("/queues").text
