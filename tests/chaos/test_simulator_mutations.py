"""Negative controls: with one rule broken at a time, the simulation finds it within a few worlds.

The triggers and constraints of the database are off here: they would refuse most of it first.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from msgspec.structs import replace as changed

from tenure import lifecycle
from tenure.events import Failed, LeaseExpired, Released
from tenure.rules.jobs import Enqueued
from tenure.rules.reports import ALREADY_RECORDED
from tenure.simulator import simulate
from tenure.simulator.database import SimulatedDatabase
from tenure.store import enqueue, transitions
from tenure.store.commit import Committer
from tenure.store.lanes import Lanes
from tenure.store.sqlite import statements as sql
from tenure.store.sqlite.writer import Sqlite
from tenure.store.tables import queues

pytestmark = pytest.mark.chaos

SEEDS = range(30)
HOURS = 4.0

Patch = pytest.MonkeyPatch


def edit(patch: Patch, name: str, old: str, new: str) -> None:
    """Change the text of a statement."""
    statement = copy.copy(getattr(sql, name))
    if isinstance(statement, str):
        assert old in statement
        patch.setattr(sql, name, statement.replace(old, new))
        return
    if isinstance(statement, dict):
        assert all(old in text for text in statement.values())
        patch.setattr(sql, name, {n: text.replace(old, new) for n, text in statement.items()})
        return
    assert old in statement.statement
    statement.statement = statement.statement.replace(old, new)
    patch.setattr(sql, name, statement)


def without_guard(save: sql.OverRows) -> sql.OverRows:
    """Return the statement that writes jobs, whatever has become of them."""
    guard = re.compile(r"AND tenure_job\.\w+ (=|IS) was_\w+")
    assert len(guard.findall(save.statement)) == len(sql.GUARD)
    unguarded = copy.copy(save)
    unguarded.statement = guard.sub("", save.statement)
    return unguarded


def around(patch: Patch, owner: Any, name: str, new: Callable[..., Any]) -> None:
    """Replace a function by one that gets the old one first."""
    old = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: new(old, *args, **named))


def following(patch: Patch, new: Callable[..., Any]) -> None:
    around(patch, lifecycle, "follow", new)


def a_success_needs_no_lease(patch: Patch) -> None:
    edit(patch, "COMPLETE", "tenure_job.lease_id = report.lease_id", "status = 'processing'")


def a_failure_needs_no_lease(patch: Patch) -> None:
    def follow(old: Any, job: Any, event: Any, now: Any) -> Any:
        if isinstance(event, Failed) and job.lease_id:
            event = changed(event, lease_id=job.lease_id)
        return old(job, event, now)

    following(patch, follow)


def a_lease_that_ran_out_is_not_charged(patch: Patch) -> None:
    def follow(old: Any, job: Any, event: Any, now: Any) -> Any:
        if isinstance(event, LeaseExpired):
            job = replace(job, attempts=job.attempts - 1)
        return old(job, event, now)

    following(patch, follow)


def the_sweep_ends_leases_that_still_run(patch: Patch) -> None:
    def locked(old: Any, self: Any, limit: int) -> Any:
        now = self.now()
        self._now = now + timedelta(seconds=20)
        jobs = old(self, limit)
        self._now = now
        return jobs

    def follow(old: Any, job: Any, event: Any, now: Any) -> Any:
        if isinstance(event, LeaseExpired):
            return tuple(
                replace(after, finished_at=now if after.finished_at else None)
                for after in old(job, event, now + timedelta(seconds=20))
            )
        return old(job, event, now)

    around(patch, Sqlite, "lock_expired", locked)
    following(patch, follow)


def the_sweep_acts_on_what_it_read_earlier(patch: Patch) -> None:
    read: list[Any] = []

    def locked(old: Any, self: Any, limit: int) -> Any:
        before = list(read)
        read[:] = old(self, limit)
        return before

    around(patch, Sqlite, "lock_expired", locked)
    around(patch, sql, "save_with", lambda old, more: without_guard(old(more)))


def a_retry_needs_no_budget(patch: Patch) -> None:
    patch.setattr(lifecycle, "has_budget", lambda attempts, limit: True)


def a_lease_that_ran_out_brings_no_retry(patch: Patch) -> None:
    following(
        patch,
        lambda old, job, event, now: old(job, event, now)[
            : 1 if isinstance(event, LeaseExpired) else 2
        ],
    )


def a_permanent_failure_is_tried_again(patch: Patch) -> None:
    def follow(old: Any, job: Any, event: Any, now: Any) -> Any:
        if isinstance(event, Failed):
            event = changed(event, retryable=True)
        return old(job, event, now)

    following(patch, follow)


def a_retry_does_not_wait(patch: Patch) -> None:
    patch.setattr(lifecycle, "delay", lambda *_: 0.0)


def only_the_last_outcome_is_known(patch: Patch) -> None:
    newest = (
        "SELECT * FROM tenure_transition WHERE job_id = ?1 AND event NOT IN"
        " ('claimed', 'retried', 'enqueued') ORDER BY seq DESC LIMIT 1"
    )
    patch.setattr(sql, "SETTLED_AS", f"SELECT event FROM ({newest}) WHERE lease_id = ?2")


def every_late_report_is_welcome(patch: Patch) -> None:
    def answer(_: Any, db: Any, late: Any, verdicts: Any) -> None:
        verdicts.update({index: ALREADY_RECORDED for index, _ in late})

    around(patch, transitions, "_answer_late", answer)


def a_claim_does_not_wait_for_the_time(patch: Patch) -> None:
    edit(patch, "PICK", "run_at <= :now", "run_at <= :now + 600000")


def a_claim_does_not_know_the_order(patch: Patch) -> None:
    edit(patch, "PICK", "ORDER BY run_at, id", "ORDER BY run_at DESC, id")


def a_claim_sees_one_lane_only(patch: Patch) -> None:
    around(patch, Lanes, "_due", lambda old, *args: old(*args)[:1])


def a_pause_is_forgotten(patch: Patch) -> None:
    def set_queue(old: Any, db: Any, name: str, *, paused: Any, **named: Any) -> None:
        old(db, name, paused=None, **named)

    around(patch, queues, "set_queue", set_queue)


def a_queue_takes_one_too_many(patch: Patch) -> None:
    def full(old: Any, db: Any, wanted: Any) -> Any:
        return old(db, {queue: count - 1 for queue, count in wanted.items()})

    around(patch, enqueue, "full_queues", full)


def a_token_does_not_rise(patch: Patch) -> None:
    edit(patch, "CLAIM", "token = token + 1", "token = token")


def a_claim_is_not_charged(patch: Patch) -> None:
    edit(patch, "CLAIM", "attempts = attempts + 1", "attempts = attempts")


def handing_back_is_not_refunded(patch: Patch) -> None:
    def follow(old: Any, job: Any, event: Any, now: Any) -> Any:
        path = old(job, event, now)
        if isinstance(event, Released):
            path = (replace(path[0], attempts=job.attempts), *path[1:])
        return path

    following(patch, follow)


def callers_are_answered_before_the_commit(patch: Patch) -> None:
    def apply(old: Any, self: Any, db: Any, batch: Any) -> Any:
        answers = old(self, db, batch)
        for work, answer in answers:
            if not work.future.done():
                work.future.set_result(answer)
        return answers

    around(patch, Committer, "_apply", apply)
    patch.setattr(Committer, "_answer", lambda self, db, answers: None)
    patch.setattr(Committer, "_after_failure", lambda *_: None)


def a_key_does_not_know_its_request(patch: Patch) -> None:
    patch.setattr(
        enqueue,
        "answer_known",
        lambda checked_job, job, _: Enqueued(job, created=job.id == checked_job.id),
    )


def half_a_batch_stays(patch: Patch) -> None:
    patch.setattr(Sqlite, "undo_to_savepoint", lambda self: None)


def pruning_takes_what_is_young(patch: Patch) -> None:
    def delete(old: Any, self: Any, cutoffs: Any, *rest: Any) -> Any:
        if cutoffs.otherwise is not None:
            cutoffs = dataclasses.replace(cutoffs, otherwise=cutoffs.otherwise + timedelta(hours=4))
        return old(self, cutoffs, *rest)

    around(patch, Sqlite, "delete_settled", delete)


def a_heartbeat_does_nothing(patch: Patch) -> None:
    edit(patch, "RENEW", "max(lease_expires_at, ?)", "max(lease_expires_at, ? * 0)")


def a_lost_lease_is_called_held(patch: Patch) -> None:
    def renew(old: Any, self: Any, leases: Any, seconds: float) -> Any:
        return old(self, leases, seconds) | {lease_id for _, lease_id in leases}

    around(patch, Sqlite, "renew", renew)


def a_move_by_hand_is_not_saved(patch: Patch) -> None:
    def apply(old: Any, db: Any, job_id: str, event: Any) -> Any:
        job = db.lock([job_id]).get(job_id)
        return lifecycle.follow(job, event, db.now())[-1] if job else old(db, job_id, event)

    around(patch, transitions, "apply", apply)


RULES = {
    a_success_needs_no_lease: 3,
    a_failure_needs_no_lease: 3,
    a_lease_that_ran_out_is_not_charged: 1,
    the_sweep_ends_leases_that_still_run: 1,
    the_sweep_acts_on_what_it_read_earlier: 1,
    a_retry_needs_no_budget: 1,
    a_lease_that_ran_out_brings_no_retry: 1,
    a_permanent_failure_is_tried_again: 1,
    a_retry_does_not_wait: 1,
    only_the_last_outcome_is_known: 1,
    every_late_report_is_welcome: 1,
    a_claim_does_not_wait_for_the_time: 2,
    a_claim_does_not_know_the_order: 1,
    a_claim_sees_one_lane_only: 2,
    a_pause_is_forgotten: 2,
    a_queue_takes_one_too_many: 0,
    a_token_does_not_rise: 1,
    a_claim_is_not_charged: 1,
    handing_back_is_not_refunded: 2,
    callers_are_answered_before_the_commit: 1,
    a_key_does_not_know_its_request: 4,
    half_a_batch_stays: 4,
    pruning_takes_what_is_young: 2,
    a_heartbeat_does_nothing: 1,
    a_lost_lease_is_called_held: 2,
    a_move_by_hand_is_not_saved: 1,
}
"""Each way to break it, and the world that shows it: tried first, to be quick."""


@pytest.fixture
def unguarded(monkeypatch: Patch) -> Patch:
    """The stage without what the database itself would refuse."""

    def unguard(old: Any, self: Any) -> None:
        old(self)
        self.connection.execute("DROP TRIGGER tenure_job_moves")
        self.connection.execute("PRAGMA ignore_check_constraints = ON")

    around(monkeypatch, SimulatedDatabase, "__init__", unguard)
    return monkeypatch


def test_without_its_guards_the_store_is_still_right(unguarded: Patch) -> None:
    assert [simulate(seed, 1.0).violation for seed in range(2)] == [None] * 2


@pytest.mark.parametrize("broken", RULES, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_found(unguarded: Patch, broken: Callable[[Patch], None]) -> None:
    broken(unguarded)

    found = (simulate(seed, HOURS).violation for seed in (RULES[broken], *SEEDS))
    violation = next((one for one in found if one is not None), None)
    assert violation is not None
    print(violation.seed, violation.what)
