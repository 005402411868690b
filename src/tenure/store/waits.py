"""Waiting for jobs to be settled: one thread and one query for all callers in this process.

A commit of this process wakes the callers who wait for its jobs. On SQLite the watch of the file
wakes all. Nothing depends on that: the thread looks after 5 ms, then after each eighth of the time
waited, and at least four times a second. While no caller waits there is no thread and no query.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from copy import copy
from math import inf
from typing import Any, TypeAlias

from tenure.errors import JobNotFound, ResultGone, StoreUnavailable, TenureError
from tenure.lifecycle import Job
from tenure.store.reader import Reader
from tenure.store.work import Work, touched_jobs

FIRST_LOOK_SECONDS = 0.005
MAX_PAUSE_SECONDS = 0.25
DOUBT_SECONDS = 0.75
SHARE = 1 / 8
"""The pause between looks, as a share of the time waited."""
WOKEN_SHARE = 1 / 64
"""The same where commits of any process wake: they may come by the thousand per second."""
JOBS_AT_ONCE = 500

Doubt: TypeAlias = Callable[[], Exception | None]
"""Returns why a job will never be settled while its caller waits, None if it may be."""


class Pending:
    """One who waits for one job. Times are in seconds, by the clock as the thread here reads it.

    Libraries that freeze time in tests give callers another one.
    """

    def __init__(self, job_id: str, doubt: Doubt | None = None) -> None:
        self.future: Future[Job] = Future()
        self.job_id = job_id
        self.doubt = doubt
        self.began = inf  # until the first look
        self.looked = self.due = 0.0
        self.seen = False

    def put_off(self, now: float) -> None:
        """Look again after the pause; the job exists and is not settled, as far as is known."""
        self.began = min(self.began, now)
        pause = max((now - self.began) * SHARE, FIRST_LOOK_SECONDS - (now - self.began))
        self.looked, self.due = now, now + min(pause, MAX_PAUSE_SECONDS)


class Waits:
    """All who wait for jobs of one store. `watch`, if given, calls what it is given after commits.

    It returns the function that ends this.
    """

    def __init__(
        self, reader: Reader, watch: Callable[[Callable[[], None]], Callable[[], None]] | None
    ) -> None:
        self._reader = reader
        self._watch = watch
        self._changed = threading.Condition()
        self._waits: set[Pending] = set()
        self._running = False
        self._closed = False

    def add(self, job_id: str, doubt: Doubt | None = None) -> Future[Job]:
        """Return a future of the settled job. Cancel the future to stop waiting.

        It raises JobNotFound if there is no such job, ResultGone if the job is deleted meanwhile,
        StoreUnavailable if the first look fails or the store is closed, and after a while what
        `doubt` returns.
        """
        wait = Pending(job_id, doubt)
        with self._changed:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            self._waits.add(wait)
            if not self._running:
                self._start()
            self._changed.notify()
        return wait.future

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="tenure-waits", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # a limit of the machine
            self._waits.clear()
            raise StoreUnavailable(f"the job cannot be waited for: {error}") from error
        self._running = True

    def wake(self, answers: Sequence[tuple[Work, Any]]) -> None:
        """Look at once at the jobs that a commit of this process may have settled."""
        if not self._waits:
            return
        touched = [touched_jobs(work) for work, _ in answers]
        with self._changed:
            for wait in self._waits:
                if any(job_ids is None or wait.job_id in job_ids for job_ids in touched):
                    wait.due = 0.0
            self._changed.notify()

    def _wake_all(self) -> None:
        now = time.monotonic()
        with self._changed:
            for wait in self._waits:
                wait.due = min(wait.due, wait.looked + (now - wait.began) * WOKEN_SHARE)
            self._changed.notify()

    def close(self) -> None:
        """End every wait with StoreUnavailable."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        with ExitStack() as ending:
            with suppress(StoreUnavailable):  # then the pauses alone decide
                if self._watch is not None:
                    ending.callback(self._watch(self._wake_all))
            while due := self._next():
                for start in range(0, len(due), JOBS_AT_ONCE):
                    self._look(due[start : start + JOBS_AT_ONCE])

    def _next(self) -> list[Pending]:
        """Block until some waits are due and return them; return none once no caller waits."""
        with self._changed:
            while True:
                self._waits = {wait for wait in self._waits if not wait.future.done()}
                if self._closed:
                    for wait in self._waits:
                        _answer(wait, StoreUnavailable("the store was closed"))
                if self._closed or not self._waits:
                    self._running = False
                    return []
                now = time.monotonic()
                if due := [wait for wait in self._waits if wait.due <= now]:
                    for wait in due:
                        wait.put_off(now)  # first: a commit during the look makes it due again
                    return due
                self._changed.wait(min(wait.due for wait in self._waits) - now)

    def _look(self, due: Sequence[Pending]) -> None:
        try:
            settled = self._reader.settled({wait.job_id for wait in due})
        except Exception as error:
            for wait in due:  # an outage ends no wait that had its first look
                if not (wait.seen and isinstance(error, StoreUnavailable)):
                    _answer(wait, _another(error))
            return
        for wait in due:
            if wait.job_id not in settled:
                _answer(wait, (ResultGone if wait.seen else JobNotFound)(wait.job_id))
            elif job := settled[wait.job_id]:
                _answer(wait, job)
            elif wait.doubt is not None and wait.looked - wait.began >= DOUBT_SECONDS:
                _answer(wait, _reason(wait.doubt))
            wait.seen = True


def _reason(doubt: Doubt) -> Exception | None:
    """Return what a doubt answers, or what it raises; during an outage, nothing."""
    try:
        return doubt()
    except StoreUnavailable:
        return None
    except Exception as error:  # the thread serves every other caller too
        return error


def _another(error: Exception) -> Exception:
    """Return an error like this one: who raises it changes its traceback and its context."""
    if not isinstance(error, TenureError):
        return error
    made = copy(error)
    made.__cause__ = error
    return made


def _answer(wait: Pending, answer: Job | Exception | None) -> None:
    if answer is not None and wait.future.set_running_or_notify_cancel():
        if isinstance(answer, Job):
            wait.future.set_result(answer)
        else:
            wait.future.set_exception(answer)
