"""Jobs that a run adds if it completes: `JobContext.enqueue`, beside the database and over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest

from tenure import (
    Failure,
    InvalidInput,
    Job,
    JobContext,
    KeyConflict,
    NewJob,
    RetryPolicy,
    Tenure,
    Unique,
)
from tenure.client import Client
from tenure.rules.jobs import TypeOptions
from tenure.rules.ledger import Transition
from tenure.rules.reports import MAX_FOLLOW_UP_BYTES, MAX_FOLLOW_UPS, WorkSource
from tenure.values.ids import new_id, new_ids
from tests.support.effects import effects, make_effects, own_connection
from tests.support.effort import on_either_engine
from tests.support.http import ServerProcess, api_client, assert_problem, claim_jobs
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import WorkerScript, wait_for_exit
from tests.support.workers import (
    running_sweeper,
    running_worker,
    transitions,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker import children

ENDS = ("returns", "raises", "snoozes")


@dataclass
class Place:
    """An application, and where its workers get their jobs."""

    app: Tenure
    source: WorkSource | None
    actor: str  # how the name of a worker begins in the ledger


@pytest.fixture(params=["beside", "http"])
def place(request: pytest.FixtureRequest, app_on_each_engine: Tenure) -> Iterator[Place]:
    app = app_on_each_engine
    with ExitStack() as stack:
        if request.param == "beside":
            yield Place(app, None, "worker-")
        else:
            server = stack.enter_context(ServerProcess(app.database))
            yield Place(app, stack.enter_context(Client(server.url)), "http")
    assert app.verify() == []


def moment_of(entry: Transition) -> object:
    """The transaction on PostgreSQL; SQLite has one clock for each."""
    return entry.position.rpartition(".")[0] or entry.at


def parts_of(app: Tenure, job: Job) -> dict[str, Job]:
    return {one.id: one for one in app.find(type="part") if one.payload["of"] == job.id}


@on_either_engine(
    "place, kind", *product(["beside", "http"], ["loop", "thread", "child"]), indirect=["place"]
)
def test_what_the_run_that_completes_adds_is_there_once(place: Place, kind: str) -> None:
    app = place.app
    if kind == "loop":

        @app.job(name="split", backoff=0)
        async def split(context: JobContext, how: str, parts: int) -> list[str]:
            return children.enqueue_parts(context, how, parts)
    else:
        function = children.split.handler.function
        app.job(name="split", backoff=0, process=kind == "child")(function)
    ends = (*ENDS, "dies") if kind == "child" else ENDS
    jobs = {how: app.enqueue("split", {"how": how, "parts": 3}) for how in ends}
    with running_worker(app, place.source):
        for how, job in jobs.items():
            made = wait_until_completed(app, job).result
            found = parts_of(app, job)
            assert sorted(found) == made, f"{how}: those of the last run, and no others"
            numbers = [found[id].payload["number"] for id in made]
            assert numbers == [0, 1, 2]
            first = app.history(made[0])[0]
            end = app.history(job.id)[-1]
            assert first.actor == end.actor
            assert str(end.actor).startswith(place.actor)
            assert moment_of(first) == moment_of(end), "in the transaction of the completion"
            assert found[made[0]].tags == (how,)
            assert {one.again_of for one in found.values()} == {job.id}


def test_a_run_that_is_stopped_adds_nothing(place: Place) -> None:
    """Cancelled while it ran, and completed by a worker that has lost its lease."""
    app, started, go_on = place.app, threading.Event(), threading.Event()

    @app.job(backoff=0)
    def slow(context: JobContext) -> None:
        context.enqueue(NewJob("part", {"of": context.id}, {}))
        started.set()
        if context.attempt == 1:
            go_on.wait(WAIT_SECONDS)

    cancelled = slow.enqueue()
    with running_worker(app, place.source):
        wait_until(started.is_set, "the handler to start")
        app.cancel(cancelled.id)
        go_on.set()
        wait_until_completed(app, slow.enqueue())
    assert parts_of(app, cancelled) == {}
    assert app.count(type="part").jobs == 1


def test_an_addition_that_is_refused_fails_the_attempt(place: Place) -> None:
    """BullMQ completes a parent whose children could not be added; so does Celery."""
    app, failures = place.app, list[Failure]()
    app.on_failure(failures.append)
    taken = app.enqueue("part", {"of": "others"}, idempotency_key="k")
    unique = {"unique": Unique(by="one", on_conflict="error")}
    same = app.enqueue("part", {"of": "others"}, **unique)

    @app.job(max_retries=3, backoff=RetryPolicy(base=0))
    async def split(context: JobContext) -> int:
        context.enqueue(NewJob("part", {"of": context.id}, {}))
        if context.attempt == 1:
            context.enqueue(NewJob("part", {"of": context.id}, {"idempotency_key": "k"}))
        if context.attempt == 2:
            context.enqueue(NewJob("part", {"of": context.id}, unique))
        return context.attempt

    with running_worker(app, place.source):
        job = split.enqueue()
        assert wait_until_completed(app, job).result == 3
        assert len(parts_of(app, job)) == 1
        wait_until(lambda: len(failures) == 2, "the failures to be told of")
    first, second = (e.detail for e in app.history(job.id) if e.event == "failed")
    assert "context.enqueue was refused: KeyConflict" in str(first)
    assert taken.id in str(first)
    assert "context.enqueue was refused: DuplicateJob" in str(second)
    assert same.id in str(second)
    assert [failure.error for failure in failures] == [first, second]
    assert [failure.final for failure in failures] == [False, False]


def test_types_limits_and_keys_count_as_in_an_enqueue(place: Place) -> None:
    """Options are those of the type, its handler here or not; a full queue holds nothing back."""
    app = place.app
    app.core.limited_to(("away",)).declare({"far": TypeOptions(queue="away", max_retries=7)})
    app.queues.limit("away", max_pending=1)
    app.enqueue("far")
    known = app.enqueue("part", {"n": 1}, idempotency_key="once")

    @app.job(queue="near", partition_by="tenant", unique=Unique(by=["tenant"]))
    def near(tenant: str) -> None: ...

    app.core.declare({"near": app.core.handlers.options()["near"]})  # as a worker does

    @app.job
    def start(context: JobContext) -> list[str]:
        new = [
            *(NewJob("far", {}, {}), NewJob("far", {}, {"queue": "default"})),
            NewJob("part", {"n": 1}, {"idempotency_key": "once"}),
            *(near.new_job("acme"), near.new_job("acme")),
        ]
        return [context.enqueue(one) for one in new]

    with running_worker(app, place.source, queues=["default"]):
        job = start.enqueue()
        far, other, once, first, second = wait_until_completed(app, job).result
    found = {one.id: one for one in app.find()}
    assert (found[far].queue, found[far].max_retries) == ("away", 7)
    assert (found[other].queue, found[other].max_retries) == ("default", 10)
    assert (found[first].queue, found[first].partition) == ("near", "acme")
    assert {once, second}.isdisjoint(found)
    assert app.find(type="part") == [app.get(known.id)]


def test_what_a_server_does_not_take_fails_the_attempt(app: Tenure) -> None:
    """It was reported once more with the jobs, and then given up: its lease ran out."""

    @app.job(max_retries=1)
    def split(context: JobContext) -> None:
        context.enqueue(NewJob("part", {"numbers": [1] * 150_000}, {}))

    with ServerProcess(app.database) as server, Client(server.url) as client:
        job, other = split.enqueue(), app.enqueue("other")
        app.job(name="other")(lambda: None)
        with running_worker(app, client):
            assert "PayloadTooLarge" in wait_until_failed(app, job)
            wait_until_completed(app, other)
    assert app.count(type="part").jobs == 0


def test_bad_jobs_are_refused_in_the_handler(app: Tenure) -> None:
    large = "x" * (MAX_FOLLOW_UP_BYTES // 2)
    wrong: list[Any] = [
        (NewJob("no such name!", {}, {}), "$.type"),
        (NewJob("part", {}, {"priority": 1_000}), "$.priority"),
        (NewJob("part", {"a": float("nan")}, {}), "$.payload.a"),
        ("part", "give what new_job(...) returned, not a value of type str"),
    ]
    said: list[str] = []

    @app.job
    def split(context: JobContext) -> int:
        for new_job, _ in wrong:
            with pytest.raises(InvalidInput) as caught:
                context.enqueue(new_job)
            said.append(str(caught.value))
        context.enqueue(NewJob("part", {"x": large}, {}))
        with pytest.raises(InvalidInput, match="keep large data elsewhere"):
            context.enqueue(NewJob("part", {"x": large}, {}))
        return len(context.enqueued)

    @app.job
    def many(context: JobContext) -> int:
        for _ in range(MAX_FOLLOW_UPS):
            context.enqueue(NewJob("part", {}, {}))
        with pytest.raises(InvalidInput, match="at most 1000 jobs"):
            context.enqueue(NewJob("part", {}, {}))
        return len(context.enqueued)

    with running_worker(app):
        assert wait_until_completed(app, split.enqueue()).result == 1
        assert wait_until_completed(app, many.enqueue()).result == MAX_FOLLOW_UPS
    assert [part in text for text, (_, part) in zip(said, wrong, strict=True)] == [True] * 4
    assert app.count(type="part").jobs == 1 + MAX_FOLLOW_UPS


def test_a_completion_in_a_transaction_adds_them_there(app_on_each_engine: Tenure) -> None:
    """Its rollback takes them back; a refusal comes before anything is written."""
    app = app_on_each_engine
    make_effects(app.database)
    app.enqueue("part", {"of": "others"}, idempotency_key="k")
    app.core.declare({"part": TypeOptions(queue="away")})
    app.queues.limit("away", max_pending=1)
    refusals = list[Exception]()

    @app.job(backoff=0)
    def split(context: JobContext) -> None:
        new = {"idempotency_key": "k"} if context.attempt == 2 else {}
        with own_connection(app.database) as connection:
            for number in range(2):
                context.enqueue(NewJob("part", {"of": context.id, "number": number}, {}))
            context.enqueue(NewJob("part", {"of": context.id}, new))  # type: ignore[arg-type]
            connection.execute(f"INSERT INTO effect VALUES ('{context.id}')")
            try:
                context.complete(connection)
            except KeyConflict as refusal:
                refusals.append(refusal)
                raise
            with pytest.raises(InvalidInput, match="enqueue before"):
                context.enqueue(NewJob("part", {}, {}))
            with pytest.raises(InvalidInput, match="call it once"):
                context.complete(connection)
            if context.attempt == 1:
                raise ValueError("rolled back")
            connection.commit()

    @app.job
    def short(context: JobContext) -> None:
        with context.transaction():
            context.enqueue(NewJob("part", {"of": context.id}, {}))

    with running_worker(app):
        job, other = split.enqueue(), short.enqueue()
        wait_until_completed(app, job)
        wait_until_completed(app, other)
    assert len(refusals) == 1
    assert transitions(app, job).count("failed") == 2
    found = parts_of(app, job)
    assert len(found) == 3
    assert {one.queue for one in found.values()} == {"away"}
    assert len(parts_of(app, other)) == 1
    assert effects(app.database)[job.id] == 1
    assert app.verify() == []


SPLIT = """
from tenure import NewJob

@app.job(backoff=0)
async def split(context: JobContext):
    for number in range(3):
        context.enqueue(NewJob("part", {"of": context.id, "number": number}, {}))
"""


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_worker_killed_around_the_commit_adds_them_once(
    app_on_each_engine: Tenure, tmp_path: Any, moment: str
) -> None:
    app = app_on_each_engine
    job = app.enqueue("split", backoff=0)
    with WorkerScript(tmp_path, app.database, SPLIT, lease=1.0) as script:
        wait_for_exit(script.start(TENURE_FAILPOINTS=f"report.{moment}=kill"))
        committed = moment == "after_commit"
        assert len(parts_of(app, job)) == (3 if committed else 0)
        with running_sweeper(app):
            if not committed:
                script.start()
            wait_until_completed(app, job)
    assert len(parts_of(app, job)) == 3
    assert app.verify() == []


def test_a_handler_is_tested_as_a_function(app: Tenure) -> None:
    @app.job
    def part(number: int) -> None: ...

    @app.job
    def split(context: JobContext, parts: int) -> list[str]:
        return [context.enqueue(part.new_job(number)) for number in range(parts)]

    context = JobContext("", "split", "default", 1, 10, token=1, deadline=None)
    ids = split(context, 2)
    assert len(set(ids)) == 2
    assert [new.payload for new in context.enqueued] == [{"number": 0}, {"number": 1}]
    assert len(split(3)) == 3
    assert app.count().jobs == 0


def test_over_http_they_need_the_scope_and_the_queues_of_a_token(app: Tenure) -> None:
    """The attempt fails with the reason, and the other reports of the request count."""
    asked = {"a": ("work",), "b": ("work", "enqueue")}
    tokens = {
        name: app.tokens.create(name, scopes, queues=["mail"]) for name, scopes in asked.items()
    }
    told: dict[str, Any] = {}
    for name, token in tokens.items():
        for number, new in enumerate(
            (
                {"type": "part", "queue": "mail"},
                {"type": "part", "queue": "billing"},
                {"type": "part", "queue": "mail", "priority": 1_000},
                {"type": "part", "queue": "mail", "payload": {"a": "\0"}},
            )
        ):
            ids = [app.enqueue("send", queue="mail", max_retries=1).id for _ in range(2)]
            with api_client(app) as api:
                api.headers["Authorization"] = f"Bearer {token[0]}"
                leases = {one["id"]: one["lease_id"] for one in claim_jobs(api, 2, types=["send"])}
                body = [{"lease_id": leases[id], "outcome": "completed"} for id in ids]
                body[0]["jobs"] = [new]
                first = api.post("/reports", json=body).json()
                again = api.post("/reports", json=body).json()
            told[f"{name}{number}"] = first[0]["answer"], app.get(ids[0]).last_error
            assert again[0]["answer"] == (
                "already_recorded" if first[0]["answer"] == "recorded" else "conflict"
            )
            assert first[1]["answer"] == "recorded"
    assert told.pop("b0") == ("recorded", None)
    assert {answer for answer, _ in told.values()} == {"conflict"}
    reasons = {key: str(reason) for key, (_, reason) in told.items()}
    assert all("scope enqueue" in reasons[f"a{number}"] for number in range(4))
    assert "for the queues mail and for no other" in reasons["b1"]
    assert "$.priority" in reasons["b2"]
    assert "$.payload" in reasons["b3"]
    assert [one.queue for one in app.find(type="part")] == ["mail"]
    assert app.verify() == []


def test_to_run_a_job_again_a_report_needs_a_token_for_every_queue(app: Tenure) -> None:
    """It named a job of another tenant, which then had a link to the new one."""
    foreign, scopes = app.enqueue("secret", queue="billing"), ("work", "enqueue")
    own = [app.enqueue("send", queue="mail", max_retries=1) for _ in range(3)]
    verdicts = []
    for queues, again_of in ((["mail"], foreign), (["mail"], own[1]), (None, foreign)):
        token, _ = app.tokens.create(f"t{len(verdicts)}", scopes, queues=queues)
        with api_client(app) as api:
            api.headers["Authorization"] = f"Bearer {token}"
            (lease,) = claim_jobs(api, types=["send"])
            new = {"type": "part", "queue": "mail", "again_of": again_of.id}
            body = [{"lease_id": lease["lease_id"], "outcome": "completed", "jobs": [new]}]
            verdicts += api.post("/reports", json=body).json()
    assert [one["answer"] for one in verdicts] == ["conflict", "conflict", "recorded"]
    for one in verdicts[:2]:
        assert "again_of" in one["error"]
        assert "token for every queue" in one["error"]
        assert foreign.id not in one["error"]
    assert [one.again_of for one in app.find(type="part")] == [foreign.id]


def test_ids_of_reports_rise_and_no_job_has_one_twice(app: Tenure) -> None:
    first, second = new_ids(2)
    job = app.enqueue("send", max_retries=2, backoff=0)
    with api_client(app) as api:
        for ids, answer in (((second, first), "conflict"), ((first, second), "recorded")):
            (lease,) = claim_jobs(api)
            jobs = [{"type": "part", "id": id} for id in ids]
            body = [{"lease_id": lease["lease_id"], "outcome": "completed", "jobs": jobs}]
            verdict = api.post("/reports", json=body).json()[0]
            assert verdict["answer"] == answer
            assert ("rise" in verdict.get("error", "")) == (answer == "conflict")
        too_many = [{"lease_id": "x", "outcome": "completed", "jobs": [{"type": "a"}] * 1_001}]
        assert_problem(api.post("/reports", json=too_many), 400, "invalid_input")
        bad = [{"lease_id": "x", "outcome": "completed", "jobs": [{"type": "a", "id": "1"}]}]
        assert_problem(api.post("/reports", json=bad), 400, "invalid_input")
    assert sorted(one.id for one in app.find(type="part")) == [first, second]
    assert app.get(job.id).status == "completed"


def test_an_id_that_another_job_has_fails_the_attempt(app_on_each_engine: Tenure) -> None:
    """The job completed, and its new job was nowhere: the worker was told that it is there."""
    app, unique = app_on_each_engine, {"by": "one"}
    done = app.enqueue("part", {"of": "others"}, unique=unique)
    waits = app.enqueue("part", {"of": "others"}, idempotency_key="k")
    own = app.enqueue("send", max_retries=100, backoff=0)
    keyed = {"idempotency_key": "k", "payload": {"of": "others"}}
    options: list[dict[str, Any]] = [{}, {"unique": {"by": "two"}}, {"depends_on": [done.id]}]
    taken = [{"id": one.id} | more for one in (done, waits, own) for more in options]
    taken += [{"id": done.id, "unique": unique}, {"id": waits.id} | keyed]
    with api_client(app) as api:

        def report(*new: Any) -> dict[str, Any]:
            (lease,) = claim_jobs(api, types=["send"])
            jobs = [{"type": "part"} | one for one in new]
            body = [{"lease_id": lease["lease_id"], "outcome": "completed", "jobs": jobs}]
            first, again = (api.post("/reports", json=body).json()[0] for _ in range(2))
            assert again["answer"] != "recorded"
            assert (again["answer"] == "already_recorded") == (first["answer"] == "recorded")
            return dict(first)

        for new in taken:
            verdict = report(new, {"id": new_id()})
            assert (verdict["answer"], verdict["recorded"]) == ("conflict", "failed"), new
            assert "has this id already" in verdict["error"]
            assert "has this id already" in str(app.get(own.id).last_error)
        assert {one.id for one in app.find(type="part")} == {done.id, waits.id}
        assert app.get(done.id).payload == {"of": "others"}

        assert report(first := {"id": new_id()}, {"id": new_id()} | keyed)["answer"] == "recorded"
        assert {one.id for one in app.find(type="part")} == {done.id, waits.id, first["id"]}
        for _ in range(2):
            app.enqueue("send", max_retries=1)
        leases = [one["lease_id"] for one in claim_jobs(api, 2, types=["send"])]
        both = {"outcome": "completed", "jobs": [{"type": "part", "id": new_id()}]}
        told = api.post("/reports", json=[{"lease_id": one} | both for one in leases]).json()
        assert [one["answer"] for one in told] == ["recorded", "conflict"]
    assert app.verify() == []


@pytest.mark.parametrize("kind", ["thread", "child"])
def test_they_depend_on_each_other_and_on_the_job_that_adds_them(place: Place, kind: str) -> None:
    app = place.app
    function = children.chained.handler.function
    app.job(name="chained", backoff=0, process=kind == "child")(function)
    with running_worker(app, place.source, queues=["default"]):
        first, second, third = wait_until_completed(app, app.enqueue("chained")).result
    assert app.get(first).status == "pending"
    waiting = app.get(second)
    assert (waiting.status, waiting.need, waiting.spare) == ("waiting", 1, 0)
    assert app.get(third).status == "pending", "the job that it waits for has completed"


@pytest.mark.parametrize("kind", ["thread", "child"])
def test_who_adds_a_job_can_be_another(app: Tenure, kind: str) -> None:
    function = children.adds_for_ann.handler.function
    app.job(name="adds_for_ann", process=kind == "child")(function)
    with running_worker(app):
        added = wait_until_completed(app, app.enqueue("adds_for_ann")).result
    assert app.history(added)[0].actor == "ann"


def test_an_unknown_parent_fails_the_attempt(place: Place) -> None:
    app, nobody = place.app, new_id()

    @app.job(max_retries=1)
    async def split(context: JobContext) -> None:
        context.enqueue(NewJob("part", {"of": context.id}, {}))
        context.enqueue(NewJob("part", {"of": context.id}, {"depends_on": [nobody]}))

    with running_worker(app, place.source):
        job = split.enqueue()
        assert f"JobNotFound: no job {nobody}" in wait_until_failed(app, job)
    assert parts_of(app, job) == {}
