"""Why a job is not running, in words. Pure: facts in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tenure import durations
from tenure.lifecycle import Job, Status, legal_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known around a job at `now`."""

    now: datetime
    paused: bool  # its queue
    workers: int  # live workers that take its queue and type
    ahead: int  # due jobs of its queue that go first
    rate: float  # attempts of its queue that end per second, over the last minutes


@dataclass(frozen=True, slots=True)
class Explanation:
    """One stable `reason`, a sentence, and what may be done to the job."""

    reason: str
    text: str
    legal: tuple[str, ...]


def explain(job: Job, facts: Facts) -> Explanation:
    """Say why `job` is not running, or what it is doing."""
    reason, text = _reason(job, facts)
    return Explanation(reason, text, legal_events(job.status))


def _reason(job: Job, facts: Facts) -> tuple[str, str]:
    match job.status:
        case Status.COMPLETED:
            return "completed", f"It completed at {_at(job.finished_at)}, attempt {job.attempts}."
        case Status.CANCELLED:
            return "cancelled", f"{job.actor} cancelled it at {_at(job.finished_at)}."
        case Status.FAILED:
            return "failed", (
                f"It failed for good at {_at(job.finished_at)} after {job.attempts} of "
                f"{max(job.max_retries, 1)} attempts: {job.last_error}"
            )
        case Status.PROCESSING:
            return _processing(job, facts)
        case Status.PENDING:
            return _pending(job, facts)


def _processing(job: Job, facts: Facts) -> tuple[str, str]:
    if job.lease_expires_at is not None and job.lease_expires_at <= facts.now:
        return "lease_ran_out", (
            f"Worker {job.worker} holds it but its lease ran out at {_at(job.lease_expires_at)}: "
            "the next sweep ends the attempt."
        )
    return "running", (
        f"Worker {job.worker} runs attempt {job.attempts} since {_at(job.started_at)}; "
        f"its lease lasts until {_at(job.lease_expires_at)} unless renewed."
    )


def _pending(job: Job, facts: Facts) -> tuple[str, str]:
    if facts.paused:
        return "queue_paused", f"Queue {job.queue} is paused; resume it to go on."
    if job.run_at > facts.now:
        wait = durations.roughly(round((job.run_at - facts.now).total_seconds(), 1))
        why = f" after attempt {job.attempts} failed: {job.last_error}" if job.attempts else ""
        return "not_due", f"It is not due before {_at(job.run_at)}, in {wait}{why}."
    if facts.workers == 0:
        return "no_worker", (
            f"No live worker takes jobs of type {job.type} from queue {job.queue}; start one."
        )
    if facts.ahead == 0:
        return "next", "It is next in its queue: the first free worker takes it."
    if facts.rate <= 0:
        return "waiting", f"{facts.ahead} jobs of its queue go first, and none ended lately."
    eta = durations.roughly(max(round(facts.ahead / facts.rate, 1), 0.1))
    return "waiting", (
        f"{facts.ahead} jobs of its queue go first; at {facts.rate:.1f} per second "
        f"its turn comes in about {eta}."
    )


def _at(time: datetime | None) -> str:
    return "?" if time is None else time.strftime("%Y-%m-%d %H:%M:%S UTC")
