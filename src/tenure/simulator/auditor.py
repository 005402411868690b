"""Compares every commit with what it must have done: its ledger, its rows and its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any

from tenure.errors import TenureError
from tenure.rules.jobs import Enqueued
from tenure.rules.ledger import Transition
from tenure.rules.reports import Exchange
from tenure.simulator.database import UNKNOWN, SimulatedDatabase, StoreCall
from tenure.simulator.expected import BrokenRule, ExpectedStore
from tenure.store.reader import Reader

SHOWN = 12  # lines of the trace, and transitions of the job, that a finding shows

COMPARED = (
    *("status", "attempts", "token", "max_retries", "run_at"),
    *("lease_id", "lease_expires_at", "finished_at", "result_json"),
)
"""The columns of a row that are compared after each commit."""
_columns = attrgetter(*COMPARED)


class Auditor:
    """Raises BrokenRule where the store is not as expected; notes and counts what happens."""

    def __init__(
        self, database: SimulatedDatabase, figures: Counter[str], note: Callable[[str], None]
    ) -> None:
        self._database = database
        self._figures = figures
        self._note = note
        self.expected = ExpectedStore(database)

    def check(self, calls: Sequence[StoreCall], *, committed: bool, crashed: bool) -> None:
        """Check a transaction that has ended, and the answers to its calls."""
        for call in calls:
            answer = call.answer
            self._note(f"{call.caller}: {call.verb} {_short(answer)}")
            if isinstance(answer, BaseException) and not isinstance(answer, TenureError):
                raise BrokenRule(f"the store broke: {type(answer).__name__}: {answer}") from answer
            if committed and not crashed and answer is UNKNOWN:
                self._figures["commits whose answer was an error"] += 1
            if not committed and answer is not UNKNOWN:
                raise BrokenRule(f"{call.caller} was answered before a failed commit")
        ledger = self._database.new_transitions()
        if committed:
            self._check_commit(calls, ledger)
        elif ledger:
            raise BrokenRule("transitions are on record that were rolled back")

    def _check_commit(self, calls: Sequence[StoreCall], ledger: Sequence[Transition]) -> None:
        self._figures["commits"] += 1
        found: dict[str, list[str]] = {}  # job -> its transitions
        for row in ledger:
            found.setdefault(row.job_id, []).append(row.event)
            self._figures["jobs" if row.event == "enqueued" else row.event] += 1
            if row.event == "cancelled":
                self._figures[f"cancelled while {row.source}"] += 1
            self._note(f"{row.job_id} {row.event}, attempt {row.attempt}, token {row.token}")
        answers = self.expected.play(calls, ledger)
        for id in {**self.expected.changed, **found}:
            on_record, must = found.get(id, []), self.expected.changed.get(id, [])
            if on_record != must:
                what = f"its transitions are {_listed(on_record)}; they must be {_listed(must)}"
                raise BrokenRule(what, self.expected.jobs.get(id))
        for broken in self.expected.missed:
            raise broken
        self._compare_rows(self.expected.changed)
        for call, must in zip(calls, answers, strict=True):
            if call.verb == "prune":
                self._figures["jobs pruned"] += must
            if call.answer is not UNKNOWN:
                self._compare_answer(call, must)

    def _compare_rows(self, job_ids: Iterable[str]) -> None:
        for id in job_ids:
            job, row = self.expected.jobs[id], self._database.get(id)
            if row is None:
                raise BrokenRule("the job is gone", job)
            for name, found, must in zip(COMPARED, _columns(row), _columns(job), strict=True):
                if found != must:
                    raise BrokenRule(f"its {name} is {found}, it must be {must}", job)

    def _compare_answer(self, call: StoreCall, must: Any) -> None:
        found = _plain(call.answer)
        if call.verb == "exchange":
            for report, said, true in zip(call.arguments[0], found[0], must[0], strict=True):
                self._figures[f"reports {said[0].replace('_', ' ')}"] += 1
                if said != true:
                    what = f"a report of {report.outcome} was answered {_listed(said)}"
                    job = self.expected.jobs.get(report.job_id)
                    raise BrokenRule(f"{what}; it must be {_listed(true)}", job)
        elif isinstance(must, TenureError):
            must = _plain(must)
        if found != must:
            what = f"{call.caller}: {call.verb} was answered {found}; it must be {must}"
            raise BrokenRule(what)

    def check_everything(self) -> None:
        """Compare every row, and check what `tenure verify` does, except the file."""
        if sorted(self.expected.jobs) != self._database.job_ids():
            raise BrokenRule("the jobs in the database are not the jobs that were added")
        self._compare_rows(self.expected.jobs)
        for invariant, job_id, what in Reader.violations(self._database, 1):
            raise BrokenRule(f"verify: {invariant}: {what}", self.expected.jobs.get(job_id))


def _plain(answer: Any) -> Any:
    """Return what can be known in advance of an answer."""
    match answer:
        case TenureError():
            return type(answer).__name__, getattr(answer, "job_id", "")
        case Exchange():
            return (
                [(verdict.answer, verdict.recorded) for verdict in answer.verdicts],
                {(held.id, held.lease_id, held.attempts, held.token) for held in answer.leases},
            )
        case [Enqueued(), *_]:
            return [(enqueued.job.id, enqueued.created) for enqueued in answer]
    return answer


def _listed(words: Iterable[str]) -> str:
    return ", ".join(filter(None, words)) or "nothing"


def _short(answer: Any) -> str:
    """Return an answer without ids of leases, which the seed does not decide."""
    if answer is UNKNOWN:
        return "unknown"
    if isinstance(answer, TenureError):
        return type(answer).__name__
    if isinstance(answer, Exchange):
        return _listed([f"{len(answer.leases)} leased", *(v.answer for v in answer.verdicts)])
    return str(len(answer)) if isinstance(answer, list | set) else "done"
