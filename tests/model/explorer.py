"""Every interleaving of a small world, breadth first, with the real `decide`, `follow` and answers.

Two workers, two jobs. At any moment a free worker may claim, a busy one may report, or be told
nothing because the answer was lost and report again (or that it failed after all), or die, with its
report still on the way or not; that report may arrive late, and twice; the sweep may end a lease,
in one step or with anything between its read and its write; an operator may cancel a job or retry
it; the database may fail over to a copy that is behind.
Time is left out: leases last no seconds and retries wait none, so a lease may end at any moment,
which covers every clock. What is checked stands in `check_job` and `check_answer`, and that every
state can still finish.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from tenure import lifecycle
from tenure.errors import IllegalTransition, LeaseLost
from tenure.events import (
    Cancelled,
    Claimed,
    Completed,
    Event,
    Failed,
    GaveUp,
    LeaseExpired,
    Released,
    Retried,
)
from tenure.lifecycle import Job, Status
from tenure.retry import RetryPolicy
from tenure.rules.reports import Answer, Outcome, Verdict
from tenure.store import transitions

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)

# The legal moves, by hand.
PATHS = {
    ("pending", "claimed", "processing"),
    ("processing", "completed", "completed"),
    ("processing", "failed", "failed"),
    ("processing", "gave_up", "failed"),
    ("processing", "lease_expired", "failed"),
    ("failed", "retried", "pending"),
    ("processing", "released", "pending"),
    ("pending", "cancelled", "cancelled"),
    ("processing", "cancelled", "cancelled"),
}


class Violation(Exception):
    """A state that must not be."""


class Row(NamedTuple):
    """What of a job matters here, and beside it what the store cannot know."""

    status: str
    attempts: int
    token: int
    lease: str | None
    limit: int
    ended: tuple[tuple[str, str], ...] = ()  # (lease, how it ended): the ledger
    runs: int = 0  # how often a handler really started
    final: bool = False  # a handler called its failure permanent
    claim: str = ""  # the last claim's true name, whatever its lease is called


class Busy(NamedTuple):
    """A worker with a lease. `said` is its outcome once it has one."""

    job: int
    lease: str
    claim: str  # the true name, as in Row
    said: str = ""
    sent: bool = False  # the store has recorded it, but the answer was lost


class World(NamedTuple):
    rows: tuple[Row, ...]
    workers: tuple[Busy | None, ...]
    in_flight: Busy | None  # the report of a worker that died
    crashes: int  # that may still happen
    releases: int
    cancels: int
    retries: int  # by an operator
    read: tuple[int, Row] | None = None  # a job as a sweep has read it, to be ended
    failovers: int = 0  # that may still happen
    copy: tuple[Row, ...] | None = None  # what the standby has, if there is one
    epoch: int = 0  # how often it has failed over


class Limits(NamedTuple):
    """How large the world is."""

    limits: tuple[int, ...]  # max_retries of each job
    crashes: int
    releases: int
    cancels: int
    retries: int = 0
    workers: int = 2
    two_steps: bool = False  # the sweep reads first and writes later
    failovers: int = 0
    doubts: bool = False  # a worker without an answer may report a failure instead
    most_states: int = 400_000


class Found(NamedTuple):
    """What an exploration came to."""

    states: int
    violation: str = ""
    trace: tuple[str, ...] = ()


# --- the rules, as they are -------------------------------------------------------------------


class Rules:
    """Asks the lifecycle, and remembers what it said, and what was checked of it.

    The same job and worker are met in many worlds, beside others.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Row, ...] | None] = {}
        self._after: dict[tuple[object, ...], Row | None] = {}
        self._reported: dict[tuple[Row, Busy], tuple[Row | None, str]] = {}
        self._checked: set[Row] = set()

    def transition(
        self, row: Row, event: Event, *, alone: bool = False, read: Row | None = None
    ) -> Row | None:
        """The row after the event; None if it was refused. `read`: what is decided on instead."""
        met = (row, event, alone, read)
        if met not in self._after:
            self._after[met] = self._follow(row, event, alone, read)
        return self._after[met]

    def report(self, row: Row, busy: Busy) -> tuple[Row | None, str]:
        """The row after a report, None if that changes nothing; and the answer."""
        if (row, busy) not in self._reported:
            self._reported[row, busy] = report(row, busy, self)
        return self._reported[row, busy]

    def check(self, row: Row) -> None:
        """See that a row at rest is as it must be."""
        if row not in self._checked:
            check(row)
            self._checked.add(row)

    def _follow(self, row: Row, event: Event, alone: bool, read: Row | None) -> Row | None:
        asked = (read or row)._replace(ended=(), runs=0, final=False, claim="")
        key = (asked, event, alone)
        if key not in self._known:
            self._known[key] = self._ask(asked, event, alone)
        path = self._known[key]
        if path is None:
            return None
        return on_path(row, path, [event.name, "retried"][: len(path)])

    def _ask(self, row: Row, event: Event, alone: bool) -> tuple[Row, ...] | None:
        job = job_of(row)
        try:
            if alone:
                after: tuple[Job, ...] = (lifecycle.decide(job, event, NOW),)
            else:
                after = lifecycle.follow(job, event, NOW)
        except (IllegalTransition, LeaseLost):
            return None
        return tuple(row_of(job) for job in after)


def on_path(row: Row, path: tuple[Row, ...], events: list[str]) -> Row:
    """The row at the end of a path, each step of which must be legal."""
    for after, event in zip(path, events, strict=True):
        if (row.status, event, after.status) not in PATHS:
            raise Violation(f"illegal move {row.status} -> {after.status} as {event}")
        if after.token < row.token:
            raise Violation("the token fell")
        ended = row.ended
        if row.status == "processing" and row.lease is not None:
            if row.lease in dict(ended):
                raise Violation("a lease ended twice")
            ended = (*ended, (row.lease, event))
        row = after._replace(ended=ended, runs=row.runs, final=row.final, claim=row.claim)
    return row


def job_of(row: Row) -> Job:
    held = row.lease is not None
    return Job(
        id="job",
        type="t",
        created_at=NOW,
        run_at=NOW,
        backoff=AT_ONCE,
        status=Status(row.status),
        attempts=row.attempts,
        token=row.token,
        max_retries=row.limit,
        lease_id=row.lease,
        lease_expires_at=NOW if held else None,
        worker="w",
    )


def row_of(job: Job) -> Row:
    return Row(str(job.status), job.attempts, job.token, job.lease_id, job.max_retries)


def event_of(busy: Busy) -> Event:
    if busy.said == "completed":
        return Completed(lease_id=busy.lease)
    if busy.said == "released":
        return Released(lease_id=busy.lease)
    failure = Failed if busy.said == "failed" else GaveUp
    return failure(lease_id=busy.lease, error="boom")


def said_as(busy: Busy) -> str:
    return "failed" if busy.said == "failed for good" else busy.said


# --- what may happen --------------------------------------------------------------------------


def new_lease(claim: str) -> str:
    """What the store calls the lease of this claim: as good as the true name, being random."""
    return claim


def is_as_read(row: Row, read: Row) -> bool:
    """The guard of a save: the row is still what was read."""
    return (row.status, row.token, row.lease) == (read.status, read.token, read.lease)


def ended_as(row: Row, lease: str) -> str:
    """How the ledger says that a lease ended."""
    return dict(row.ended).get(lease, "")


def steps(world: World, rules: Rules, size: Limits) -> Iterator[tuple[str, World]]:
    """Everything that can happen next."""
    yield from sweeps(world, rules, size)
    yield from failovers(world)
    for number, row in enumerate(world.rows):
        if world.cancels:
            cancelled = rules.transition(row, Cancelled())
            if cancelled is not None:
                less = world._replace(cancels=world.cancels - 1)
                yield f"cancel job {number}", with_row(less, number, cancelled)
        if world.retries:
            retried = rules.transition(row, Retried(more_retries=1, actor="ada"))
            if retried is not None:
                less = world._replace(retries=world.retries - 1)
                yield f"retry job {number}", with_row(less, number, retried._replace(final=False))
        for who, worker in enumerate(world.workers):
            if worker is None:
                claim = f"claim {row.token + 1} of epoch {world.epoch}"
                lease = new_lease(claim)
                event = Claimed(lease_id=lease, lease_seconds=0, actor="w")
                claimed = rules.transition(row, event, alone=True)
                if claimed is not None:
                    claimed = claimed._replace(runs=row.runs + 1, claim=claim)
                    after = with_row(world, number, claimed)
                    yield (
                        f"w{who} claims job {number}",
                        with_worker(after, who, Busy(number, lease, claim)),
                    )
    for who, worker in enumerate(world.workers):
        if worker is None:
            continue
        if world.crashes:
            dead = with_worker(world, who, None)._replace(crashes=world.crashes - 1)
            yield f"w{who} dies", dead
            if worker.said and world.in_flight is None:
                yield f"w{who} dies, its report on the way", dead._replace(in_flight=worker)
        if worker.said:
            reported, answer = reporting(world, worker, rules)
            yield f"w{who} says {worker.said}: {answer}", with_worker(reported, who, None)
            if not worker.sent:
                unheard = with_worker(reported, who, worker._replace(sent=True))
                yield f"w{who} says {worker.said}: answer lost", unheard
            elif size.doubts and worker.said == "completed":
                other = with_worker(world, who, worker._replace(said="failed"))
                yield f"w{who} takes it for a failure", other
            continue
        for said in ("completed", "failed", "failed for good"):
            yield f"w{who} ends as {said}", with_worker(world, who, worker._replace(said=said))
        if world.releases:
            less = world._replace(releases=world.releases - 1)
            yield f"w{who} gives up", with_worker(less, who, worker._replace(said="released"))
    if world.in_flight is not None:
        reported, answer = reporting(world, world.in_flight, rules)
        yield f"late report: {answer}", reported._replace(in_flight=None)
        yield f"late report, and again: {answer}", reported


def sweeps(world: World, rules: Rules, size: Limits) -> Iterator[tuple[str, World]]:
    """A sweep ends a lease at once, or reads a job now and ends its lease later, if it still is."""
    for number, row in enumerate(world.rows):
        swept = rules.transition(row, LeaseExpired())
        if swept is not None and not size.two_steps:
            yield f"sweep ends job {number}", with_row(world, number, swept)
        elif swept is not None and world.read is None:
            yield f"sweep reads job {number}", world._replace(read=(number, row))
    if world.read is not None:
        number, read = world.read
        row, done = world.rows[number], world._replace(read=None)
        if is_as_read(row, read):
            written = rules.transition(row, LeaseExpired(), read=read)
            assert written is not None
            yield f"sweep writes job {number}", with_row(done, number, written)
        else:
            yield f"sweep leaves job {number} alone", done


def failovers(world: World) -> Iterator[tuple[str, World]]:
    """The standby catches up, or takes over as it is: whatever it lacks never happened."""
    if world.failovers and world.copy is not None and world.copy != world.rows:
        yield "the standby catches up", world._replace(copy=world.rows)
        yield (
            "failover to an older copy",
            world._replace(
                rows=world.copy, failovers=world.failovers - 1, copy=None, epoch=world.epoch + 1
            ),
        )


def reporting(world: World, busy: Busy, rules: Rules) -> tuple[World, str]:
    """The world after a report, and the answer."""
    after, answer = rules.report(world.rows[busy.job], busy)
    return (world if after is None else with_row(world, busy.job, after)), answer


def report(row: Row, busy: Busy, rules: Rules) -> tuple[Row | None, str]:
    """The row after a report, None if that changes nothing, and the answer; both are checked."""
    after = rules.transition(row, event_of(busy))
    if after is None:
        if row.lease == busy.lease:
            raise Violation("a lease that is held was refused")
        outcome = Outcome(said_as(busy))
        verdict = transitions.late_verdict(outcome, ended_as(row, busy.lease))
        check_answer(row, busy, verdict)
        return None, f"{verdict.answer} {verdict.recorded}"
    if row.claim != busy.claim:
        raise Violation("the report of a dead lease changed a job")
    if busy.said == "failed for good":
        if after.status != "failed":
            raise Violation("a permanent failure was tried again")
        after = after._replace(final=True)
    if busy.said == "released":
        after = after._replace(runs=after.runs - 1)  # it never ran
    check_answer(after, busy, Verdict(Answer.RECORDED))
    return after, "recorded"


def with_row(world: World, number: int, row: Row) -> World:
    rows = (*world.rows[:number], row, *world.rows[number + 1 :])
    return World(rows, *world[1:])


def with_worker(world: World, who: int, worker: Busy | None) -> World:
    workers = [*world.workers[:who], worker, *world.workers[who + 1 :]]
    workers.sort(key=lambda worker: worker or ())  # they are interchangeable: half the states
    return World(world.rows, tuple(workers), *world[2:])


# --- what must hold ---------------------------------------------------------------------------


def check_answer(row: Row, busy: Busy, verdict: Verdict) -> None:
    """What must be true of an answer, with the row as it is after it."""
    how = dict(row.ended).get(busy.lease, "").replace("gave_up", "failed")
    if verdict.answer in (Answer.RECORDED, Answer.ALREADY_RECORDED):
        if how != said_as(busy):
            raise Violation("answered as recorded, which it is not")
        return
    if how == said_as(busy):
        raise Violation("what is on record was refused")
    if verdict.recorded != how:
        raise Violation("a refusal that does not say what is on record")
    if (verdict.answer is Answer.CONFLICT) != (how in tuple(Outcome)):
        raise Violation("lost and conflict are mixed up")


def check(row: Row) -> None:
    """What must be true of a job at rest in any state."""
    if (row.status == "processing") != (row.lease is not None):
        raise Violation("a lease without processing, or processing without a lease")
    if row.attempts > max(row.limit, 1):
        raise Violation("more attempts than the limit")
    if row.runs > max(row.limit, 1):
        raise Violation("more runs than the limit")
    ends = [how for _, how in row.ended]
    if row.status == "completed" and ends.count("completed") != 1:
        raise Violation("completed without one success on record")
    if row.status == "failed" and row.attempts < row.limit and not row.final:
        raise Violation("a retry was lost")
    if len(ends) + (row.lease is not None) != row.token:
        raise Violation("a claim without an end, or an end without a claim")


def is_done(world: World) -> bool:
    return all(row.status in ("completed", "failed", "cancelled") for row in world.rows)


def explore(size: Limits) -> Found:
    """Walk through every state; the first violation on a shortest way to it, if there is one."""
    rules = Rules()
    rows = tuple(Row("pending", 0, 0, None, limit) for limit in size.limits)
    start = World(
        rows,
        (None,) * size.workers,
        None,
        size.crashes,
        size.releases,
        size.cancels,
        size.retries,
        failovers=size.failovers,
        copy=rows if size.failovers else None,
    )
    numbers = {start: 0}
    worlds = [start]
    came_from: list[tuple[int, str]] = [(-1, "")]
    before: list[list[int]] = [[]]
    for here, world in enumerate(worlds):  # which grows meanwhile
        try:
            for name, after in steps(world, rules, size):
                there = numbers.setdefault(after, len(worlds))
                if there == len(worlds):
                    worlds.append(after)
                    came_from.append((here, name))
                    before.append([])
                    for row in after.rows:
                        rules.check(row)
                if not name.startswith("cancel"):  # it must end without that, too
                    before[there].append(here)
        except Violation as violation:
            return Found(len(worlds), str(violation), trace(came_from, here))
        assert len(worlds) <= size.most_states, "the world is larger than it was meant to be"
    stuck = unfinished(worlds, before)
    if stuck is None:
        return Found(len(worlds))
    return Found(len(worlds), "a job that can never end", trace(came_from, stuck))


def unfinished(worlds: list[World], before: list[list[int]]) -> int | None:
    """The first state, if any, from which not all jobs can be settled: searched backwards."""
    fine = {number for number, world in enumerate(worlds) if is_done(world)}
    waiting = [*fine]
    while waiting:
        for number in before[waiting.pop()]:
            if number not in fine:
                fine.add(number)
                waiting.append(number)
    return next((number for number in range(len(worlds)) if number not in fine), None)


def trace(came_from: list[tuple[int, str]], number: int) -> tuple[str, ...]:
    names: list[str] = []
    while number:
        number, name = came_from[number]
        names.append(name)
    return tuple(reversed(names))
