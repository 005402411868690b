"""Schedules on both engines: each tick is decided once, and is on record."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from tenure import InvalidInput, KeyConflict, NewJob, Status, Tenure
from tenure.app import schedules as verbs
from tenure.app.schedules import decide_due, declare, set_right
from tenure.errors import IllegalEdition, ScheduleNotFound
from tenure.rules.reports import ClaimRequest, Duty, Outcome, Report
from tenure.rules.schedules import Overlap
from tenure.store import audit
from tenure.store.tables import schedules
from tests.support.clock import START, Clock
from tests.support.raw_sql import RawSql, Refused
from tests.support.schedules import TABLE, shown, situation
from tests.support.store import report_suspended

MAIL = NewJob("mail", {}, {})
MINUTE = timedelta(minutes=1)


@pytest.fixture
def app(app_on_each_engine: Tenure, clock: Clock) -> Iterator[Tenure]:
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


@pytest.fixture
def raw(app: Tenure) -> Iterator[RawSql]:
    with closing(RawSql(app.database)) as raw:
        yield raw


def record(app: Tenure, name: str = "s", every: float = 60) -> str:
    """What is on record, oldest first, as in the table."""
    fires = app.schedules.fires(name, limit=500)[::-1]
    waiting = {job.id for job in app.find(status="waiting", limit=500)}
    return shown(fires, every, [fire.job_id in waiting for fire in fires])


def test_a_time_key_that_no_argument_has_is_refused(app: Tenure) -> None:
    @app.job
    def report(tenant: str, day: str) -> None: ...

    @app.job
    def any_of(**given: str) -> None: ...

    job = NewJob("report", {"tenant": "acme"}, {})
    with pytest.raises(InvalidInput, match="the handler has no argument of this name") as refused:
        app.schedules.create("s", job, every=60, time_key="dya")
    assert refused.value.path == "$.time_key"
    app.schedules.create("s", job, every=60, time_key="day")
    with pytest.raises(InvalidInput, match="the handler has no argument of this name"):
        app.schedules.update("s", time_key="dya")
    app.schedules.create("any", NewJob("any_of", {}, {}), every=60, time_key="day")
    app.schedules.create("elsewhere", MAIL, every=60, time_key="day")


def test_a_schedule_that_is_over_is_refused(app: Tenure, clock: Clock) -> None:
    for path, given in (
        ("$.ends_at", {"every": 60, "ends_at": START - MINUTE}),
        ("$.ends_at", {"cron": "@hourly", "ends_at": START - MINUTE}),
        ("$.at", {"at": START - MINUTE}),
    ):
        with pytest.raises(InvalidInput, match="over already") as refused:
            app.schedules.create("s", MAIL, **given)
        assert refused.value.path == path
    assert app.schedules.list() == []
    app.schedules.create("s", MAIL, every=60, ends_at=START + MINUTE)
    ended = app.schedules.update("s", ends_at=START - MINUTE)  # so one ends it
    assert ended.next_at is None


def complete(app: Tenure, limit: int = 1) -> list[str]:
    """Claim jobs and complete them."""
    claim = ClaimRequest(worker="w", limit=limit, lease_seconds=60)
    leases = app.core.claim(claim).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.COMPLETED) for lease in leases])
    return [lease.id for lease in leases]


def test_overlap_missed_and_outage(app: Tenure, clock: Clock, subtests: pytest.Subtests) -> None:
    for number, (row, overlap, expected) in enumerate(TABLE):
        with subtests.test(f"{row} {overlap}"):
            every, seen, options, is_open = situation(row)
            job = NewJob(f"mail{number}", {}, {})
            clock.set(START)
            app.schedules.create("s", job, every=every, overlap=overlap, **options)
            if is_open:
                app.schedules.trigger("s")
            clock.advance(seen)
            decide_due(app.core, set())
            assert record(app, every=every).removeprefix("f0? ") == expected
            assert len(app.find(type=job.type)) == expected.count("f") + is_open
            found = app.schedules.get("s")
            assert found.fired == expected.count("f") + is_open
            assert found.decided == seen // every + is_open
            decide_due(app.core, set())
            assert found == app.schedules.get("s")
        app.schedules.delete("s")


def test_a_tick_becomes_a_job_that_starts_in_time(app: Tenure, clock: Clock) -> None:
    job = NewJob("mail", {"to": "a"}, {"queue": "mails", "tags": ["nightly"]})
    app.schedules.create("nightly", job, cron="10 3 * * *", time_key="day", actor="ann")
    clock.advance(3 * 3600 + 600 - 1.6)
    assert Duty.SCHEDULES not in app.core.look()
    clock.advance(0.2)
    assert Duty.SCHEDULES in app.core.look()
    decide_due(app.core, set())
    assert Duty.SCHEDULES not in app.core.look()
    (made,) = app.find()
    assert made.run_at == START + timedelta(hours=3, minutes=10) > made.created_at
    assert made.payload == {"to": "a", "day": "2026-01-01T03:10:00+00:00"}
    assert (made.queue, made.tags, made.actor) == ("mails", ("nightly",), "schedule nightly")
    (fire,) = app.schedules.fires("nightly")
    assert (fire.job_id, fire.outcome, fire.how, fire.at) == (made.id, "fired", "due", made.run_at)
    assert "Schedule nightly added it for 2026-01-01 03:10:00 UTC." in app.explain(made.id).text
    found = app.schedules.get("nightly")
    assert (found.created_by, found.last_job_id) == ("ann", made.id)
    assert found.next_at == made.run_at + timedelta(days=1)


def test_buffered_jobs_run_one_after_the_other(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="buffer_all")
    for _ in range(3):
        clock.advance(60)
        decide_due(app.core, set())
    first, second, third = [fire.job_id for fire in app.schedules.fires("s")[::-1]]
    assert first
    assert second
    assert third
    assert f"It waits for 1 of 1 job: {first} (pending)." in app.explain(second).text
    clock.advance(600)
    assert complete(app, 10) == [first]
    assert app.get(second).status == "pending"
    assert app.get(second).run_at == clock.now
    assert [t.event for t in app.history(second)] == ["enqueued", "unblocked"]
    assert app.history(second)[-1].actor == "store"
    app.cancel(second)  # however it ends
    assert complete(app, 10) == [third]


def test_one_job_at_most_is_buffered(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="buffer_one")
    for _ in range(3):
        clock.advance(60)
        decide_due(app.core, set())
    assert record(app) == "f1 f2w o3"


def test_a_job_that_waits_for_a_signal_was_taken_for_a_buffered_one(
    app: Tenure, clock: Clock
) -> None:
    """It has started: so the next tick was dropped, and nothing ran when the job had ended."""
    app.schedules.create("s", MAIL, every=60, overlap="buffer_one")
    clock.advance(60)
    decide_due(app.core, set())
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    app.core.report([report_suspended(lease)])
    for _ in range(2):
        clock.advance(60)
        decide_due(app.core, set())
    assert record(app) == "f1w f2w o3"
    app.cancel(lease.id)
    assert complete(app) == [app.schedules.fires("s")[1].job_id]


@pytest.mark.parametrize("ended", ["last", "middle"])
def test_no_buffered_job_runs_beside_another_if_one_is_cancelled(
    app: Tenure, clock: Clock, ended: str
) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="buffer_all")
    claim = ClaimRequest(worker="w", limit=9, lease_seconds=6_000)
    held = []
    for number in range(4):
        clock.advance(60)
        decide_due(app.core, set())
        held += app.core.claim(claim).leases
        if number == 2:
            waiting = sorted(job.id for job in app.find(status="waiting"))
            app.cancel(waiting[-1] if ended == "last" else waiting[0])
    (running,) = held
    assert app.core.claim(claim).leases == []
    app.core.report([Report(running.id, running.lease_id, Outcome.COMPLETED)])
    while held := list(app.core.claim(claim).leases):
        assert len(held) == 1
        app.core.report([Report(held[0].id, held[0].lease_id, Outcome.COMPLETED)])
    assert record(app) == "f1 f2 f3 f4"


def test_no_buffered_job_runs_beside_another_if_they_were_decided_together(
    app: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them waited for the one before it alone: what came after a cancelled one ran."""
    for room in ("rules.schedules", "rules.dependencies"):  # as if they were many more
        monkeypatch.setattr(f"tenure.{room}.MAX_LINKS", 20)
    for name in ("s", "t"):
        app.schedules.create(name, MAIL, every=60, overlap="buffer_all", missed="all")
    claim = ClaimRequest(worker="w", limit=9, lease_seconds=6_000)
    clock.advance(60)
    decide_due(app.core, set())
    running = list(app.core.claim(claim).leases)
    clock.advance(300)
    decide_due(app.core, set())
    for name in ("s", "t"):
        waiting = [fire.job_id for fire in app.schedules.fires(name)[-2::-1]]
        app.cancel(str(waiting[0]))
        app.cancel(str(waiting[2]))
    for _ in range(4):
        assert len(running) == 2
        app.core.report([Report(one.id, one.lease_id, Outcome.COMPLETED) for one in running])
        running = list(app.core.claim(claim).leases)
    assert running == []
    assert record(app, "s") == record(app, "t") == "f1 f2c f3c f4c f5 f6"


def test_no_buffered_job_runs_beside_another_after_one_expired(app: Tenure, clock: Clock) -> None:
    job = NewJob("mail", {}, {"start_by": "30s"})
    app.schedules.create("s", job, every=60, overlap="buffer_one")
    clock.advance(60)
    decide_due(app.core, set())
    claim = ClaimRequest(worker="w", limit=9, lease_seconds=6_000)
    assert len(app.core.claim(claim).leases) == 1
    clock.advance(60)
    decide_due(app.core, set())
    clock.advance(31)
    assert len(app.core.store.expire().result()) == 1
    clock.advance(29)
    decide_due(app.core, set())
    assert app.core.claim(claim).leases == []
    assert record(app) == "f1 f2 f3w"


class Counted:
    """A database that counts the calls of its methods."""

    def __init__(self, db: Any) -> None:
        self._db, self.calls = db, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._db, name)


@pytest.mark.parametrize(
    "overlap", ["allow_all", "skip", "buffer_one", "buffer_all", "cancel_other"]
)
def test_schedules_due_together_need_no_more_statements_than_one(
    app: Tenure, clock: Clock, overlap: Overlap
) -> None:
    """Their last jobs are not settled. 1,000 took seven seconds and more on PostgreSQL."""

    def act(db: Any) -> int:
        counted: Any = Counted(db)
        schedules.evaluate(counted, (), app.core.defaults.known, ())
        return int(counted.calls)

    def decide() -> int:
        for _ in range(2):
            clock.advance(60)
            calls = app.core.store.write("schedule", act, brings=lambda _: True).result()
        return calls

    app.schedules.create("s", MAIL, every=60, overlap=overlap)
    alone = decide()
    for number in range(5):
        app.schedules.create(f"s{number}", MAIL, every=60, overlap=overlap)
    assert decide() == alone
    assert app.schedules.get("s0").decided == 2


def test_a_small_step_back_of_the_clock_is_waited_for(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60)
    clock.advance(60)
    decide_due(app.core, set())
    before = app.schedules.get("s")
    clock.advance(-50)
    set_right(app.core, zones=False)
    assert app.schedules.get("s") == before


def test_a_job_that_is_tried_again_is_waited_for(app: Tenure, clock: Clock) -> None:
    job = NewJob("mail", {}, {"max_retries": 2, "backoff": 0})
    app.schedules.create("s", job, every=60, overlap="buffer_one")
    for _ in range(2):
        clock.advance(60)
        decide_due(app.core, set())
    second, first = [fire.job_id or "" for fire in app.schedules.fires("s")]
    for status in ("waiting", "pending"):
        (lease,) = app.core.claim(ClaimRequest(worker="w", limit=9, lease_seconds=60)).leases
        assert lease.id == first
        app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="boom")])
        assert app.get(second).status == status
    app.retry(first)
    assert [t.event for t in app.history(second)] == ["enqueued", "unblocked"]


def test_an_operator_lets_a_buffered_job_run(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="buffer_one")
    for _ in range(2):
        clock.advance(60)
        decide_due(app.core, set())
    second, first = [fire.job_id or "" for fire in app.schedules.fires("s")]
    raw.run(
        "UPDATE {job} SET status = 'pending', need = 0, event = 'unblocked' WHERE id = ?", second
    )
    assert sorted(complete(app, 10)) == sorted([first, second])


def test_cancel_other(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="cancel_other")
    for _ in range(2):
        clock.advance(60)
        decide_due(app.core, set())
    second, first = [fire.job_id or "" for fire in app.schedules.fires("s")]
    assert app.get(second).status == "pending"
    cancelled = app.get(first)
    assert (cancelled.status, cancelled.actor) == ("cancelled", "schedule s")
    assert cancelled.reason == "the schedule is due again"


def test_pause_and_resume(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60)
    clock.advance(60)
    paused = app.schedules.pause("s", actor="ann", reason="too many")  # what was due is decided
    assert (paused.paused_by, paused.pause_reason, paused.next_at) == ("ann", "too many", None)
    assert app.schedules.pause("s", actor="bob") == paused
    clock.advance(600)
    assert Duty.SCHEDULES not in app.core.look()
    decide_due(app.core, set())
    assert record(app) == "f1"
    resumed = app.schedules.resume("s")
    assert resumed.paused_at is None
    assert resumed.next_at == clock.now + MINUTE
    assert record(app) == "f1 p2-11"
    clock.advance(60)
    decide_due(app.core, set())
    assert record(app) == "f1 p2-11 f12"
    app.schedules.pause("s")
    clock.advance(600)
    app.schedules.resume("s", catch_up=True)
    decide_due(app.core, set())
    assert record(app) == "f1 p2-11 f12 m13-20 f21 f22"
    assert app.schedules.resume("s") == app.schedules.get("s")


def test_a_trigger_with_a_key_adds_one_job(app: Tenure, clock: Clock) -> None:
    """Who had no answer could not send it again: each trigger adds a job."""
    app.schedules.create("s", MAIL, every=60, overlap="skip")
    with ThreadPoolExecutor(4) as threads:
        fires = [*threads.map(lambda _: app.schedules.trigger("s", key="k"), range(4))]
    assert [fire.job_id for fire in fires] == [app.find()[0].id] * 4
    assert app.find()[0].idempotency_key == "k"
    assert app.schedules.get("s").fired == 1
    assert app.schedules.trigger("s").outcome == "overlapped"
    assert app.schedules.trigger("s", key="other").outcome == "overlapped"
    complete(app)
    assert app.schedules.trigger("s", key="k") == fires[0]
    assert app.schedules.trigger("s", key="other").outcome == "fired"
    app.schedules.create("t", MAIL, every=60)
    taken = app.enqueue("mail", idempotency_key="taken").id
    before = app.schedules.get("s")
    for name, key, more, job_id in (
        ("t", "k", {}, fires[0].job_id),
        ("s", "k", {"overlap": "allow_all"}, fires[0].job_id),
        ("s", "taken", {}, taken),
    ):
        with pytest.raises(KeyConflict) as refused:
            app.schedules.trigger(name, key=key, **more)  # type: ignore[arg-type]
        assert refused.value.job_id == job_id
    with pytest.raises(KeyConflict):
        app.enqueue("mail", idempotency_key="k")
    assert app.schedules.get("s") == before
    assert app.count().jobs == 3


def test_a_trigger_is_repeated_after_its_schedule_was_made_anew(app: Tenure, clock: Clock) -> None:
    """The fire is deleted with the schedule; its job, which has the key, was called another's."""
    app.schedules.create("s", MAIL, every=60)
    first = app.schedules.trigger("s", key="k")
    app.schedules.delete("s")
    app.schedules.create("s", MAIL, every=60)
    clock.advance(5)
    again = app.schedules.trigger("s", key="k")
    assert again == replace(first, actor=None)
    assert app.count().jobs == 1


def test_a_key_is_used_between_the_look_and_the_trigger(
    app: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="cancel_other")
    first = app.schedules.trigger("s").job_id or ""
    app.enqueue("mail", idempotency_key="k")
    monkeypatch.setattr(schedules, "triggered", lambda *_: None)
    with pytest.raises(KeyConflict):
        app.schedules.trigger("s", key="k")
    assert app.get(first).status == "pending"
    assert app.count().jobs == 2


def test_trigger(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="skip")
    fires = [app.schedules.trigger("s", overlap="allow_all", actor="ann") for _ in range(3)]
    assert [fire.at - START for fire in fires] == [timedelta(milliseconds=n) for n in range(3)]
    assert {fire.how for fire in fires} == {"trigger"}
    assert {fire.actor for fire in fires} == {"ann"}
    assert app.schedules.trigger("s").outcome == "overlapped"
    app.schedules.pause("s")
    complete(app, 10)
    assert app.schedules.trigger("s").outcome == "fired"
    assert len(app.find()) == 4
    clock.advance(60)
    app.schedules.resume("s")
    assert app.schedules.get("s").overlap == "skip"


def test_backfill(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, missed="skip")
    clock.advance(600)
    decide_due(app.core, set())
    assert record(app) == "m1-8 f9 f10"
    ends = START - MINUTE, START + timedelta(hours=1)
    planned = app.schedules.backfill("s", *ends, dry_run=True)
    assert record(app) == "m1-8 f9 f10"
    made = app.schedules.backfill("s", *ends, queue="slow", priority=7, actor="ann")
    assert [fire.at for fire in planned] == [fire.at for fire in made]
    assert [fire.at for fire in made] == [START + n * MINUTE for n in range(-1, 9)]
    assert app.schedules.backfill("s", *ends) == []
    assert app.schedules.backfill("s", START, START, dry_run=True) == []
    jobs = app.find(queue="slow")
    assert {job.priority for job in jobs} == {7}
    assert len(jobs) == 10
    assert [job.status for job in jobs].count(Status.WAITING) == 10
    template = app.schedules.get("s").template
    assert template.options == {}
    assert len(complete(app, 100)) == 2  # the last job, on which the backfill waits
    assert len(complete(app, 100)) == 1


def test_a_dry_run_of_a_backfill_only_reads(sqlite_url: str) -> None:
    """It failed while another program wrote, and on a database that cannot be written."""
    file = sqlite_url.removeprefix("sqlite:///")
    with Tenure(sqlite_url) as app, closing(sqlite3.connect(file)) as other:
        made = app.schedules.create("s", MAIL, every=60)
        other.execute("BEGIN IMMEDIATE")
        ends = made.created_at - timedelta(hours=1), made.created_at
        assert len(app.schedules.backfill("s", *ends, dry_run=True)) == 60


@pytest.mark.parametrize("overlap", get_args(Overlap))
@pytest.mark.parametrize("is_open", [False, True])
def test_a_dry_run_is_what_the_backfill_does(
    app: Tenure, overlap: Overlap, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said of every tick that it would have a job, also where `overlap` lets one have it.

    With `cancel_other` each transaction of a backfill added a job, which the next one cancelled.
    """
    monkeypatch.setattr(verbs, "BACKFILLED", 2)
    app.schedules.create("s", MAIL, every=60, overlap="skip")
    if is_open:
        app.schedules.trigger("s")
    ends: Any = START - 5 * MINUTE, START
    planned = app.schedules.backfill("s", *ends, overlap=overlap, dry_run=True)
    made = app.schedules.backfill("s", *ends, overlap=overlap)
    assert [(one.at, one.until, one.outcome, one.how) for one in planned] == [
        (one.at, one.until, one.outcome, one.how) for one in made
    ]
    assert {one.job_id for one in planned} == {None}


def test_a_backfill_whose_end_is_before_its_start_is_refused(app: Tenure) -> None:
    """It answered that no tick was without a job."""
    app.schedules.create("s", MAIL, every=60)
    for dry_run in (True, False):
        with pytest.raises(InvalidInput, match="before the start") as refused:
            app.schedules.backfill("s", START, START - timedelta(hours=1), dry_run=dry_run)
        assert refused.value.path == "$.end"


def test_backfill_beside_allow_all(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60)
    start = START - timedelta(minutes=1_100)
    made = app.schedules.backfill("s", start, START, overlap="allow_all")
    assert len(made) == len({fire.job_id for fire in made}) == 1_100
    assert app.count(status="pending").jobs == 1_100
    with pytest.raises(InvalidInput, match="10000 ticks"):
        app.schedules.backfill("s", start - timedelta(days=10), START)


def test_update_decides_by_the_old_rules_first(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, offset=5, note="old")
    clock.advance(65)
    changed = app.schedules.update("s", cron="* * * * *", edition=1, actor="ann", note=None)
    assert record(app) == "f0 f1"
    assert (changed.edition, changed.changed_by, changed.note) == (2, "ann", None)
    assert (changed.when.every, changed.when.offset, changed.when.cron) == (None, 0, "* * * * *")
    assert changed.next_at == START + 2 * MINUTE
    with pytest.raises(IllegalEdition, match="edition 2"):
        app.schedules.update("s", every=90, edition=1)
    app.schedules.pause("s")
    clock.advance(600)
    job = NewJob("post", {"a": 1}, {})
    changed = app.schedules.update("s", job=job, overlap="skip")
    assert changed.next_at is None
    assert changed.template.type == "post"
    assert [one.outcome for one in app.schedules.fires("s")] == ["paused", "fired", "fired"]
    app.schedules.resume("s")


def test_names(app: Tenure, clock: Clock) -> None:
    made = [app.schedules.create(name, MAIL, every=60) for name in ("b", "a", "c")]
    assert app.schedules.list() == sorted(made, key=lambda one: one.name)
    assert [one.name for one in app.schedules.list(limit=1, after="a")] == ["b"]
    assert len(app.schedules.list(after=None)) == 3, "as other pages begin"  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="called a already"):
        app.schedules.create("a", MAIL, every=90)
    with pytest.raises(InvalidInput, match="not a name"):
        app.schedules.create("a b", MAIL, every=90)
    app.schedules.trigger("a")
    assert app.schedules.delete("a").name == "a"
    assert len(app.find()) == 1
    for verb in (app.schedules.get, app.schedules.delete, app.schedules.pause, app.schedules.fires):
        with pytest.raises(ScheduleNotFound, match="'a'"):
            verb("a")
    app.schedules.create("a", MAIL, every=60)
    assert app.schedules.fires("a") == []


def test_pages_of_fires(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60)
    for _ in range(5):
        clock.advance(60)
        decide_due(app.core, set())
    newest = app.schedules.fires("s", limit=2)
    older = app.schedules.fires("s", limit=2, before=newest[-1].at)
    assert shown([*newest, *older], 60, [False] * 4) == "f5 f4 f3 f2"


def test_a_page_has_all_that_became_of_a_tick(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, missed="skip")
    clock.advance(600)
    decide_due(app.core, set())
    app.schedules.backfill("s", START, START + 2 * MINUTE, overlap="allow_all")
    last = app.schedules.fires("s", limit=1, before=START + 2 * MINUTE)
    assert {fire.outcome for fire in last} == {"missed", "fired"}


def test_next_and_preview(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, cron="0 3 * * *", zone="Europe/Berlin")
    assert [f"{at:%d %H:%M %z}" for at in app.schedules.next("s", 2)] == [
        "01 03:00 +0100",
        "02 03:00 +0100",
    ]
    app.schedules.pause("s")
    clock.advance(86_400)
    assert [f"{at:%d}" for at in app.schedules.next("s", 1)] == ["02"]
    assert "03:00" in app.schedules.preview(cron="0 3 * * *").in_words


def test_a_clock_that_was_ahead(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=3600)
    clock.advance(3600)
    decide_due(app.core, set())
    clock.advance(86_400)
    decide_due(app.core, set())
    assert record(app, every=3600) == "f1 m2-24 f25"
    clock.advance(-86_400)
    set_right(app.core, zones=False)
    found = app.schedules.get("s")
    assert (found.edition, found.cursor_at) == (2, clock.now)
    for _ in range(26):
        clock.advance(3600)
        decide_due(app.core, set())
    assert len(app.find()) == 27 == app.schedules.get("s").fired
    assert record(app, every=3600).endswith("f24 f25 f26 f27")


def test_a_clock_that_goes_back_fires_nothing_twice(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="skip", missed="all")
    for _ in range(5):
        clock.advance(60)
        decide_due(app.core, set())
        complete(app)
    clock.advance(-300)
    decide_due(app.core, set())
    set_right(app.core, zones=False)
    clock.advance(360)
    decide_due(app.core, set())
    assert record(app) == "f1 f2 f3 f4 f5 f6"


def test_other_rules_of_a_zone(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, cron="0 3 * * *", zone="Europe/Berlin")
    right = app.schedules.get("s")
    raw.run(f"UPDATE {{schedule}} SET next_at = {raw.later('next_at', 3600)}")
    set_right(app.core, zones=False)
    assert app.schedules.get("s") != right
    set_right(app.core, zones=True)
    assert app.schedules.get("s") == right
    paused = app.schedules.pause("s")
    app.core.store.write("schedule", partial(schedules.recompute, name="s")).result()
    assert app.schedules.get("s") == paused


def test_declared_in_code(app: Tenure, clock: Clock, database_url: str) -> None:
    @app.schedule(cron="10 3 * * *", zone="Europe/Berlin", time_key="day")
    @app.schedule(every="90s", name="often", payload={"to": "b"})
    @app.job(queue="mails")
    def mail(to: str = "a", day: str | None = None) -> None: ...

    assert app.schedules.list() == []
    declare(app.core)
    often, nightly = app.schedules.get("often"), app.schedules.get("mail")
    assert often.declared
    assert often.template.payload == {"to": "b"}
    declare(app.core)
    assert app.schedules.get("mail") == nightly
    with Tenure(database_url) as other:
        clock.advance(90)
        decide_due(other.core, set())
        assert app.find() == []
        decide_due(app.core, set())
        (job,) = app.find()
        assert job.queue == "mails"  # as the type says here
        with pytest.raises(IllegalEdition, match="declared in code"):
            other.schedules.update("often", every=60)
        other.schedules.pause("often")
        other.schedule(every="60s", name="often")(other.job(name="mail")(lambda: None))
        declare(other.core)
        assert other.schedules.get("often").edition == 2
        assert other.schedules.get("often").paused_at is not None
        other.schedules.resume("often")
    app.schedules.delete("often")
    declare(app.core)
    assert app.schedules.get("often").when.every == 90


def test_a_program_that_takes_the_name_of_a_schedule_says_so(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    """The jobs of the other program just stopped coming."""
    with Tenure(app.database) as other:
        for one, name in ((app, "report"), (other, "clean")):
            one.schedule(every=60, name="nightly")(one.job(name=name)(lambda: None))
            declare(one.core)
    (said,) = caplog.messages
    assert said.startswith("schedule nightly added jobs of type report, and adds clean from now on")


def test_a_program_that_changes_the_rules_of_another_says_so(
    app: Tenure, caplog: pytest.LogCaptureFixture
) -> None:
    """An old worker that started again in a deploy put its rules back, and no log showed it."""
    caplog.set_level("INFO", logger="tenure")
    with Tenure(app.database) as other:
        for one, every in ((app, "1h"), (other, "2h")):
            one.schedule(every=every, name="nightly")(one.job(name="report")(lambda: None))
        for one in (app, other, other, app):
            declare(one.core)
    assert [said.rpartition(": ")[2] for said in caplog.messages] == [
        "Every 2 hours, edition 2",
        "Every hour, edition 3",
    ]


@pytest.mark.parametrize("overlap", get_args(Overlap))
def test_two_versions_that_start_in_turn_decide_each_tick_once(
    app: Tenure, clock: Clock, overlap: Overlap
) -> None:
    """As in a deploy while workers of the old version start again and again."""
    chance = random.Random(overlap)
    with Tenure(app.database) as old:
        for one, of in ((app, "new"), (old, "old")):
            job = one.job(name="report")(lambda of: None)
            one.schedule(every=10, name="s", overlap=overlap, missed="all", payload={"of": of})(job)
        declare(app.core)
        for _ in range(80):
            clock.advance(chance.choice([0, 0.3, 1.2, 8.5, 10, 31, 200]))
            one = chance.choice([app, old])
            for act in chance.sample([declare, lambda core: decide_due(core, set())], 2):
                act(one.core)
            complete(app, chance.choice([0, 0, 3]))
    decided = [
        fire.at + n * timedelta(seconds=10)
        for fire in app.schedules.fires("s", limit=500)
        for n in range(1 + round(((fire.until or fire.at) - fire.at).total_seconds() / 10))
    ]
    cursor = app.schedules.get("s").cursor_at
    due = [START + n * timedelta(seconds=10) for n in range(1, 1_000)]
    assert sorted(decided) == [at for at in due if at <= max(cursor, *decided)]
    assert cursor >= clock.now
    assert app.schedules.get("s").edition > 20


def test_schedules_that_are_due_at_once_add_their_jobs_in_the_order_of_their_names(
    app: Tenure, clock: Clock
) -> None:
    names = ["c", "e", "a", "d", "b"]
    for name in names:
        app.schedules.create(name, NewJob(name, {}, {}), every=60)
    for name in names[::2]:
        app.schedules.update(name, note="changed")
    clock.advance(60)
    decide_due(app.core, set())
    made = sorted(app.find(), key=lambda job: job.id)
    assert [job.type for job in made] == sorted(names)


def test_a_zone_that_is_not_known_here_keeps_no_other_schedule_from_being_declared(
    app: Tenure, clock: Clock, raw: RawSql, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that the program declares was stored, whatever its name."""
    report = app.job(name="report")(lambda: None)
    app.schedule(cron="@daily", name="far")(report)
    declare(app.core)
    raw.run("UPDATE {schedule} SET zone = 'Mars/Base'")
    before = app.schedules.get("far")
    app.schedule(cron="@hourly", name="a")(report)
    app.schedule(cron="@hourly", name="z")(report)
    declare(app.core)
    assert [one.name for one in app.schedules.list()] == ["a", "far", "z"]
    assert app.schedules.get("far") == before
    (said,) = caplog.messages
    assert said.startswith("schedule far stays unchanged: ")
    assert "Mars/Base" in said


def test_new_rules_replace_those_whose_job_is_no_longer_valid(app: Tenure, clock: Clock) -> None:
    @app.schedule(every=60)
    @app.job(name="report")
    def report(day: str = "today") -> None: ...

    declare(app.core)
    clock.advance(120)  # nothing runs while the program is deployed
    new = Tenure(app.database)

    @new.schedule(every=60, payload={"tenant": "acme"}, name="report")
    @new.job(name="report", partition_by="tenant")
    def report_of(tenant: str) -> None: ...

    @new.schedule(every=60)
    @new.job(name="other")
    def other() -> None: ...

    declare(new.core)
    clock.advance(60)
    decide_due(new.core, set())
    assert record(app, "report") == "m1-2 f3"
    assert record(app, "other") == "f3"
    (job,) = app.find(type="report")
    assert job.partition == "acme"
    app.schedules.create("by_hand", NewJob("report", {}, {}), every=60)
    clock.advance(60)
    changed = new.schedules.update("by_hand", job=NewJob("report", {"tenant": "b"}, {}))
    assert changed.template.payload == {"tenant": "b"}
    assert record(app, "by_hand") == "m4"


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 200])
def test_a_name_that_none_can_have_is_not_found(app: Tenure, name: str) -> None:
    """PostgreSQL refuses to compare a text with NUL: GET /schedules/a%00b was answered 500."""
    verbs = app.schedules
    for verb in (verbs.get, verbs.pause, verbs.resume, verbs.trigger, verbs.delete, verbs.fires):
        with pytest.raises(ScheduleNotFound):
            verb(name)
    with pytest.raises(InvalidInput, match=r"\$\.after"):
        app.schedules.list(after=name)


def test_what_cannot_be_declared(app: Tenure) -> None:
    @app.job
    def mail(to: str) -> None: ...

    with pytest.raises(TypeError, match="to"):
        app.schedule(every=60)(mail)
    app.schedule(every=60, time_key="to")(mail)
    app.schedule(every=60, time_key="to")(mail)
    with pytest.raises(InvalidInput, match="called mail already"):
        app.schedule(every=90, time_key="to")(mail)


def test_a_worker_of_two_applications_loses_no_schedule() -> None:
    """That of the first was lost without a word if the second had one of the same name."""

    def report() -> None: ...

    shop, library = Tenure(), Tenure()
    shop.schedule(every=60, name="nightly")(shop.job(report))
    library.schedule(every=60, name="nightly")(library.job(name="clean")(report))
    with pytest.raises(InvalidInput, match="called nightly already"):
        shop.core.take_over(library.core)


def test_several_decide_at_once(app: Tenure, clock: Clock, database_url: str) -> None:
    for number in range(250):
        app.schedules.create(f"s{number}", MAIL, every=60)
    clock.advance(60)
    assert [decide_due(app.core, set()) for _ in range(3)] == [True, True, False]
    assert app.count().jobs == 250


@pytest.mark.postgres
def test_a_last_job_that_somebody_has_locked_is_not_waited_for(postgres_url: str) -> None:
    with Tenure(postgres_url) as app:
        app.open()
        with (
            closing(Clock(app.database)) as clock,
            closing(RawSql(app.database)) as raw,
            ThreadPoolExecutor() as threads,
        ):
            for name in ("free", "held"):
                app.schedules.create(name, MAIL, every=60, overlap="skip")
                job = app.schedules.trigger(name).job_id
            clock.advance(60)
            with raw.transaction():
                raw.run("SELECT FROM {job} WHERE id = ? FOR UPDATE", job)
                threads.submit(decide_due, app.core, set()).result(timeout=5)
            assert (record(app, "free"), record(app, "held")) == ("f0? o1", "f0?")
            decide_due(app.core, set())
            assert record(app, "held") == "f0? o1"
            assert app.verify() == []


def test_what_cannot_be_decided_here_stops_nothing_else(
    app: Tenure,
    clock: Clock,
    raw: RawSql,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tenure.store.tables.schedules.BATCH", 2)
    for name in ("a", "b", "c"):
        app.schedules.create(name, MAIL, cron="* * * * *")
    app.schedules.create("later", MAIL, every=60, offset=1)
    raw.run("UPDATE {schedule} SET zone = 'Mars/Base' WHERE name <> 'later'")
    clock.advance(61)
    left: set[str] = set()
    assert [decide_due(app.core, left) for _ in range(3)] == [True, True, False]
    assert left == {"a", "b", "c"}
    assert record(app, "later") == "f0 f1"
    assert [len(app.schedules.fires(name)) for name in left] == [0, 0, 0]
    assert len([line for line in caplog.messages if "Mars/Base" in line]) == 3
    decide_due(app.core, left)
    assert len(caplog.messages) == 3
    clock.advance(-600)
    set_right(app.core, zones=True)
    assert app.schedules.get("later").cursor_at == clock.now
    raw.run("UPDATE {schedule} SET zone = 'UTC'")
    clock.advance(600)
    while decide_due(app.core, set()):  # two at a time, whichever of them come first
        pass
    assert record(app, "a") == "f1"


def test_a_change_leaves_out_no_tick(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, cron="* * * * *")
    clock.advance(60)
    raw.run("UPDATE {schedule} SET zone = 'Mars/Base'")
    before = app.schedules.get("s")
    with pytest.raises(InvalidInput, match="Mars/Base"):
        app.schedules.update("s", zone="UTC")
    with pytest.raises(InvalidInput, match="Mars/Base"):
        app.schedules.pause("s")
    assert app.schedules.get("s") == before
    raw.run("UPDATE {schedule} SET zone = 'UTC'")
    app.schedules.pause("s")
    assert record(app) == "f1"


def test_a_job_that_is_none_any_more(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, every=60)
    good = app.schedules.get("s").template
    raw.run("UPDATE {schedule} SET template = ?", '{"type":"mail","options":{"priority":1000}}')
    with pytest.raises(InvalidInput, match="priority"):
        app.schedules.trigger("s")
    clock.advance(60)
    left: set[str] = set()
    decide_due(app.core, left)
    assert left == {"s"}
    raw.run("UPDATE {schedule} SET template = ?", '{"type":"mail"}')
    decide_due(app.core, set())
    assert record(app) == "f1"
    assert app.schedules.get("s").template == good


def test_what_is_missed_twice_is_one_range(app: Tenure, clock: Clock) -> None:
    app.schedules.create("s", MAIL, every=60, missed="skip")
    clock.advance(600)
    decide_due(app.core, set())
    assert record(app) == "m1-8 f9 f10"
    clock.advance(-600)
    set_right(app.core, zones=False)
    clock.advance(900)
    decide_due(app.core, set())
    assert record(app) == "m1-13 f9 f10 f14 f15"


# --- what the database holds


def test_one_job_for_each_tick(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, every=60)
    first = app.schedules.trigger("s")
    second = app.enqueue("mail").id
    insert = (
        "INSERT INTO {fire} (schedule, at, outcome, how, job_id, decided_at)"
        " VALUES ('s', {now}, 'fired', 'due', ?, {now})"
    )
    for statement, value in (
        (insert, second),
        (insert.replace("{now}, 'fired'", "{later}, 'fired'"), second.replace("0", "1")),
        ("UPDATE {fire} SET job_id = ?", second),
        ("UPDATE {fire} SET how = ?", "due"),
    ):
        with pytest.raises(Refused):
            raw.run(statement, value)
    assert app.schedules.fires("s") == [first]


IMPOSSIBLE = [
    "INSERT INTO {fire} (schedule, at, outcome, how, decided_at)"
    " VALUES ('s', {later}, 'fired', 'due', {now})",
    "INSERT INTO {fire} (schedule, at, outcome, how, job_id, decided_at)"
    " SELECT 's', {later}, 'missed', 'skip', id, {now} FROM {job} LIMIT 1",
    "INSERT INTO {fire} (schedule, at, until, outcome, how, decided_at)"
    " VALUES ('s', {later}, {later}, 'missed', 'skip', {now})",
    "INSERT INTO {fire} (schedule, at, until, outcome, how, job_id, decided_at)"
    " SELECT 't', {now}, {later}, 'fired', 'due', id, {now} FROM {job} LIMIT 1",
    "UPDATE {fire} SET until = at WHERE outcome = 'missed'",
    "UPDATE {fire} SET until = {later}, schedule = 't' WHERE outcome = 'missed'",
    "UPDATE {fire} SET until = {later}, outcome = 'paused' WHERE outcome = 'missed'",
    "UPDATE {schedule} SET next_at = cursor_at",
    "UPDATE {schedule} SET paused_at = {now}, next_at = {later}",
    "UPDATE {schedule} SET every = NULL",
    "UPDATE {schedule} SET cron = '* * * * *'",
    "UPDATE {schedule} SET overlap = 'none'",
]


def test_what_a_schedule_and_a_fire_may_be(
    app: Tenure, clock: Clock, raw: RawSql, subtests: pytest.Subtests
) -> None:
    app.schedules.create("s", MAIL, every=60, missed="skip", grace=0)
    clock.advance(180)
    decide_due(app.core, set())
    app.schedules.trigger("s")
    for statement in IMPOSSIBLE:
        with subtests.test(statement), pytest.raises(Refused):
            raw.run(statement)


def test_a_schedule_goes_back_only_with_a_new_edition(
    app: Tenure, clock: Clock, raw: RawSql
) -> None:
    app.schedules.create("s", MAIL, every=60)
    back = f"UPDATE {{schedule}} SET cursor_at = {raw.later('cursor_at', -60)}"
    with pytest.raises(Refused):
        raw.run(back)
    raw.run(f"{back}, edition = edition + 1")
    decide_due(app.core, set())


def test_what_verify_finds(app_on_each_engine: Tenure, clock: Clock) -> None:
    app = app_on_each_engine
    app.schedules.create("s", MAIL, every=60, overlap="buffer_one", missed="skip")
    clock.advance(600)
    decide_due(app.core, set())
    assert record(app) == "m1-8 f9 f10w"
    assert app.verify() == []
    with closing(RawSql(app.database)) as raw:
        raw.run("DELETE FROM {fire} WHERE outcome = 'missed'")
        raw.run("DELETE FROM {fire} WHERE at = (SELECT max(at) FROM {fire})")
        found = app.verify()
        assert [(one.invariant, one.found) for one in found] == [
            ("every tick that was due is on record", "s at 2026-01-01T00:10:00+00:00")
        ]
        raw.without_triggers(
            "UPDATE {job} SET status = 'completed', finished_at = {now} WHERE status = 'pending'"
        )
        assert audit.COUNTED in {one.invariant for one in app.verify()}


def test_old_fires_are_deleted(app: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenure.store.tables.schedules.KEPT_FIRES", 150)
    app.schedules.create("s", MAIL, every=3600 * 24)
    app.schedules.backfill("s", START - timedelta(days=300), START, overlap="allow_all")
    kept = app.schedules.fires("s", limit=500)
    assert len(kept) == 150
    assert kept[-1].at == START - timedelta(days=150)
    app.schedules.create("often", MAIL, every=3600)
    app.schedules.backfill("often", START - timedelta(days=10), START, overlap="allow_all")
    assert len(app.schedules.fires("often", limit=500)) == 240  # they are not old yet


def test_the_edges_of_deleted_jobs_go(app: Tenure, clock: Clock, raw: RawSql) -> None:
    app.schedules.create("s", MAIL, every=60, overlap="buffer_all")
    for _ in range(3):
        clock.advance(60)
        decide_due(app.core, set())
    while complete(app):
        pass
    assert raw.value("SELECT count(*) FROM {dependency}") == 3  # each waits for all before it
    while app.core.measure():
        pass
    clock.advance(60)
    app.schedules.pause("s")
    app.core.prune({"completed": 1})
    assert raw.value("SELECT count(*) FROM {dependency}") == 0
