"""A receiver that does not answer delays no other webhook."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tenure import NewJob, Tenure
from tenure.lifecycle import Status
from tenure.webhooks import request
from tenure.webhooks.deliveries import QUEUES, queue_of
from tenure.worker import webhook_delivery
from tenure.worker.webhook_delivery import CONCURRENCY, MAX_OF_ONE, MAX_SKIP_SECONDS, Receivers
from tests.support.waiting import wait_until
from tests.worker.receiver import delivering, receiving

JOBS = 20
A, B, C, D, E = (queue_of(name) for name in "abcde")


@dataclass
class Silent:
    """A receiver that accepts connections and says nothing, until it hangs up."""

    listener: socket.socket

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def hang_up(self) -> None:
        """End its connections, or a worker that stops would wait ten seconds for an answer."""
        self.listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        yield Silent(listener)


def by_queue(app: Tenure, status: Status) -> Counter[str]:
    found = app.find(type="tenure.webhook", status=status, limit=500)
    return Counter(job.queue.removeprefix(QUEUES) for job in found)


def test_a_silent_receiver_delays_no_other(app_on_each_engine: Tenure, silent: Silent) -> None:
    app = app_on_each_engine
    with receiving() as good:
        app.webhooks.create("a", silent.url, ["enqueued"])  # its deliveries are added first
        app.webhooks.create("good", good.url, ["enqueued"])
        app.enqueue_many([NewJob("mail", {}, {}) for _ in range(JOBS)])
        with delivering(app) as delivery:
            for name in ("good", "gone"):
                delivery._receivers.timed_out(queue_of(name), 0)
            wait_until(lambda: len(good.requests) == JOBS, "all of the other deliveries")
            assert delivery._receivers._silent.keys() == {queue_of("gone")}, "good has answered"
            assert by_queue(app, Status.PROCESSING)["a"] <= MAX_OF_ONE
            failed = [job for job in app.find(type="tenure.webhook", limit=500) if job.last_error]
            assert failed == []  # not after ten seconds, but at once
            silent.hang_up()
    assert app.verify() == []


def test_a_silent_receiver_is_skipped_and_tried_again(
    app: Tenure, silent: Silent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(webhook_delivery, "MIN_SKIP_SECONDS", 0.5)
    app.webhooks.create("a", silent.url, ["enqueued"])
    app.enqueue_many([NewJob("mail", {}, {}) for _ in range(JOBS)])
    with delivering(app):
        wait_until(lambda: "no delivery to it for 0.5 s" in caplog.text, "the first pause")
        tried = sum(job.attempts for job in app.find(type="tenure.webhook", limit=500))
        assert tried < JOBS / 2
        wait_until(lambda: "no delivery to it for 2 s" in caplog.text, "the third pause")
    untouched = [job for job in app.find(type="tenure.webhook", limit=500) if not job.attempts]
    assert len(untouched) > JOBS / 2


def test_a_webhook_made_meanwhile_gets_its_events(app: Tenure, silent: Silent) -> None:
    with receiving() as good, delivering(app):
        app.webhooks.create("a", silent.url, ["enqueued"])
        app.enqueue("mail")
        wait_until(lambda: by_queue(app, Status.PROCESSING)["a"], "the first delivery")
        app.webhooks.create("good", good.url, ["enqueued"])
        app.enqueue("mail")
        wait_until(lambda: good.requests, "a delivery to the new webhook")
        assert by_queue(app, Status.PROCESSING)["a"]  # still
        silent.hang_up()


def test_a_name_that_does_not_resolve_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup lasts as long as the name servers let it, however long a request may last."""
    resolve, over = socket.getaddrinfo, threading.Event()

    def hang_for_one(host: str, *others: Any, **named: Any) -> Any:
        if host == "slow.test":
            over.wait()
        return resolve(host, *others, **named)

    async def send(url: str) -> int:
        return (await request.post(url, {}, b"{}", private=True)).status

    async def send_all(good: str) -> int:
        monkeypatch.setattr(request, "REQUEST_SECONDS", 0.05)
        slow = [send("http://slow.test") for _ in range(40)]  # an executor has 32 threads at most
        try:
            failures = await asyncio.gather(*slow, return_exceptions=True)
            assert {type(failure) for failure in failures} == {request.TimedOut}
            monkeypatch.setattr(request, "REQUEST_SECONDS", 2)
            return await send(good)
        finally:
            over.set()

    monkeypatch.setattr(socket, "getaddrinfo", hang_for_one)
    with receiving() as good:
        assert asyncio.run(send_all(good.url.replace("127.0.0.1", "localhost"))) == 204


# --- the rule -------------------------------------------------------------------------------------


def of(*queues: str) -> Receivers:
    known = Receivers()
    known.queues = queues
    return known


def test_each_webhook_has_room_for_two() -> None:
    assert of().room([], 0) == ((), 0)
    assert of(A, B).room([], 0) == ((A, B), 2)
    assert of(A, B).room([A], 0) == ((A, B), 1)  # a second claim may bring another of B
    assert of(A, B).room([A, A], 0) == ((B,), 2)
    assert of(A, B).room([A, A, B, B], 0) == ((), 0)


def test_all_together_have_room_for_eight() -> None:
    busy = [A, A, B, B, C, C, D]
    assert len(busy) == CONCURRENCY - 1
    assert of(A, B, C, D, E).room(busy, 0) == ((D, E), 1)
    assert of(A, B, C, D, E).room([*busy, E], 0)[1] == 0


def test_three_timeouts_in_a_row_are_a_pause_that_grows() -> None:
    known, now = of(A, B), 1_000.0
    for _ in range(3):
        assert A in known.room([], now)[0]
        known.timed_out(A, now)
    assert known.room([], now + 9.9)[0] == (B,)
    assert known.room([], now + 10) == ((A, B), 1)  # one alone
    assert known.room([A], now + 10) == ((B,), 2)
    known.timed_out(A, now + 10)
    assert known.room([], now + 29)[0] == (B,)
    for _ in range(2_000):
        known.timed_out(A, now)
    assert known.room([], now + MAX_SKIP_SECONDS - 1)[0] == (B,)
    assert A in known.room([], now + MAX_SKIP_SECONDS)[0]
    known.answered(A)
    assert known.room([], now) == ((A, B), 2)


def test_timeouts_with_answers_between_are_no_reason() -> None:
    known = of(A)
    for _ in range(10):
        known.timed_out(A, 0)
        known.timed_out(A, 0)
        known.answered(A)
    assert known.room([], 0) == ((A,), 2)
