"""Transitions and failures as they may be shown: without values that are redacted. Internal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tenure.app.app import Tenure
from tenure.errors import JobNotFound
from tenure.jobs.ledger import Transition
from tenure.jobs.redaction import MARK, Redaction
from tenure.jobs.stats import FailureGroup
from tenure.lifecycle import Job


def transitions_shown(
    transitions: Sequence[Transition], job: Job, redaction: Redaction
) -> Sequence[Transition]:
    """The transitions of a job, with its redacted values cut out of their errors."""
    if not redaction:
        return transitions
    shown = redaction.hider(job.payload, job.result)
    return [
        one if one.detail is None else replace(one, detail=shown(one.detail)) for one in transitions
    ]


def failures_shown(
    app: Tenure, groups: Sequence[FailureGroup], redaction: Redaction
) -> list[FailureGroup]:
    """Groups of failures, each with the redacted error of its last job if anything is redacted.

    A group's own error has what varies taken out, so that redacted values can no longer be found
    in it.
    """
    if not redaction:
        return list(groups)
    return [replace(group, error=_last_error(app, group, redaction)) for group in groups]


def _last_error(app: Tenure, group: FailureGroup, redaction: Redaction) -> str:
    try:
        job = redaction.job(app.get(group.last_job_id))
    except JobNotFound:
        return MARK
    return (job.last_error or MARK).partition("\n")[0]
