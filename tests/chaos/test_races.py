"""Many at one row: operators, producers with one key, pruners and poison against live workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tenure import NewJob, Status, Tenure
from tenure.errors import IllegalTransition
from tenure.lifecycle import SETTLED
from tenure.rules.jobs import Options
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.values.ids import new_id
from tests.chaos import checker
from tests.chaos.history import History, Recorded, record_handlers
from tests.support import fault_counts
from tests.support.clock import Clock
from tests.support.programs import run
from tests.support.raw_sql import RawSql, Refused
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import (
    running_sweeper,
    running_worker,
    wait_until_all_settled,
    wait_until_completed,
    wait_until_settled,
)

pytestmark = pytest.mark.chaos


def ask(worker: str, label: str = "", limit: int = 10) -> ClaimRequest:
    return ClaimRequest(worker=worker, label=label, limit=limit, lease_seconds=30)


@pytest.mark.scenario(30)
def test_a_worker_that_comes_back_under_its_name_owns_nothing(app: Tenure, clock: Clock) -> None:
    """Same host, same process number: a label. Its old leases run out like anybody's."""
    app.enqueue_many([NewJob("work", {}, {"backoff": 0}) for _ in range(10)])
    old = app.core.claim(ask("worker-1", label="host:1")).leases
    assert len(old) == 10
    assert not app.core.claim(ask("worker-2", label="host:1")).leases
    mine = [(lease.id, lease.lease_id) for lease in old]
    assert app.core.heartbeat(mine, 30) == {}  # the old one lives on for all that
    clock.advance(31)
    assert len(app.core.sweep()) == 10
    new = app.core.claim(ask("worker-2", label="host:1")).leases
    assert len(new) == 10
    late = [Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in old]
    assert {verdict.answer for verdict in app.core.report(late).verdicts} == {"lost"}
    assert app.verify() == []


@pytest.mark.scenario(31)
@pytest.mark.parametrize("lives", [True, False], ids=["it lives", "it is dead"])
def test_a_worker_whose_entry_disappears_after_its_claim(
    app: Tenure, clock: Clock, lives: bool
) -> None:
    """Neither keeping a lease nor ending it asks who is in the list of workers."""
    job = app.enqueue("work", backoff=0)
    (lease,) = app.core.claim(ask("worker-1")).leases
    raw = RawSql(app.database)
    raw.run("DELETE FROM {worker}")
    assert raw.changed == 1
    raw.close()
    assert app.workers.list() == []
    if lives:
        clock.advance(20)
        assert app.core.heartbeat([(lease.id, lease.lease_id)], 30) == {}
    clock.advance(20 if lives else 31)
    assert [steps[0].id for steps in app.core.sweep()] == ([] if lives else [job.id])
    report = Report(lease.id, lease.lease_id, Outcome.COMPLETED)
    assert app.core.report([report]).verdicts[0].answer == ("recorded" if lives else "lost")
    if not lives:
        (again,) = app.core.claim(ask("worker-2")).leases
        assert (again.id, again.token) == (job.id, 2)
    assert app.verify() == []


@pytest.mark.scenario(32)
def test_operators_against_running_jobs(app: Tenure, tmp_path: Path, effort: int) -> None:
    """They retry, cancel and delete whatever they see, while workers run it."""
    folder = tmp_path / "history"
    folder.mkdir()
    over = threading.Event()
    refused: list[str] = []

    @app.job(backoff=0)
    async def work(number: int) -> int:
        await asyncio.sleep(0.002)
        if number % 3 == 0:
            raise ValueError("as usual")
        return number

    def operate(verb: str) -> None:
        with Tenure(app.database) as own, contextlib.closing(RawSql(app.database)) as raw:
            operator = Recorded(own, History(folder, verb))
            while not over.is_set():
                if verb == "delete" and verb not in refused:
                    parked = operator.enqueue("parked", delay=3600)
                    try:
                        raw.run("DELETE FROM {job} WHERE id = ? AND finished_at IS NULL", parked.id)
                    except Refused:
                        refused.append(verb)
                    with contextlib.suppress(IllegalTransition):
                        operator.cancel(parked.id)
                for job in own.find(limit=20):
                    try:
                        if verb == "delete":
                            raw.run(
                                "DELETE FROM {job} WHERE id = ? AND finished_at IS NULL", job.id
                            )
                        else:
                            getattr(operator, verb)(job.id)
                    except (IllegalTransition, *Refused):
                        refused.append(verb)

    source = Recorded(app, History(folder, "worker"))
    record_handlers(app, source.record)
    new_jobs = [NewJob("work", {"number": n}, {"max_retries": 2}) for n in range(300 * effort)]
    verbs = ("retry", "cancel", "delete")
    with running_sweeper(app), running_worker(app, source):
        threads = [threading.Thread(target=operate, args=(verb,)) for verb in verbs]
        for thread in threads:
            thread.start()
        jobs = source.enqueue_many(new_jobs)
        wait_until(lambda: set(refused) == set(verbs), "each to have been refused")
        over.set()
        for thread in threads:
            thread.join()
        wait_until_all_settled(app, jobs)
    assert checker.check(folder, app.database) == []


@pytest.mark.scenario(33)
@pytest.mark.each_engine
def test_the_first_of_many_with_one_key_is_undone(app: Tenure) -> None:
    """A transaction holds the key and is rolled back: one job exists, and everybody names it."""
    app.enqueue("other")
    raw = RawSql(app.database)
    insert = (
        "INSERT INTO {job} (id, type, run_at, created_at, idempotency_key)"
        " VALUES (?, 'work', {now}, {now}, 'one')"
    )
    ghost = new_id()
    raw.run("BEGIN IMMEDIATE" if raw.engine == "sqlite" else "BEGIN")
    raw.run(insert, ghost)
    with ThreadPoolExecutor(50) as threads:
        asked = [threads.submit(app.enqueue, "work", {}, idempotency_key="one") for _ in range(50)]
        if raw.engine == "postgres":  # SQLite shows nobody who waits
            waiting = "SELECT pid FROM pg_locks WHERE NOT granted"
            wait_until(lambda: raw.run(waiting), "an enqueue to wait for the key")
        assert not any(future.done() for future in asked)
        raw.run("ROLLBACK")
        ids = {future.result().id for future in asked}
    raw.close()
    assert len(ids) == 1
    assert ids != {ghost}
    assert [job.id for job in app.find(type="work")] == list(ids)
    assert app.verify() == []


PRODUCER = """
import sys
from tenure import Tenure
Tenure(sys.argv[1]).enqueue("work", idempotency_key="one")
"""


@pytest.mark.scenario(34)
@pytest.mark.parametrize("place", ["enqueue.before_commit", "enqueue.after_commit"])
def test_a_key_belongs_to_a_job_that_can_be_seen_or_is_free(app: Tenure, place: str) -> None:
    """Its producer is killed before or after the commit; whoever asks again gets a real job."""
    environment = {**os.environ, "TENURE_FAILPOINTS": f"{place}=kill"}
    process = run([sys.executable, "-c", PRODUCER, app.database], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    fault_counts.count("processes killed")
    seen = app.find()
    assert len(seen) == (1 if place == "enqueue.after_commit" else 0)
    again = app.enqueue("work", idempotency_key="one")
    assert app.find() == [again]
    assert not seen or seen == [again]
    assert app.verify() == []


@pytest.mark.scenario(85)
def test_pruning_all_that_settled_while_everything_runs(
    app: Tenure, tmp_path: Path, effort: int
) -> None:
    """Accepted jobs have settled and gone, or are still there: every number adds up."""
    lock = threading.Lock()
    ran: dict[int, int] = {}
    over = threading.Event()
    pruned = 0

    @app.job(backoff=0, max_retries=2)
    async def work(number: int) -> None:
        with lock:
            ran[number] = ran.get(number, 0) + 1
        if number % 5 == 0:
            raise ValueError("as usual")

    def prune() -> None:
        nonlocal pruned
        with Tenure(app.database) as own:
            while not over.is_set():
                pruned += own.core.prune(dict.fromkeys(SETTLED, 0))

    count = 400 * effort
    waiting = app.enqueue("nobody", idempotency_key="kept")
    pruner = threading.Thread(target=prune)
    with running_sweeper(app), running_worker(app):
        pruner.start()
        for start in range(0, count, 40):
            app.enqueue_many([work.new_job(n) for n in range(start, start + 40)])
        wait_until(lambda: pruned == count, "all to have settled and gone", seconds=60 * effort)
        over.set()
        pruner.join()
    assert app.enqueue("nobody", idempotency_key="kept") == waiting  # a live job keeps its key
    assert app.find() == [waiting]
    assert ran == {n: 2 if n % 5 == 0 else 1 for n in range(count)}
    raw = RawSql(app.database)
    assert raw.value("SELECT count(*) FROM {transition}") == 1  # a job's ledger goes with it
    raw.close()
    assert app.verify() == []


POISON = """
@app.job
def poison(context: JobContext):
    log(f"poison {context.attempt}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.job
async def honest(number: int):
    return number
"""


@pytest.mark.slow
@pytest.mark.scenario(16)
def test_poison_among_three_supervised_workers(app: Tenure, clock: Clock, tmp_path: Path) -> None:
    """It kills one worker: then it runs alone, in a child. A pause before each retry."""
    poison = app.enqueue("poison", max_retries=3, backoff=5, priority=-1)
    options: Options = {"backoff": 0, "max_retries": 4}
    honest = app.enqueue_many([NewJob("honest", {"number": n}, options) for n in range(60)])
    kills = 0
    with WorkerScript(tmp_path / "meet", app.database, POISON) as script, running_sweeper(app):
        workers = [script.start() for _ in range(3)]

        def over() -> bool:
            nonlocal kills
            for number, worker in enumerate(workers):
                if worker.poll() is not None:
                    assert worker.returncode == -signal.SIGKILL
                    kills += 1
                    fault_counts.count("processes killed")
                    workers[number] = script.start()
                    clock.advance(31)
            if app.get(poison.id).status is Status.PENDING:
                clock.advance(1)
            return app.get(poison.id).status is Status.FAILED

        wait_until(over, "the poison to fail for good", seconds=60)
        clock.advance(31)
        for job in honest:
            assert wait_until_completed(app, job).attempts <= 4
    assert kills == 1
    assert script.lines() == ["poison 1", "poison 2", "poison 3"]
    history = app.history(poison.id)
    ended = None  # not paired by number: a busy worker hands back what it has claimed and not begun
    for transition in history:
        if transition.event in ("lease_expired", "failed"):
            ended = transition.at
        elif transition.event == "claimed" and ended is not None:
            assert (transition.at - ended).total_seconds() >= 4.5, history
    assert wait_until_settled(app, poison).attempts == 3
    assert app.verify() == []
