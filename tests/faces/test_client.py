"""The client against a real server: the application's verbs, errors and work over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from inspect import iscoroutinefunction
from typing import Any
from uuid import UUID

import httpx2
import pytest

from tenure import NewJob, RetryPolicy, Tenure, errors
from tenure.client import AsyncClient, Client
from tenure.rules.reports import Answer, ClaimRequest, Outcome, Report, Verdict
from tests.support.http import UNKNOWN_ID, ServerProcess
from tests.support.no_threads import no_new_threads
from tests.support.waiting import WAIT_SECONDS, wait_until

TOKEN = "a-token-for-the-client"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    database = f"sqlite:///{tmp_path_factory.mktemp('client')}/jobs.db"
    with ServerProcess(database, TENURE_TOKEN=TOKEN) as served:
        yield served


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url, TOKEN) as client:
        yield client


def asking(**more: Any) -> ClaimRequest:
    return ClaimRequest(**{"worker": "w", "limit": 10, "lease_seconds": 30.0, **more})


# --- the verbs of the application -----------------------------------------------------------------


def test_the_same_call_makes_the_same_job(client: Client, sqlite_url: str) -> None:
    options: dict[str, Any] = {
        "queue": "mail",
        "priority": 3,
        "max_retries": 7,
        "timeout": timedelta(minutes=1),
        "backoff": RetryPolicy(base=2.0, factor=3.0, cap=100.0),
        "run_at": datetime(2040, 1, 1, tzinfo=UTC),
    }
    payload = {"to": "a@example.com", "n": [1, 2.5, None, True, "é"]}
    remote = client.enqueue("send", payload, **options)
    with Tenure(sqlite_url) as app:
        local = app.enqueue("send", payload, **options)
    same = ("type", "queue", "payload", "priority", "max_retries", "timeout", "backoff", "run_at")
    assert {n: getattr(remote, n) for n in same} == {n: getattr(local, n) for n in same}
    assert (remote.status, remote.attempts, remote.token) == ("pending", 0, 0)
    assert client.get(remote.id) == remote


@pytest.mark.parametrize("backoff", [5, "5s", {"base": "5s"}, RetryPolicy(base=5.0)])
def test_a_backoff_in_each_form(client: Client, backoff: Any) -> None:
    assert client.enqueue("a", backoff=backoff).backoff == RetryPolicy(base=5.0)


def test_an_idempotency_key(client: Client) -> None:
    first = client.enqueue("a", {"n": 1}, idempotency_key="client-1", delay="1h")
    assert client.enqueue("a", {"n": 1}, idempotency_key="client-1", delay="1h") == first
    with pytest.raises(errors.KeyConflict) as refused:
        client.enqueue("a", {"n": 2}, idempotency_key="client-1")
    assert (refused.value.key, refused.value.job_id) == ("client-1", first.id)


def test_lists_go_on_where_a_page_of_the_server_ends(sqlite_url: str) -> None:
    """As the application does: rare jobs may be far apart."""
    with Tenure(sqlite_url) as app:
        rare = [app.enqueue("rare").id]
        for _ in range(2):
            app.enqueue_many([NewJob("usual", {}, {}) for _ in range(5_025)])
        rare.append(app.enqueue("rare").id)
        rare.reverse()
    with ServerProcess(sqlite_url) as server, Client(server.url) as client:
        assert [job.id for job in client.find(type="rare")] == rare
        assert [job.id for job in client.find(type="rare", limit=1)] == rare[:1]
        assert [job.id for job in client.find(type="rare", before=rare[0])] == rare[1:]
        assert len(client.find(type="usual", limit=7)) == 7
        assert client.find(created_before=client.get(rare[1]).created_at) == []
        assert client.find(created_after=datetime.now(UTC) + timedelta(hours=1)) == []
        assert client.find(text="nothing like it", type="rare") == []
        with pytest.raises(errors.InvalidInput, match="limit"):
            client.find(limit=501)


VERBS = (
    *("enqueue", "enqueue_many", "get", "wait", "find", "history", "explain"),
    *("cancel", "retry", "unblock", "signal"),
)


def test_both_clients_have_the_same_verbs() -> None:
    for verb in (*VERBS, "stats"):
        made, awaited = getattr(Client, verb), getattr(AsyncClient, verb)
        assert iscoroutinefunction(awaited)
        assert not iscoroutinefunction(made)
        assert made.__wrapped__ is awaited


@pytest.mark.anyio
async def test_verbs_are_awaited(server: ServerProcess, client: Client) -> None:
    async with AsyncClient(server.url, TOKEN) as aio:
        job = await aio.enqueue("coroutine", {"n": 1}, delay="1h")
        assert await aio.get(job.id) == job == (await aio.find(type="coroutine"))[0]
        assert (await aio.signal(job, "go")).job_id == job.id
        assert client.signal(job, "go").number == 2
        waiting = [asyncio.create_task(aio.wait(job.id, timeout="20s")) for _ in range(5)]
        await asyncio.sleep(0)
        assert (await aio.cancel(job.id)).status == "cancelled"
        assert {(await each).status for each in waiting} == {"cancelled"}
        assert [each.event for each in await aio.history(job.id)] == ["enqueued", "cancelled"]
        assert (await aio.explain(job.id)).reason == "cancelled"
        assert len(await aio.enqueue_many([NewJob("coroutine", {}, {})] * 2)) == 2
        assert await aio.stats()
        with pytest.raises(errors.IllegalTransition):
            await aio.retry(job.id)
        with pytest.raises(errors.JobNotFound):
            await aio.get(UNKNOWN_ID)
    with pytest.raises(errors.StoreUnavailable, match="closed"):
        await aio.get(job.id)


def test_a_waiting_job_is_unblocked(client: Client) -> None:
    first = client.enqueue("a", delay="1h")
    job = client.enqueue("a", depends_on=[first.id])
    assert client.unblock(job.id).status == "pending"
    assert client.history(job.id)[-1].event == "unblocked"
    with pytest.raises(errors.IllegalTransition):
        client.unblock(job.id)


def test_a_wait_ends_with_the_job_or_with_its_time(client: Client) -> None:
    job = client.enqueue("a", delay="1h")
    with pytest.raises(TimeoutError, match=r"is not settled after 0.05 s; it continues"):
        client.wait(job.id, timeout=0.05)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, job.id, timeout="20s")
        client.cancel(job.id)
        assert waiting.result(WAIT_SECONDS).status == "cancelled"
    with pytest.raises(errors.JobNotFound):
        client.wait(UNKNOWN_ID)


def test_many_and_lists(client: Client) -> None:
    new_jobs = [NewJob("listed", {"n": n}, {"queue": f"q{n % 2}"}) for n in range(5)]
    made = client.enqueue_many(new_jobs)
    newest_first = [job.id for job in reversed(made)]
    assert [job.id for job in client.find(type="listed")] == newest_first
    assert [job.id for job in client.find(type="listed", queue="q1")] == newest_first[1::2]
    page = client.find(type="listed", limit=2, before=newest_first[1])
    assert [job.id for job in page] == newest_first[2:4]
    assert client.find(type="listed", status="failed") == []
    assert client.enqueue_many([]) == []
    again = NewJob("x", {}, {}, again_of=made[0].id)
    with pytest.raises(errors.InvalidInput, match=r"^\$\[1\]\.again_of: "):
        client.enqueue_many([NewJob("x", {}, {}), again])


def test_changes_and_history(client: Client) -> None:
    job = client.enqueue("a", delay="1h")
    assert client.explain(job.id).reason == "not_due"
    assert client.cancel(job.id).status == "cancelled"
    assert [transition.event for transition in client.history(job.id)] == ["enqueued", "cancelled"]
    assert client.history(job.id)[1].source == "pending"
    with pytest.raises(errors.IllegalTransition) as refused:
        client.cancel(job.id)
    assert (refused.value.status, refused.value.legal) == ("cancelled", ())
    assert any(count.status == "cancelled" and count.jobs >= 1 for count in client.stats())


@pytest.mark.parametrize("job_id", [UNKNOWN_ID, "", "x", "../stats", "?", UNKNOWN_ID.upper()])
def test_a_job_that_is_not_there(client: Client, job_id: str) -> None:
    for name in ("get", "history", "explain", "cancel", "retry", "unblock"):
        verb = getattr(client, name)
        with pytest.raises(errors.JobNotFound) as refused:
            verb(job_id)
        assert refused.value.job_id == job_id


@pytest.mark.parametrize(
    ("type", "payload", "options", "path"),
    [
        ("no good", {}, {}, "$.type"),
        ("a", {"x": float("nan")}, {}, "$.payload.x"),
        ("a", {"x": "\0"}, {}, "$.payload.x"),
        ("a", {"x": (1,)}, {}, "$.payload.x"),
        ("a", [], {}, "$.payload"),
        ("a", {}, {"delay": "soon"}, "$.delay"),
        ("a", {}, {"delay": float("nan")}, "$.delay"),
        ("a", {}, {"start_by": float("nan")}, "$.start_by"),
        ("a", {}, {"timeout": 0}, "$.timeout"),
        ("a", {}, {"priority": 10**6}, "$.priority"),
        ("a", {}, {"colour": "red"}, "$"),
    ],
)
def test_bad_input_is_refused_as_by_the_application(
    client: Client, sqlite_url: str, type: str, payload: Any, options: Any, path: str
) -> None:
    with Tenure(sqlite_url) as app:
        for verbs in (client, app):
            with pytest.raises(errors.InvalidInput) as refused:
                verbs.enqueue(type, payload, **options)
            assert refused.value.path == path


NAN, WHEN = float("nan"), datetime(2040, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, NAN) for option in ("idempotency_key", "partition", "unique", "run_at", "tags")],
        *[(option, b"key") for option in ("idempotency_key", "partition")],
        *[("partition", value) for value in (UUID(int=1), Decimal(1), WHEN)],
        *[("queue", value) for value in (UUID(int=1), Decimal(1), WHEN)],
        ("delay", Decimal(1)),
        ("tags", {"customer": "17"}),
        ("tags", iter(["a"])),
    ],
)
def test_what_json_would_change_is_refused_as_by_the_application(
    client: Client, sqlite_url: str, option: str, value: Any
) -> None:
    """NaN, which tables have where a value is missing, left the idempotency key out.

    A UUID became its text, and bytes another text.
    """
    with Tenure(sqlite_url) as app:
        for verbs in (client, app):
            with pytest.raises(errors.InvalidInput) as refused:
                verbs.enqueue("a", **{option: value})
            assert refused.value.path == f"$.{option}"
    new = NewJob("a", {}, {option: value})  # type: ignore[misc]
    with pytest.raises(errors.InvalidInput) as refused:
        client.enqueue_many([NewJob("a", {}, {}), new])
    assert refused.value.path == f"$[1].{option}"


def test_an_actor_is_refused(client: Client) -> None:
    """It was dropped without a word: the history named the token."""
    with pytest.raises(errors.InvalidInput, match="leave it out") as refused:
        client.enqueue("email", actor="me")
    assert refused.value.path == "$.actor"
    with pytest.raises(errors.InvalidInput, match="leave it out") as refused:
        client.enqueue_many([NewJob("email", {}, {}), NewJob("email", {}, {"actor": "me"})])
    assert refused.value.path == "$[1].actor"


def test_an_option_without_a_form_in_json(client: Client) -> None:
    with pytest.raises(errors.InvalidInput):
        client.enqueue("a", priority=object())  # type: ignore[arg-type]


def test_a_payload_over_the_limit(client: Client) -> None:
    with pytest.raises(errors.PayloadTooLarge):
        client.enqueue("a", {"x": "y" * 1_100_000})


# --- work -----------------------------------------------------------------------------------------


def test_turns_and_heartbeats(client: Client) -> None:
    made = client.enqueue_many([NewJob("turned", {"n": n}, {}) for n in range(3)])
    exchange = client.exchange((), asking(types=("turned",), label="host:1")).result(10)
    assert exchange.verdicts == []
    assert [lease.id for lease in exchange.leases] == [job.id for job in made]
    first, second, third = exchange.leases
    assert first.payload == '{"n":0}'
    assert client.get(first.id).worker == "http/w"
    pairs = [(lease.id, lease.lease_id) for lease in exchange.leases]
    ended = client.heartbeat([*pairs, (UNKNOWN_ID, "0" * 32)], 45.0)
    assert ended == {"0" * 32: ""}
    assert client.get(first.id).lease_expires_at != first.lease_expires_at
    reports = [
        Report(first.id, first.lease_id, Outcome.COMPLETED, result='{"x":1}'),
        Report(second.id, second.lease_id, Outcome.FAILED, error="no", retryable=False),
        Report(third.id, third.lease_id, Outcome.RELEASED),
    ]
    exchange = client.exchange(reports, asking(types=("turned",))).result(10)
    assert exchange.verdicts == [Verdict(Answer.RECORDED)] * 3
    assert [lease.id for lease in exchange.leases] == [third.id], "what was released came back"
    assert client.get(first.id).result_json == '{"x":1}'
    assert client.get(second.id).last_error == "no"
    late = [reports[0], Report(first.id, first.lease_id, Outcome.FAILED)]
    exchange = client.exchange(late, None).result(10)
    assert exchange.verdicts == [
        Verdict(Answer.ALREADY_RECORDED),
        Verdict(Answer.CONFLICT, "completed"),
    ]


def test_a_claim_waits_and_holds_up_no_report(client: Client) -> None:
    waiting = client.exchange((), asking(types=("awaited",), wait_seconds=20.0))
    job = client.enqueue("reported")
    (lease,) = client.exchange((), asking(types=("reported",))).result(10).leases
    report = Report(lease.id, lease.lease_id, Outcome.COMPLETED)
    assert client.exchange([report], None).result(10).verdicts == [Verdict(Answer.RECORDED)]
    assert client.get(job.id).status == "completed"
    assert not waiting.done()
    awaited = client.enqueue("awaited")
    (lease,) = waiting.result(10).leases
    assert lease.id == awaited.id


def test_a_claim_that_was_given_up_hands_back(client: Client, server: ServerProcess) -> None:
    waiting = client.exchange((), asking(worker="quitter", types=("given-up",), wait_seconds=20.0))
    wait_until(lambda: "quitter" in httpx2.get(f"{server.url}/workers", headers=BEARER).text)
    assert waiting.cancel()
    job = client.enqueue("given-up")
    wait_until(lambda: len(client.history(job.id)) == 3)
    transitions = [transition.event for transition in client.history(job.id)]
    assert transitions == ["enqueued", "claimed", "released"]
    assert client.get(job.id).attempts == 0


def test_a_waiting_claim_does_not_keep_the_process(server: ServerProcess) -> None:
    from tests.support.http import start_python

    code = (
        "import sys; from tenure.client import Client\n"
        "from tenure.rules.reports import ClaimRequest\n"
        f"client = Client({server.url!r}, {TOKEN!r})\n"
        "client.exchange((), ClaimRequest(worker='w', limit=1, lease_seconds=30.0,"
        " types=('never',), wait_seconds=30.0))\n"
        "print(client.stats() is not None)"
    )
    started = time.monotonic()
    process = start_python(code)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "True\n", "")
    assert time.monotonic() - started < 10


def test_on_work_never_rings(client: Client) -> None:
    assert client.waits is True
    client.on_work(lambda: pytest.fail("rang"))()


def test_jobs_are_run_by_a_worker_elsewhere(client: Client, server: ServerProcess) -> None:
    """The worker that runs beside a database runs over HTTP too, unchanged."""
    import asyncio

    from tenure.worker.worker import Worker

    app = Tenure("sqlite:///never-opened.db")

    @app.job
    def double(n: int) -> int:
        return 2 * n

    @app.job
    def fails() -> None:
        raise ValueError("no luck")

    jobs = client.enqueue_many([NewJob("double", {"n": n}, {}) for n in range(50)])
    failing = client.enqueue("fails", max_retries=1)
    made: list[Worker] = []

    async def work() -> None:
        made.append(Worker(client, app.core.handlers, concurrency=4))
        await made[0].run()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        everything = [*jobs, failing]
        wait_until(lambda: all(client.get(job.id).finished_at for job in everything))
    finally:
        made[0].request_stop()
        thread.join(30)
    states = [client.get(job.id) for job in everything]
    assert [state.result_json for state in states[:-1]] == [str(2 * n) for n in range(50)]
    assert states[-1].status == "failed"
    assert "no luck" in (states[-1].last_error or "")
    assert not thread.is_alive()


# --- trouble --------------------------------------------------------------------------------------


def test_a_wrong_token(server: ServerProcess) -> None:
    for token in (None, "wrong"):
        with Client(server.url, token) as client, pytest.raises(errors.Unauthorized):
            client.stats()


def test_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client:
            with pytest.raises(errors.StoreUnavailable, match="no answer"):
                client.stats()
            with pytest.raises(errors.StoreUnavailable):
                client.exchange((), asking()).result(10)


@pytest.mark.scenario(41)
def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(url, timeout=0.2) as client,
            pytest.raises(errors.StoreUnavailable, match="Timeout"),
        ):
            client.enqueue("a")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", errors.StoreUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", errors.StoreUnavailable),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
            errors.StoreUnavailable,
        ),
        (b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", errors.TenureError),
        (b"SSH-2.0\r\n\r\n", errors.StoreUnavailable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{", errors.StoreUnavailable),
        (b"", errors.StoreUnavailable),
    ],
)
def test_a_server_that_is_none_of_ours(answer: bytes, error: type[Exception]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        served = pool.submit(serve)
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=5) as client:
            with pytest.raises(errors.TenureError) as raised:
                client.stats()
            assert type(raised.value) is error
        served.result(10)


@pytest.mark.scenario(102)
def test_without_a_thread_an_exchange_is_refused_and_the_next_one_works(client: Client) -> None:
    with no_new_threads(), pytest.raises(errors.StoreUnavailable, match="nothing was sent"):
        client.exchange((), asking())
    assert client.exchange((), asking()).result(WAIT_SECONDS).verdicts == []


def test_a_closed_client(server: ServerProcess) -> None:
    client = Client(server.url, TOKEN)
    client.close()
    with pytest.raises(errors.StoreUnavailable, match="closed"):
        client.stats()
    with pytest.raises(errors.StoreUnavailable, match="closed"):
        client.exchange((), asking())


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8080", "ftp://localhost", "sqlite:///jobs.db"),
        *("http://[", "http://me:s3cretpw/@localhost", "http://local\nhost", "http://\udc80"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    """Some were errors of the HTTP library, or named what may be a password."""
    with pytest.raises(errors.InvalidInput, match=r"^url: give an address") as refused:
        Client(url)
    assert "s3cretpw" not in str(refused.value)


@pytest.mark.requirement("C12")
@pytest.mark.parametrize("token", ["s3cret\npw", "s3cretpw é", "s3cretpw\udc80"])
def test_what_is_no_token(server: ServerProcess, token: str) -> None:
    """The first request raised an error of the HTTP library, some with the token in it."""
    with pytest.raises(errors.InvalidInput, match=r"^token: not a token") as refused:
        Client(server.url, token)
    assert "s3cret" not in str(refused.value)


def test_a_token_as_it_is_read_from_a_file(server: ServerProcess) -> None:
    with Client(server.url, f"{TOKEN}\n") as client:
        client.stats()


def test_a_filter_that_is_no_unicode(client: Client) -> None:
    with pytest.raises(errors.InvalidInput, match="not Unicode"):
        client.find(tag="\ud800")


# --- what is not said, and what is ----------------------------------------------------------------


@pytest.mark.requirement("C12")
def test_a_password_in_the_address_is_in_no_error() -> None:
    with (
        Client("http://me:s3cretpw@127.0.0.1:9") as client,
        pytest.raises(errors.StoreUnavailable) as failed,
    ):
        client.stats()
    assert "no answer from http://me:…@127.0.0.1:9: ConnectError" in str(failed.value)


@pytest.mark.requirement("C12")
@pytest.mark.parametrize(
    ("url", "token", "warned"),
    [
        ("http://jobs.example.com", TOKEN, True),
        ("http://me:s3cretpw@192.0.2.1:8080/queue", TOKEN, True),
        ("https://jobs.example.com", TOKEN, False),
        ("http://127.0.0.1:8080", TOKEN, False),
        ("http://me:pw@[::1]:8080", TOKEN, False),
        ("http://localhost/", TOKEN, False),
        ("http://jobs.example.com", None, False),
    ],
)
def test_a_token_in_plain_text_to_another_machine_is_warned_of(
    caplog: pytest.LogCaptureFixture, url: str, token: str | None, warned: bool
) -> None:
    Client(url, token).close()
    assert ("in plain text: use https" in caplog.text) is warned
    assert TOKEN not in caplog.text
    assert "s3cretpw" not in caplog.text
