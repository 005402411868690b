"""A store that cannot be reached, that hangs, or that is slow: nobody loses anything or piles up.

After each outage everything works again within ten seconds, without a restart and without a hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tenure import Status, StoreUnavailable, Tenure
from tenure.client import Client
from tenure.settings import Settings
from tenure.store.postgres import reader as postgres_reader
from tenure.store.postgres import session as postgres
from tenure.worker import process
from tenure.worker.exchanges import MAX_BACKOFF_SECONDS
from tenure.worker.maintenance import MaintenanceThread, StallWatch
from tenure.worker.worker import Worker
from tests.chaos.remote_stores import REMOTE_STORES, RemoteStore, remote_store
from tests.support import fault_counts
from tests.support.http import ServerProcess
from tests.support.store import claim_request
from tests.support.waiting import RECOVERY_SECONDS, WAIT_SECONDS, wait_until
from tests.support.workers import running_sweeper, running_worker, transitions, wait_until_completed

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second without an answer is long enough."""
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(postgres_reader, "ANSWER_SECONDS", 1.0)


@pytest.fixture(params=REMOTE_STORES)
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, impatient: None
) -> Iterator[RemoteStore]:
    """Every way to a store over a network; what answers too late hangs."""
    url = request.getfixturevalue(f"{request.param.rpartition('+')[2]}_url")
    with remote_store(request.param, url, tmp_path, timeout=3.0) as made:
        yield made


@pytest.fixture
def database(postgres_url: str, tmp_path: Path) -> Iterator[RemoteStore]:
    """The way to PostgreSQL itself."""
    with remote_store("postgres", postgres_url, tmp_path) as made:
        yield made


@pytest.mark.scenario(42)
def test_outcomes_outlast_an_outage_of_five_leases(
    database: RemoteStore, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody ends the leases meanwhile, so each outcome is recorded when it arrives at last."""
    caplog.set_level("WARNING")
    remote = database
    go_on = threading.Event()
    running = threading.Semaphore(0)

    @remote.direct.job(max_retries=1)
    def work(number: int) -> int:
        running.release()
        go_on.wait(WAIT_SECONDS)
        return number

    @remote.direct.job
    async def later() -> None: ...

    jobs = [remote.source.enqueue("work", {"number": n}) for n in range(6)]
    with running_worker(remote.direct, remote.source, concurrency=8, lease_seconds=0.4) as worker:
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        remote.proxy.refuse()
        refused_at = time.monotonic()
        waiting = remote.direct.enqueue("later")
        go_on.set()
        wait_until(lambda: worker._leases.unreported == 6, "every outcome to be kept")
        wait_until(lambda: time.monotonic() - refused_at > 2, "five leases to pass")
        assert remote.direct.get(waiting.id).status is Status.PENDING, "nothing was claimed"
        wait_until(lambda: worker._leases.unreported == 6, "every outcome to be kept still")
        # It tries again, but not as fast as it can.
        assert caplog.text.count("the store did not answer") < 12
        remote.proxy.pass_on()
        remote.recovered(waiting)
        ends = [wait_until_completed(remote.direct, job) for job in jobs]
    assert [end.attempts for end in ends] == [1] * 6
    assert [end.result_json for end in ends] == [str(n) for n in range(6)]
    assert remote.direct.verify() == []


def writes(remote: RemoteStore) -> bool:
    with contextlib.suppress(StoreUnavailable):
        return bool(remote.source.enqueue("other"))
    return False


@pytest.mark.scenario(42)
def test_no_lease_ends_at_the_end_of_an_outage(database: RemoteStore, impatient: None) -> None:
    """Whoever came back first swept, and jobs that ran all the time were charged and ran twice."""
    now = 100.0
    watch = StallWatch(lambda: now)
    sweeper = MaintenanceThread(database.source.source, watch=watch)
    job = database.direct.enqueue("work")
    database.proxy.refuse()
    sweeper.do_once()
    assert watch._away_since == now
    (lease,) = database.direct.core.claim(claim_request(lease_seconds=0.1)).leases
    wait_until(lambda: datetime.now(UTC) > lease.lease_expires_at, "the lease to end")
    now += 40
    database.proxy.pass_on()
    wait_until(partial(writes, database), "the database to answer")
    wait_until(lambda: sweeper.do_once() or watch._away_since is None, "the sweeper to be back")
    now += 39
    assert not watch.may_end_leases(), "heartbeats have as much time as they lacked"
    now += 1
    wait_until(lambda: sweeper.do_once() or "retried" in transitions(database.direct, job.id))


@pytest.mark.scenario(42)
def test_no_lease_ends_when_a_database_that_hung_continues(database: RemoteStore) -> None:
    """Whoever asked what there is to do had its answer at once, before a heartbeat had its own."""
    now = 100.0
    watch = StallWatch(lambda: now)
    sweeper = MaintenanceThread(database.source.source, watch=watch)
    sweeper.do_once()
    job = database.direct.enqueue("work")
    (lease,) = database.direct.core.claim(claim_request(lease_seconds=2)).leases
    wait_until(lambda: database.direct.core.clock() > lease.lease_expires_at, "the lease to end")
    database.proxy.hold()
    with ThreadPoolExecutor(1) as thread:
        looked = thread.submit(sweeper.do_once)
        wait_until(lambda: database.proxy.counts["requests held"], "the look to hang")
        now += 40
        database.proxy.let_go()
        looked.result(WAIT_SECONDS)
    now += 39
    sweeper.do_once()
    assert transitions(database.direct, job) == ["enqueued", "claimed"]
    now += 1
    sweeper.do_once()
    assert "retried" in transitions(database.direct, job)


def test_a_database_that_is_always_slow_spares_no_lease_for_ever() -> None:
    now, spared = 100.0, 0
    watch = StallWatch(lambda: now)
    for _ in range(10):
        with watch.asking():
            now += 4
        spared += not watch.may_end_leases()
        now += 1
    assert spared == 5, "after every other look"


@pytest.mark.scenario(42)
def test_a_worker_that_starts_after_an_outage_ends_no_lease_at_once(
    database: RemoteStore, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisors start it again and again until the database is back: before any heartbeat."""
    monkeypatch.setattr(process, "SPARE_SECONDS", 20 * process.SPARE_SECONDS)  # it is busy here
    go_on, running = threading.Event(), threading.Event()

    @database.direct.job(max_retries=1)
    def work() -> str:
        running.set()
        go_on.wait(WAIT_SECONDS)
        return "done"

    job = database.direct.enqueue("work")
    with running_worker(database.direct, database.source, lease_seconds=2):
        assert running.wait(WAIT_SECONDS)
        database.proxy.refuse()
        lease_ends_at = database.direct.get(job.id).lease_expires_at
        assert lease_ends_at is not None
        wait_until(lambda: datetime.now(UTC) > lease_ends_at, "the lease to end")
        with process.maintained(database.direct, Settings(), []):
            (sweeper,) = (it for it in threading.enumerate() if isinstance(it, MaintenanceThread))
            wait_until(lambda: sweeper._times_at, "its first look")
            assert transitions(database.direct, job) == ["enqueued", "claimed"]
            database.proxy.pass_on()
            go_on.set()
            assert wait_until_completed(database.direct, job).attempts == 1


@pytest.mark.scenario(42)
def test_outcomes_that_come_after_their_leases_were_ended_are_refused(remote: RemoteStore) -> None:
    go_on = threading.Event()
    running = threading.Semaphore(0)
    runs: list[int] = []

    @remote.direct.job(max_retries=2, backoff=0)
    def work(number: int) -> str:
        running.release()
        runs.append(number)
        go_on.wait(WAIT_SECONDS)
        return "done"

    jobs = [remote.source.enqueue("work", {"number": n}) for n in range(4)]
    with (
        running_sweeper(remote.direct),
        running_worker(remote.direct, remote.source, concurrency=4, lease_seconds=1) as worker,
    ):
        for _ in jobs:
            assert running.acquire(timeout=WAIT_SECONDS)
        remote.proxy.refuse()
        go_on.set()
        wait_until(lambda: worker._leases.unreported == 4, "every outcome to be kept")
        for job in jobs:
            wait_until(lambda job=job: remote.direct.get(job.id).status is Status.PENDING)  # type: ignore[misc]
        remote.proxy.pass_on()
        remote.recovered(jobs[0])
        ends = [wait_until_completed(remote.direct, job) for job in jobs]
    assert [end.attempts for end in ends] == [2] * 4
    path = ["enqueued", "claimed", "lease_expired", "retried", "claimed", "completed"]
    assert all(transitions(remote.direct, job) == path for job in jobs)
    assert sorted(runs) == sorted([*range(4), *range(4)])
    remote.check()


@pytest.mark.scenario(41)
def test_connections_that_the_network_forgot_hold_up_nobody(remote: RemoteStore) -> None:
    go_on = threading.Event()
    running = threading.Event()

    @remote.direct.job(max_retries=3, backoff=0)
    def work() -> str:
        running.set()
        go_on.wait(WAIT_SECONDS)
        return "done"

    with (
        running_sweeper(remote.direct),
        running_worker(remote.direct, remote.source, lease_seconds=1) as worker,
    ):
        job = remote.source.enqueue("work")
        assert running.wait(WAIT_SECONDS)
        remote.proxy.black_hole()
        with ThreadPoolExecutor(2) as callers:
            for answer in (
                callers.submit(remote.source.enqueue, "work"),
                callers.submit(remote.source.get, job.id),
            ):
                with pytest.raises(StoreUnavailable):  # it does not hang
                    answer.result(WAIT_SECONDS)
        wait_until(lambda: worker._exchanges.backoff.seconds > 0, "the worker to notice")
        go_on.set()
        remote.proxy.pass_on()
        remote.recovered(remote.direct.enqueue("work"))
        wait_until_completed(remote.direct, job)
        remote.source.get(job.id)
    assert remote.direct.verify() == []


@pytest.mark.scenario(43)
@pytest.mark.postgres
def test_a_slow_store_is_not_buried_in_work(database: RemoteStore, effort: int) -> None:
    """Many callers share few calls: what waits is taken along by the next commit."""

    @database.direct.job
    async def work(number: int) -> None: ...

    database.source.enqueue("work", {"number": -1})  # connects
    seconds = 1.0 if effort > 1 else 0.5  # a new connection makes several calls in its 10 s
    with running_worker(database.direct, database.source, concurrency=50):
        wait_until(lambda: database.proxy.connections >= 2, "everybody to connect")
        database.proxy.delay(seconds)
        began = time.monotonic()
        with ThreadPoolExecutor(100) as callers:
            jobs = list(
                callers.map(lambda n: database.source.enqueue("work", {"number": n}), range(200))
            )
        took = time.monotonic() - began
        connections = database.proxy.connections
        database.proxy.pass_on()
        database.recovered(jobs[-1])
        for job in jobs:
            wait_until_completed(database.direct, job)
    assert connections <= 2 + 1 + 4 + 1, "writers, heart, readers, listener"
    # One after the other these would take 200 calls.
    assert took < 60 * seconds
    database.check()


@pytest.mark.scenario(12)
@pytest.mark.full
@pytest.mark.postgres
def test_heartbeats_keep_many_leases_in_a_slow_store(database: RemoteStore) -> None:
    """A heartbeat is three calls of 0.5 s; begun 0.7 s after the last, it would be too late."""
    go_on = threading.Event()

    @database.direct.job(max_retries=2)
    async def work(number: int) -> None:
        while not go_on.is_set():  # noqa: ASYNC110 - an event of another thread
            await asyncio.sleep(0.1)

    jobs = database.source.enqueue_many([work.new_job(n) for n in range(500)])
    with (
        running_sweeper(database.direct),
        running_worker(database.direct, database.source, concurrency=500, lease_seconds=2),
    ):
        running = lambda: len(database.direct.find(status="processing", limit=500))  # noqa: E731
        wait_until(lambda: running() == 500, "all jobs to run")
        first = database.direct.get(jobs[0].id).lease_expires_at
        wait_until(
            lambda: database.direct.get(jobs[0].id).lease_expires_at != first, "a first heartbeat"
        )
        database.proxy.delay(0.47)
        slow_at = time.monotonic()
        wait_until(lambda: time.monotonic() - slow_at > 4.5, "more than two leases to pass")
        assert running() == 500
        database.proxy.pass_on()
        go_on.set()
        database.recovered(jobs[0])
        ends = [wait_until_completed(database.direct, job) for job in jobs]
    assert {end.attempts for end in ends} == {1}
    database.check()


@pytest.mark.scenario(12)
def test_a_store_too_slow_for_its_leases_is_named(
    database: RemoteStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    go_on = threading.Event()

    @database.direct.job
    def work() -> None:
        go_on.wait(WAIT_SECONDS)

    with running_worker(database.direct, database.source, lease_seconds=1):
        job = database.source.enqueue("work")
        wait_until(lambda: database.direct.get(job.id).status is Status.PROCESSING)
        database.proxy.delay(0.2)
        wait_until(lambda: "long for leases of 1 s" in caplog.text, "the worker to say so")
        database.proxy.pass_on()
        go_on.set()
        database.recovered(job)


@pytest.mark.scenario(99)
def test_workers_come_back_to_a_server_that_was_killed_under_their_polls(
    database_url: str, tmp_path: Path
) -> None:
    with Tenure(database_url) as app, contextlib.ExitStack() as stack:
        done: list[int] = []

        @app.job
        async def work(number: int) -> None:
            done.append(number)

        server = stack.enter_context(ServerProcess(database_url))
        clients = [stack.enter_context(Client(server.url, timeout=5)) for _ in range(5)]
        workers = [stack.enter_context(running_worker(app, client)) for client in clients]
        wait_until(lambda: all(w._exchanges.under_way for w in workers), "every worker to poll")
        server.process.kill()
        server.process.wait()
        fault_counts.count("processes killed")
        wait_until(
            lambda: all(w._exchanges.backoff.seconds > 0 for w in workers), "every worker to notice"
        )
        port = str(server.address[1])
        stack.enter_context(ServerProcess(database_url, "--port", port))
        began = time.monotonic()
        for job in app.enqueue_many([work.new_job(n) for n in range(50)]):
            wait_until_completed(app, job)
        assert time.monotonic() - began < RECOVERY_SECONDS
        assert sorted(done) == list(range(50))
        assert app.verify() == []


@pytest.mark.scenario(99)
def test_workers_do_not_come_back_in_step(sqlite_url: str) -> None:
    app = Tenure(sqlite_url)

    async def lose_the_store() -> list[float]:
        workers = [Worker(app.core, app.core.handlers) for _ in range(50)]
        now = time.monotonic()
        for worker in workers:
            worker._exchanges.backoff.seconds = 3_600.0  # however long the store was away
            worker._exchanges._failed([], StoreUnavailable("gone"))
        return [worker._exchanges.backoff.until - now for worker in workers]

    waits = asyncio.run(lose_the_store())
    assert max(waits) - min(waits) > MAX_BACKOFF_SECONDS / 10
    assert min(waits) > MAX_BACKOFF_SECONDS / 3
    assert max(waits) < RECOVERY_SECONDS


@pytest.mark.scenario(97)
def test_clients_that_hang_up_leave_nothing_behind(database_url: str) -> None:
    """In the middle of a request it is not there; after it, it may be, and its key finds it."""
    with ServerProcess(database_url) as server, Tenure(database_url) as app:
        httpx2.post(f"{server.url}/jobs", json={"type": "warm-up"})

        def sockets() -> int:
            found = 0
            for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    found += descriptor.readlink().name.startswith("socket:")
            return found

        before = sockets()
        for number in range(60):
            body = b'{"type": "work"}'
            request = (
                b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Idempotency-Key: key-%d\r\nContent-Length: %d\r\n\r\n%b"
                % (number, len(body), body)
            )
            with server.connect() as connection:
                # Half of them before the end of their request, the others before its answer.
                connection.sendall(request[: -1 - number] if number % 2 else request)
                if number % 3 == 0:  # with a reset
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        made = {
            number: httpx2.post(
                f"{server.url}/jobs",
                json={"type": "work"},
                headers={"Idempotency-Key": f"key-{number}"},
            )
            for number in range(60)
        }
        assert {answer.status_code for answer in made.values()} <= {200, 201}
        assert all(made[number].status_code == 201 for number in range(1, 60, 2)), "half a request"
        assert len(app.find(type="work", limit=500)) == 60
        wait_until(lambda: sockets() <= before + 1, "the connections to be closed")
        assert app.verify() == []
