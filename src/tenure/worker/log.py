"""What a worker logs of its jobs: one line for each transition that it causes.

A line is written after the store has recorded the transition. Claims, completions and releases are
logged at level `debug` only: a line for each would cost more than a short job. A failure is logged
as `info` if a retry follows, which has a line too, and as `warning` if it is final.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tenure.jobs.redaction import Redaction
from tenure.jobs.work import Answer, Lease, Outcome, Report, Verdict
from tenure.lifecycle import STORE, Claimed, Retried
from tenure.telemetry.logs import log_transition

log = logging.getLogger(__name__)

RECORDED = (Answer.RECORDED, Answer.ALREADY_RECORDED)


class WorkLog:
    """The log of one worker. Its loop and the thread of its heartbeat both call it."""

    def __init__(self, worker: str, redaction: Redaction) -> None:
        self.detailed = False
        self._worker = worker
        self._redaction = redaction
        self._ended: dict[str, tuple[Lease, dict[str, Any]]] = {}  # by lease id, until answered

    def refresh_level(self) -> None:
        """Read the log level. Called once per exchange, because asking for every job is slow."""
        self.detailed = log.isEnabledFor(logging.DEBUG)

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Log that jobs were leased to this worker."""
        if self.detailed:
            for lease in leases:
                fields = fields_of(lease, self._worker)
                log_transition(log, Claimed.name, fields, level=logging.DEBUG)

    def ended(self, lease: Lease, report: Report, seconds: float | None) -> None:
        """Keep what is to be logged of an attempt once the store has answered its report.

        `seconds` is how long the handler ran, None if it never started.
        """
        if self.detailed or report.outcome is Outcome.FAILED:
            extra: dict[str, Any] = {}
            if seconds is not None:
                extra["duration"] = round(seconds, 6)
            if report.outcome is Outcome.FAILED:
                extra["error"] = self.redacted(report.error, lease)
            self._ended[lease.lease_id] = (lease, extra)

    def redacted(self, error: str, lease: Lease) -> str:
        """Return the first line of an error, without the values that are redacted."""
        return self._redaction.within(error.partition("\n")[0], lease.payload)

    def answered(self, reports: Sequence[Report], verdicts: Sequence[Verdict]) -> None:
        """Log the transitions that the store recorded for these reports."""
        if not self._ended:
            return
        for report, verdict in zip(reports, verdicts, strict=True):
            lease, extra = self._ended.pop(report.lease_id, (None, {}))
            if lease is None or verdict.answer not in RECORDED:
                continue
            fields = fields_of(lease, self._worker)
            level = _level(report, verdict)
            log_transition(log, report.outcome, {**fields, **extra}, level=level)
            if verdict.retry_in is not None:
                fields["actor"] = STORE
                log_transition(log, Retried.name, fields, delay=verdict.retry_in)

    def forget(self, lease_id: str) -> None:
        """Drop what was kept of an attempt that is not reported."""
        self._ended.pop(lease_id, None)


def _level(report: Report, verdict: Verdict) -> int:
    if report.outcome is not Outcome.FAILED:
        return logging.DEBUG
    # A repeated answer does not say whether there was a retry.
    final = verdict.answer is Answer.RECORDED and verdict.retry_in is None
    return logging.WARNING if final else logging.INFO


def fields_of(lease: Lease, worker: str) -> dict[str, Any]:
    """Return the fields of a log line about an attempt."""
    return {
        "job": lease.id,
        "type": lease.type,
        "queue": lease.queue,
        "attempt": lease.attempts,
        "worker": worker,
    }
