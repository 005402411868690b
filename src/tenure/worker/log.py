"""What a worker logs of its jobs: one line for each transition that it causes.

A line is written after the store has recorded the transition. Claims, completions and releases are
logged at level `debug` only: a line for each would cost more than a short job. A failure is logged
as `info` if a retry follows, which has a line too, and as `warning` if it is final.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tenure.events import STORE, Claimed, Retried
from tenure.jobs.redaction import Redaction
from tenure.jobs.work import Answer, Lease, Outcome, Report, Verdict
from tenure.telemetry.logs import log_transition
from tenure.worker.failures import FailureCalls
from tenure.worker.leases import Attempt, log_fields

log = logging.getLogger(__name__)

_FAILED = Outcome.FAILED
_SHOWN = (Outcome.FAILED, Outcome.INTERRUPTED)
_TOO_LATE = (Answer.LOST, Answer.CONFLICT)


class WorkLog:
    """The log of one worker. Its loop and the thread of its heartbeat both call it."""

    def __init__(self, worker: str, redaction: Redaction, failures: FailureCalls) -> None:
        self.detailed = False
        self._failures = failures
        self._worker = worker
        self._redaction = redaction

    def refresh_level(self) -> None:
        """Read the log level. Called once per exchange, because asking for every job is slow."""
        self.detailed = log.isEnabledFor(logging.DEBUG)

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Log that jobs were leased to this worker."""
        if self.detailed:
            for lease in leases:
                fields = log_fields(lease, self._worker)
                log_transition(log, Claimed.name, fields, logging.DEBUG)

    def answered(self, attempts: Sequence[Attempt], verdicts: Sequence[Verdict]) -> None:
        """Log what the store made of the reports of these attempts."""
        for attempt, verdict in zip(attempts, verdicts, strict=True):
            report = attempt.report
            assert report is not None
            if verdict.answer in _TOO_LATE:
                log.warning(
                    "the report of %s for job %s came too late: %s %s",
                    report.outcome,
                    report.job_id,
                    verdict.answer,
                    verdict.recorded,
                )
            elif self.detailed or report.outcome in _SHOWN:
                self._log_recorded(attempt, report, verdict)
                if report.outcome is _FAILED:
                    if self._failures:
                        error = self._hidden(report.error, attempt.lease)
                        final = _is_final(verdict)
                        self._failures.add(
                            attempt.lease, error, attempt.exception, final, verdict.retry_in
                        )
                    attempt.exception = None  # its frames refer to the attempt: leave no cycle

    def _log_recorded(self, attempt: Attempt, report: Report, verdict: Verdict) -> None:
        level = _level(report, verdict)
        if not log.isEnabledFor(level):  # nor is the line of its retry
            return
        fields = attempt.log_fields()
        ended = dict(fields)
        if attempt.seconds is not None:
            ended["duration"] = round(attempt.seconds, 6)
        if report.outcome is _FAILED:
            ended["error"] = self.redacted(report.error, attempt.lease)
        log_transition(log, report.outcome, ended, level)
        if verdict.retry_in is not None:
            fields |= {"actor": STORE, "delay": round(verdict.retry_in, 3)}
            log_transition(log, Retried.name, fields)

    def redacted(self, error: str, lease: Lease) -> str:
        """Return the first line of an error, without the values that are redacted."""
        return self._hidden(error, lease).partition("\n")[0]

    def _hidden(self, error: str, lease: Lease) -> str:
        return self._redaction.hider(lease.payload)(error)


def _level(report: Report, verdict: Verdict) -> int:
    if report.outcome is not _FAILED:
        return logging.INFO if report.outcome in _SHOWN else logging.DEBUG
    return logging.WARNING if _is_final(verdict) else logging.INFO


def _is_final(verdict: Verdict) -> bool:
    # A repeated answer does not say whether there was a retry.
    return verdict.answer is Answer.RECORDED and verdict.retry_in is None
