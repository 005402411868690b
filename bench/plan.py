"""What is measured, how much of it in each mode, and on which queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench import cancelling, drains, features, fleets, over_http, sending, waiting
from bench.catalogue import SUBJECTS, Subject
from bench.stage import Figures, Size, Stage

QUICK = Size(
    seconds=0.5,
    drained=15_000,
    drained_beside=15_000,
    retried=6_000,
    share=0.3,
    samples=40,
    pause=0.03,
    idle_seconds=2.0,
    behind=40_000,
    repeats=1,
    fleet_seconds=1.0,
)
FULL = Size(
    seconds=1.5,
    drained=200_000,
    drained_beside=50_000,
    retried=20_000,
    share=1.0,
    samples=100,
    pause=0.04,
    idle_seconds=8.0,
    behind=1_000_000,
    repeats=7,
    fleet_seconds=4.0,
)
SIZES = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True, slots=True)
class Workload:
    """One question to every queue that it can be put to. `figure` is the answer that counts."""

    name: str
    title: str
    measure: Callable[[Stage, Subject], Figures]
    figure: str = "rate"
    unit: str = "jobs/s"
    fits: Callable[[Subject], bool] = lambda subject: True
    fits_quick: Callable[[Subject], bool] = lambda subject: True  # in the quick mode, also this
    most_repeats: int = 100
    shows_aside: bool = False  # also measures what is judged nowhere

    def takes(self, subject: Subject, *, quick: bool) -> bool:
        """Whether it is put to this queue; in a quick run, to fewer."""
        fits = self.fits(subject) and (self.fits_quick(subject) or not quick)
        return fits and (self.shows_aside or not subject.aside)

    @property
    def less_is_better(self) -> bool:
        """Whether the smaller figure wins."""
        return self.figure != "rate"


def is_ours(subject: Subject) -> bool:
    return subject.ours


def keeps_on_disk(subject: Subject) -> bool:
    """Not Redis, which loses a second; nor a setting that loses commits."""
    return subject.engine != "redis" and not subject.aside


def is_fastest(subject: Subject) -> bool:
    """Enqueues and settles a million jobs in a bearable time."""
    return subject.ours or subject.name in {"pgqueuer", "honker"}


def is_nobody(subject: Subject) -> bool:
    return False


def has_slots(subject: Subject) -> bool:
    """A worker of it can run several jobs at once."""
    return keeps_on_disk(subject) and subject.name != "litequeue"


_alone = partial(Workload, fits=is_ours, fits_quick=is_nobody, most_repeats=3)
WAIT = {"figure": "p50_ms", "unit": "ms (p50)"}
FLEETS = (
    ("fleet-10ms", 8, 10, 0.010),
    ("fleet-200ms", 8, 10, 0.200),
    ("fleet-12", 12, 2, 0.020),
    ("fleet-20", 20, 1, 0.100),
)
WORKLOADS = (
    Workload(
        "enqueue-1",
        "Enqueue one by one, 1 caller",
        partial(sending.enqueue, callers=1),
        shows_aside=True,
    ),
    Workload(
        "enqueue-16",
        "Enqueue one by one, 16 callers",
        partial(sending.enqueue, callers=16),
        fits_quick=is_nobody,
        shows_aside=True,
    ),
    Workload(
        "bulk",
        "Enqueue in bulk, 1,000 a call",
        sending.enqueue_in_bulk,
        fits=lambda subject: subject.bulk,
        shows_aside=True,
    ),
    _alone("raw", "Drain by the bare statements, no worker", drains.raw, fits_quick=is_ours),
    Workload("drain-1", "Drain, 1 worker process", drains.drain, shows_aside=True),
    Workload(
        "drain-2",
        "Drain, 2 worker processes",
        partial(drains.drain, workers=2),
        fits=keeps_on_disk,
        fits_quick=is_fastest,
    ),
    Workload(
        "drain-8",
        "Drain, 8 worker processes",
        partial(drains.drain, workers=8),
        fits=keeps_on_disk,
        fits_quick=is_nobody,
    ),
    *(
        Workload(
            name,
            f"Fleet of {workers} workers with {slots} slots, jobs of {seconds * 1000:.0f} ms",
            partial(fleets.fleet, workers=workers, slots=slots, job_seconds=seconds),
            fits=has_slots,
            fits_quick=is_fastest if name == "fleet-12" else is_nobody,
        )
        for name, workers, slots, seconds in FLEETS
    ),
    _alone("limit", "Drain, 100 of 200 slots may run", features.drain_limited),
    _alone("rate", "Drain, 1,000 a second may start", features.drain_rated),
    _alone("workflows", "Drain of 1 to 100 to 1", features.drain_workflows),
    _alone("schedules", "Schedules due at once", features.fire_schedules),
    _alone("threads", "Drain, `def` handlers in threads", drains.drain_threads),
    Workload(
        "retry",
        "Fail once, retry at once, succeed",
        drains.retry,
        fits=lambda subject: not subject.retries.startswith("none"),
        shows_aside=True,
    ),
    Workload("pickup", "Pickup, 1 idle worker", waiting.pickup, **WAIT),
    Workload(
        "pickup-10",
        "Enqueue and pickup, 10 idle workers",
        partial(waiting.pickup, workers=10),
        **WAIT,
        fits=keeps_on_disk,
        fits_quick=is_ours,
    ),
    Workload(
        "commit",
        "From your commit to the handler",
        partial(waiting.pickup, command="committing"),
        **WAIT,
        fits=lambda subject: subject.within,
        fits_quick=is_fastest,
    ),
    Workload(
        "backlog", "Drain, many jobs pending behind", drains.drain_with_backlog, fits=is_fastest
    ),
    _alone("history", "Drain, many settled jobs kept", drains.drain_with_history),
    Workload("pinned", "Drain, an old snapshot pinned", drains.drain_pinned, fits=is_fastest),
    _alone("http-1", "POST /jobs, 1 client", partial(over_http.post_jobs, clients=1)),
    _alone("http-16", "POST /jobs, 16 clients", partial(over_http.post_jobs, clients=16)),
    _alone(
        "http-64",
        "POST /jobs, 64 clients",
        partial(over_http.post_jobs, clients=64),
        fits_quick=is_ours,
    ),
    _alone("remote", "Drain, 1 worker over HTTP", over_http.drain_remotely, fits_quick=is_ours),
    _alone("result", "Enqueue to result", waiting.result, **WAIT, fits_quick=is_ours),
    Workload(
        "cancel",
        "Cancel to handler, 10 workers",
        cancelling.cancel,
        **WAIT,
        fits=lambda subject: subject.cancels,
        fits_quick=is_ours,
    ),
    _alone(
        "cancel-remote",
        "Cancel to handler, 10 workers over HTTP",
        partial(cancelling.cancel, remotely=True),
        **WAIT,
    ),
    Workload(
        "idle",
        "Idle worker",
        waiting.idle,
        figure="memory_mb",
        unit="MB (PSS)",
        fits_quick=is_ours,
        most_repeats=1,
    ),
    Workload(
        "import", "Import", waiting.import_time, figure="import_ms", unit="ms", most_repeats=1
    ),
)


class Refused(ValueError):
    """What was asked for cannot be measured; the message says why."""


def workloads(mode: str, only: list[str]) -> list[Workload]:
    """The workloads of a mode; `only` those, if any are named. Raises Refused for a stranger."""
    known = {workload.name: workload for workload in WORKLOADS}
    _check_known(only, list(known), "workload")
    if only:
        return [workload for workload in WORKLOADS if workload.name in only]
    return [
        workload
        for workload in WORKLOADS
        if any(workload.takes(subject, quick=mode == "quick") for subject in SUBJECTS)
    ]


def subjects(mode: str, names: list[str], engines: list[str]) -> list[Subject]:
    """The queues of a mode on some engines; `names` adds Tenure's own, to compare with."""
    known = [subject.name for subject in SUBJECTS]
    _check_known(names, known, "peer")
    _check_known(engines, sorted({subject.engine for subject in SUBJECTS}), "engine")
    return [
        subject
        for subject in SUBJECTS
        if (subject.engine in engines or not engines)
        and (subject.name in names or subject.ours if names else subject.strong or mode == "full")
    ]


def _check_known(names: list[str], known: list[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise Refused(f"no such {what}: {name}; there are {', '.join(known)}")
