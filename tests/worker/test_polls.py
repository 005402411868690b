"""How often an idle worker asks for jobs, counted."""

from __future__ import annotations

import math
import time

import pytest

from tenure import Tenure
from tenure.worker.exchanges import (
    CALM_SECONDS,
    MAX_BACKOFF_SECONDS,
    POLL_SECONDS,
    QUIET_POLL_SECONDS,
    QUIET_SECONDS,
    SURE_POLL_SECONDS,
    Demand,
)
from tenure.worker.worker import Worker

MINUTE = 60.0


def polls(next_due: float | None, start: float = 1_000.0) -> list[float]:
    """The times of the claims in a quiet minute; each is answered with no jobs and `next_due`."""
    demand, times = Demand(1), list[float]()
    for step in range(round(MINUTE * 1000) + 1):
        now = start + step / 1000
        demand.poll(now)
        if demand.jobs(0):
            assert demand.is_quiet(now)
            demand.asked()
            times.append(now - start)
            if next_due is not None:
                demand.sleep(now, start + next_due - now)
    return times


def test_who_is_sure_to_be_notified_asks_seldom() -> None:
    assert len(polls(math.inf)) == MINUTE / SURE_POLL_SECONDS + 1


def test_who_may_miss_notifications_asks_often() -> None:
    assert len(polls(None)) == MINUTE / QUIET_POLL_SECONDS + 1


def test_a_job_that_falls_due_is_asked_for_at_once() -> None:
    assert polls(12.3)[:9] == [
        *(pytest.approx(2.0 * n, abs=0.002) for n in range(7)),
        *(pytest.approx(12.3 + n / 1000, abs=0.0015) for n in (0, 1)),
    ]


def test_soon_after_a_job_nobody_asks_what_falls_due() -> None:
    demand = Demand(1)
    demand.answered(1, 1, idle=True, max_ahead=1)
    assert not demand.is_quiet(demand._busy_at + QUIET_SECONDS)


def test_after_a_short_while_without_jobs_claims_ask_when_the_next_one_is_due() -> None:
    """Each of many workers would go on to ask ten times a second for two seconds after a job."""
    demand = Demand(1)
    demand.answered(1, 1, idle=True, max_ahead=0)
    assert not demand.is_calm(demand._busy_at + CALM_SECONDS - 0.01)
    assert demand.is_calm(demand._busy_at + CALM_SECONDS + 0.01)
    assert CALM_SECONDS <= 2 * POLL_SECONDS


def test_a_worker_pauses_until_its_next_attempt_or_its_next_poll(app: Tenure) -> None:
    exchanges = Worker(app.core, app.core.handlers)._exchanges
    for _ in range(9):
        wait = exchanges.backoff.failed()
        assert 0 < exchanges.pause() <= wait <= MAX_BACKOFF_SECONDS
    exchanges.backoff.answered()
    exchanges.demand.next_poll = time.monotonic() + MINUTE
    assert 0 < exchanges.pause() <= MINUTE
    exchanges.demand.next_poll = 0
    assert 0 < exchanges.pause() < 0.1, "it yields to its handlers"
