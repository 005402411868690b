"""What a worker says of its jobs: its log, and calls of the functions of `on_failure`.

The log has one line for each transition that the worker causes, written after the store has
recorded it. Claims and releases are logged at level `debug` only: a line for each would cost more
than a short job. So are snoozes that let no other job wait, and completions, but of these one a
second has a line at `info`, so that people see the worker work. A failure is logged with its
exception, as `warning` if a retry follows, which has a line too, and as `error` if it is final. A
job that fails at once would spend a tenth of its time on that. So where many of one type fail and
are tried again, not all have lines, and one says how many others there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from msgspec.structs import replace

from tenure.events import STORE, Claimed, Retried
from tenure.handlers.registry import Failure, OnFailure, PlainFailure
from tenure.lifecycle import Job
from tenure.rules.reports import Answer, Lease, Outcome, Report, Verdict
from tenure.telemetry.logs import Repeats, log_failure, log_transition
from tenure.values.redaction import Redaction
from tenure.worker.leases import BUSY, Attempt, log_fields

log = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""Failures that wait for slow functions; those beyond are logged only."""
FINISH_SECONDS = 5.0


class FailureCalls:
    """Calls each function for each failure, one after the other, on a thread."""

    def __init__(self, functions: Sequence[OnFailure]) -> None:
        self._functions = functions
        self._waiting: SimpleQueue[Failure | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="tenure-failures", daemon=True)

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(
        self,
        job: Lease | Job,
        error: str,
        exception: BaseException | None,
        final: bool,
        retry_in: float | None,
    ) -> None:
        """Call the functions soon. Safe from any thread, also before `start`."""
        facts = job.id, job.type, job.queue, job.attempts, job.max_retries
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(Failure(*facts, error, exception, final, retry_in))
        else:
            log.warning("on_failure is too slow: it is not called for job %s", job.id)

    def start(self) -> None:
        """Begin, with the running loop as the one for coroutines."""
        if self._functions:
            self._loop = asyncio.get_running_loop()
            self._thread.start()

    async def finish(self) -> None:
        """Wait until the functions were called for all failures so far, for a few seconds."""
        self._waiting.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, FINISH_SECONDS)

    def call(self, run: Callable[[Coroutine[Any, Any, Any]], object]) -> None:
        """Call them for all failures so far on this thread; `run` runs the coroutines."""
        self._waiting.put(None)
        self._run(run)

    def _run(self, run: Callable[[Coroutine[Any, Any, Any]], object] | None = None) -> None:
        while (failure := self._waiting.get()) is not None:
            for function in self._functions:
                try:
                    answer = function(failure)
                    if isinstance(answer, Coroutine):
                        (run or self._run_on_loop)(answer)
                except BaseException:  # even SystemExit, because the next function must be called
                    log.exception("on_failure failed for job %s", failure.id)

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


# --- log ------------------------------------------------------------------------------------------

SHOWN_SECONDS = 1.0
"""Pause between two completions that have a line, and the time in which failures are counted."""
MAX_FAILURES = 100
"""Failures of one type that have lines in that time although they are tried again."""
UNSTORABLE = "the result of job %s (%s) cannot be stored, a note is kept instead: %s"
LOCKED = (
    "the outcome of job %s (%s) cannot be recorded: another transaction has the job locked, or one"
    " that waits for it. It is sent again until that ends; `tenure doctor` says who it is"
)

NOT_COMMITTED = "the transaction in which the handler completed this job was not committed"
"""The error of an attempt that returned after that. The store has the answer whether it is true."""

_FAILED, _COMPLETED = Outcome.FAILED, Outcome.COMPLETED
_SHOWN = (Outcome.FAILED, Outcome.INTERRUPTED)
_TOO_LATE = (Answer.LOST, Answer.CONFLICT)
_COMMITTED = Verdict(Answer.CONFLICT, Outcome.COMPLETED)


class WorkLog:
    """The log of one worker. Its loop and the thread of its heartbeat both call it."""

    def __init__(self, worker: str, redaction: Redaction, failures: FailureCalls) -> None:
        self.detailed = False
        self._shows_retries = True
        self._failures = failures
        self._worker = worker
        self._redaction = redaction
        self._locked = Repeats()
        self._others = 0  # completions without a line
        self._last: Attempt | None = None  # of these
        self._shown_at = -SHOWN_SECONDS
        self._failed: dict[str, _Failed] = {}  # those of each type, if they are tried again

    def refresh_level(self) -> None:
        """Read the log level. Called once per exchange, because asking for every job is slow."""
        self.detailed = log.isEnabledFor(logging.DEBUG)
        self._shows_retries = log.isEnabledFor(logging.INFO)

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Log that jobs were leased to this worker."""
        if self.detailed:
            for lease in leases:
                fields = log_fields(lease, self._worker)
                log_transition(log, Claimed.name, fields, logging.DEBUG)

    def answered(self, attempts: Sequence[Attempt], verdicts: Sequence[Verdict]) -> None:
        """Log what the store made of the reports of these attempts."""
        if self._failed:
            self.catch_up(time.monotonic())
        completed: Attempt | None = None
        for attempt, verdict in zip(attempts, verdicts, strict=True):
            report = attempt.report
            assert report is not None
            if verdict.answer is BUSY:
                # A handler that was stopped may end its own transaction in a moment.
                ends_soon = report.uncertain and not attempt.was_busy
                attempt.was_busy = True
                if not ends_soon and self._locked.is_due(report.job_id):
                    log.warning(LOCKED, report.job_id, attempt.lease.type)
                continue
            if report.uncertain and verdict == _COMMITTED:
                if report.error != NOT_COMMITTED:
                    self._failed_after(attempt, report)
                elif self.detailed:
                    log_transition(log, _COMPLETED, _ended(attempt), logging.DEBUG)
                else:
                    self._others += 1
                    completed = attempt
            elif verdict.answer in _TOO_LATE and verdict.error:
                attempt.report = replace(report, outcome=_FAILED, error=verdict.error)
                recorded = Verdict(Answer.RECORDED, retry_in=verdict.retry_in)
                self._recorded(attempt, attempt.report, recorded)
            elif verdict.answer in _TOO_LATE:
                log.warning(
                    "the report of %s for job %s came too late: %s %s",
                    report.outcome,
                    report.job_id,
                    verdict.answer,
                    verdict.recorded,
                )
            elif report.outcome is _COMPLETED and not self.detailed:
                self._others += 1
                completed = attempt
            elif self.detailed or report.outcome in _SHOWN or report.pause:
                self._recorded(attempt, report, verdict)
        if completed is not None:
            self._last = completed
        if self._last is not None:
            self._show_completions(time.monotonic())

    def _show_completions(self, now: float) -> None:
        """Log one completion for all since the last line, if that was long enough ago."""
        last, others = self._last, self._others
        if last is not None and now - self._shown_at >= SHOWN_SECONDS:
            self._shown_at, self._others, self._last = time.monotonic(), 0, None
            log_transition(log, _COMPLETED, _ended(last, max(others - 1, 0)))

    def catch_up(self, now: float) -> None:
        """Log one completion, and one failure of each type, for those without lines so far.

        What has been counted long enough is logged; with an infinite `now`, everything.
        """
        self._show_completions(now)
        for type, failed in tuple(self._failed.items()):
            if now - failed.began >= SHOWN_SECONDS:
                self._failed.pop(type, None)  # another thread may have done it
                if failed.kept is not None:
                    self._show_failure(*failed.kept, others=failed.count - MAX_FAILURES - 1)

    def _recorded(self, attempt: Attempt, report: Report, verdict: Verdict) -> None:
        if report.outcome is not _FAILED:
            shown, fields = report.outcome in _SHOWN or report.pause, _ended(attempt)
            if report.pause:
                fields |= {"pause": report.pause, "delay": report.delay}
            log_transition(log, report.outcome, fields, logging.INFO if shown else logging.DEBUG)
            self._show_retry(attempt, verdict)
            return
        lease, final = attempt.lease, _is_final(verdict)
        if self._failures:
            error = self._hidden(report.error, lease)
            self._failures.add(lease, error, attempt.exception, final, verdict.retry_in)
        if not (final or self.detailed):
            failed = self._failed.get(lease.type)
            if failed is None:
                failed = self._failed[lease.type] = _Failed(time.monotonic())
            failed.count += 1
            if failed.count > MAX_FAILURES:
                if failed.kept is None:
                    failed.kept = (attempt, verdict)
                else:
                    attempt.exception = None
                return
        self._show_failure(attempt, verdict)

    def _show_failure(self, attempt: Attempt, verdict: Verdict, others: int = 0) -> None:
        report, fields = attempt.report, _ended(attempt, others)
        assert report is not None
        error = self._hidden(report.error, attempt.lease)
        fields["error"] = error.partition("\n")[0]
        level = logging.ERROR if _is_final(verdict) else logging.WARNING
        plain = issubclass(type(attempt.exception), PlainFailure)
        exception = None if plain else attempt.exception
        log_failure(log, report.outcome, fields, level, error, exception)
        attempt.exception = None  # its frames refer to the attempt: leave no cycle
        self._show_retry(attempt, verdict)

    def _show_retry(self, attempt: Attempt, verdict: Verdict) -> None:
        if verdict.retry_in is not None and self._shows_retries:
            retry = {"actor": STORE, "delay": round(verdict.retry_in, 3)}
            log_transition(log, Retried.name, attempt.log_fields() | retry)

    def _failed_after(self, attempt: Attempt, report: Report) -> None:
        """Warn of a failure that is kept nowhere else: the job was completed before."""
        error = self._hidden(report.error, attempt.lease)
        log.warning("job %s had been completed when its handler failed: %s", report.job_id, error)
        attempt.exception = None

    def ignored(self, lease: Lease) -> None:
        """Warn that a handler returned another result than the one that its job has."""
        log.warning(
            "job %s (%s): what its handler returned is ignored, since it had completed the job: "
            "give context.complete() the result",
            *(lease.id, lease.type),
        )

    def unstorable(self, lease: Lease, flaw: str) -> None:
        """Warn that a handler returned what cannot be stored."""
        log.warning(UNSTORABLE, lease.id, lease.type, self.redacted(flaw, lease))

    def redacted(self, error: str, lease: Lease) -> str:
        """Return the first line of an error, without the values that are redacted."""
        return self._hidden(error, lease).partition("\n")[0]

    def _hidden(self, error: str, lease: Lease) -> str:
        return self._redaction.hider(lease.payload)(error) if self._redaction else error


@dataclass(slots=True)
class _Failed:
    """Failures since a time of the monotonic clock; `kept` is the first that has no line."""

    began: float
    count: int = 0
    kept: tuple[Attempt, Verdict] | None = None


def _ended(attempt: Attempt, others: int = 0) -> dict[str, Any]:
    fields = attempt.log_fields()
    if others:
        fields["others"] = others
    if attempt.seconds is not None:
        fields["duration"] = round(attempt.seconds, 6)
    return fields


def _is_final(verdict: Verdict) -> bool:
    # A repeated answer does not say whether there was a retry.
    return verdict.answer is Answer.RECORDED and verdict.retry_in is None
