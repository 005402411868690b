"""Bad input over HTTP: refused with what, where and why, and nothing is written."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from tenure import Tenure
from tenure.handlers import results as produced
from tenure.http import bodies
from tenure.http.routes import MAX_BATCH_BYTES, MAX_JOB_BYTES
from tenure.server import build
from tenure.values import payload
from tenure.wire.problems import REQUEST_ID
from tests.support.http import (
    JSON,
    UNKNOWN_ID,
    Exchange,
    api_client,
    asgi_scope,
    assert_problem,
    claim_jobs,
)
from tests.support.programs import run


@pytest.fixture
def api(sqlite_url: str) -> Iterator[TestClient]:
    with Tenure(sqlite_url) as app, api_client(app) as api:
        yield api
        assert api.get("/stats").json()["total"] == 0, "something was written"


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


REFUSED = [
    ("", "$"),
    ("{", "$"),
    ("[]", "$"),
    ("null", "$"),
    ('"job"', "$"),
    ("{}", "$"),
    ('{"type": 1}', "$.type"),
    ('{"type": ""}', "$.type"),
    ('{"type": "a b"}', "$.type"),
    ('{"type": "../a"}', "$.type"),
    ('{"type": "a\\n"}', "$.type"),
    ('{"type": "a", "queue": "q/q"}', "$.queue"),
    ('{"type": "a", "queue": null}', "$.queue"),
    ('{"type": "a", "payload": []}', "$.payload"),
    ('{"type": "a", "payload": {"x": "a\\u0000b"}}', "$.payload.x"),
    ('{"type": "a", "payload": {"x": [0, {"y": "\\ud800"}]}}', "$.payload.x[1].y"),
    ('{"type": "a", "payload": {"x": 9223372036854775808}}', "$.payload.x"),
    ('{"type": "a", "payload": {"x": 1e999}}', "$.payload.x"),
    ('{"type": "a", "payload": {"x": NaN}}', "$.payload.x"),
    ('{"type": "a", "payload": {"x": Infinity}}', "$.payload.x"),
    ('{"type": "a", "payload": {"x": 1, "x": 2}}', "$.payload"),
    ('{"type": "a", "type": "b"}', "$"),
    ('{"type": "a", "payload": ' + nested(payload.MAX_DEPTH + 1) + "}", "$"),
    ('{"type": "a", "payload": {"x": ' + "[" * 50_000 + "]" * 50_000 + "}}", "$"),
    ('{"type": "a", "prioritty": 1}', "$"),
    ('{"type": "a", "status": "completed"}', "$"),
    ('{"type": "a", "attempts": 7}', "$"),
    ('{"type": "a", "token": 7}', "$"),
    ('{"type": "a", "actor": "root"}', "$"),
    ('{"type": "a", "priority": "1"}', "$.priority"),
    ('{"type": "a", "priority": 101}', "$.priority"),
    ('{"type": "a", "priority": true}', "$.priority"),
    ('{"type": "a", "max_retries": -1}', "$.max_retries"),
    ('{"type": "a", "max_retries": 1001}', "$.max_retries"),
    ('{"type": "a", "delay": "soon"}', "$.delay"),
    ('{"type": "a", "delay": -1}', "$.delay"),
    ('{"type": "a", "delay": 1e300}', "$.delay"),
    ('{"type": "a", "timeout": 0}', "$.timeout"),
    ('{"type": "a", "run_at": "2030-01-01T00:00:00"}', "$.run_at"),
    ('{"type": "a", "run_at": "tomorrow"}', "$.run_at"),
    ('{"type": "a", "run_at": "0001-01-01T00:00:00+14:00"}', "$.run_at"),
    ('{"type": "a", "run_at": "9999-12-31T23:59:59-14:00"}', "$.run_at"),
    ('{"type": "a", "run_at": 1900000000}', "$.run_at"),
    ('{"type": "a", "run_at": "2030-01-01T00:00:00Z", "delay": 1}', "$.run_at"),
    ('{"type": "a", "backoff": {"base": 1, "speed": 2}}', "$.backoff"),
    ('{"type": "a", "backoff": {"factor": 0.5}}', "$.backoff.factor"),
    ('{"type": "a", "backoff": {"cap": "long"}}', "$.backoff.cap"),
    ('{"type": "a", "backoff": ["10s", "long"]}', "$.backoff.delays[1]"),
    ('{"type": "a", "backoff": []}', "$.backoff"),
    ('{"type": "a", "idempotency_key": "a b"}', "$.idempotency_key"),
]


def test_a_refusal_says_where(api: TestClient, subtests: pytest.Subtests) -> None:
    for body, path in REFUSED:
        with subtests.test(f"{body:.60}"):
            response = api.post("/jobs", content=body.encode(), headers=JSON)
            assert assert_problem(response, 400, "invalid_input")["path"] == path
            response = api.post("/jobs/batch", content=f"[{body}]".encode(), headers=JSON)
            if body:
                assert response.status_code == 400


@pytest.mark.scenario(93)
@pytest.mark.parametrize(
    "data",
    [
        '{"type": "a"}'.encode("utf-16"),
        '{"type": "a"}'.encode("utf-32"),
        b'\xef\xbb\xbf{"type": "a"}',
        b'{"type": "a", "payload": {"x": "\xff"}}',
        b'{"type": "a"}\0',
    ],
)
def test_only_plain_utf_8_is_read(api: TestClient, data: bytes) -> None:
    assert_problem(api.post("/jobs", content=data, headers=JSON), 400, "invalid_input")


@pytest.mark.scenario(93)
@pytest.mark.requirement("C5")
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "text/json"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=iso-8859-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
)
def test_other_media_types_are_refused(api: TestClient, headers: dict[str, str]) -> None:
    data = b'{"type": "a"}'
    if "Content-Encoding" in headers:
        data = gzip.compress(data)
    assert_problem(api.post("/jobs", content=data, headers=headers), 415, "unsupported_media_type")


def test_two_content_types_are_refused(api: TestClient) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", "text/plain")]
    response = api.post("/jobs", content=b'{"type": "a"}', headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/jobs/batch", "/leases", "/reports", "/heartbeats"])
def test_every_body_must_be_json(api: TestClient, path: str) -> None:
    response = api.post(path, content=b"[]", headers={"Content-Type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")
    assert_problem(api.post(path, content=b"oops", headers=JSON), 400, "invalid_input")


@pytest.mark.requirement("C5")
def test_a_form_cannot_cancel(api: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    response = api.post("/jobs/x/cancel", content=b"", headers=form)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.scenario(94)
def test_the_largest_payload_goes_in_and_one_byte_more_does_not(sqlite_url: str) -> None:
    room = payload.MAX_PAYLOAD_BYTES - len('{"x":""}')
    with Tenure(sqlite_url) as app, api_client(app) as api:
        fits = api.post("/jobs", json={"type": "a", "payload": {"x": "y" * room}})
        assert fits.status_code == 201
        over = api.post("/jobs", json={"type": "a", "payload": {"x": "y" * (room + 1)}})
        assert assert_problem(over, 413, "payload_too_large")["path"] == "$.payload"
        assert len(fits.json()["payload"]["x"]) == room


def test_a_body_that_declares_too_much_is_not_read(api: TestClient) -> None:
    headers = {**JSON, "Content-Length": str(MAX_JOB_BYTES + 1)}
    assert_problem(api.post("/jobs", content=b"", headers=headers), 413, "payload_too_large")
    headers = {**JSON, "Content-Length": str(MAX_BATCH_BYTES + 1)}
    assert_problem(api.post("/reports", content=b"", headers=headers), 413, "payload_too_large")


@pytest.mark.scenario(94)
@pytest.mark.requirement("C9")
@pytest.mark.anyio
async def test_an_endless_body_is_cut_off_at_the_limit(sqlite_url: str) -> None:
    """Without a length the limit holds too, and no more than it is ever taken in."""
    taken = 0
    chunk = b'{"type": "' + b"a" * 65_536
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal taken
        taken += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    with Tenure(sqlite_url) as app:
        await build(app)(asgi_scope("POST", "/jobs"), receive, send)
    assert sent[0]["status"] == 413
    assert taken <= MAX_JOB_BYTES + 2 * len(chunk)


@pytest.mark.requirement("C9")
@pytest.mark.anyio
@pytest.mark.scenario(98)
async def test_a_body_that_does_not_come_in_time(sqlite_url: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(bodies, "RECEIVE_SECONDS", 0.1)
    with Tenure(sqlite_url) as app:
        async with Exchange(build(app), "POST", "/jobs", b'{"type"', whole=False) as request:
            assert (await request.end())["code"] == "request_timeout"
        async with Exchange(build(app), "POST", "/jobs", b'{"type"', whole=False) as request:
            await request.hang_up()  # and one that leaves half-way is no error
            await request.end()
        assert app.find() == []


@pytest.mark.requirement("C12")
def test_values_are_not_repeated(api: TestClient) -> None:
    """A refusal names the place, never the secret that stood there."""
    secret = "hunter2-" * 3
    bodies = [
        {"type": "a", "payload": {"x": secret + "\0"}},
        {"type": secret + " "},
        {"type": "a", "priority": secret},
        {"type": "a", "idempotency_key": secret + " "},
    ]
    for body in bodies:
        response = api.post("/jobs", content=json.dumps(body).encode(), headers=JSON)
        assert response.status_code == 400
        assert secret not in response.text


SECRET = "hunter2"
ID_4711 = "01900000-4711-7000-8000-000000004711"
CRON = {"job": {"type": "a"}, "cron": "0 3 * * *"}


@pytest.mark.requirement("C12")
@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("GET", f"/jobs?status={SECRET}", None, "one of cancelled, completed, failed, pending, "),
        ("GET", f"/workflows?status={SECRET}", None, "one of cancelled, completed, failed, runn"),
        ("POST", "/bulk", {"action": SECRET, "filter": {}}, "one of cancel, retry, run_now"),
        ("POST", "/bulk", {"action": "retry", "filter": {"state": SECRET}}, "one of blocked, re"),
        ("POST", "/reports", [{"lease_id": "x", "outcome": SECRET}], "one of completed, failed,"),
        ("POST", "/jobs", {"type": "a", "delay": SECRET}, "not a duration"),
        ("POST", "/jobs", {"type": f"tenure.{SECRET}"}, "begin with tenure. are reserved"),
        ("POST", "/jobs", {"type": "a", "depends_on": [ID_4711] * 2}, "one job is given twice"),
        (
            "POST",
            "/jobs",
            {
                "type": "a",
                "depends_on": [{"job_id": id, "name": SECRET} for id in (ID_4711, UNKNOWN_ID)],
            },
            "one name is given twice",
        ),
        (
            "POST",
            "/jobs",
            {"type": "a", "backoff": {"factor": 4711}},
            "out of range; use 1 to 1000",
        ),
        ("PUT", "/schedules/x", CRON | {"overlap": SECRET}, "one of allow_all, buffer_all, "),
        (
            "PUT",
            "/schedules/x",
            CRON | {"zone": f"Europe/{SECRET}"},
            "such as `Europe/Berlin` or UTC",
        ),
        ("GET", f"/events?event={SECRET}", None, "no such event; give one of enqueued, "),
        ("GET", f"/events?after={SECRET}", None, "no position in this ledger"),
    ],
)
def test_a_value_that_a_field_cannot_have_is_not_repeated(
    api: TestClient, method: str, path: str, body: Any, says: str
) -> None:
    """What it could be is said instead."""
    given = {REQUEST_ID: "a-1"}  # a random one may have 4711 in it
    response = api.request(method, path, json=body, headers=given)
    assert response.status_code == 400
    assert says in response.json()["detail"]
    assert SECRET not in response.text
    assert "4711" not in response.text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/jobs?created_after=2026-11-01T00:00:00+01:00", "%2B"),  # its plus is a space
        ("/jobs?created_after=2026-11-01", "2026-11-24T15:42:00Z"),
        ("/jobs?created_after=2026-11-01T00:00:00", "2026-11-24T15:42:00Z"),
        ("/schedules/a/fires?before=yesterday", "2026-11-24T15:42:00Z"),
        ("/jobs?cursor=2", "Link"),
        ("/workflows?cursor=2", "Link"),
    ],
)
def test_a_refusal_of_a_time_or_a_cursor_says_what_to_send(
    path: str, says: str, api: TestClient
) -> None:
    """It was `Invalid RFC3339 encoded datetime`, or a regular expression."""
    assert says in assert_problem(api.get(path), 400, "invalid_input")["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body", "says"),
    [
        ("POST", "/jobs", {"type": 5}, "Expected `string`, got `integer`"),
        ("POST", "/jobs", {"type": "int", "str": 1}, "unknown field `str`"),
        (
            *("POST", "/jobs", {"type": "a", "delay": True}),
            "Expected `number | string | null`, got `boolean`",
        ),
        ("POST", "/jobs", {"type": "a", "backoff": []}, "at least one delay"),
        ("GET", "/jobs?limit=0", None, "Expected `integer` >= 1"),
        ("POST", "/leases", {"worker": "w", "wait_seconds": 99}, "Expected `number` <= 30.0"),
    ],
)
def test_a_refusal_of_a_type_has_the_words_of_json(
    api: TestClient, method: str, path: str, body: Any, says: str
) -> None:
    """They were those of Python: `int`, `str`, `float`, `bool`, `list`."""
    refused = assert_problem(api.request(method, path, json=body), 400, "invalid_input")
    assert says in refused["detail"]


@pytest.mark.parametrize("time", ["2026-11-24", "2026-11-24T15:42:00", 1800000000, "soon"])
def test_a_refusal_of_a_time_in_a_body_does_too(time: object, api: TestClient) -> None:
    job = {"type": "a", "run_at": time}
    problem = assert_problem(api.post("/jobs", json=job), 400, "invalid_input")
    assert "2026-11-24T15:42:00Z" in problem["detail"]
    assert problem["path"] == "$.run_at"


def reported(lease: dict[str, Any], name: str, value: str) -> bytes:
    """The body of a report with one more field, as JSON text."""
    outcome = "completed" if name == "result" else "failed"
    start = f'"lease_id": "{lease["lease_id"]}", "outcome": "{outcome}"'
    return f'[{{{start}, "{name}": {value}}}]'.encode()


@pytest.mark.scenario(87, 88, 94)
def test_what_a_handler_produced_is_never_refused(sqlite_url: str) -> None:
    """NUL, half a surrogate pair, endless numbers, depth, size: the job settles all the same."""
    results = [
        '"a\\u0000b"',
        '"\\ud800"',
        "123456789012345678901234567890",
        "1e999",
        "[" * 300 + "]" * 300,
        json.dumps("y" * 1_000_000),
    ]
    with Tenure(sqlite_url) as app, api_client(app) as api:
        api.post("/jobs/batch", json=[{"type": "a"}] * (len(results) + 2))
        for result in results:
            (lease,) = claim_jobs(api)
            done = api.post("/reports", content=reported(lease, "result", result), headers=JSON)
            assert done.status_code == 200, done.text
            job = api.get(f"/jobs/{lease['id']}").json()
            assert job["status"] == "completed"
            assert job["result"] is not None
        (lease,) = claim_jobs(api)
        error = '"\\ud800 \\u0000 ' + "long " * 100_000 + '", "retryable": false'
        failed = api.post("/reports", content=reported(lease, "error", error), headers=JSON)
        assert failed.status_code == 200
        job = api.get(f"/jobs/{lease['id']}").json()
        assert job["status"] == "failed"
        assert len(job["last_error"].encode()) <= produced.MAX_ERROR_BYTES
        assert "characters cut" in job["last_error"]
        (lease,) = claim_jobs(api)
        report = {"lease_id": lease["lease_id"], "outcome": "completed", "result": "a\0"}
        verdicts = api.post("/reports", json=[report]).json()
        assert verdicts[0]["answer"] == "recorded"


@pytest.mark.parametrize(
    "body",
    [
        '[{"lease_id": "x", "outcome": "completed", "result": NaN}]',
        '[{"lease_id": "x", "outcome": "completed", "result": {"a": 1, "a": 2}}]',
        '[{"lease_id": "x", "outcome": "completed", "result": 1, "result": 2}]',
        '[{"lease_id": "x", "outcome": "completed", "result": '
        + ("[" * 200_000 + "]" * 200_000)  # from 3.14 on, Python goes by the size of its stack
        + "}]",
        '[{"lease_id": "x", "outcome": "completed"}] 2',
        '[{"lease_id": "x", "outcome": 1}]',
        "{}",
        "\xff",
    ],
)
def test_a_report_must_be_json_at_least(api: TestClient, body: str) -> None:
    response = api.post("/reports", content=body.encode("latin-1"), headers=JSON)
    assert_problem(response, 400, "invalid_input")


FIRST_BODIES = """
from tenure.http.bodies import convert
from tenure.wire.requests import AmendRequest, EnqueueRequest, TypeRequest
from tests.support.first_reads import read_in_forks

GIVEN = [
    ({"type": "mail", "unique": {"by": ["a"]}, "backoff": {"base": 1}}, EnqueueRequest),
    ([{"type": "mail", "depends_on": [{"job_id": "x"}]}], list[EnqueueRequest]),
    ({"backoff": {"base": 1.0}}, AmendRequest),
    ({"backoff": {"delays": [1]}}, TypeRequest),
]

read_in_forks(lambda one: convert(*one), GIVEN)
"""


def test_first_bodies_that_come_at_once_are_read() -> None:
    """msgspec learns a type from its first value, and lets other threads in meanwhile."""
    assert run([sys.executable, "-c", FIRST_BODIES]).returncode == 0
