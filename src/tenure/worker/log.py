"""What a worker logs of its jobs: one line for each move that it causes, named after the move.

A line is written once the store has recorded the move, so that the log tells what is so. Claims,
completions and releases are written at level `debug` alone: where jobs take microseconds, a line
for each would be most of the work. Failures are always worth one: `info` if the job is tried again,
which is a line of its own, `warning` if that was the last attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tenure.jobs.redaction import Redaction
from tenure.jobs.work import Answer, Lease, Outcome, Report, Verdict
from tenure.lifecycle import STORE

log = logging.getLogger(__name__)

RECORDED = (Answer.RECORDED, Answer.ALREADY_RECORDED)


class WorkLog:
    """The log of one worker. Safe to call from its loop and from its heartbeat's thread."""

    def __init__(self, worker: str, redaction: Redaction) -> None:
        self.detailed = False
        self._worker = worker
        self._redaction = redaction
        self._ended: dict[str, dict[str, Any]] = {}  # by lease id, until the store has answered

    def look(self) -> None:
        """Take note of the level; once a turn, for to ask at every job would cost too much."""
        self.detailed = log.isEnabledFor(logging.DEBUG)

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Jobs were leased to this worker."""
        if self.detailed:
            for lease in leases:
                log.debug("job_claimed", extra=fields_of(lease, self._worker))

    def ended(self, lease: Lease, report: Report, seconds: float | None) -> None:
        """An attempt ended, after `seconds` of running if it ran; the store is yet to be told."""
        if self.detailed or report.outcome is Outcome.FAILED:
            fields: dict[str, Any] = fields_of(lease, self._worker)
            if seconds is not None:
                fields["duration"] = round(seconds, 6)
            if report.outcome is Outcome.FAILED:
                fields["error"] = self.shown(report.error, lease)
            self._ended[lease.lease_id] = fields

    def shown(self, error: str, lease: Lease) -> str:
        """What may be told of an error: its first line, which names it, without what is hidden."""
        return self._redaction.within(error.partition("\n")[0], lease.payload)

    def answered(self, reports: Sequence[Report], verdicts: Sequence[Verdict]) -> None:
        """The store has answered reports: log what it recorded."""
        if not self._ended:
            return
        for report, verdict in zip(reports, verdicts, strict=True):
            fields = self._ended.pop(report.lease_id, None)
            if fields is not None and verdict.answer in RECORDED:
                log.log(_level(report, verdict), "job_%s", report.outcome, extra=fields)
                if verdict.retry_in is not None:
                    log.info("job_retried", extra=_retried(fields, verdict.retry_in))

    def forget(self, lease_id: str) -> None:
        """The store will not be told of this attempt."""
        self._ended.pop(lease_id, None)


def _level(report: Report, verdict: Verdict) -> int:
    if report.outcome is not Outcome.FAILED:
        return logging.DEBUG
    # Where the first answer was lost, the second does not say whether there is a retry.
    final = verdict.answer is Answer.RECORDED and verdict.retry_in is None
    return logging.WARNING if final else logging.INFO


def _retried(failed: Mapping[str, Any], delay: float) -> dict[str, Any]:
    """What the line of a retry says, after that of its failure."""
    kept = {name: value for name, value in failed.items() if name not in ("duration", "error")}
    return {**kept, "actor": STORE, "delay": round(delay, 3)}


def fields_of(lease: Lease, worker: str) -> dict[str, Any]:
    """What a log line says of the attempt that it is about."""
    return {
        "job": lease.id,
        "type": lease.type,
        "queue": lease.queue,
        "attempt": lease.attempts,
        "worker": worker,
    }
