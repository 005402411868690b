"""Webhooks, from a move in the ledger to a receiver that checks the signature by itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import subprocess
import threading
from collections import Counter
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tenure import (
    IllegalTransition,
    InvalidInput,
    Job,
    NewJob,
    RetryPolicy,
    Tenure,
    Unique,
    failpoints,
)
from tenure.errors import StoreUnavailable
from tenure.lifecycle import EVENTS
from tenure.values.redaction import MARK
from tenure.webhooks import deliveries as delivery_jobs
from tenure.webhooks import request as outbound
from tenure.webhooks.deliveries import WEBHOOK, queue_of
from tenure.worker import webhook_delivery
from tenure.worker.webhook_delivery import REMOVED
from tests.support.cli import PROGRAM, clean_environment, cli_json, output_of, run_cli
from tests.support.http import api_client, assert_problem, claim_jobs
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.store import claim_request
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import (
    running_sweeper,
    running_worker,
    wait_until_completed,
    wait_until_failed,
)
from tests.worker.receiver import Taking, delivering, receiving


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


def deliveries(app: Tenure) -> list[Job]:
    return app.find(type=WEBHOOK, limit=500)


def delivery(app: Tenure) -> Job:
    """The one delivery there is, once it is there."""
    (job,) = wait_until(lambda: deliveries(app), "a delivery")
    return job


def follow(app: Tenure) -> None:
    """Follow the ledger to its end: on PostgreSQL that is settled in a moment."""
    wait_until(lambda: app.core.forward_to_webhooks() == 0)


def hook_on(app: Tenure, url: str, *events: str, **limits: Any) -> str:
    secret, _ = app.webhooks.create("shop", url, events or ("enqueued",), **limits)
    return secret


def settle_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries are tried once, so that a failure is seen at once."""
    monkeypatch.setattr(delivery_jobs, "MAX_RETRIES", 1)


# --- what a receiver gets -------------------------------------------------------------------------


def test_a_move_is_told_with_a_signature_that_anybody_can_check(app: Tenure) -> None:
    with receiving() as receiver:
        secret = hook_on(app, f"{receiver.url}/in?a=1", "enqueued", "cancelled")
        job = app.enqueue("mail", {"to": "ada"}, delay=60)
        app.cancel(job.id)
        with delivering(app):
            wait_until(lambda: len(receiver.requests) == 2, "both moves")
            for one in deliveries(app):
                assert wait_until_completed(app, one).result_json == '"the receiver answered 204"'

    for path, headers, body in receiver.requests:
        assert path == "/in?a=1"
        assert headers["content-type"] == "application/json"
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
    told = {message["type"]: message for message in receiver.messages}
    assert set(told) == {"job.enqueued", "job.cancelled"}
    data = told["job.cancelled"]["data"]
    assert (data["job_id"], data["type"], data["from"]) == (job.id, "mail", "pending")
    assert told["job.cancelled"]["timestamp"] == data["at"]
    assert {headers["webhook-id"] for _, headers, _ in receiver.requests} == {
        one.id for one in deliveries(app)
    }
    assert secret.removeprefix("whsec_") not in str(deliveries(app))


def test_only_moves_from_now_on_that_are_wanted_are_told(app: Tenure) -> None:
    with receiving() as receiver:
        app.enqueue("mail", queue="urgent")
        wait_until(lambda: len(app.events.read().events) == 1)  # and has its place in the ledger
        hook_on(app, receiver.url, types=["mail"], queues=["urgent"])
        wanted = app.enqueue("mail", queue="urgent")
        app.enqueue("mail")
        app.enqueue("report", queue="urgent")
        with delivering(app):
            wait_until(lambda: receiver.requests, "the move")
            wait_until_completed(app, delivery(app))
            wait_until(lambda: app.webhooks.list()[0].position == app.events.end())
        assert [message["data"]["job_id"] for message in receiver.messages] == [wanted.id]


def test_the_last_number_of_a_position_has_the_order_of_a_jobs_events(postgres_url: str) -> None:
    """The transaction that changed the job began before the one that added it."""
    unique = Unique(by="key", on_conflict="replace")
    with Tenure(postgres_url) as app, receiving() as receiver:
        hook_on(app, receiver.url, "enqueued", "amended", "cancelled")
        with psycopg.connect(postgres_url) as own:
            own.execute("CREATE TABLE mine ()")
            job = app.enqueue("mail", {"to": "ada"}, unique=unique)
            app.within(own).enqueue("mail", {"to": "bob"}, unique=unique)
        app.cancel(job.id)
        with delivering(app):
            wait_until(lambda: len(receiver.requests) == 3, "each event")
        data = [message["data"] for message in receiver.messages]
        numbers = {each["event"]: [int(n) for n in each["position"].split(".")] for each in data}
        assert numbers["amended"] < numbers["enqueued"]
        in_order = sorted(numbers, key=lambda event: numbers[event][-1])
        assert in_order == [entry.event for entry in app.history(job.id)]


def test_deliveries_are_not_told_of_themselves(app: Tenure) -> None:
    with receiving() as receiver:
        hook_on(app, receiver.url, *EVENTS)
        app.enqueue("mail")
        with delivering(app):
            wait_until_completed(app, delivery(app))
            wait_until(lambda: app.webhooks.list()[0].position == app.events.end())
        assert len(deliveries(app)) == len(receiver.requests) == 1


def test_what_is_redacted_is_not_told(app: Tenure) -> None:
    hook_on(app, "https://example.com", "failed")

    @app.job(max_retries=1)
    async def mail() -> None:
        raise ValueError("the key is 123456")

    def told(count: int, *, without_errors: bool) -> list[dict[str, Any]]:
        app.core.forward_to_webhooks(without_errors=without_errors)
        found = [one.payload for one in deliveries(app)]
        return found if len(found) == count else []

    with running_worker(app):
        wait_until_failed(app, mail.enqueue())
        (payload,) = wait_until(lambda: told(1, without_errors=True))
        wait_until_failed(app, mail.enqueue())
        both = wait_until(lambda: told(2, without_errors=False))
    assert payload["event"]["detail"] == MARK
    assert "123456" not in str(payload)
    assert "123456" in str(both), "where nothing is redacted"


# --- never lost, never twice ----------------------------------------------------------------------


def test_a_delivery_is_tried_until_the_receiver_takes_it_under_the_same_id(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_jobs, "BACKOFF", RetryPolicy(base=0))
    bad = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    with receiving(bad, b"what?\r\n\r\n", moved, early) as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            one = wait_until_completed(app, delivery(app))
    assert one.attempts == 4
    assert {headers["webhook-id"] for _, headers, _ in receiver.requests} == {one.id}
    assert {path for path, _, _ in receiver.requests} == {"/"}  # redirects are not followed
    errors = [
        transition.detail or ""
        for transition in app.history(one.id)
        if transition.event == "failed"
    ]
    assert ["503" in errors[0], "no HTTP" in errors[1], "302" in errors[2]] == [True] * 3


def test_followers_side_by_side_make_each_delivery_once(app: Tenure) -> None:
    hook_on(app, "https://example.com")
    jobs = app.enqueue_many([NewJob("mail", {}, {}) for _ in range(1_200)])
    with (
        Tenure(app.database) as second,
        Tenure(app.database) as third,
        running_sweeper(app),
        running_sweeper(second),
        running_sweeper(third),
    ):
        wait_until(lambda: len(told_of(app)) >= len(jobs), "every move")
        wait_until(lambda: app.webhooks.list()[0].position == app.events.end())
    assert told_of(app) == Counter({job.id: 1 for job in jobs})


def told_of(app: Tenure) -> Counter[str]:
    """The jobs that deliveries are about."""
    found: Counter[str] = Counter()
    before = None
    while page := app.find(type=WEBHOOK, limit=500, before=before):
        found.update(job.payload["event"]["job_id"] for job in page)
        before = page[-1].id
    return found


@pytest.mark.parametrize("place", ["between_position_and_jobs", "before_commit", "after_commit"])
def test_a_failure_between_position_and_jobs_loses_and_repeats_nothing(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    hook_on(app, "https://example.com")
    job = app.enqueue("mail")
    monkeypatch.setattr(failpoints, "ARMED", {f"webhook.{place}": ("raise", 1)})
    monkeypatch.setattr(failpoints, "_visits", Counter())
    with pytest.raises((failpoints.FailpointReached, StoreUnavailable)):
        wait_until(lambda: app.core.forward_to_webhooks() and None)
    wait_until(lambda: (app.core.forward_to_webhooks(), told_of(app))[1])
    follow(app)
    assert told_of(app) == {job.id: 1}


def test_a_limit_of_the_queue_holds_no_delivery_back(app: Tenure) -> None:
    app.queues.limit(queue_of("shop"), max_pending=0)
    hook_on(app, "https://example.com")
    app.enqueue("mail")
    wait_until(lambda: (app.core.forward_to_webhooks(), deliveries(app))[1])


def test_a_row_that_cannot_be_read_does_not_hide_later_webhooks(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What looks for new webhooks beside the deliveries ended, without a line in the log."""
    monkeypatch.setattr(webhook_delivery, "WEBHOOK_CHECK_SECONDS", 0.05)
    never = 10**18 if app.database.startswith("sqlite") else "infinity"
    with closing(RawSql(app.database)) as sql, receiving() as receiver, delivering(app) as delivery:
        hook_on(app, receiver.url)
        wait_until(lambda: delivery._worker is not None, "the worker of the deliveries")
        sql.run("UPDATE {webhook} SET created_at = ?", never)
        wait_until(lambda: "webhooks failed" in caplog.text, "the failure")
        sql.run("DELETE FROM {webhook}")
        app.webhooks.create("late", receiver.url, ["enqueued"])
        app.enqueue("mail")
        wait_until(lambda: receiver.requests, "the delivery")


@pytest.mark.parametrize("back", [False, True])
def test_what_is_left_for_a_removed_webhook_is_dropped(app: Tenure, back: bool) -> None:
    """Also if its name has come back: that may be another receiver."""
    with receiving() as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        wait_until(lambda: (app.core.forward_to_webhooks(), deliveries(app))[1])
        app.webhooks.remove("shop")
        if back:
            hook_on(app, receiver.url)
        with delivering(app):
            assert wait_until_completed(app, delivery(app)).result_json == f'"{REMOVED}"'
        assert receiver.requests == []


def test_a_secret_is_changed_by_a_second_webhook_that_takes_over(app: Tenure) -> None:
    """As the page says: each event is sent twice meanwhile, and one position tells that."""
    with receiving() as receiver, delivering(app):
        hook_on(app, f"{receiver.url}/old")
        before = app.enqueue("mail")
        wait_until(lambda: len(receiver.requests) == 1, "what was before")
        app.webhooks.create("shop-2", f"{receiver.url}/new", ["enqueued"])
        meanwhile = app.enqueue("mail")
        wait_until(lambda: len(receiver.requests) == 3, "both")
        app.webhooks.remove("shop")
        after = app.enqueue("mail")
        wait_until(lambda: len(receiver.requests) == 4, "what came after")
    got = [
        (path, message["data"]["job_id"], message["data"]["position"], headers["webhook-id"])
        for (path, headers, _), message in zip(receiver.requests, receiver.messages, strict=True)
    ]
    assert Counter((path, job_id) for path, job_id, *_ in got) == Counter(
        [("/old", before.id), ("/old", meanwhile.id), ("/new", meanwhile.id), ("/new", after.id)]
    )
    twice = [(position, id) for _, job_id, position, id in got if job_id == meanwhile.id]
    assert (len({place for place, _ in twice}), len({id for _, id in twice})) == (1, 2)


def test_a_receiver_that_is_gone_is_not_asked_again(app: Tenure) -> None:
    with receiving(b"HTTP/1.1 410 Gone\r\n\r\n") as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            assert "410" in wait_until_failed(app, delivery(app))
        assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("asked", "at_least", "at_most"),
    [
        (b"20", 20, 20),
        (b"86400", 3600, 3600),  # never longer than other waits
        (b"1", 4.5, 5.5),  # or a receiver that is away for a minute would use up the attempts
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 4.5, 5.5),
        (b"later", 4.5, 5.5),
    ],
)
def test_a_receiver_may_ask_for_a_later_retry(
    app: Tenure, asked: bytes, at_least: float, at_most: float
) -> None:
    """It was asked again after five seconds, whatever it had answered."""
    with receiving(b"HTTP/1.1 429 Slow Down\r\nretry-AFTER: " + asked + b"\r\n\r\n") as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            wait_until(lambda: delivery(app).last_error is not None)
        history = {one.event: one.at for one in app.history(delivery(app).id)}
        waits = (delivery(app).run_at - history["failed"]).total_seconds()
        assert at_least <= waits <= at_most
        assert delivery(app).last_error == "the receiver answered 429"
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [410, 500])
def test_a_refused_delivery_is_one_line_of_the_log(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A traceback of Tenure says nothing about the receiver."""
    settle_now(monkeypatch)
    with receiving(b"HTTP/1.1 %d No\r\n\r\n" % status) as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            error = wait_until_failed(app, delivery(app))
    assert error.startswith(f"the receiver answered {status}")
    assert "\n" not in error
    (line,) = [record for record in caplog.records if "job_failed" in record.getMessage()]
    assert (line.exc_info, line.exc_text) == (None, None)


def test_a_delivery_whose_process_was_lost_is_no_reason_to_warn(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who read that it cannot be imported by its name could do nothing about it."""
    monkeypatch.setattr(delivery_jobs, "BACKOFF", RetryPolicy(base=0))
    with receiving() as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        follow(app)
        request = claim_request(lease_seconds=0.01, queues=(queue_of("shop"),))
        assert app.core.exchange((), request).result().leases
        wait_until(lambda: app.core.store.sweep().result(), "the lease to end")
        with delivering(app):
            assert wait_until_completed(app, delivery(app)).attempts == 2
    assert "may have ended a worker" not in caplog.text


@pytest.mark.parametrize("program", [("serve", "--port", "0"), ("worker",)], ids=lambda p: p[0])
def test_a_worker_for_any_type_delivers_and_does_not_fake_it(
    app: Tenure, program: tuple[str, ...]
) -> None:
    with receiving() as receiver:
        hook_on(app, receiver.url)
        process = Program(
            [
                *PROGRAM,
                *program,
                "--fake-handlers",
                "--webhooks-private",
                "--database",
                app.database,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        )
        try:
            wait_until(app.workers.list, "a worker")
            jobs = app.enqueue_many([NewJob("mail", {}, {}) for _ in range(30)])
            wait_until(lambda: len(receiver.requests) >= len(jobs), "every move")
            process.terminate()
            assert process.wait(WAIT_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
    assert {message["data"]["job_id"] for message in receiver.messages} == {job.id for job in jobs}


# --- where requests may go ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.1.2.3"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1"),
        *("192.0.0.192", "192.0.0.8", "192.88.99.1", "168.63.129.16", "198.18.0.1"),
        *("3fff::1", "5f00::1", "2001::1", "2001:20::1", "100::1", "64:ff9b:1::7f00:1", "4000::1"),
        *(
            "::1",
            "::",
            "fec0::1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
        ),
        *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1", "::7f00:1"),
    ],
)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not outbound.is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1", "64:ff9b::808:808"])
def test_a_public_address_is_known(address: str) -> None:
    assert outbound.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_no_request_goes_to_this_machine_unless_that_is_wanted(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    settle_now(monkeypatch)
    with receiving() as receiver:
        hook_on(app, receiver.url.replace("127.0.0.1", host))
        app.enqueue("mail")
        with delivering(app, private=False):
            error = wait_until_failed(app, delivery(app))
            assert "not a public address" in error
            assert ("leads to 127.0.0.1" in error) is (host in {"localhost", "2130706433"})
        assert receiver.requests == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * outbound.MAX_READ, "too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000, "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n", "ended before"),
        (b"", "ended before"),
        (b"\x00\xff\r\n\r\n", "no HTTP answer"),
    ],
    ids=["long head", "never ending", "cut short", "silent", "noise"],
)
def test_a_hostile_answer_is_a_failure_like_any_other(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, answer: bytes, error: str
) -> None:
    settle_now(monkeypatch)
    with receiving(answer) as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            assert error in wait_until_failed(app, delivery(app))


def test_a_receiver_that_does_not_answer_is_given_up(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that sends a byte now and then; and TLS with whoever does not speak it."""
    settle_now(monkeypatch)
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 0.2)
    over = threading.Event()

    class Slow(Taking):
        def do_POST(self) -> None:  # noqa: N802 - as http.server calls it
            while not over.wait(0.02):
                self.wfile.write(b"x")

    with receiving() as receiver:
        receiver.RequestHandlerClass = Slow
        hook_on(app, receiver.url)
        app.webhooks.create("secure", receiver.url.replace("http", "https"), ["enqueued"])
        app.enqueue("mail")
        with delivering(app):
            both = wait_until(lambda: len(found := deliveries(app)) == 2 and found)
            assert both
            for one in both:
                error = wait_until_failed(app, one)
                assert "no answer within 0.2 s" in error or "no connection: " in error
        over.set()


def test_an_address_that_swallows_everything_kept_the_others_from_being_tried(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an IPv6 address does that leads nowhere: each attempt ended without an answer."""
    settle_now(monkeypatch)
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 4)
    really = asyncio.open_connection

    async def addresses(*_: object) -> list[str]:
        return ["2001:db8::1", "127.0.0.1"]

    async def connect(address: str, *given: Any, **more: Any) -> Any:
        await asyncio.sleep(60 if ":" in address else 0)
        return await really(address, *given, **more)

    monkeypatch.setattr(outbound, "_addresses", addresses)
    monkeypatch.setattr(asyncio, "open_connection", connect)
    with receiving() as receiver:
        hook_on(app, receiver.url)
        app.enqueue("mail")
        with delivering(app):
            wait_until_completed(app, delivery(app))


# --- who may make them ----------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{}, {"types": [WEBHOOK]}], ids=["anything", "the type"])
def test_a_worker_over_http_is_handed_no_delivery(app: Tenure, wanted: dict[str, Any]) -> None:
    hook_on(app, "https://example.com")
    job = app.enqueue("mail")
    wait_until(lambda: (app.core.forward_to_webhooks(), deliveries(app))[1])
    with api_client(app) as api:
        leased = [one["id"] for _ in range(3) for one in claim_jobs(api, 9, **wanted)]
    assert leased == ([] if wanted else [job.id])
    assert delivery(app).attempts == 0


@pytest.mark.parametrize("program", ["serve", "worker"])
def test_no_worker_is_told_to_take_deliveries(app: Tenure, program: str) -> None:
    """With fake handlers they would be done and never sent."""
    arguments = ("--fake-handlers", "--queue", queue_of("shop"), "--database", app.database)
    refused = subprocess.run(
        [*PROGRAM, program, *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(TENURE_PORT="0"),
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert refused.returncode == 2
    assert "choose another name" in refused.stderr


def test_the_queue_of_deliveries_is_theirs_alone(app: Tenure) -> None:
    with pytest.raises(InvalidInput, match="choose another name") as refused:
        app.enqueue("mail", queue=queue_of("shop"))
    assert refused.value.path == "$.queue"
    with pytest.raises(InvalidInput, match="choose another name"):
        app.job(queue=queue_of("shop"))
    with api_client(app) as api:
        response = api.post("/jobs", json={"type": "mail", "queue": queue_of("shop")})
        assert assert_problem(response, 400, "invalid_input")["path"] == "$.queue"
    assert app.find() == []


def test_nobody_changes_what_a_delivery_says(app: Tenure) -> None:
    """The receiver would have got a signed message about an event that never was."""
    hook_on(app, "https://example.com")
    app.enqueue("mail")
    follow(app)
    job = delivery(app)
    with api_client(app) as api:
        refused = api.patch(f"/jobs/{job.id}", json={"payload": {**job.payload, "event": {}}})
        assert_problem(refused, 409, "illegal_transition")
    with pytest.raises(IllegalTransition, match=r"Tenure writes the payload of a tenure\.webhook"):
        app.amend(job.id, payload={})
    assert app.get(job.id) == job
    assert app.amend(job.id, delay=0, priority=-1).priority == -1


def test_nobody_else_adds_deliveries(app: Tenure) -> None:
    for add in (
        lambda: app.enqueue(WEBHOOK, {"hook": "shop"}),
        lambda: app.enqueue_many([NewJob("mail", {}, {}), NewJob(WEBHOOK, {}, {})]),
        lambda: app.enqueue("tenure.anything"),
        lambda: app.job(name="tenure.anything")(print),
    ):
        with pytest.raises(InvalidInput, match="are reserved"):
            add()
    with api_client(app) as api:
        for body in ({"type": WEBHOOK}, {"jobs": [{"type": WEBHOOK}]}):
            path = "/jobs/batch" if "jobs" in body else "/jobs"
            response = api.post(path, json=body)
            assert response.status_code >= 400, response.text
    assert app.find() == []


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "ftp://example.com", "http://", "http://a:b@example.com", 7),
        *(
            "http://example.com/#x",
            "http://example.com:99999",
            "http://exa mple.com",
            "http://[::1",
        ),
        *("http://example.com/\r\nX: 1", "http://exämple.com", f"http://{'a' * 2_000}"),
    ],
)
def test_a_url_that_is_none_is_refused(app: Tenure, url: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        app.webhooks.create("shop", url, ["failed"])
    assert refused.value.path == "$.url"


def test_a_name_is_taken_until_its_webhook_is_removed(app: Tenure) -> None:
    secret = hook_on(app, "https://example.com")
    with pytest.raises(InvalidInput, match="remove it first"):
        hook_on(app, "https://example.com")
    with pytest.raises(InvalidInput, match="one or more of"):
        app.webhooks.create("other", "https://example.com", ["no such event"])
    for what, kind in (("types", "job type"), ("queues", "queue")):  # it got the events of all
        empty: Any = {what: []}
        with pytest.raises(InvalidInput, match=f"name at least one {kind}, or give None"):
            app.webhooks.create("other", "https://example.com", ["failed"], **empty)
    removed = app.webhooks.remove("shop")
    assert app.core.webhook_target("shop", removed.id) is None
    with pytest.raises(InvalidInput, match="no webhook"):
        app.webhooks.remove("shop")
    assert hook_on(app, "https://example.com") != secret


def test_the_command_line_shows_a_secret_once(app: Tenure) -> None:
    arguments = ("--event", "failed", "--event", "cancelled", "--queue", "mail")
    database = ("--database", app.database)
    made = cli_json("webhooks", "create", "shop", "https://example.com", *arguments, *database)
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert cli_json("webhooks", "list", *database) == [made]
    assert made["events"] == ["cancelled", "failed"]
    assert (made["types"], made["queues"]) == (None, ["mail"])
    assert secret not in output_of("webhooks", "list", *database)
    assert "removed" in output_of("webhooks", "remove", "shop", *database)
    assert app.webhooks.list() == []
    assert run_cli("webhooks", "remove", "shop", *database).exit_code == 2
