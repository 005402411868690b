"""Group commit: the writes of the process go through the committing threads of its store.

There is one for each writing connection: one for SQLite, which has one writer, and up to two for
PostgreSQL, so that one batch is executed while another waits for the disk or for Python. The second
one starts when work would wait for the first, and ends when it is needed no longer. A thread takes
what is waiting, applies it in one transaction, commits, and answers the callers' futures. Batches
come from load, never from timers: an idle store commits at once.

`Direct` is the exception. It saves waking two threads: one job that is a whole transaction in one
call of the database is added on the thread of the caller who waits for it, on another connection,
while no other work is near that could share its commit. On PostgreSQL that is the connection of the
second committing thread, which takes it away for as long as there is work for two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from tenure import failpoints, forks
from tenure.errors import StoreUnavailable, TenureError
from tenure.rules.reports import Exchange, adds_jobs
from tenure.store import enqueue, transitions
from tenure.store.database import Database, Trouble, answer_to
from tenure.store.tables import workers
from tenure.store.work import (
    CallWork,
    EnqueueWork,
    ExchangeWork,
    LockedJobs,
    W,
    Work,
    done_alone,
    is_only_adding,
    made_wary,
    may_bring_work,
    parts,
    sets_limits,
    undoing,
    visit,
)
from tenure.telemetry.logs import Repeats

# --- commits on the thread of a caller ------------------------------------------------------------
# An exception such as KeyboardInterrupt may come between any two steps in here, and a signal
# handler may enqueue, too. So nothing here is locked: the caller who takes the connection out of
# the list has it, and if it gets lost on the way, all later work is queued.

CALM_SECONDS = 0.02
"""After so long without other work."""
MAX_COMMITS = 333
"""On SQLite, the next commit is the committing thread's, which tidies up."""


class Direct:
    """A connection for callers, or none."""

    def __init__(self, db: Database | None, clock: Callable[[], float]) -> None:
        """`db` must not wait for other writers: what is queued shares the wait."""
        self._clock = clock
        self._free = [db] if db else []
        self._closed = False
        self._commits = 0
        self._crowded = -CALM_SECONDS  # when there was other work, by the clock
        self._is_lent = False
        self.is_used = False  # since the last `rest`

    def use(self, act: Callable[[Database], bool]) -> bool:
        """Return whether `act`, called with the connection, has committed; False if it fails.

        Also False, without a call, while others use the connection or other work is near.
        """
        if self._clock() - self._crowded < CALM_SECONDS:
            return False
        while True:
            try:
                db = self._free.pop()
                break
            except IndexError:
                # Lent for some microseconds, or given back since: that comes before the mark goes.
                if not (self._is_lent or self._free):
                    return False
                time.sleep(0)
        committed = False
        try:
            if db.alone is not None or self._commits < MAX_COMMITS:
                committed = act(db)
        except Exception:
            db.rollback()
        finally:
            self._free.append(db)
            if self._closed:
                self.close()
        self._commits += committed
        self.is_used |= committed
        return committed

    def lend(self, act: Callable[[Database], None]) -> bool:
        """Call `act` with the connection; return False, without a call, while a caller uses it.

        For a committing thread, which would have to connect its own.
        """
        self._is_lent = True  # first: a caller who finds no connection waits for it
        try:
            db = self.take()
            if db is not None:
                try:
                    act(db)
                finally:
                    self.give(db)
        finally:
            self._is_lent = False
        return db is not None

    def tidy(self, db: Database) -> None:
        """Have `db` tidy up, also after the commits of callers, which have to wait meanwhile."""
        if not self._commits or db.alone is not None:
            return db.tidy()
        taken = self.take()  # None if a caller uses it; what that caller adds is queued
        try:
            commits, self._commits = self._commits, 0
            db.tidy(commits)
        finally:
            if taken is not None:
                self.give(taken)

    def take(self) -> Database | None:
        """Take the connection away, None if another thread has it; `give` brings it back."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, db: Database) -> None:
        """Bring back what `take` has returned."""
        self._free.append(db)
        if self._closed:
            self.close()

    def rest(self) -> None:
        """Give back what the connection costs, unless it was used since the last call."""
        if not self.is_used and (db := self.take()) is not None:
            try:
                db.rest()
            finally:
                self.give(db)
        self.is_used = False

    def note_other_work(self) -> None:
        self._crowded = self._clock()

    def close(self) -> None:
        """Close the connection, now or after its use."""
        self._closed = True
        while self._free:
            self._free.pop().close()


# --- group commit ---------------------------------------------------------------------------------

log = logging.getLogger(__name__)

MAX_ITEMS = 1_000
"""Jobs and reports after which a transaction takes no further work. So no caller waits behind a
huge one, and the next can be prepared, or go through another connection, in the meantime."""
MAX_TRIES = 4
IDLE_SECONDS = 30.0  # how long connections stay open without use, and threads that can be spared
ANNOUNCE_SECONDS = 0.005
"""Other processes are notified of new jobs at once, but not more often than this."""
LATE_SECONDS = 0.1  # then a thread uses another connection than that of callers
MOMENT = 0.001  # seconds later, a caller that commits has made the announcement, if there is one


class Committer:
    """The writing threads of one store. `on_work` is called after commits that may bring work."""

    def __init__(
        self,
        databases: Sequence[Database],
        on_work: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        direct: Database | None = None,
        on_commit: Callable[[Sequence[tuple[Work, Any]]], None] = lambda _: None,
    ) -> None:
        """Up to one thread for each of `databases`; `clock` measures pauses, in seconds.

        `direct` is for callers that commit on their own threads, and may be the second of
        `databases`. `on_commit` gets work and answers.
        """
        self._clock = clock
        self._on_work = on_work
        self._on_commit = on_commit
        self._waiting: SimpleQueue[Work | None] = SimpleQueue()
        self._databases = databases
        self._threads: dict[Database, threading.Thread] = {}
        self._free: set[Database] = set()  # those whose thread waits for work, or soon will
        self._crowded_at = 0.0  # when work had to wait for a thread last
        # Nothing is queued behind the marks that end the threads. A signal handler may close in the
        # middle of `submit`, on the same thread.
        self._lock = threading.RLock()
        self._closed = False
        self._pid = forks.pid
        self._sightings = workers.Sightings(clock)
        self._locked = LockedJobs()
        self._announcements = Announcements(clock)
        self._direct = Direct(direct, clock)
        self._lent = direct  # belongs to callers while no thread has it
        self._repeats = Repeats()

    @property
    def is_copy(self) -> bool:
        """Whether this process was forked from the one whose threads and connections these are."""
        return forks.pid != self._pid

    def refuse_copies(self) -> None:
        """Raise StoreUnavailable in the child of a fork."""
        if self.is_copy:
            raise StoreUnavailable(
                "this database was opened before a fork: close it before, or open it in the child; "
                + forks.ADVICE
            )

    def submit(self, work: W) -> W:
        """Queue work and return it; its future is answered after the commit."""
        self.refuse_copies()
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._waiting.qsize() >= len(self._free):
                self._crowded_at = self._clock()
                self._start_thread()
            self._waiting.put(work)
            if self._closed and not work.future.done():  # closed in the middle of this
                self._waiting.put(None)  # for a thread that was started since
                raise StoreUnavailable("the store was closed meanwhile")
        return work

    def do(self, work: W) -> W:
        """Do work for a caller who waits: one job or read perhaps on this thread, else queue it."""
        self.refuse_copies()
        if work.size == 1 and self._direct.use(partial(self._do_here, work)):
            return work
        return self.submit(work)

    def _do_here(self, work: Work, db: Database) -> bool:
        if self._commit_alone(db, [work]):
            return False
        if db.alone is not None and self._announcements.pause() == 0:
            self._announcements.make(db)
        if db.alone is not None and (self._announcements.plan() or not self._threads):
            with suppress(StoreUnavailable):
                self._rouse()  # which also lets connections rest
        return True

    def wake(self) -> None:
        self._announcements.owe()
        self._on_work()
        self._rouse()

    def _rouse(self) -> None:
        """Have a thread announce when it is time."""
        dropped = CallWork("wake", lambda _: None)
        dropped.future.cancel()
        self.submit(dropped)

    def _start_thread(self) -> None:
        """Start one more thread if there is a database for it; one is enough to continue."""
        db = next((db for db in self._databases if db not in self._threads), None)
        if db is None or (db is self._lent and self._direct.take() is None):
            return
        thread = threading.Thread(None, self._run, "tenure-commit", (db,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # a limit of the machine
            if db is self._lent:
                self._direct.give(db)
            if self._threads:
                return
            raise StoreUnavailable(f"nothing was written: {error}") from error
        self._threads[db] = thread

    def _is_one_too_many(self, db: Database) -> bool:
        """Whether the calling thread, a second one, can be done without; then it has to end."""
        if not self._lock.acquire(blocking=False):  # who closes waits for this thread
            return False
        try:
            if self._closed or self._clock() - self._crowded_at < IDLE_SECONDS:
                return False
            db.close()
            self._free.discard(db)
            del self._threads[db]
            if db is self._lent:
                self._direct.give(db)
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._waiting.put(None)
        for thread in self._threads.values():
            thread.join()
        for db in {*self._databases} - {*self._threads, self._lent}:
            db.close()
        self._direct.close()

    def _run(self, db: Database) -> None:
        closing = False
        while not closing:
            batch: list[Work] = []
            try:
                closing = self._wait_for_work(db, batch)
                if len(batch) > 1 or not is_only_adding(batch):
                    self._direct.note_other_work()
                for part in parts(db, batch):
                    self._free.discard(db)
                    self.commit(db, part)
                self._keep_house(db)
                if db is not self._databases[0] and self._is_one_too_many(db):
                    return
            except BaseException as error:  # later work would wait for a thread that has ended
                if self._repeats.is_due(error):
                    log.exception("a fault in a thread that writes, which continues")
                db.rollback()
                for work in batch:
                    if not work.future.done():
                        work.future.set_exception(answer_to(Trouble.UNCONFIRMED, error))
        db.close()

    def _wait_for_work(self, db: Database, batch: list[Work]) -> bool:
        """Add to a batch what is waiting, or what comes; return whether it is the last one."""
        size, idle, pause = 0, True, self._announcements.pause()
        self._free.add(db)
        try:
            work = self._waiting.get(timeout=IDLE_SECONDS if pause is None else pause + MOMENT)
            self._free.discard(db)
            idle = False
            while work is not None:
                if work.future.set_running_or_notify_cancel():  # else its caller went away
                    batch.append(work)
                    size += work.size
                if size >= MAX_ITEMS:
                    return False
                work = self._waiting.get_nowait()
            return True
        except Empty:
            if idle and pause is None:
                db.rest()
                self._direct.rest()
            return False

    def commit(self, db: Database, batch: Sequence[Work], tries: int = 1) -> None:
        """Do the work of a batch in one transaction and answer its callers.

        The threads call this, and so does the simulator, which has no threads.
        """
        asked_to_commit = committed = False
        try:
            batch = self._locked.pass_over(db, batch, waited=tries > 1)
            if not batch or not (batch := self._commit_alone(db, batch)):
                return
            db.begin(limits=sets_limits(batch))
            answers = self._apply(db, batch)
            visit("before_commit", batch)
            asked_to_commit = True
            db.commit()
            committed = True
            visit("after_commit", batch)
        except Exception as error:
            db.rollback()
            # What is committed must not be done again: its second answer would be a refusal.
            trouble = Trouble.UNCONFIRMED if committed else db.trouble(error)
            away = trouble in (Trouble.UNAVAILABLE, Trouble.FULL)
            if away and not asked_to_commit and tries == 1:
                trouble = Trouble.RETRY  # often only a connection that died while idle
            self._after_failure(db, batch, tries, error, trouble)
            return
        self._answer(db, answers)

    def _commit_alone(self, db: Database, batch: Sequence[Work]) -> Sequence[Work]:
        """Do and answer what one statement can, where that is faster; return the rest."""
        done, left = done_alone(db, batch, self._sightings.is_due)
        if done:
            visit("after_commit", [work for work, _ in done])
            self._answer(db, done)
        return left

    def _answer(self, db: Database, answers: Sequence[tuple[Work, Any]]) -> None:
        """Answer the callers, and notify waiting workers if there may be new jobs."""
        if db in self._threads:  # first: what a caller submits next needs no other one
            self._free.add(db)
        for work, answer in answers:
            if isinstance(answer, TenureError):
                work.future.set_exception(answer)
            else:
                work.future.set_result(answer)
        self._on_commit(answers)
        if any(may_bring_work(work, answer) for work, answer in answers):
            self._announcements.owe()
            self._on_work()

    def _after_failure(
        self, db: Database, batch: Sequence[Work], tries: int, error: Exception, trouble: Trouble
    ) -> None:
        again = trouble is Trouble.RETRY and tries < MAX_TRIES
        if again and self._locked.note(batch, error) and len(batch) > 1:
            self._commit_each(db, batch, tries)
        elif again:
            self.commit(db, batch, tries + 1)
        elif trouble in (Trouble.BUG, Trouble.REFUSED) and len(batch) > 1:
            for work in batch:  # only the one that cannot succeed fails
                self.commit(db, [work])
        elif wary := made_wary(batch[0], error, trouble):
            self.commit(db, [wary], tries)
        elif trouble is not Trouble.BUG:
            for work in batch:
                work.future.set_exception(answer_to(trouble, error))
        else:
            batch[0].future.set_exception(error)

    def _commit_each(self, db: Database, batch: Sequence[Work], tries: int) -> None:
        """Do each work alone, in two tries: others do not fail with the one that is locked.

        Where several wait in vain, perhaps the table is locked: the rest has one try together.
        """
        while batch and tries < MAX_TRIES:
            work, *batch = batch
            self.commit(db, [work], MAX_TRIES - 1)
            tries += isinstance(work.future.exception(), StoreUnavailable)
        if batch:
            self.commit(db, batch, MAX_TRIES)

    def _apply(self, db: Database, batch: Sequence[Work]) -> list[tuple[Work, Any]]:
        exchanges = [work for work in batch if isinstance(work, ExchangeWork)]
        calls = [work for work in batch if isinstance(work, CallWork)]
        reports = [report for exchange in exchanges for report in exchange.reports]
        recording = enqueue if adds_jobs(reports) else transitions
        recording.hold(db, reports, [id for work in calls for id in work.job_ids or ()])
        verdicts = iter(recording.settle(db, reports) if reports else ())
        settled = [[next(verdicts) for _ in exchange.reports] for exchange in exchanges]
        adding = [work for work in batch if isinstance(work, EnqueueWork)]
        answers: list[tuple[Work, Any]] = enqueue.add_works(db, adding) if adding else []
        answers += [(work, undoing(db, work.act)) for work in calls]
        self._sightings.note(db, [work.claim for work in exchanges if work.claim])
        for exchange, verdict in zip(exchanges, settled, strict=True):
            claim, wary = exchange.claim, exchange.wary
            leases = transitions.claim(db, claim, wary=wary) if claim else []
            due = transitions.next_due(db, exchange.claim, leases)
            answers.append((exchange, Exchange(verdict, leases, due)))
        return answers

    def _keep_house(self, db: Database) -> None:
        """Notify other processes of new work, and tidy up."""
        if self._announcements.pause() == 0:
            lent = self._direct.is_used and self._direct.lend(self._announcements.make)
            # A caller who has the connection announces, but may have to wait for a lock before.
            if not lent and (self._announcements.are_late() or not self._direct.is_used):
                self._announcements.make(db)
        try:
            self._direct.tidy(db)
        except Exception as error:
            if self._repeats.is_due(error):
                log.warning(
                    "the work after a commit failed, the next commit tries it again: %s", error
                )
            db.rollback()


class Announcements:
    """What a store owes other processes: hints, on which nothing depends. For any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is in seconds."""
        self._clock = clock
        self._announced = -ANNOUNCE_SECONDS
        self._owed_at = 0.0
        self._is_owed = self._is_planned = False
        self._repeats = Repeats()

    def owe(self) -> None:
        """Note that there may be new work."""
        if not self._is_owed:
            self._owed_at = self._clock()
        self._is_owed = True

    def are_late(self) -> bool:
        """Whether one has been owed for so long that no caller's connection is worth the wait."""
        return self._clock() - self._owed_at > LATE_SECONDS

    def pause(self) -> float | None:
        """Return the seconds until the next one is to be made, None if none is owed."""
        wait = self._announced + ANNOUNCE_SECONDS - self._clock()
        return max(wait, 0) if self._is_owed else None

    def plan(self) -> bool:
        """Return whether one is owed that no thread was to make yet; the caller sees to that."""
        is_new = self._is_owed and not self._is_planned
        self._is_planned |= is_new
        return is_new

    def make(self, db: Database) -> None:
        """Make the one that is owed. After a failure the next commit makes another."""
        self._is_owed = self._is_planned = False  # first: others may owe one again meanwhile
        self._announced = self._clock()
        try:
            failpoints.hit("announce.before")
            db.announce()
        except Exception as error:
            if self._repeats.is_due(error):
                log.warning("waiting workers were not notified of new jobs: %s", error)
            db.rollback()
