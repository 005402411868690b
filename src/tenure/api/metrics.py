"""What a monitoring system asks for. Every value is read from the database at that moment.

So the numbers are true however many processes there are, and whichever of them is asked. There are
no counters in memory. The number of series is bounded: beyond `MOST_SERIES` the smallest groups
are added up under the label `(other)`, which no queue and no type can be called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from tenure.records import Count, QueueState, WorkerState

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_SERIES = 500
MOST_QUEUES = 100
OTHER = "(other)"


def prometheus_text(
    counts: Sequence[Count],
    queues: Sequence[QueueState],
    workers: Sequence[WorkerState],
    late_leases: int,
    now: datetime,
) -> bytes:
    """The metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Snapshot(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _metrics(bounded(counts), largest(queues), workers, late_leases, now)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    return generate_latest(registry)


def _metrics(
    counts: Sequence[Count],
    queues: Sequence[QueueState],
    workers: Sequence[WorkerState],
    late_leases: int,
    now: datetime,
) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily as Gauge

    jobs = Gauge("tenure_jobs", "Stored jobs.", labels=["status", "queue", "type"])
    for count in counts:
        jobs.add_metric([count.status, count.queue, count.type], count.jobs)
    yield jobs
    waiting = Gauge("tenure_queue_pending", "Jobs waiting, due or not.", labels=["queue"])
    running = Gauge("tenure_queue_processing", "Jobs leased to workers.", labels=["queue"])
    oldest = Gauge(
        "tenure_queue_oldest_due_seconds",
        "How long the longest-waiting due job has been due; 0 when none is.",
        labels=["queue"],
    )
    paused = Gauge("tenure_queue_paused", "1 when the queue is paused.", labels=["queue"])
    for queue in queues:
        since = queue.oldest_due_at
        waiting.add_metric([queue.name], queue.pending)
        running.add_metric([queue.name], queue.processing)
        oldest.add_metric(
            [queue.name], 0.0 if since is None else max((now - since).total_seconds(), 0.0)
        )
        paused.add_metric([queue.name], 0 if queue.paused_at is None else 1)
    yield from (waiting, running, oldest, paused)
    yield Gauge("tenure_workers", "Workers that asked for jobs lately.", value=len(workers))
    late = "Leases that have run out and were not yet ended by a sweep."
    yield Gauge("tenure_late_leases", late, value=late_leases)


def bounded(counts: Sequence[Count], most: int = MOST_SERIES) -> list[Count]:
    """At most about `most` counts: the smallest are added up, by status, under `(other)`."""
    if len(counts) <= most:
        return list(counts)
    ranked = sorted(counts, key=lambda count: count.jobs, reverse=True)
    rest: dict[str, int] = {}
    for count in ranked[most:]:
        rest[count.status] = rest.get(count.status, 0) + count.jobs
    return ranked[:most] + [Count(status, OTHER, OTHER, jobs) for status, jobs in rest.items()]


def largest(queues: Sequence[QueueState], most: int = MOST_QUEUES) -> list[QueueState]:
    """The `most` busiest queues."""
    return sorted(queues, key=lambda q: q.pending + q.processing, reverse=True)[:most]
