"""What went wrong with dependencies elsewhere, repeated here: chords, batches, flows, chains."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from tenure import Dependency, Job, NewJob, Status, Tenure, failpoints
from tenure.app.bulk import run_batches
from tenure.events import Retried
from tenure.rules.jobs import LinkedJob
from tenure.rules.reports import Answer, ClaimRequest, Lease, Outcome, Report
from tenure.rules.search import Filter
from tenure.values.ids import new_ids
from tests.support.clock import Clock
from tests.support.programs import run
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper

pytestmark = pytest.mark.chaos
COMPLETE = """
import sys
from tenure import Tenure
from tenure.rules.reports import ClaimRequest, Outcome, Report
core = Tenure(sys.argv[1]).core
(lease,) = core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=30)).leases
core.report([Report(lease.id, lease.lease_id, Outcome.COMPLETED)])
"""


def claim(app: Tenure, limit: int = 9) -> list[Lease]:
    request = ClaimRequest(worker="w", limit=limit, lease_seconds=30)
    return sorted(app.core.claim(request).leases, key=lambda lease: lease.id)


def said(lease: Lease, outcome: str = "completed") -> Report:
    final = outcome == "gave_up"
    outcome = Outcome.FAILED if final else Outcome(outcome)
    return Report(lease.id, lease.lease_id, outcome, error="boom", retryable=not final)


def state(app: Tenure, *jobs: Job) -> list[str]:
    return [str(app.get(job.id).status) for job in jobs]


def events(app: Tenure, job: Job) -> list[str]:
    return [entry.event for entry in app.history(job.id)]


def settle(app: Tenure) -> None:
    """What the sweep of any process does for jobs that wait."""
    while app.core.follow():
        pass


@pytest.mark.scenario(113)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_chain_goes_on_wherever_its_worker_dies(app: Tenure, clock: Clock, moment: str) -> None:
    """celery#9835: lost if the worker died after the result was stored; sidekiq#5143."""
    first = app.enqueue("a", backoff=0)
    second = app.enqueue("b", depends_on=[first])
    armed = {**os.environ, failpoints.ENVIRONMENT: f"report.{moment}_commit=kill"}
    command = [sys.executable, "-c", COMPLETE, app.database]
    assert run(command, env=armed, check=False).returncode == -signal.SIGKILL
    if moment == "before":
        assert state(app, first, second) == ["processing", "waiting"]
        clock.advance(31)
        app.core.sweep()
        assert state(app, second) == ["waiting"]
        app.core.report([said(lease) for lease in claim(app)])
    assert state(app, first, second) == ["completed", "pending"]
    assert events(app, second) == ["enqueued", "unblocked"]
    assert app.verify() == []


@pytest.mark.scenario(114)
def test_a_member_that_ends_twice_counts_once(app: Tenure, clock: Clock) -> None:
    """celery, on_chord_part_return of Redis: a redelivered member was counted for another one."""
    members = app.enqueue_many([NewJob("a", {}, {"backoff": 0}) for _ in range(3)])
    chord = app.enqueue("sum", depends_on=[member.id for member in members])
    old = claim(app, limit=1)
    clock.advance(31)
    app.core.sweep()
    (new,) = [lease for lease in claim(app) if lease.id == old[0].id]
    reports = [said(new), said(old[0]), said(new)]
    for report in reports:
        app.core.report([report, report])
    assert (app.get(chord.id).status, app.get(chord.id).need) == ("waiting", 2)
    assert app.core.report([said(old[0])]).verdicts[0].answer is Answer.LOST
    assert app.verify() == []


@pytest.mark.scenario(115)
@pytest.mark.parametrize("ending", ["gave_up", "cancelled"])
def test_nobody_waits_for_ever_for_a_failure(app: Tenure, ending: str) -> None:
    """bullmq#3362, #3122: `waiting-children` for ever; pg-boss: blocked for ever by a failed or
    cancelled parent. Jobs that only wait for an ending run, and the way back is the retry."""
    bad, other = app.enqueue("a"), app.enqueue("b", delay="1h")
    child = app.enqueue("c", depends_on=[bad, other])
    far = app.enqueue("d", depends_on=[child])
    clean_up = app.enqueue("e", depends_on=[bad.settled, far.failed])
    (lease,) = claim(app)
    if ending == "cancelled":
        app.cancel(bad.id)
    else:
        app.core.report([said(lease, ending)])
    settle(app)
    assert state(app, other, child, far, clean_up) == [
        "pending",
        "cancelled",
        "cancelled",
        "pending",
    ]
    assert events(app, far) == ["enqueued", "skipped"]
    assert app.verify() == []
    if ending == "gave_up":
        app.retry(bad.id)
        settle(app)
        assert state(app, bad, child, far) == ["pending", "waiting", "waiting"]
        assert (app.get(child.id).need, app.get(far.id).need) == (2, 1)
        assert app.verify() == []


@pytest.mark.scenario(115)
def test_a_callback_runs_after_a_failure_and_a_success(app: Tenure) -> None:
    """good_job#1239, #1450: not after a retry. breamware/sidekiq-batch#43: never."""
    member = app.enqueue("a", backoff=0, max_retries=3)
    done, failed = (app.enqueue("b", depends_on=[one]) for one in (member, member.failed))
    for outcome in ("failed", "failed"):
        app.core.report([said(lease, outcome) for lease in claim(app)])
        assert state(app, done, failed) == ["waiting", "waiting"]
    app.core.report([said(lease) for lease in claim(app)])
    settle(app)
    assert state(app, done, failed) == ["pending", "cancelled"]
    assert app.verify() == []


@pytest.mark.scenario(117)
def test_no_process_has_to_live_for_a_release(app: Tenure) -> None:
    """pg-boss resolves later, in a process with `supervise`; Celery in a task, chord_unlock. Here
    whoever ends the parent, in whatever SQL, releases the child in the same statement."""
    parent = app.enqueue("a")
    child = app.enqueue("b", depends_on=[parent.settled])
    with closing(RawSql(app.database)) as raw:
        raw.run(
            "UPDATE {job} SET status = 'cancelled', event = 'cancelled', finished_at = {now}"
            " WHERE id = ?",
            parent.id,
        )
    assert state(app, child) == ["pending"]
    assert app.verify() == []


def blocked(raw: RawSql) -> bool:
    """Whether a session of this database waits for a lock."""
    return bool(
        raw.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


@pytest.mark.scenario(118)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("first", ["the ending", "the retry"])
def test_an_ending_beside_a_retry_that_restores(app: Tenure, first: str) -> None:
    """The one counts what the other has not committed yet, or waits for it: never neither."""
    bad, other = app.enqueue("a", max_retries=1), app.enqueue("b")
    child = app.enqueue("c", depends_on=[bad, other])
    leases = {lease.id: lease for lease in claim(app)}
    app.core.report([said(leases[bad.id], "gave_up")])
    settle(app)
    assert state(app, child) == ["cancelled"]
    with closing(RawSql(app.database)) as raw, closing(RawSql(app.database)) as watch:
        with raw.transaction():
            if first == "the ending":
                raw.run(
                    "UPDATE {job} SET status = 'completed', event = 'completed', lease_id = NULL,"
                    " lease_expires_at = NULL, finished_at = {now} WHERE id = ?",
                    other.id,
                )
                acting = app.core.store.apply(bad.id, Retried(more_retries=1, actor="me"))
            else:
                raw.run("SELECT id FROM {job} WHERE id = ? FOR UPDATE", child.id)
                acting = app.core.store.exchange([said(leases[other.id])], None)
            wait_until(lambda: acting.done() or blocked(watch), "the other one to be there")
        acting.result()
        if first == "the retry":
            app.retry(bad.id)
    assert state(app, bad, other, child) == ["pending", "completed", "waiting"]
    assert (app.get(child.id).need, app.get(child.id).spare) == (1, 0)
    assert app.verify() == []


@pytest.mark.scenario(115)
def test_the_sweep_skips_and_restores(app: Tenure) -> None:
    bad = app.enqueue("a")
    child = app.enqueue("b", depends_on=[bad])
    app.core.report([said(claim(app)[0], "gave_up")])
    assert state(app, child) == ["waiting"]
    with running_sweeper(app):
        wait_until(lambda: state(app, child) == ["cancelled"], "the sweep to skip it")
    app.bulk.start("retry", Filter(status=Status.FAILED))
    run_batches(app.core)
    assert state(app, bad, child) == ["pending", "waiting"]
    assert app.verify() == []


@pytest.mark.scenario(116)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_sweeper_that_dies_while_it_skips(app: Tenure, moment: str) -> None:
    """All of what it decided in a transaction is there, or nothing, and the next one goes on."""
    bad = app.enqueue("a")
    child = app.enqueue("b", depends_on=[bad])
    last = app.enqueue("c", depends_on=[child])
    app.core.report([said(claim(app)[0], "gave_up")])
    place = "before_decide" if moment == "before" else "after_commit"
    armed = {**os.environ, failpoints.ENVIRONMENT: f"dependencies.{place}=kill"}
    code = "import sys; from tenure import Tenure; Tenure(sys.argv[1]).core.follow()"
    command = [sys.executable, "-c", code, app.database]
    assert run(command, env=armed, check=False).returncode == -signal.SIGKILL
    done = "waiting" if moment == "before" else "cancelled"
    wait_until(lambda: state(app, child, last) == [done] * 2, "its transaction to end")
    settle(app)
    assert state(app, child, last) == ["cancelled", "cancelled"]
    assert events(app, last) == ["enqueued", "skipped"]
    assert app.verify() == []


SECONDS = 30.0
"""Ten times what it takes on a machine without other load."""


@pytest.mark.scenario(116)
@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_long_chain_is_skipped_in_seconds(app: Tenure) -> None:
    """10,000 jobs: no recursion, neither in triggers nor in Python."""
    root = app.enqueue("a", max_retries=1)
    ids = [root.id, *new_ids(10_000)]
    links = [
        LinkedJob(id=child, type="a", edges=(Dependency(parent),))
        for parent, child in itertools.pairwise(ids)
    ]
    app.core.store.add(links).result()
    app.core.report([said(lease, "gave_up") for lease in claim(app)])
    assert timed(lambda: settle(app)) < SECONDS
    assert str(app.get(ids[-1]).status) == "cancelled"
    assert app.verify() == []
    assert timed(lambda: app.retry(root.id)) < SECONDS
    assert timed(lambda: settle(app)) < SECONDS
    assert str(app.get(ids[-1]).status) == "waiting"
    assert app.verify() == []


def timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began
