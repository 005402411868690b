"""Queues and workers: what waits where, who takes it, and the three things to do about a queue."""

from __future__ import annotations

from collections import defaultdict

from starlette.responses import Response

from tenure.dashboard import charts as series
from tenure.dashboard.health import LATE
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.jobs.explain import is_live
from tenure.jobs.reserved import serves
from tenure.lifecycle import Job, Status

MAX_RUNNING = 500


def show(visit: PageRequest) -> Response:
    """Every queue."""
    glance, now = visit.site.glance, visit.now
    workers = [worker for worker in glance.workers() if is_live(worker, now)]
    queues = glance.queues()
    return visit.page(
        "queues.html",
        queues=queues,
        rates=series.queue_rates(glance.activity(), now),
        lag=glance.lag(now, "queues"),
        late=now - LATE,
        takers={queue.name: sum(serves(w.queues, queue.name) for w in workers) for queue in queues},
    )


def workers(visit: PageRequest) -> Response:
    """Every worker, and what it runs."""
    running: dict[str, list[Job]] = defaultdict(list)
    for job in visit.app.find(status=Status.PROCESSING, limit=MAX_RUNNING):
        running[job.worker or ""].append(job)
    return visit.page(
        "workers.html",
        workers=visit.site.glance.workers(),
        running=running,
        is_live=is_live,
    )


def pause(visit: PageRequest) -> Response:
    """Stop handing out jobs of a queue."""
    name = visit.path("name")
    visit.app.pause(name, actor=visit.actor)
    return _back(visit, f"Queue {name} is paused. Jobs that run go on; new ones are accepted.")


def resume(visit: PageRequest) -> Response:
    """Hand out jobs of a queue again."""
    name = visit.path("name")
    visit.app.resume(name, actor=visit.actor)
    return _back(visit, f"Queue {name} is open.")


def limit(visit: PageRequest) -> Response:
    """Set how many jobs may wait in a queue, or lift the limit."""
    name, asked = visit.path("name"), visit.field("max_pending").replace(",", "")
    if asked and not (asked.isascii() and asked.isdigit() and len(asked) <= 15):
        raise InvalidInput("give a whole number from 0, or nothing for no limit", path="limit")
    most = int(asked) if asked else None
    visit.app.limit(name, most, actor=visit.actor)
    said = "has no limit" if most is None else f"holds {most:,} waiting jobs at most"
    return _back(visit, f"Queue {name} {said}.")


def _back(visit: PageRequest, said: str) -> Response:
    return visit.go(visit.address("/ui/queues"), said)
