"""What becomes of the ticks of a schedule: the pure decision."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tenure.errors import InvalidInput
from tenure.rules.jobs import NewJob, TypeOptions
from tenure.rules.schedules import (
    LOOKAHEAD,
    MAX_BUFFERED,
    MAX_FIRES,
    Decision,
    Schedule,
    Tick,
    check_rules,
    decide_fires,
    job_for,
    new_schedule,
)
from tests.support.clock import START
from tests.support.schedules import TABLE, shown, situation

MINUTE = timedelta(minutes=1)
MAIL = NewJob("mail", {}, {})


def schedule(job: NewJob = MAIL, **options: Any) -> Schedule:
    return new_schedule("s", check_rules(job, options), "application", START)


def decide(one: Schedule, seconds: float, **facts: Any) -> Decision:
    return decide_fires(one, START + timedelta(seconds=seconds), **facts)


@pytest.mark.parametrize(("row", "overlap", "expected"), TABLE)
def test_overlap_missed_and_outage(row: str, overlap: Any, expected: str) -> None:
    every, seen, options, is_open = situation(row)
    one = schedule(every=every, overlap=overlap, **options)
    decision = decide(one, seen, is_open=is_open)
    assert shown(decision.ticks, every) == expected
    now = START + timedelta(seconds=seen)
    assert decision.cursor_at == (now + LOOKAHEAD if overlap == "allow_all" else now)
    assert decision.next_at == START + (seen // every + 1) * timedelta(seconds=every)
    rule = {"one": "one", "skip": "skip", "all": "catch_up"}[row.split()[-1]]
    assert {tick.how for tick in decision.ticks if tick.outcome == "missed"} <= {rule}


def test_a_tick_is_decided_ahead_only_if_nothing_depends_on_the_job_before() -> None:
    assert shown(decide(schedule(every=60), 58.6).ticks, 60) == "f1"
    assert decide(schedule(every=60), 58.4).ticks == ()
    assert decide(schedule(every=60, overlap="skip"), 59.9).ticks == ()


def test_nothing_is_decided_twice_if_the_clock_goes_back() -> None:
    one = schedule(every=60)
    decision = decide(one, -3600)
    assert decision == Decision(ticks=(), cursor_at=one.cursor_at, next_at=one.next_at)


def test_a_tick_that_has_a_job_gets_no_other_and_takes_no_room() -> None:
    one = schedule(every=60, overlap="skip")
    assert shown(decide(one, 120, fired={START + MINUTE}).ticks, 60) == "f2"


def test_only_what_is_more_than_grace_late_is_missed() -> None:
    for grace, expected in ((30, "m1"), (29.999, "m1"), (30.001, "f1"), ("31s", "f1")):
        one = schedule(every=60, missed="skip", grace=grace)
        assert shown(decide(one, 90.0005 if grace == 30 else 90).ticks, 60) == expected, grace


def test_buffered_jobs_are_bounded() -> None:
    one = schedule(every=60, overlap="buffer_all")
    assert shown(decide(one, 120, is_open=True, waiting=MAX_BUFFERED - 1).ticks, 60) == "f1w o2"
    one = schedule(every=60, overlap="buffer_one")
    assert shown(decide(one, 120, is_open=True, waiting=1).ticks, 60) == "o1-2"


def test_a_window_bounds_what_is_caught_up() -> None:
    one = schedule(every=60, missed="all", catch_up_window="5m")
    assert shown(decide(one, 600).ticks, 60) == "m1-4 f5c f6c f7c f8c f9 f10"


def test_no_decision_makes_more_jobs_than_one_enqueue_may() -> None:
    one = schedule(every=1, missed="all", catch_up=MAX_FIRES, grace="1d")
    missed, *fired = decide(one, 40_000).ticks
    assert len(fired) == MAX_FIRES
    assert missed.count + len(fired) == 40_000 + 1  # and one ahead
    one = schedule(every=1, missed="all", catch_up=MAX_FIRES)
    assert len(decide(one, 40_000).ticks) == MAX_FIRES + 62 + 1


def test_no_tick_is_left_out_between_those_made_up_and_those_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenure.rules.schedules.MAX_FIRES", 3)
    one = schedule(every=60, missed="all", catch_up=2, grace=300)
    assert shown(decide(one, 600).ticks, 60) == "m1-7 f8 f9 f10"
    one = schedule(every=60, missed="all", catch_up=2, grace=150)
    assert shown(decide(one, 600).ticks, 60) == "m1-7 f8 f9 f10"
    one = schedule(every=60, missed="all", catch_up=2, grace=90)
    assert shown(decide(one, 600).ticks, 60) == "m1-6 f7c f8c f9 f10"


@pytest.mark.parametrize("missed", ["one", "skip", "all"])
@pytest.mark.parametrize("when", [{"every": 1}, {"cron": "* * * * *", "zone": "Europe/Berlin"}])
def test_a_year_late_is_decided_quickly(missed: str, when: dict[str, Any]) -> None:
    one = schedule(missed=missed, **when)
    took = []
    for _ in range(5):
        before = time.perf_counter()
        decision = decide(one, 366 * 86_400)
        took.append(time.perf_counter() - before)
    assert decision.ticks[0].until is not None
    assert decision.ticks[0].at == START + timedelta(seconds=when.get("every", 60))
    assert min(took) < 0.1  # 10 ms on a machine that does nothing else


def test_the_end_of_a_schedule() -> None:
    one = schedule(at=START + MINUTE)
    decision = decide(one, 60)
    assert shown(decision.ticks, 60) == "f1"
    assert decision.next_at is None
    one = schedule(every=60, ends_at=START + 2 * MINUTE)
    assert shown(decide(one, 150).ticks, 60) == "m1 f2"
    assert decide(one, 150).next_at is None


def test_the_job_of_a_tick() -> None:
    job = NewJob("mail", {"to": "a"}, {"start_by": "1h", "priority": 3, "backoff": [1, 2]})
    one = schedule(job, cron="10 3 * * *", zone="Europe/Berlin", time_key="day", jitter="10m")
    at = datetime(2026, 7, 1, 1, 10, tzinfo=UTC)
    made = job_for(one, Tick(at=at), at, "id", TypeOptions(queue="mails", priority=9))
    assert made.payload == '{"to":"a","day":"2026-07-01T03:10:00+02:00"}'
    assert (made.queue, made.priority, made.actor) == ("mails", 3, "schedule s")
    assert made.run_at is not None
    assert at < made.run_at < at + timedelta(minutes=10)
    assert made.start_by == made.run_at + timedelta(hours=1)
    assert made.backoff.delays == (1, 2)
    assert made == job_for(one, Tick(at=at), at, "id", TypeOptions(queue="mails"))
    late = job_for(one, Tick(at=at), at + timedelta(days=1), "id", TypeOptions())
    assert late.run_at is None
    assert late.start_by == at + timedelta(days=1, hours=1)


@pytest.mark.parametrize(
    ("job", "options", "path"),
    [
        (MAIL, {}, "$"),
        (MAIL, {"every": 60, "missed": "never"}, "$.missed"),
        (MAIL, {"every": 60, "overlap": "no"}, "$.overlap"),
        (MAIL, {"every": 60, "catch_up": 0}, "$.catch_up"),
        (MAIL, {"every": 60, "catch_up": 10_001}, "$.catch_up"),
        (MAIL, {"every": 60, "catch_up_window": 0}, "$.catch_up_window"),
        (MAIL, {"every": 60, "jitter": -1}, "$.jitter"),
        (MAIL, {"every": 60, "grace": "soon"}, "$.grace"),
        (MAIL, {"every": 60, "time_key": ""}, "$.time_key"),
        (MAIL, {"every": 60, "note": "x" * 501}, "$.note"),
        (MAIL, {"every": 60, "often": True}, "$"),
        (NewJob("mail", [], {}), {"every": 60}, "$.payload"),
        (NewJob("tenure.x", {}, {}), {"every": 60}, "$.type"),
        (NewJob("mail", {}, {"run_at": START}), {"every": 60}, "$.job"),
        (NewJob("mail", {}, {"start_by": START}), {"every": 60}, "$.job.start_by"),
        (
            NewJob("mail", {"a": "x" * (2**20 - 30)}, {}),
            {"every": 60, "time_key": "b"},
            "$.payload",
        ),
    ],
)
def test_what_no_schedule_may_say(job: NewJob, options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        schedule(job, **options)
    assert refused.value.path == path
