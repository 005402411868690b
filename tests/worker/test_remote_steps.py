"""Steps, sleep and state of workers that get their jobs over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tenure import JobContext, LeaseLost, Tenure
from tenure.client import Client
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.steps import MAX_STEPS, KeepState, Load, Notes, Record
from tests.support.effort import on_either_engine
from tests.support.http import ServerProcess, api_client, assert_problem, claim_jobs
from tests.support.proxy import Proxy
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_worker, transitions, wait_until_completed
from tests.worker import children


@pytest.fixture
def server(app_on_each_engine: Tenure) -> Iterator[ServerProcess]:
    with ServerProcess(app_on_each_engine.database) as served:
        yield served


@on_either_engine("kind", ["thread"], ["coroutine"], ["child"])
def test_steps_and_state_survive_an_attempt(
    app_on_each_engine: Tenure, server: ServerProcess, kind: str
) -> None:
    app = app_on_each_engine

    async def on_the_loop(context: JobContext) -> Any:
        async def charge() -> tuple[int, str]:
            return context.attempt, "eur"

        charged = await context.step_async("charge", charge)
        await context.step_async("nothing", _nothing)
        state = await context.state_async(default={"after": 0})
        await context.checkpoint_async({"after": state["after"] + 1}, flush=context.attempt == 2)
        if context.attempt < 3:
            raise ValueError("later")
        return charged, state

    function = on_the_loop if kind == "coroutine" else children.remembers.handler.function
    app.job(name="remembers", backoff=0, process=kind == "child")(function)  # type: ignore[call-overload]
    with Client(server.url) as client, running_worker(app, client):
        job = wait_until_completed(app, app.enqueue("remembers"))
    assert job.result == [[1, "eur"], {"after": 2}]
    assert job.attempts == 3
    assert app.verify() == []


async def _nothing() -> None: ...


def test_a_sleep_gives_the_slot_back(app: Tenure) -> None:
    """The job is snoozed at the server, and its second run reads when it may go on."""

    @app.job
    def sleeper(context: JobContext) -> int:
        context.sleep("1h")
        return context.token

    with ServerProcess(app.database) as served, Client(served.url) as client:
        job = sleeper.enqueue()
        with running_worker(app, client):
            wait_until(lambda: "snoozed" in transitions(app, job), "the job to sleep")
        app.amend(job.id, delay=0)  # woken early, it sleeps on: the step has the time
        with running_worker(app, client):
            wait_until(lambda: transitions(app, job).count("snoozed") == 2, "it to sleep on")
    assert app.get(job.id).attempts == 0
    assert app.get(job.id).run_at > app.get(job.id).created_at


def test_a_step_whose_answer_was_lost_is_recorded_once(
    app_on_each_engine: Tenure, server: ServerProcess
) -> None:
    """The worker asks again; the second record answers the first one, whatever it says."""
    app, calls = app_on_each_engine, list[int]()

    @app.job
    def order(context: JobContext) -> Any:
        first = context.step("charge", lambda: calls.append(1) or len(calls))
        context.checkpoint({"after": 1}, flush=True)
        return first, context.state()

    with Proxy(server.url) as proxy, Client(proxy.url_of(server.url)) as client:
        proxy.drop_answers(b"/steps ")
        proxy.drop_answers(b"/checkpoint ")
        with running_worker(app, client):
            job = wait_until_completed(app, order.enqueue())
        assert proxy.counts["answers dropped"] == 2
    assert (job.result, calls, job.attempts) == ([1, {"after": 1}], [1], 1)

    app.enqueue("order")
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    with Client(server.url) as client:
        answers = [
            client.ask(lease.id, lease.lease_id, Record("one", 1, text)).result(WAIT_SECONDS)
            for text in ('{"first":true}', '"second"')
        ]
        assert answers[0] == answers[1]
        assert answers[0].step.result == {"first": True}
        kept = [KeepState(number, f"[{number}]") for number in (2, 1, 2)]
        for one in kept:
            client.ask(lease.id, lease.lease_id, one).result(WAIT_SECONDS)
        loaded = client.ask(lease.id, lease.lease_id, Load()).result(WAIT_SECONDS)
        assert ([step.name for step in loaded.steps], loaded.state) == (["one"], "[2]")
        app.cancel(lease.id)
        for call in (Load(), Record("two", 2, None), KeepState(3, "[3]")):
            with pytest.raises(LeaseLost):
                client.ask(lease.id, lease.lease_id, call).result(WAIT_SECONDS)
    assert app.verify() == []


def test_what_is_kept_over_http_is_bounded(app: Tenure) -> None:
    app.enqueue("order")
    with api_client(app) as api:
        (lease,) = claim_jobs(api)
        steps = f"/leases/{lease['lease_id']}/steps"
        state = f"/leases/{lease['lease_id']}/checkpoint"
        for path, body, status, code in (
            (steps, {"name": "no such name!", "number": 1}, 400, "invalid_input"),
            (steps, {"name": "x" * 129, "number": 1}, 400, "invalid_input"),
            (steps, {"name": "a", "number": 0}, 400, "invalid_input"),
            (steps, {"name": "a", "number": 1, "result": "x" * 65_537}, 413, "payload_too_large"),
            (state, {"number": 1, "state": "x" * 65_537}, 413, "payload_too_large"),
            (state, {"number": 1}, 400, "invalid_input"),
            ("/leases/nonsense/steps", {"name": "a", "number": 1}, 409, "lease_lost"),
            (
                f"/leases/{lease['id']}.{'0' * 32}/steps",
                {"name": "a", "number": 1},
                409,
                "lease_lost",
            ),
        ):
            assert_problem(api.post(path, json=body), status, code)
        assert_problem(api.get("/leases/nonsense/steps"), 409, "lease_lost")
        assert api.get(steps).json()["steps"] == []
        for number in range(MAX_STEPS):
            assert api.post(steps, json={"name": f"s{number}", "number": 1}).status_code == 200
        refused = assert_problem(
            api.post(steps, json={"name": "more", "number": 1}), 400, "invalid_input"
        )
        assert "1000 steps" in refused["detail"]
        again = api.post(steps, json={"name": "s7", "number": 9, "result": 1}).json()
        assert (again["number"], again["result"], again["token"]) == (1, None, 1)
        assert len(api.get(steps).json()["steps"]) == MAX_STEPS
    assert app.verify() == []


@pytest.mark.postgres
def test_the_last_state_waits_for_a_heartbeat(postgres_url: str) -> None:
    """A report skipped the state of a job that a heartbeat had locked, and the state was lost."""
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url) as heartbeat:
        app.enqueue("order", backoff=0)
        (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
        heartbeat.execute("SELECT FROM tenure.job WHERE id = %s FOR NO KEY UPDATE", [lease.id])
        notes = Notes(state=KeepState(1, "[1]"))
        failed = Report(lease.id, lease.lease_id, Outcome.FAILED, error="no", notes=notes)
        answer = app.core.exchange([failed], None)
        asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        asked += " AND datname = current_database()"
        with psycopg.connect(postgres_url, autocommit=True) as looking:
            wait_until(lambda: looking.execute(asked).fetchone() != (0,), "the report to wait")
        heartbeat.rollback()
        assert answer.result(WAIT_SECONDS).verdicts[0].answer == "recorded"
        (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
        loaded = app.core.ask(lease.id, lease.lease_id, Load()).result(WAIT_SECONDS)
        assert loaded.state == "[1]"


def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came for a step whose handler was cancelled: the thread ended with a traceback."""
    with Client("http://127.0.0.1:9") as client:
        come = threading.Event()
        monkeypatch.setattr(client, "_answer", lambda *_: come.wait(WAIT_SECONDS))
        future = client.ask("job", "lease", Load())
        (thread,) = [one for one in threading.enumerate() if one.name == "tenure-client"]
        assert future.cancel()
        come.set()
        thread.join(WAIT_SECONDS)
