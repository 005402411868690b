"""The work that callers hand to the committing threads, and what may share a transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, TypeGuard, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from tenure import failpoints
from tenure.errors import TenureError, WriteRefused
from tenure.rules.jobs import CheckedJob, Enqueued, LinkedJob
from tenure.rules.reports import (
    RECORDED,
    Answer,
    ClaimRequest,
    Exchange,
    Lease,
    Outcome,
    Report,
    Verdict,
    adds_jobs,
)
from tenure.store.database import Database, Trouble, answer_to, waited_for_a_lock
from tenure.store.tables import dependencies


class EnqueueWork(Struct):
    """Jobs to add, all or none."""

    name = "enqueue"
    checked_jobs: Sequence[CheckedJob]
    future: Future[list[Enqueued]] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.checked_jobs)


class ExchangeWork(Struct):
    """A worker's exchange: what finished, and what it can take."""

    reports: Sequence[Report]
    claim: ClaimRequest | None
    future: Future[Exchange] = field(default_factory=Future)
    wary: bool = False  # the database has refused it once, perhaps for one job of the claim

    @property
    def size(self) -> int:
        return len(self.reports) + (self.claim.limit if self.claim else 0)

    @property
    def name(self) -> str:
        return "report" if self.reports else "claim"


class CallWork(Struct):
    """Anything else, as a function run inside the transaction.

    `job_ids` are the jobs that `act` locks, if it is `alone` before it locks others. Without them
    it may lock anything, in an order that only it knows.
    """

    name: str
    act: Callable[[Database], Any]
    future: Future[Any] = field(default_factory=Future)
    size: int = 1
    brings: Callable[[Any], bool] = lambda _: True  # whether with this answer it may bring work
    job_ids: Sequence[str] | None = None
    alone: bool = False
    reads: bool = False  # with one statement, and writes nothing
    limits: bool = False  # whether it sets limits of queues


BUSY = Verdict(Answer.BUSY)
MAX_LOCKED = 10_000
"""Jobs that are remembered to have been locked, about."""

Work = EnqueueWork | ExchangeWork | CallWork
W = TypeVar("W", EnqueueWork, ExchangeWork, CallWork)


def parts(db: Database, batch: Sequence[Work]) -> list[Sequence[Work]]:
    """Divide a batch into transactions that lock in one order, so that none ends in a deadlock.

    A transaction locks the jobs that it changes first, in the order of their ids, then the limits
    of queues, then idempotency keys, each in one order. Work that cannot keep to that is alone.
    Jobs that wait for one that is settled are locked last: that may deadlock, and is repeated.
    Unique jobs of one request each go together: first they lock their keys, then the holders.
    """
    if not batch or db.alone is None:  # a database with one writer
        return [batch] if batch else []
    parts: list[Sequence[Work]] = [[work] for work in batch if _locks_in_another_order(work)]
    others = [work for work in batch if not _locks_in_another_order(work)]
    unique = [work for work in others if _is_unique(work)]
    together = [work for work in others if not _is_unique(work)] if unique else others
    return [*(some for some in (together, unique) if some), *parts]


def _locks_in_another_order(work: Work) -> bool:
    if isinstance(work, EnqueueWork):
        if work.size == 1:
            return type(work.checked_jobs[0]) is LinkedJob
        return any(a.idempotency_key or not a.simple for a in work.checked_jobs)
    if isinstance(work, ExchangeWork):
        return adds_jobs(work.reports)
    return work.job_ids is None or work.alone


def _is_unique(work: Work) -> bool:
    return isinstance(work, EnqueueWork) and work.size == 1 and bool(work.checked_jobs[0].unique)


def is_only_adding(batch: Sequence[Work]) -> TypeGuard[Sequence[EnqueueWork]]:
    """Whether all there is to do is to add jobs: of one request, or of several with one each."""
    return all(isinstance(work, EnqueueWork) for work in batch) and (
        len(batch) == 1 or all(work.size == 1 for work in batch)
    )


def sets_limits(batch: Sequence[Work]) -> bool:
    """Whether it sets limits of queues: then it is alone."""
    return isinstance(batch[0], CallWork) and batch[0].limits


def lone_read(batch: Sequence[Work]) -> CallWork | None:
    """Return the one thing to do if it is a read."""
    work = batch[0]
    return work if len(batch) == 1 and isinstance(work, CallWork) and work.reads else None


def plain_exchange(
    batch: Sequence[Work], is_to_be_noted: Callable[[ClaimRequest], bool]
) -> ExchangeWork | None:
    """Return the exchange that the batch is, if it has completions and a plain claim only."""
    work, claim = batch[0], getattr(batch[0], "claim", None)
    if len(batch) > 1 or not isinstance(work, ExchangeWork) or not (work.reports or claim):
        return None
    if any(r.outcome is not Outcome.COMPLETED or r.notes for r in work.reports):
        return None
    if len({report.lease_id for report in work.reports}) < len(work.reports):
        return None
    special = claim and (claim.limit < 1 or claim.traces or claim.leaves or is_to_be_noted(claim))
    return None if special or work.wary or adds_jobs(work.reports) else work


def made_wary(work: Work, error: Exception, trouble: Trouble) -> ExchangeWork | None:
    """Return the exchange to try once more after the database has refused it, if it claims."""
    refused = trouble is Trouble.REFUSED or isinstance(error, WriteRefused)
    if not refused or not isinstance(work, ExchangeWork) or work.claim is None or work.wary:
        return None
    return replace(work, wary=True)


def rest_of(
    work: ExchangeWork, done: set[str], leases: Sequence[Lease] | None
) -> ExchangeWork | None:
    """Return what is left of an exchange, whose answer then completes that of `work`.

    If the rest fails, the caller still learns of the leases, which are committed, and has to send
    the reports again.
    """
    late = [report for report in work.reports if report.lease_id not in done]
    if not late and leases is not None:
        return None
    rest = ExchangeWork(late, work.claim if leases is None else None)

    def answer(future: Future[Exchange]) -> None:
        if (error := future.exception()) and not leases:
            work.future.set_exception(error)
            return
        found = Exchange([BUSY for _ in late], []) if error else future.result()
        left = iter(found.verdicts)
        verdicts = [RECORDED if r.lease_id in done else next(left) for r in work.reports]
        if leases is not None:
            found = replace(found, leases=leases)
        work.future.set_result(replace(found, verdicts=verdicts))

    rest.future.add_done_callback(answer)
    return rest


class LockedJobs:
    """Jobs that cannot end, as others have locked them or what waits for them.

    What is reported on other jobs is recorded without them. Calls on them wait once.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._error: BaseException = TimeoutError()

    def note(self, batch: Sequence[Work], error: BaseException) -> bool:
        """Return whether work has waited for a lock in vain, perhaps for that of a reported job."""
        if waited := waited_for_a_lock(error):
            if len(self._ids) > MAX_LOCKED:  # of workers that have ended meanwhile
                self._ids.clear()
            self._ids = self._ids.union(*map(_job_ids, batch))
            self._error = error
        return waited

    def pass_over(self, db: Database, batch: Sequence[Work], *, waited: bool) -> Sequence[Work]:
        """Return a batch without the reports that would wait: their senders repeat them.

        Nor does it have calls that would wait again, which are answered, if they have `waited`.
        """
        if not self._ids:
            return batch
        some = [work for work in batch if waited or isinstance(work, ExchangeWork)]
        asked = self._ids.intersection(set().union(*map(_job_ids, some)))
        if not asked:
            return batch
        db.begin()  # which connects, and limits the wait for a locked table
        busy = dependencies.held_up(db, sorted(asked))
        db.rollback()
        self._ids -= asked - busy
        vain = [w for w in some if isinstance(w, CallWork) and not busy.isdisjoint(_job_ids(w))]
        for work in vain:
            work.future.set_exception(answer_to(Trouble.RETRY, self._error))
        left = [work for work in batch if not work.future.done()]
        return [_without(w, busy) if isinstance(w, ExchangeWork) else w for w in left]


def _job_ids(work: Work) -> Collection[str]:
    return () if isinstance(work, EnqueueWork) else touched_jobs(work) or ()


def _without(work: ExchangeWork, busy: Collection[str]) -> ExchangeWork:
    """Return an exchange without the reports on some jobs; its answer completes that of `work`."""
    left = [report for report in work.reports if report.job_id not in busy]
    if len(left) == len(work.reports):
        return work
    rest = ExchangeWork(left, work.claim, wary=work.wary)

    def answer(future: Future[Exchange]) -> None:
        if error := future.exception():
            work.future.set_exception(error)
            return
        found = iter(future.result().verdicts)
        verdicts = [BUSY if r.job_id in busy else next(found) for r in work.reports]
        work.future.set_result(replace(future.result(), verdicts=verdicts))

    rest.future.add_done_callback(answer)
    return rest


def done_alone(
    db: Database, batch: Sequence[Work], is_to_be_noted: Callable[[ClaimRequest], bool]
) -> tuple[list[tuple[Work, Any]], Sequence[Work]]:
    """Do what one statement can, where that is faster; return that with its answers, and the rest.

    The statement is a transaction, and has committed.
    """
    done: list[tuple[Work, Any]] = []
    if db.alone is None and [work.size for work in batch] != [1]:
        return done, batch
    left: list[Work] = []
    if is_only_adding(batch):
        visit("before_commit", batch)
        jobs = [checked_job for work in batch for checked_job in work.checked_jobs]
        made = db.enqueue_alone(jobs, whole=len(batch) == 1)
        for work in batch:
            if all(a.id in made for a in work.checked_jobs):
                added = [Enqueued(made[a.id], created=True) for a in work.checked_jobs]
                done.append((work, added))
            else:
                left.append(work)
    elif db.alone is not None and (exchange := plain_exchange(batch, is_to_be_noted)):
        visit("before_commit", batch)
        found = db.alone.exchange_alone(exchange.reports, exchange.claim)
        if found is None:
            return done, batch
        finished, leases, due = found
        rest = rest_of(exchange, finished, leases)
        if rest is None:
            wants_due = exchange.claim is not None and exchange.claim.next_due
            verdicts = [RECORDED] * len(exchange.reports)
            answer = Exchange(verdicts, leases or [], due if wants_due else None)
            done.append((exchange, answer))
        else:
            left.append(rest)
    elif db.alone is not None and (read := lone_read(batch)) is not None:
        visit("before_commit", batch)
        done.append((read, db.alone.read_alone(read.act)))
    else:
        return done, batch
    return done, left


def may_bring_work(work: Work, answer: Any) -> bool:
    if isinstance(work, ExchangeWork):
        return adds_jobs(work.reports) or any(r.outcome != "completed" for r in work.reports)
    if isinstance(answer, TenureError):  # nothing was written
        return False
    return not isinstance(work, CallWork) or work.brings(answer)


def touched_jobs(work: Work) -> Collection[str] | None:
    """Return the ids of the jobs that the work may have settled; None: of any."""
    if isinstance(work, ExchangeWork):
        return {report.job_id for report in work.reports}
    return work.job_ids if isinstance(work, CallWork) else ()


def nothing(_: object) -> bool:
    """Return False: for work that brings workers none, whatever it answers."""
    return False


def visit(moment: str, batch: Sequence[Work]) -> None:
    """Pass the failpoints of work at a moment."""
    if failpoints.ARMED:
        for name in dict.fromkeys(work.name for work in batch):
            failpoints.hit(f"{name}.{moment}")


def undoing(db: Database, act: Callable[[Database], Any]) -> Any:
    """Call `act`; if it raises a TenureError, undo what it did and return the error."""
    db.savepoint()
    try:
        return act(db)
    except TenureError as refusal:
        db.undo_to_savepoint()
        return refusal
