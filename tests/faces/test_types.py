"""Enqueues without the handler, from every program, with the options of the type.

B4 is the trap that they end: `@app.job(queue="mail", max_retries=5)`, then `tenure enqueue` or
`POST /jobs`, and the job was in another queue, with other limits, where it never ran.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from tenure import Job, KeyConflict, NewJob, RetryPolicy, StoreUnavailable, Tenure
from tenure.app.type_defaults import OptionsByType, TypeDefaults
from tenure.client import Client
from tenure.rules.jobs import TypeOptions
from tenure.rules.reports import ClaimRequest
from tenure.values.findings import CheckResult
from tenure.worker import process
from tests.support.cli import PROGRAM, clean_environment, cli_json, output_of, run_cli, run_program
from tests.support.http import ServerProcess, api_client, assert_problem
from tests.support.programs import Program
from tests.support.waiting import wait_until
from tests.support.workers import wait_until_completed

JOBS = """
from tenure import RetryPolicy, Tenure
app = Tenure()
options = {"queue": "mail", "priority": -4, "max_retries": 5, "timeout": "90s"}

@app.job(**options, backoff=RetryPolicy(base=3, factor=4, cap=50))
def send(to: str) -> str:
    return "sent to " + to
"""
SEND = TypeOptions(
    queue="mail", priority=-4, max_retries=5, timeout=90.0, backoff=RetryPolicy(3, 4, 50)
)
TO = {"to": "ann"}


def options_of(job: Job) -> TypeOptions:
    return TypeOptions(
        queue=job.queue,
        priority=job.priority,
        max_retries=job.max_retries,
        timeout=job.timeout,
        backoff=job.backoff,
    )


def declare(url: str, **types: TypeOptions) -> None:
    """Start and end a program that has these handlers."""
    with Tenure(url) as app:
        app.core.declare(types)


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """A program without handlers, on a database that knows one type; commands find it, too."""
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    declare(database_url, send=SEND)
    with Tenure(database_url) as app:
        yield app


@pytest.mark.parametrize("remote", [False, True], ids=["beside the database", "over HTTP"])
def test_b4_every_enqueue_by_name_gets_what_the_decorator_says(
    database_url: str, tmp_path: Path, remote: bool
) -> None:
    """With real processes: a server and a command without the handler, a worker with it."""
    (tmp_path / "shop_types.py").write_text(JOBS)
    where = {"TENURE_DATABASE": database_url}
    with ServerProcess(database_url) as server, Tenure(database_url) as app:
        source = ["--server", server.url] if remote else []
        worker = Program(
            [*PROGRAM, "worker", "--app", "shop_types:app", "--queue", "mail", *source],
            cwd=tmp_path,
            env=clean_environment(**({} if remote else where)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(app.types.list, "the worker to declare its types")
            done = run_program("enqueue", "send", json.dumps(TO), **where)
            assert (done.returncode, done.stderr) == (0, "")
            posted = httpx2.post(f"{server.url}/jobs", json={"type": "send", "payload": TO})
            batch = httpx2.post(f"{server.url}/jobs/batch", json=[{"type": "send", "payload": TO}])
            ids = [done.stdout.strip(), posted.json()["id"], batch.json()[0]["id"]]
            for id in ids:
                job = wait_until_completed(app, id)
                assert options_of(job) == SEND
                assert job.result_json == '"sent to ann"'
        finally:
            worker.kill()
            worker.wait()
        assert app.verify() == []


def test_b4_python_elsewhere(app: Tenure) -> None:
    def in_a_loop() -> list[Job]:
        async def both() -> list[Job]:
            new_job = NewJob("send", TO, {})
            return [await app.enqueue_async("send", TO), *await app.enqueue_many_async([new_job])]

        return asyncio.run(both())

    jobs = [
        app.enqueue("send", TO),
        *app.enqueue_many([NewJob("send", TO, {}), NewJob("send", TO, {})]),
        *in_a_loop(),
    ]
    assert [options_of(job) for job in jobs] == 5 * [SEND]
    assert options_of(app.enqueue("unknown")) == TypeOptions()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"queue": "default"}, {"queue": "default"}),
        ({"priority": 0}, {"priority": 0}),
        ({"max_retries": 3}, {"max_retries": 3}),
        ({"timeout": 7}, {"timeout": 7.0}),
        ({"timeout": None}, {"timeout": None}),
        ({"backoff": 5}, {"backoff": RetryPolicy()}),
    ],
)
def test_an_option_of_the_call_wins(
    app: Tenure, api: TestClient, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Also one that says what would hold for a type that nobody knows."""
    (name, value), *_ = given.items()
    wanted = TypeOptions(
        **{**{n: getattr(SEND, n) for n in TypeOptions.__struct_fields__}, **expected}
    )
    posted = api.post("/jobs", json={"type": "send", "payload": TO, **given})
    batch = api.post("/jobs/batch", json=[{"type": "send", "payload": TO, **given}])
    jobs = [app.enqueue("send", TO, **given), app.get(posted.json()["id"])]  # type: ignore[arg-type]
    jobs.append(app.get(batch.json()[0]["id"]))
    if value is not None:
        flag = f"--{name.replace('_', '-')}"
        jobs.append(app.get(output_of("enqueue", "send", json.dumps(TO), flag, str(value))))
    assert [options_of(job) for job in jobs] == len(jobs) * [wanted]


def test_the_handler_of_the_process_wins_over_the_database(app: Tenure) -> None:
    app.job(name="send", queue="own", max_retries=2)(lambda to: None)
    with api_client(app) as api:  # it declares what it has, too
        posted = api.post("/jobs", json={"type": "send", "payload": TO})
    for job in (app.enqueue("send", TO), app.get(posted.json()["id"])):
        assert options_of(job) == TypeOptions(queue="own", max_retries=2)
    assert app.types.list()[0].queue == "own"


def test_a_program_that_opens_another_database_forgets_the_first(
    app: Tenure, tmp_path: Path
) -> None:
    assert app.enqueue("send").queue == "mail"
    app.close()
    app.database = f"sqlite:///{tmp_path}/other.db"
    assert app.enqueue("send").queue == "default"


def test_over_http_the_answer_of_the_database_is_awaited(app: Tenure) -> None:
    """Else a database that is slow to answer would delay every request and every heartbeat."""
    for path, body in (("/jobs", {"type": "send"}), ("/jobs/batch", [{"type": "send"}])):
        asked: list[Future[OptionsByType]] = []

        def ask(_: bool, asked: list[Future[OptionsByType]] = asked) -> Future[OptionsByType]:
            asked.append(Future())
            return asked[0]

        app.core.defaults = TypeDefaults(app.core.handlers, ask)
        with api_client(app) as api, ThreadPoolExecutor(1) as caller:
            posted = caller.submit(api.post, path, json=body)
            wait_until(lambda asked=asked: asked, "the server to ask")
            assert api.get("/health").status_code == 200  # the loop is free
            asked[0].set_result({"send": SEND})
            assert posted.result(30).status_code == 201


def test_types_are_declared_once_the_source_answers(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DECLARE_SECONDS", 0.01)
    app.job(name="late", queue="own")(lambda to: None)
    calls, really = [], app.core.declare

    def declare(options: OptionsByType) -> None:
        calls.append(options)
        if len(calls) <= 3:
            raise StoreUnavailable("away")
        really(options)

    monkeypatch.setattr(app.core, "declare", declare)
    with process.declared(lambda: app.core.declare(app.core.handlers.options())):
        wait_until(lambda: len(app.types.list()) == 2, "the type to be known")
    assert len(calls) == 4


def test_a_source_that_refuses_types_is_no_reason_not_to_work(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    app.job(name="send", queue="own")(lambda to: None)
    limited = app.core.limited_to(("mail",))
    with process.declared(lambda: limited.declare(app.core.handlers.options())):
        wait_until(lambda: caplog.messages, "a warning")
    assert "do not know what this one declares: this token is for the queues mail" in caplog.text


def test_a_declaration_that_fails_by_mistake_holds_up_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The start waited for a second, and what was to be declared after it never was."""
    declared: list[str] = []

    def fail() -> None:
        raise TypeError("no such field")

    began = time.monotonic()
    with process.declared(fail, lambda: declared.append("schedules")):
        assert time.monotonic() - began < process.FIRST_TRY_SECONDS / 2
        assert declared == ["schedules"]
    assert "do not know what this one declares: no such field" in caplog.text
    assert "Traceback" in caplog.text


def test_b2_a_key_survives_a_change_of_the_defaults_on_every_road(
    app: Tenure, database_url: str
) -> None:
    """A repeated request is the same request, whatever the decorator says by then."""
    roads = {
        "python": lambda app, api, key: app.enqueue("send", TO, idempotency_key=key).id,
        "many": lambda app, api, key: (
            app.enqueue_many(
                [NewJob("send", TO, {"idempotency_key": key}), NewJob("send", TO, {})]
            )[0].id
        ),
        "http": lambda app, api, key: api.post(
            "/jobs", json={"type": "send", "payload": TO}, headers={"Idempotency-Key": key}
        ).json()["id"],
        "batch": lambda app, api, key: api.post(
            "/jobs/batch", json=[{"type": "send", "payload": TO, "idempotency_key": key}]
        ).json()[0]["id"],
        "command": lambda app, api, key: output_of("enqueue", "send", json.dumps(TO), "--key", key),
    }
    with api_client(app) as api:
        ids = {name: road(app, api, f"key-{name}") for name, road in roads.items()}
    changed = TypeOptions(queue="letters", priority=9, max_retries=1, backoff=RetryPolicy(7))
    declare(database_url, send=changed)
    with Tenure(database_url) as later, api_client(later) as api:
        assert options_of(later.enqueue("send", TO)) == changed
        for made, id in ids.items():
            for road in roads.values():
                assert road(later, api, f"key-{made}") == id
        with pytest.raises(KeyConflict):
            later.enqueue("send", TO, idempotency_key="key-http", queue="mail")


def test_the_faces_list_the_types(app: Tenure, api: TestClient) -> None:
    declare(app.database, plain=TypeOptions())
    plain, send = app.types.list()
    assert (plain.name, send.name, options_of(send)) == ("plain", "send", SEND)  # type: ignore[arg-type]
    listed = api.get("/types").json()
    assert listed == cli_json("types", "list")
    assert [each["name"] for each in listed] == ["plain", "send"]
    assert listed[1]["backoff"] == {"base": 3.0, "factor": 4.0, "cap": 50.0, "delays": []}
    lines = output_of("types", "list").splitlines()
    assert lines[0].split() == ["TYPE", "QUEUE", "PRIORITY", "RETRIES", "TIMEOUT", "SEEN", "PAUSED"]
    assert lines[1].split()[:5] == ["plain", "default", "0", "10", "-"]
    assert lines[2].split()[:5] == ["send", "mail", "-4", "5", "90s"]


def test_a_worker_in_another_language_declares_its_types(app: Tenure, api: TestClient) -> None:
    answer = api.put("/types/translate", json={"queue": "language", "backoff": "5s"})
    assert answer.status_code == 200
    assert answer.json() == api.get("/types").json()[1]
    made = api.post("/jobs", json={"type": "translate"}).json()  # known here within 5 seconds
    assert made["queue"] in ("default", "language")
    with Tenure(app.database) as other:
        expected = TypeOptions(queue="language", backoff=RetryPolicy(5))
        assert options_of(other.enqueue("translate")) == expected
    assert_problem(api.put("/types/tenure.webhook", json={}), 400, "invalid_input")
    assert_problem(api.put("/types/a", json={"queue": "tenure.x"}), 400, "invalid_input")
    assert_problem(api.put("/types/a", json={"max_retries": 1001}), 400, "invalid_input")
    assert_problem(api.put("/types/a", json={"payload": {}}), 400, "invalid_input")


def test_a_token_for_some_queues_sees_and_declares_their_types_only(app: Tenure) -> None:
    declare(app.database, bill=TypeOptions(queue="billing"))
    secret, _ = app.tokens.create("shop", ["work", "read"], queues=["mail", "post"])
    with ServerProcess(app.database) as server, Client(server.url, secret) as client:
        post, billing = TypeOptions(queue="post"), TypeOptions(queue="billing")
        client.declare({"bill": SEND, "send": post, "parcel": post, "new": billing})
        headers = {"Authorization": f"Bearer {secret}"}
        seen = httpx2.get(f"{server.url}/types", headers=headers).json()
        refused = httpx2.put(f"{server.url}/types/bill", json={"queue": "mail"}, headers=headers)
    assert [(each["name"], each["queue"]) for each in seen] == [
        ("parcel", "post"),
        ("send", "mail"),
    ]
    assert_problem(refused, 403, "forbidden")
    assert {each.name: each.queue for each in app.types.list()} == {
        "bill": "billing",
        "parcel": "post",
        "send": "mail",  # known for every queue, so this token does not change it
    }


def works(app: Tenure, *queues: str, types: tuple[str, ...] | None = ("send",)) -> None:
    """Have a worker ask for jobs."""
    claim = ClaimRequest(
        worker=f"w-{queues}", limit=1, lease_seconds=30, queues=queues or None, types=types
    )
    app.core.claim(claim)


def test_b4_doctor_warns_of_due_jobs_that_no_worker_takes(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    def check() -> tuple[CheckResult, str]:
        (found,) = [check for check in app.check() if check.name == "types"]
        assert found.found == "1 known"
        return found.health, found.advice

    works(app, "letters")
    app.enqueue("send", TO, delay=60)
    app.enqueue("later", TO, queue="mail", delay=60)
    assert check() == (CheckResult.OK, "")  # nothing is due
    app.enqueue("send", TO)
    health, advice = check()
    assert health is CheckResult.WARNING
    assert "send in queue mail, which is run from letters only" in advice
    assert "send in queue mail" in " ".join(run_cli("doctor").stdout.split())
    app.enqueue("sned", TO, queue="mial")  # of these nobody knows
    assert "send in queue mail, which is run from letters only; sned in queue mial." in check()[1]
    assert "later" not in check()[1]
    app.cancel(app.find(type="sned")[0].id)
    caplog.clear()
    process.log_checks(app).join()
    assert "send" not in caplog.text  # at the start of a fleet, the other workers are to come
    caution = run_cli("enqueue", "send", json.dumps(TO)).stderr
    assert caution.startswith("Caution: workers run send from queue letters only, and this job is")
    works(app, "mail")
    assert check() == (CheckResult.OK, "")


def test_a_worker_of_any_queue_takes_every_type(app: Tenure) -> None:
    works(app, "letters")
    works(app)
    assert [check.health for check in app.check() if check.name == "types"] == [CheckResult.OK]


def test_no_event_loop_waits_for_the_options_of_a_type(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what was looked up is too old a moment later."""
    with Tenure(sqlite_url) as app, api_client(app) as api:
        defaults, asked = app.core.defaults, []
        ask, look_up = defaults._ask, defaults.look_up

        def count(waits: bool) -> Future[OptionsByType]:
            asked.append(1)
            return ask(waits)

        async def look_up_and_grow_old(types: Any) -> None:
            await look_up(types)
            defaults._due_at = -1.0

        monkeypatch.setattr(defaults, "_ask", count)
        monkeypatch.setattr(defaults, "look_up", look_up_and_grow_old)
        assert api.post("/jobs", json={"type": "a"}).status_code == 201
        assert api.post("/jobs/batch", json=[{"type": "a"}]).status_code == 201
        asyncio.run(app.enqueue_many_async([NewJob("a", {}, {})]))
        assert len(asked) == 3
