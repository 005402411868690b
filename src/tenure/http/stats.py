"""The metrics for a monitoring system. Every value is read from the database when it is asked for.

So the numbers are right however many processes there are, and whichever of them answers: the
sweeping process sums up the counters from the ledger. Only refused requests are counted in memory,
by the process that refuses them. The number of series is bounded: beyond `MAX_SERIES` the smallest
groups are added up under the label `(other)`, which no queue and no type can be called. A counter
keeps the series it once has, so that none falls before its process ends.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from math import inf
from operator import add
from typing import TYPE_CHECKING

from msgspec import structs

from tenure.app.app import Tenure
from tenure.app.stats import halted
from tenure.lifecycle import FAILURES, RUN_ENDS
from tenure.rules.schedules import Schedule
from tenure.rules.stats import BUCKETS, Count, QueueState, Total
from tenure.wire.responses import MetricsBody, stats_body

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SERIES = 500
MAX_QUEUES = 100
OTHER = "(other)"


def watched(app: Tenure, refused: Mapping[str, int]) -> MetricsBody:
    """Return the state of everything, with a bounded number of groups, and what was refused."""
    counts = app.stats.counts()
    return MetricsBody(
        **structs.asdict(stats_body(bounded(counts))),
        queues=app.queues.list(order="jobs", limit=MAX_QUEUES),
        oldest_running=app.stats.oldest_running(),
        halted_partitions=halted(app.core, counts),
        workers=sum(not worker.runs_own for worker in app.workers.list()),
        late_leases=app.stats.late_leases(),
        totals=app.stats.totals(),
        bounds=[None if bound == inf else bound for bound in BUCKETS],
        measured_until=app.stats.measured_until(),
        fires={} if app.core.queues is not None else fires(app.schedules.list(limit=MAX_QUEUES)),
        next_tick=app.stats.next_tick(),
        refused=refused,
    )


def prometheus_text(seen: MetricsBody, now: datetime) -> bytes:
    """Return the metrics in Prometheus' text format; `now` is the store's time."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Snapshot(Collector):
        def collect(self) -> Iterator[Metric]:
            return _families(seen, now)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    return generate_latest(registry)


def _families(seen: MetricsBody, now: datetime) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.core import GaugeMetricFamily as Gauge

    jobs = Gauge("tenure_jobs", "Stored jobs.", labels=["status", "queue", "type"])
    for count in seen.counts:
        jobs.add_metric([count.status, count.queue, count.type], count.jobs)
    yield jobs
    yield from _of_queues(seen, now)
    yield Gauge("tenure_workers", "Workers that asked for jobs lately.", value=seen.workers)
    late = "Leases that have run out and were not yet ended by a sweep."
    yield Gauge("tenure_late_leases", late, value=seen.late_leases)
    behind = "How far the counters and histograms are behind the ledger."
    lag = _seconds(seen.measured_until, now)
    yield Gauge("tenure_measures_lag_seconds", behind, value=lag)
    transitions = CounterMetricFamily(
        "tenure_transitions", "Transitions of jobs.", labels=["event", "queue", "type"]
    )
    for total in seen.totals:
        transitions.add_metric([total.event, total.queue, total.type], total.transitions)
    for labels in _not_failed(seen.totals):
        transitions.add_metric(labels, 0)
    yield transitions
    fires = CounterMetricFamily(
        "tenure_schedule_fires", "Ticks, by outcome.", labels=["schedule", "outcome"]
    )
    for schedule, numbers in seen.fires.items():
        for outcome, number in numbers.items():
            fires.add_metric([schedule, outcome], number)
    yield fires
    undecided = "How long the oldest tick that is due has not been decided; 0 when there is none."
    yield Gauge("tenure_schedule_late_seconds", undecided, value=_seconds(seen.next_tick, now))
    refused = CounterMetricFamily(
        "tenure_refused_requests", "Requests refused by this process.", labels=["reason"]
    )
    for reason, requests in seen.refused.items():
        refused.add_metric([reason], requests)
    yield refused
    yield from _histograms(seen)


def _of_queues(seen: MetricsBody, now: datetime) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily as Gauge

    due = "How long the longest-waiting due job has been due; 0 when none is."
    runs = "How long the longest-running attempt has run; 0 when none does."
    gauges: Sequence[tuple[str, str, Callable[[QueueState], float | None]]] = (
        ("pending", "Jobs waiting, due or not.", lambda q: q.pending),
        ("processing", "Jobs leased to workers.", lambda q: q.processing),
        ("oldest_due_seconds", due, lambda q: _seconds(q.oldest_due_at, now)),
        ("oldest_running_seconds", runs, lambda q: _seconds(seen.oldest_running.get(q.name), now)),
        ("paused", "1 when the queue is paused.", lambda q: int(q.paused_at is not None)),
        ("running", "Jobs that a queue's limits count.", lambda q: q.running),
        ("max_running", "How many of these may run.", _max_running),
        (
            "halted_partitions",
            "Partitions that wait behind a failed job.",
            lambda q: seen.halted_partitions.get(q.name),
        ),
    )
    for name, text, value in gauges:
        gauge = Gauge(f"tenure_queue_{name}", text, labels=["queue"])
        for queue in seen.queues:
            if (found := value(queue)) is not None:
                gauge.add_metric([queue.name], found)
        yield gauge


def _max_running(queue: QueueState) -> int | None:
    return None if queue.limits is None else queue.limits.max_running


def _not_failed(totals: Sequence[Total]) -> Iterator[Sequence[str]]:
    """Yield the kinds of failures that did not happen to what was claimed: event, queue, type.

    A counter that begins at 16 has not increased for a monitoring system; from 0 to 16 it has.
    """
    there = {(total.event, total.queue, total.type) for total in totals}
    for total in totals:
        if total.event == "claimed":
            for event in FAILURES:
                if (event, total.queue, total.type) not in there:
                    yield event, total.queue, total.type


def _histograms(seen: MetricsBody) -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    for name, text, events in (
        ("tenure_wait_seconds", "From due until claimed.", WAITED),
        ("tenure_run_seconds", "From claimed until the attempt ended, however.", RUN_ENDS),
    ):
        histogram = HistogramMetricFamily(name, text, labels=["type"])
        for type, (seconds, buckets) in by_type(seen.totals, events).items():
            up_to = zip(map(floatToGoString, BUCKETS), accumulate(buckets), strict=True)
            histogram.add_metric([type], list(up_to), seconds)
        yield histogram


def fires(schedules: Sequence[Schedule]) -> dict[str, dict[str, int]]:
    """Return the number of ticks by schedule and outcome."""
    return {
        one.name: {"fired": one.fired, "overlapped": one.overlapped, "missed": one.missed_fires}
        for one in schedules
    }


WAITED = frozenset({"claimed"})


def by_type(
    totals: Sequence[Total], events: Container[str]
) -> dict[str, tuple[float, tuple[int, ...]]]:
    """Return seconds and buckets of `events` by job type, over all queues."""
    sums: dict[str, tuple[float, tuple[int, ...]]] = {}
    for total in totals:
        if total.event in events:
            seconds, buckets = sums.get(total.type, (0.0, (0,) * len(BUCKETS)))
            added = tuple(map(add, buckets, total.buckets))
            sums[total.type] = (seconds + total.seconds, added)
    return sums


def _seconds(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max((now - since).total_seconds(), 0.0)


def bounded(counts: Sequence[Count], most: int = MAX_SERIES) -> list[Count]:
    """Return about `most` counts: the smallest are added up, by status, under `(other)`."""
    if len(counts) <= most:
        return list(counts)
    ranked = sorted(counts, key=lambda count: count.jobs, reverse=True)
    rest: dict[str, int] = {}
    for count in ranked[most:]:
        rest[count.status] = rest.get(count.status, 0) + count.jobs
    return ranked[:most] + [Count(status, OTHER, OTHER, jobs) for status, jobs in rest.items()]
