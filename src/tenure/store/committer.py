"""Group commit: one thread per store through which every write of the process goes.

The thread takes everything that is waiting, applies it as set-based statements in one transaction,
commits, and answers the callers' futures. Batches come from load, never from timers: an idle store
commits at once. A sync caller waits on the future, an async caller awaits the same one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from tenure.errors import StoreUnavailable, TenureError
from tenure.records import Added, Addition, ClaimRequest, Report, Turn
from tenure.store import moves
from tenure.store.database import Database, Trouble

log = logging.getLogger(__name__)

MOST_ITEMS = 4_000
"""Jobs and reports that one transaction takes at most, so that nobody waits behind a mountain."""
MOST_TRIES = 4
ANNOUNCE_SECONDS = 0.005
SEEN_SECONDS = 5.0


@dataclass(slots=True)
class Adding:
    """Jobs to add, all or none."""

    additions: Sequence[Addition]
    future: Future[list[Added]] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.additions)


@dataclass(slots=True)
class Turning:
    """A worker's turn: what finished, and what it can take."""

    reports: Sequence[Report]
    claim: ClaimRequest | None
    future: Future[Turn] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.reports) + (self.claim.limit if self.claim else 0)


@dataclass(slots=True)
class Acting:
    """Anything else, as a function run inside the transaction."""

    act: Callable[[Database], Any]
    future: Future[Any] = field(default_factory=Future)
    size: int = 1


Work = Adding | Turning | Acting


class Committer:
    """The writing thread of one store. `on_work` is called after commits that may bring work."""

    def __init__(self, database: Database, on_work: Callable[[], None]) -> None:
        self._db = database
        self._on_work = on_work
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tenure-commit", daemon=True)
        self._lock = threading.Lock()  # nothing is queued behind the mark that ends the thread
        self._closed = False
        self._seen: dict[str, float] = {}
        self._announced = 0.0
        self._owes_announcement = False

    def submit(self, work: Work) -> None:
        """Queue work; its future is answered after the commit."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if not self._thread.is_alive():
                self._thread.start()
            self._waiting.put(work)

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._db.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            batch: list[Work] = []
            size = 0
            work = self._waiting.get()
            try:
                while work is not None:
                    if work.future.set_running_or_notify_cancel():  # else its caller went away
                        batch.append(work)
                        size += work.size
                    if size >= MOST_ITEMS:
                        break
                    work = self._waiting.get_nowait()
                else:
                    closing = True
            except Empty:
                pass
            if batch:
                self._commit(batch)
        self._db.close()

    def _commit(self, batch: Sequence[Work], tries: int = 1) -> None:
        asked_to_commit = False
        try:
            self._db.begin()
            answers = self._apply(batch)
            asked_to_commit = True
            self._db.commit()
        except Exception as error:
            self._db.rollback()
            trouble = self._db.trouble(error)
            if trouble is Trouble.UNAVAILABLE and not asked_to_commit and tries == 1:
                trouble = Trouble.RETRY  # often only a connection that died while idle
            self._after_failure(batch, tries, error, trouble)
            return
        for work, answer in answers:
            if isinstance(answer, TenureError):
                work.future.set_exception(answer)
            else:
                work.future.set_result(answer)
        self._after_commit(batch)

    def _after_failure(
        self, batch: Sequence[Work], tries: int, error: Exception, trouble: Trouble
    ) -> None:
        if trouble is Trouble.RETRY and tries < MOST_TRIES:
            self._commit(batch, tries + 1)
        elif trouble is Trouble.UNAVAILABLE or trouble is Trouble.RETRY:
            for work in batch:
                # An exception of its own for every caller: they add notes and tracebacks to it.
                work.future.set_exception(StoreUnavailable(f"the database failed: {error}"))
        elif len(batch) > 1:
            for work in batch:  # only the guilty one fails
                self._commit([work])
        else:
            batch[0].future.set_exception(error)

    def _apply(self, batch: Sequence[Work]) -> list[tuple[Work, Any]]:
        answers: list[tuple[Work, Any]] = []
        turns = [work for work in batch if isinstance(work, Turning)]
        verdicts = iter(moves.settle(self._db, [r for turn in turns for r in turn.reports]))
        settled = [[next(verdicts) for _ in turn.reports] for turn in turns]
        answers += self._add([work for work in batch if isinstance(work, Adding)])
        for work in batch:
            if isinstance(work, Acting):
                answers.append((work, self._act(work)))
        for turn, verdict in zip(turns, settled, strict=True):
            leases = self._claim(turn.claim) if turn.claim else []
            answers.append((turn, Turn(verdict, leases)))
        return answers

    def _add(self, works: Sequence[Adding]) -> list[tuple[Work, Any]]:
        singles = [work for work in works if len(work.additions) == 1]
        added = moves.add_each(self._db, [work.additions[0] for work in singles]) if singles else []
        answers: list[tuple[Work, Any]] = [
            (work, answer if isinstance(answer, TenureError) else [answer])
            for work, answer in zip(singles, added, strict=True)
        ]
        for work in works:
            if len(work.additions) == 1:
                continue
            self._db.savepoint()
            several = moves.add_together(self._db, work.additions)
            if isinstance(several, TenureError):
                self._db.undo_to_savepoint()
            answers.append((work, several))
        return answers

    def _act(self, work: Acting) -> Any:
        self._db.savepoint()
        try:
            return work.act(self._db)
        except TenureError as refusal:
            self._db.undo_to_savepoint()
            return refusal

    def _claim(self, request: ClaimRequest) -> Any:
        now = time.monotonic()
        if now - self._seen.get(request.worker, -SEEN_SECONDS) >= SEEN_SECONDS:
            self._db.see_worker(request)
            self._seen = {w: t for w, t in self._seen.items() if now - t < 10 * SEEN_SECONDS}
            self._seen[request.worker] = now
        return self._db.claim(request) if request.limit > 0 else []

    def _after_commit(self, batch: Sequence[Work]) -> None:
        """Wake whoever waits for work: here at once, elsewhere by a hint nothing depends on."""
        try:
            if any(not isinstance(w, Turning) or _may_requeue(w) for w in batch):
                self._owes_announcement = True
                self._on_work()
            now = time.monotonic()
            if self._owes_announcement and (
                self._waiting.empty() or now - self._announced >= ANNOUNCE_SECONDS
            ):
                self._db.announce()
                self._owes_announcement = False
                self._announced = now
            self._db.tidy()
        except Exception as error:
            log.warning("housekeeping after a commit failed, it will be tried again: %s", error)
            self._db.rollback()


def _may_requeue(turn: Turning) -> bool:
    return any(report.outcome != "completed" for report in turn.reports)
