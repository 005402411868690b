"""Random histories, played into the reference and into a real store, compared after every step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar
from uuid import UUID, uuid5

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tenure.errors import IllegalTransition, JobNotFound, KeyConflict, LeaseLost, TenureError
from tenure.events import Cancelled, Completed, Event, Retried
from tenure.lifecycle import Job, Status
from tenure.retry import RetryPolicy
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import Answer, ClaimRequest, Outcome, Report
from tenure.rules.search import Action, Counted, Filter, Query
from tenure.store import Store, open_store
from tenure.store.borrowed import jobs
from tenure.store.borrowed.connections import borrow
from tenure.store.tables import bulk as bulk_table
from tenure.values.ids import new_id
from tests.model.reference import OUTCOMES, Entry, Reference
from tests.support.clock import START, Clock
from tests.support.effects import own_connection
from tests.support.raw_sql import EPOCH, RawSql

LEASE_SECONDS = 10.0
AT_ONCE = RetryPolicy(base=0, factor=1, cap=0)
SLOWLY = RetryPolicy(base=7, factor=3, cap=100)
LISTED = RetryPolicy(delays=(3, 0, 50))

# Steps of the clock around every boundary: the end of a lease, a retry, a day, and back.
STEPS = [0.0, 0.001, 1.0, LEASE_SECONDS - 0.001, LEASE_SECONDS, LEASE_SECONDS + 0.001, 3600.0]
STEPS += [3 * 86_400.0, -1.0]

STEPS_TO_AUDIT = 5
"""Steps between two audits: one takes longer than all else of a step, and what it finds stays."""

Receipt = tuple[str, str]  # (job id, lease id)

ages = st.sampled_from([0.0, 0.001, 3600.0])
keys = st.sampled_from([None, None, "a", "b"])
outcomes = st.sampled_from(OUTCOMES)
workers = st.sampled_from(["w1", "w2"])
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Cancelled(actor="ada")),
    st.builds(Retried, more_retries=st.integers(0, 2), actor=st.just("ada")),
)


class History(RuleBasedStateMachine):
    """The rules of the game. A subclass says where the databases come from."""

    new_database: ClassVar[Callable[[], str]]
    drop_database: ClassVar[Callable[[str], None]]

    checked_jobs = Bundle("additions")
    leases = Bundle("leases")  # never consumed: the dead ones are the interesting ones

    @initialize(target=checked_jobs)
    def open(self) -> Any:
        self.url = type(self).new_database()
        self.store: Store = open_store(self.url)
        self.clock = Clock(self.url)
        self.raw = RawSql(self.url)
        self.model = Reference(START)
        self.ids = 0
        self.steps = 0
        start = [new_job(self.new_id(), max_retries=n, backoff=AT_ONCE) for n in (0, 1, 2, 3, 3)]
        self.add_to_both(start)
        return multiple(*start)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                assert self.store.read.violations(10) == []
            finally:
                self.store.close()
                self.clock.close()
                self.raw.close()
                type(self).drop_database(self.url)

    def new_id(self) -> str:
        """Ids in rising order, the same in every run of one history."""
        self.ids += 1
        return str(UUID(int=(0x7 << 76) | (0x2 << 62) | self.ids << 80))

    # --- adding

    @rule(
        target=checked_jobs,
        count=st.sampled_from([1, 1, 2, 3]),
        key=keys,
        same_key=st.booleans(),
        fingerprint=st.sampled_from("fg"),
        delay=st.sampled_from([0.0, 0.0, 0.001, 5.0]),
        priority=st.integers(-1, 1),
        max_retries=st.integers(0, 3),
        backoff=st.sampled_from([AT_ONCE, SLOWLY, LISTED]),
    )
    def add(
        self, count: int, key: str | None, same_key: bool, fingerprint: str, **fields: Any
    ) -> Any:
        checked_jobs = [
            new_job(
                self.new_id(),
                idempotency_key=key if number == count - 1 or same_key else None,
                fingerprint=fingerprint,
                **fields,
            )
            for number in range(count)
        ]
        self.add_to_both(checked_jobs)
        return multiple(*checked_jobs)

    @rule(checked_job=checked_jobs)
    def add_again(self, checked_job: CheckedJob) -> None:
        self.add_to_both([checked_job])

    def add_to_both(self, checked_jobs: list[CheckedJob]) -> None:
        expected = self.model.add(checked_jobs)
        future = self.store.add(checked_jobs)
        if isinstance(expected, KeyConflict):
            refusal = future.exception()
            assert isinstance(refusal, KeyConflict)
            assert (refusal.key, refusal.job_id) == (expected.key, expected.job_id)
        else:
            assert [(a.job, a.created) for a in future.result()] == expected

    # --- workers

    def held(self) -> list[Receipt]:
        """The leases that are held now."""
        jobs = sorted(self.model.jobs.values(), key=by_id)
        return [(job.id, job.lease_id) for job in jobs if job.lease_id is not None]

    @rule(target=leases, limit=st.integers(1, 3), worker=workers, wait=st.booleans())
    def claim(self, limit: int, worker: str, wait: bool) -> Any:
        due = [job.run_at for job in self.model.jobs.values() if job.status == "pending"]
        if wait and due:
            self.go_to(max(self.model.now, min(due)))
        return multiple(*self.exchange([], asking(worker, limit)))

    @precondition(lambda self: bool(self.held()))
    @rule(
        target=leases,
        which=st.integers(0, 9),
        said=st.lists(outcomes, min_size=1, max_size=3),
        limit=st.integers(0, 3),
        worker=workers,
    )
    def work(self, which: int, said: list[Outcome], limit: int, worker: str) -> Any:
        """A turn as workers take it: report what they hold, claim more."""
        held = self.held()
        chosen = [(held[(which + n) % len(held)], outcome) for n, outcome in enumerate(said)]
        reports = [report_of(receipt, outcome) for receipt, outcome in chosen]
        return multiple(*self.exchange(reports, asking(worker, limit)))

    @precondition(lambda self: bool(self.held()))
    @rule(
        which=st.integers(0, 9),
        outcome=outcomes,
        retryable=st.booleans(),
        twice=st.booleans(),
        uncertain=st.booleans(),
    )
    def report(
        self, which: int, outcome: Outcome, retryable: bool, twice: bool, uncertain: bool
    ) -> None:
        held = self.held()
        said = report_of(held[which % len(held)], outcome, retryable, uncertain)
        self.exchange([said, said] if twice else [said], None)

    @rule(which=st.integers(0, 9), dead=leases, commits=st.booleans())
    def complete_in_a_transaction(self, which: int, dead: Receipt, commits: bool) -> None:
        """A handler completes its job in its own transaction; its worker asks what came of it."""
        receipt = [*self.held(), dead][which % (len(self.held()) + 1)]
        job = self.model.jobs.get(receipt[0])
        holds = job is not None and job.lease_id == receipt[1]
        event = Completed(lease_id=receipt[1], result='"done"')
        question = report_of(receipt, Outcome.FAILED, uncertain=True)
        with own_connection(self.url) as connection:
            completing = partial(jobs.apply, job_id=receipt[0], event=event)
            try:
                borrow(connection, self.url).call(completing, verb="complete")
            except (IllegalTransition, JobNotFound, LeaseLost):
                assert not holds
            else:
                assert holds
                if not self.url.startswith("sqlite"):  # there, nobody could ask meanwhile
                    (verdict,) = self.store.exchange([question], None).result().verdicts
                    assert verdict.answer is Answer.BUSY
            connection.commit() if commits else connection.rollback()
        if holds and commits:
            self.model.report([report_of(receipt, Outcome.COMPLETED)])
        self.exchange([question], None)

    @rule(
        target=leases,
        chosen=st.lists(st.tuples(leases, outcomes), min_size=1, max_size=4),
        again=st.booleans(),
        forge=st.booleans(),
    )
    def report_any(self, chosen: list[tuple[Receipt, Outcome]], again: bool, forge: bool) -> Any:
        """Whatever became of those leases: repeated, contradicted, forged, or long dead."""
        if again:
            repeated = [(lease, self.model.ended.get(lease, "")) for lease, _ in chosen]
            chosen += [(lease, Outcome(end)) for lease, end in repeated if end in tuple(Outcome)]
        reports = [report_of(lease, outcome) for lease, outcome in chosen]
        if forge:
            job_id, lease_id = chosen[0][0]
            nobody = str(uuid5(UUID(int=0), lease_id))
            forged = [(job_id, nobody), (nobody, lease_id), (job_id, "nonsense"), ("", lease_id)]
            forged += [(job_id, other) for (at, other), _ in chosen if at != job_id]
            reports += [report_of(receipt, chosen[0][1]) for receipt in forged]
        return multiple(*self.exchange(reports, asking("w3", 0)))

    def exchange(self, reports: list[Report], request: ClaimRequest | None) -> list[Receipt]:
        verdicts = self.model.report(reports)
        exchange = self.store.exchange(reports, request).result()
        assert list(exchange.verdicts) == verdicts
        leases = list(exchange.leases)
        if request is None:
            assert leases == []
            return []
        assert [lease.id for lease in leases] == self.model.due(request.limit)
        self.model.claim(leases, request.worker, request.lease_seconds)
        for lease in leases:
            job = self.model.jobs[lease.id]
            assert (lease.attempts, lease.token) == (job.attempts, job.token)
            assert lease.lease_expires_at == job.lease_expires_at
        return [(lease.id, lease.lease_id) for lease in leases]

    @rule(
        chosen=st.lists(leases, max_size=4),
        seconds=st.sampled_from([0.001, LEASE_SECONDS, 3 * LEASE_SECONDS]),
    )
    def renew(self, chosen: list[Receipt], seconds: float) -> None:
        chosen += self.held()[:1]
        expected = self.model.renew(chosen, seconds)
        assert self.store.renew(chosen, seconds) == expected

    # --- operators

    @rule(checked_job=checked_jobs, event=events)
    def apply(self, checked_job: CheckedJob, event: Event) -> None:
        future = self.store.apply(checked_job.id, event)
        if checked_job.id not in self.model.jobs:
            assert isinstance(future.exception(), JobNotFound)
            return
        try:
            expected: Job | TenureError = self.model.apply(checked_job.id, event)
        except IllegalTransition as refusal:
            expected = refusal
        if isinstance(expected, IllegalTransition):
            refused = future.exception()
            assert isinstance(refused, IllegalTransition)
            assert (refused.status, refused.legal) == (expected.status, expected.legal)
        else:
            assert future.result() == expected

    @rule(what=st.sampled_from(["reopen", "cancel", "retry", "retry", "prune", "prune"]), age=ages)
    def seldom(self, what: str, age: float) -> None:
        """What happens now and then; as rules of their own they would crowd out the rest."""
        if what == "reopen":
            self.store.close()
            self.store = open_store(self.url)
        elif what == "cancel":
            self.apply_to_all(Status.PROCESSING, Action.CANCEL)
        elif what == "retry":
            self.apply_to_all(Status.FAILED, Action.RETRY)
        else:
            statuses = ("completed", "failed", "cancelled", "pending")
            before = self.clock.now - timedelta(seconds=age)
            removed = self.store.prune(dict.fromkeys(statuses, before), limit=1_000).result()
            assert removed == self.model.prune(statuses, before)

    def apply_to_all(self, status: Status, action: Action) -> None:
        """As one bulk action."""
        wanted = Filter(status=status)
        id = new_id()
        total = Counted(0, exact=False)
        values = {"action": action, "filter": wanted, "more_retries": 1, "total": total}
        begin = partial(bulk_table.start, id=id, actor="ada", **values)
        self.store.write("bulk", begin).result()
        bulk = bulk_table.get(self.store.read, id)
        assert bulk is not None
        bulk_table.step(self.store, bulk)
        event: Event = Cancelled(actor=bulk.signature)
        if action is Action.RETRY:
            event = Retried(more_retries=1, actor=bulk.signature)

        def was_so(job: Job) -> bool:
            """Clocks may have been set back since."""
            times = (job.created_at, job.finished_at or job.created_at)
            return job.status == status and max(times) <= self.model.now

        self.model.apply_matching(was_so, event)
        bulk = bulk_table.get(self.store.read, id)
        assert bulk is not None
        assert bulk.finished_at == self.model.now

    def same_jobs(self, found: list[Job], expected: list[Job]) -> None:
        assert sorted(found, key=by_id) == sorted(expected, key=by_id)

    # --- time and the sweep

    @rule(seconds=st.sampled_from(STEPS), sweep=st.booleans())
    def let_time_pass(self, seconds: float, sweep: bool) -> None:
        self.go_to(self.model.now + timedelta(seconds=seconds))
        if sweep:
            ended = [steps[-1] for steps in self.store.sweep().result()]
            self.same_jobs(ended, self.model.sweep())

    @rule(which=st.integers(0, 9), off=st.sampled_from([-0.001, 0.0, 0.001]), sweep=st.booleans())
    def go_to_a_boundary(self, which: int, off: float, sweep: bool) -> None:
        """Exactly to a time at which something changes, or a tick beside it."""
        jobs = self.model.jobs.values()
        times = sorted({t for j in jobs for t in (j.run_at, j.lease_expires_at) if t is not None})
        if times:
            self.go_to(times[which % len(times)])
        self.let_time_pass(off, sweep)

    def go_to(self, time: datetime) -> None:
        self.model.now = self.clock.set(time)

    # --- what must hold after every step

    @invariant()
    def rows_are_the_same(self) -> None:
        if hasattr(self, "store"):
            found = self.store.read.find(Query(limit=1_000))
            assert found == sorted(self.model.jobs.values(), key=by_id, reverse=True)

    @invariant()
    def the_ledger_is_the_same(self) -> None:
        if hasattr(self, "store"):
            assert read_ledger(self.raw) == self.model.ledger

    @invariant()
    def no_invariant_is_broken(self) -> None:
        if hasattr(self, "store"):
            self.steps += 1
            assert self.steps % STEPS_TO_AUDIT or self.store.read.violations(10) == []


def new_job(id: str, **fields: Any) -> CheckedJob:
    """A job of the kind that is played with."""
    return CheckedJob(**{"id": id, "type": "mail", "actor": "web", **fields})


def report_of(
    lease: Receipt, outcome: Outcome, retryable: bool = True, uncertain: bool = False
) -> Report:
    """What a worker says of a lease."""
    result = '"done"' if outcome is Outcome.COMPLETED else None
    return Report(*lease, outcome, result, "boom", retryable, uncertain=uncertain)


def asking(worker: str, limit: int) -> ClaimRequest:
    """A worker asking for jobs."""
    return ClaimRequest(worker=worker, limit=limit, lease_seconds=LEASE_SECONDS)


def by_id(job: Job) -> str:
    return job.id


def read_ledger(raw: RawSql) -> dict[str, list[Entry]]:
    """The ledger by job, read past the store."""
    columns = "job_id, at, source, target, event, attempt, token, lease_id, actor, detail"
    ledger: dict[str, list[Entry]] = {}
    for job_id, at, *rest in raw.run(f"SELECT {columns} FROM {{transition}} ORDER BY seq"):
        entry = Entry(read_time(at), *rest)
        if entry.lease_id is not None:
            entry = entry._replace(lease_id=str(entry.lease_id))
        ledger.setdefault(str(job_id), []).append(entry)
    return ledger


def read_time(stored: Any) -> datetime:
    """A time of either engine."""
    if isinstance(stored, int):
        return EPOCH + timedelta(milliseconds=stored)
    time: datetime = stored
    return time.astimezone(UTC)
