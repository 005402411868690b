"""What a worker logs of its jobs: one line for each transition that it causes.

A line is written after the store has recorded the transition. Claims and releases are logged at
level `debug` only: a line for each would cost more than a short job. So are completions, but one a
second has a line at `info`, so that people see the worker work. A failure is logged with its
exception, as `warning` if a retry follows, which has a line too, and as `error` if it is final.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from tenure.events import STORE, Claimed, Retried
from tenure.jobs.redaction import Redaction
from tenure.jobs.work import Answer, Lease, Outcome, Report, Verdict
from tenure.telemetry.logs import log_failure, log_transition
from tenure.worker.failures import FailureCalls
from tenure.worker.leases import Attempt, log_fields

log = logging.getLogger(__name__)

SHOWN_SECONDS = 1.0
"""Pause between two completions that have a line."""
UNSTORABLE = "the result of job %s (%s) cannot be stored, a note is kept instead: %s"

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
        self._others = 0  # completions without a line
        self._shown_at = -SHOWN_SECONDS

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
        completed: Attempt | None = None
        for attempt, verdict in zip(attempts, verdicts, strict=True):
            report = attempt.report
            assert report is not None
            if verdict.answer is Answer.BUSY:
                continue
            if report.uncertain and verdict == _COMMITTED:
                if report.error != NOT_COMMITTED:
                    self._failed_after(attempt, report)
                elif self.detailed:
                    log_transition(log, _COMPLETED, _ended(attempt), logging.DEBUG)
                else:
                    self._others += 1
                    completed = attempt
            elif verdict.answer in _TOO_LATE:
                log.warning(
                    "the report of %s for job %s came too late: %s %s",
                    report.outcome,
                    report.job_id,
                    verdict.answer,
                    verdict.recorded,
                )
            elif self.detailed or report.outcome in _SHOWN:
                self._recorded(attempt, report, verdict)
            elif report.outcome is _COMPLETED:
                self._others += 1
                completed = attempt
        if completed is not None and time.monotonic() - self._shown_at >= SHOWN_SECONDS:
            self._show(completed)

    def _show(self, completed: Attempt) -> None:
        """Log one completion for all since the last one."""
        fields = _ended(completed)
        if self._others > 1:
            fields["others"] = self._others - 1
        log_transition(log, _COMPLETED, fields)
        self._shown_at, self._others = time.monotonic(), 0

    def _recorded(self, attempt: Attempt, report: Report, verdict: Verdict) -> None:
        fields, lease = _ended(attempt), attempt.lease
        if report.outcome is _FAILED:
            error, final = self._hidden(report.error, lease), _is_final(verdict)
            fields["error"] = error.partition("\n")[0]
            level = logging.ERROR if final else logging.WARNING
            log_failure(log, report.outcome, fields, level, error, attempt.exception)
            if self._failures:
                self._failures.add(lease, error, attempt.exception, final, verdict.retry_in)
            attempt.exception = None  # its frames refer to the attempt: leave no cycle
        else:
            level = logging.INFO if report.outcome in _SHOWN else logging.DEBUG
            log_transition(log, report.outcome, fields, level)
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


def _ended(attempt: Attempt) -> dict[str, Any]:
    fields = attempt.log_fields()
    if attempt.seconds is not None:
        fields["duration"] = round(attempt.seconds, 6)
    return fields


def _is_final(verdict: Verdict) -> bool:
    # A repeated answer does not say whether there was a retry.
    return verdict.answer is Answer.RECORDED and verdict.retry_in is None
