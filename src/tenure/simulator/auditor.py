"""Watches every commit: whether the moves are legal, and nobody was told anything but the truth."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from tenure.errors import TenureError
from tenure.jobs.work import Exchange
from tenure.simulator import answers
from tenure.simulator.asks import UNKNOWN, Asked, Beat, Fault, Prune, SetQueue
from tenure.simulator.commit import Commit
from tenure.simulator.lives import Broken, Life, Lives
from tenure.simulator.stage import Stage

REMEMBERED = 400
"""Lines of the trace that a failure can show."""


class Auditor:
    """Holds what every job must look like, and compares. Raises Broken where it does not."""

    def __init__(self, stage: Stage, clock: Callable[[], float]) -> None:
        self._stage = stage
        self._clock = clock
        self.lives = Lives()
        self.figures: Counter[str] = Counter()
        self.trace = hashlib.sha256()
        self.lines: deque[tuple[float, str]] = deque(maxlen=REMEMBERED)

    # --- the record

    def count(self, figure: str, number: int = 1) -> None:
        """Something happened that is worth telling at the end."""
        self.figures[figure] += number

    def note(self, line: str) -> None:
        """A line of the trace, which is the same whenever the same seed is played."""
        now = self._clock()
        self.trace.update(f"{now:.6f} {line}\n".encode())
        self.lines.append((now, line))

    # --- what happens

    def started(self, worker: str, job_id: str, token: int) -> None:
        """A handler starts."""
        self.count("runs")
        self.lives.start(job_id, token)
        life = self.lives.all.get(job_id)
        self.note(f"{worker} runs job {life.number if life else '(deleted)'} token {token}")

    def see(self, asked: Sequence[Asked], *, committed: bool, crashed: bool) -> None:
        """A transaction is over, one way or the other, and these are the answers."""
        for one in asked:
            self.note(f"{one.who}: {type(one.ask).__name__} {_short(one.answer)}")
            if isinstance(one.answer, Fault):
                error = one.answer.error
                raise Broken(f"the store broke: {type(error).__name__}: {error}") from error
            if one.answer is UNKNOWN and committed and not crashed:
                self.count("commits whose answer was an error")
        entries = self._stage.new_entries()
        if not committed:
            if entries:
                raise Broken("moves are on record that were undone")
            for one in asked:
                if one.answer is not UNKNOWN:
                    raise Broken(f"{one.who} was answered before the commit, and it failed")
            return
        self.count("commits")
        commit = Commit(self.lives, asked, self._stage.now)
        self._set_queues(commit)
        for entry in entries:
            self._follow(commit, *entry)
        self._settle_beats(commit)
        self._compare(list(commit.touched))
        commit.check_retries()
        self._look_for_deleted(commit)
        commit.check_order()
        for one in asked:
            if one.answer is not UNKNOWN:
                answers.check(commit, one)
                self._count_verdicts(one)
        for queue, limit in commit.new_limits.items():
            if limit < 0:
                self.lives.full_at.pop(queue, None)
            else:
                self.lives.full_at[queue] = limit

    def _set_queues(self, commit: Commit) -> None:
        for one in commit.asks(SetQueue):
            if one.paused is not None:
                (self.lives.paused.add if one.paused else self.lives.paused.discard)(one.name)
            if one.max_pending is not None:
                commit.new_limits[one.name] = one.max_pending

    def _follow(
        self,
        commit: Commit,
        seq: int,
        job_id: str,
        at: int,
        source: str | None,
        target: str,
        event: str,
        attempt: int,
        token: int,
        lease: str | None,
        actor: str | None,
        detail: str | None,
    ) -> None:
        """One entry of the ledger: may it be, and what follows from it."""
        lives = self.lives
        if event == "enqueued":
            checked_job = commit.checked_jobs.get(job_id)
            if checked_job is None:
                raise Broken("a job that nobody added")
            life = lives.enter(checked_job, commit.now)
            commit.enter(life)
            self.count("jobs")
            self.note(f"job {life.number} {event}")
            return
        known = lives.all.get(job_id)
        if known is None:
            raise Broken(f"{event} of a job that is not there")
        life = known
        held, attempts = life.lease, life.attempts
        if source != life.status:
            raise Broken(f"{event} from {source}, but it was {life.status}", life)
        if at != commit.now:
            raise Broken(f"{event} is on record at another time", life)
        commit.allow(life, event, actor)
        lives.transition(life, event, target, commit.now)
        if event == "claimed":
            lives.claim(life, lease, commit.claim_until(life, actor))
        elif held is not None and lease != held:
            raise Broken(f"{event} is on record for another lease", life)
        elif event == "released":
            life.attempts -= 1
        elif event == "retried":
            commit.retry(life, actor)
        commit.moved(life, event, actor)
        if (attempt, token) != (max(attempts, life.attempts), life.token):
            raise Broken(f"{event} is on record as attempt {attempt}, token {token}", life)
        self.count(event)
        if event == "cancelled":
            self.count(f"cancelled while {source}")
        self.note(f"job {life.number} {event} {life.attempts}/{life.limit} token {life.token}")

    def _settle_beats(self, commit: Commit) -> None:
        """Heartbeats leave no entry: a lease that is held lasts longer."""
        for beat in commit.asks(Beat):
            until = commit.now + round(beat.seconds * 1000)
            for job_id, lease in beat.leases:
                life = self.lives.all.get(job_id)
                if life is not None and life.lease == lease and life.lease_end is not None:
                    life.lease_end = max(life.lease_end, until)
                    commit.touch(life)

    def _compare(self, lives: Sequence[Life]) -> None:
        """The rows of these jobs with what they must be."""
        rows = {row[0]: row[1:] for row in self._stage.rows([life.id for life in lives])}
        for life in lives:
            row = rows.get(life.id)
            if row is None:
                if life.finished_at is None:
                    raise Broken("the job is gone", life)
                continue  # deleted: see `_look_for_deleted`
            status, attempts, token, limit, run_at, lease, end, finished, result, error = row
            if life.status == "failed" and not error:
                raise Broken("it failed without an error", life)
            found = (status, attempts, token, limit, run_at, lease, end, finished, result)
            expected = (
                *(life.status, life.attempts, life.token, life.limit, life.run_at),
                *(life.lease, life.lease_end, life.finished_at, life.result),
            )
            if found != expected and not self._adopt_pause(life, found, expected):
                raise Broken(f"its row says {_shown(found)}, it must be {_shown(expected)}", life)

    def _adopt_pause(self, life: Life, found: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
        """Whether all that differs is when it is tried again, within what its policy allows."""
        if life.retry_from is None or found[:4] != expected[:4] or found[5:] != expected[5:]:
            return False
        low, high = life.pause()
        if life.status == "processing":  # claimed at once: the pause was of the attempt before
            low = high = 0.0
        early = life.retry_from + math.floor(low * 1000)
        late = life.retry_from + math.ceil(high * 1000)
        if not early <= found[4] <= late:
            return False
        life.run_at = found[4]
        return True

    def _look_for_deleted(self, commit: Commit) -> None:
        prunes = commit.asks(Prune)
        if not prunes:
            return
        there = set(self._stage.job_ids())
        before: dict[str, int] = {}
        for prune in prunes:
            for status, time in prune.before.items():
                before[status] = max(before.get(status, 0), round(time.timestamp() * 1000))
        commit.prunable = sum(
            life.finished_at is not None and life.finished_at < before.get(life.status, 0)
            for life in self.lives.all.values()
        )
        for life in [life for life in self.lives.all.values() if life.id not in there]:
            self.lives.prune(life, before)
            commit.deleted.append(life)
            self.note(f"job {life.number} deleted")
        self.count("jobs pruned", len(commit.deleted))

    def _count_verdicts(self, one: Asked) -> None:
        if isinstance(one.answer, Exchange):
            for verdict in one.answer.verdicts:
                self.count(f"reports {verdict.answer.replace('_', ' ')}")

    # --- now and then

    def look_at_everything(self) -> None:
        """Every row, and what `tenure verify` says."""
        if sorted(self.lives.all) != self._stage.job_ids():
            raise Broken("the jobs that are there are not those that were added")
        self._compare(list(self.lives.all.values()))
        for invariant, job_id, what in self._stage.violations():
            raise Broken(f"verify: {invariant}: {what}", self.lives.all.get(job_id))


def _short(answer: Any) -> str:
    if isinstance(answer, TenureError):
        return type(answer).__name__ if answer is not UNKNOWN else "unknown"
    if isinstance(answer, Exchange):
        told = "".join(f" {verdict.answer}" for verdict in answer.verdicts)
        return f"{len(answer.leases)} leased{told}"
    if isinstance(answer, list | set):
        return str(len(answer))
    return "done"


def _shown(values: Sequence[Any]) -> str:
    return " ".join(str(value) for value in values)
