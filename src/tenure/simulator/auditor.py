"""Watches every commit: whether its transitions are legal and its answers are true."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tenure.errors import TenureError
from tenure.jobs.work import Exchange
from tenure.simulator import answers
from tenure.simulator.calls import UNKNOWN, AnsweredCall, PruneCall, QueueCall
from tenure.simulator.commit import AuditedCommit
from tenure.simulator.database import LedgerRow, SimulatedDatabase
from tenure.simulator.expected import BrokenRule, ExpectedJob, ExpectedJobs, forbid

KEPT_LINES = 400  # lines of the trace that are kept for a finding


class Auditor:
    """Computes what every job must look like, and raises BrokenRule where it does not."""

    def __init__(self, database: SimulatedDatabase, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self.jobs = ExpectedJobs()
        self.figures: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self.lines: deque[tuple[float, str]] = deque(maxlen=KEPT_LINES)

    def count(self, figure: str, number: int = 1) -> None:
        self.figures[figure] += number

    def note(self, line: str) -> None:
        """Add a line to the trace, which is the same whenever the same seed is played."""
        now = self._clock()
        self.trace.update(f"{now:.6f} {line}\n".encode())
        self.lines.append((now, line))

    def started(self, worker: str, job_id: str, token: int) -> None:
        self.count("runs")
        self.jobs.start(job_id, token)
        job = self.jobs.all.get(job_id)
        self.note(f"{worker} runs job {job.number if job else '(deleted)'} token {token}")

    # --- each transaction

    def check(self, answered: Sequence[AnsweredCall], *, committed: bool, crashed: bool) -> None:
        """Check a transaction that has ended, and the answers to its calls."""
        for one in answered:
            self.note(f"{one.caller}: {type(one.call).__name__} {_short(one.answer)}")
            if isinstance(error := one.answer, BaseException) and not isinstance(
                error, TenureError
            ):
                raise BrokenRule(f"the store broke: {type(error).__name__}: {error}") from error
            if one.answer is UNKNOWN and committed and not crashed:
                self.count("commits whose answer was an error")
        rows = self._database.new_rows()
        if committed:
            self._check_commit(answered, rows)
            return
        forbid(rows, "transitions are on record that were rolled back")
        for one in answered:
            forbid(one.answer is not UNKNOWN, f"{one.caller} was answered before a failed commit")

    def _check_commit(self, answered: Sequence[AnsweredCall], rows: Sequence[LedgerRow]) -> None:
        self.count("commits")
        commit = AuditedCommit(self.jobs, answered, self._database.now)
        for queue in commit.calls(QueueCall):
            if queue.paused is not None:
                (self.jobs.paused.add if queue.paused else self.jobs.paused.discard)(queue.name)
        for row in rows:
            self._note_transition(commit.follow(row), row)
        commit.renew()
        self._compare(commit.touched)
        commit.check_retries()
        self._look_for_deleted(commit)
        commit.check_order()
        for one in answered:
            if one.answer is not UNKNOWN:
                answers.check(commit, one)
                if isinstance(one.answer, Exchange):
                    for verdict in one.answer.verdicts:
                        self.count(f"reports {verdict.answer.replace('_', ' ')}")
        for queue in commit.calls(QueueCall):
            if queue.max_pending is not None:
                self.jobs.full_at.pop(queue.name, None)
                if queue.max_pending >= 0:
                    self.jobs.full_at[queue.name] = queue.max_pending

    def _note_transition(self, job: ExpectedJob, row: LedgerRow) -> None:
        if row.event == "enqueued":
            self.count("jobs")
            self.note(f"job {job.number} enqueued")
            return
        self.count(row.event)
        if row.event == "cancelled":
            self.count(f"cancelled while {row.source}")
        self.note(f"job {job.number} {row.event} {job.attempts}/{job.limit} token {job.token}")

    def _compare(self, jobs: Collection[ExpectedJob]) -> None:
        """Compare the rows of these jobs with what they must be."""
        rows = {row[0]: row[1:] for row in self._database.jobs([job.id for job in jobs])}
        for job in jobs:
            row = rows.get(job.id)
            if row is None:
                if job.finished_at is None:
                    raise BrokenRule("the job is gone", job)
                continue  # deleted: see `_look_for_deleted`
            *found, error = row
            forbid(job.status == "failed" and not error, "it failed without an error", job)
            expected = [
                *(job.status, job.attempts, job.token, job.limit, job.run_at),
                *(job.lease, job.lease_end, job.finished_at, job.result),
            ]
            if found != expected and not self._adopt_pause(job, found, expected):
                shown = [" ".join(map(str, values)) for values in (found, expected)]
                raise BrokenRule(f"its row says {shown[0]}, it must be {shown[1]}", job)

    def _adopt_pause(self, job: ExpectedJob, found: list[Any], expected: list[Any]) -> bool:
        """Return True if only the time of its retry differs, within what its policy allows."""
        if job.retry_from is None or found[:4] != expected[:4] or found[5:] != expected[5:]:
            return False
        low, high = job.pause()
        if job.status == "processing":  # claimed at once: the pause was of the attempt before
            low = high = 0.0
        early = job.retry_from + math.floor(low * 1000)
        late = job.retry_from + math.ceil(high * 1000)
        if not early <= found[4] <= late:
            return False
        job.run_at = found[4]
        return True

    def _look_for_deleted(self, commit: AuditedCommit) -> None:
        prunes = commit.calls(PruneCall)
        if not prunes:
            return
        there = set(self._database.job_ids())
        before: Counter[str] = Counter()
        for prune in prunes:
            before |= Counter({s: round(t.timestamp() * 1000) for s, t in prune.before.items()})
        commit.prunable = sum(
            job.finished_at is not None and job.finished_at < before[job.status]
            for job in self.jobs.all.values()
        )
        for job in [job for job in self.jobs.all.values() if job.id not in there]:
            self.jobs.delete(job, before)
            commit.deleted.append(job)
            self.note(f"job {job.number} deleted")
        self.count("jobs pruned", len(commit.deleted))

    # --- now and then

    def check_everything(self) -> None:
        """Compare every row, and run the checks of `tenure verify`."""
        if sorted(self.jobs.all) != self._database.job_ids():
            raise BrokenRule("the jobs in the database are not the jobs that were added")
        self._compare(self.jobs.all.values())
        for invariant, job_id, what in self._database.violations():
            raise BrokenRule(f"verify: {invariant}: {what}", self.jobs.all.get(job_id))


def _short(answer: Any) -> str:
    if isinstance(answer, TenureError):
        return type(answer).__name__ if answer is not UNKNOWN else "unknown"
    if isinstance(answer, Exchange):
        verdicts = "".join(f" {verdict.answer}" for verdict in answer.verdicts)
        return f"{len(answer.leases)} leased{verdicts}"
    if isinstance(answer, list | set):
        return str(len(answer))
    return "done"
