"""The queues, their actions, and the workers."""

from __future__ import annotations

from collections import defaultdict

from starlette.responses import Response

from tenure.dashboard import charts
from tenure.dashboard.health import LATE
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.jobs.explain import is_live
from tenure.lifecycle import Job, Status

MAX_RUNNING = 500


def show(request: PageRequest) -> Response:
    """Show every queue."""
    cache, now = request.cache, request.now
    workers = [worker for worker in cache.workers() if is_live(worker, now)]
    queues = cache.queues()
    return request.page(
        "queues.html",
        queues=queues,
        rates=charts.queue_rates(cache.activity(), now),
        lag=cache.lag(now, "queues"),
        late=now - LATE,
        types=request.app.types.list(),
        takers={queue.name: sum(w.serves(queue.name) for w in workers) for queue in queues},
    )


def workers(request: PageRequest) -> Response:
    """Show every worker and its running jobs."""
    running: dict[str, list[Job]] = defaultdict(list)
    for job in request.app.find(status=Status.PROCESSING, limit=MAX_RUNNING):
        running[job.worker or ""].append(job)
    return request.page(
        "workers.html",
        workers=request.cache.workers(),
        running=running,
        is_live=is_live,
    )


def pause(request: PageRequest) -> Response:
    """Stop handing out jobs of a queue."""
    name = request.path("name")
    request.app.queues.pause(name, actor=request.actor, reason=request.field("reason"))
    return _back(request, f"Queue {name} is paused. Running jobs continue, new ones are accepted.")


def resume(request: PageRequest) -> Response:
    """Hand out jobs of a queue again."""
    name = request.path("name")
    request.app.queues.resume(name, actor=request.actor)
    return _back(request, f"Queue {name} is open.")


def pause_type(request: PageRequest) -> Response:
    """Stop handing out jobs of a type."""
    name = request.path("name")
    request.app.types.pause(name, actor=request.actor, reason=request.field("reason"))
    return _back(request, f"Type {name} is paused. Running jobs continue, new ones are accepted.")


def resume_type(request: PageRequest) -> Response:
    """Hand out jobs of a type again."""
    request.app.types.resume(request.path("name"), actor=request.actor)
    return _back(request, f"Type {request.path('name')} is open.")


def limit(request: PageRequest) -> Response:
    """Set how many jobs of a queue may be pending, or lift the limit."""
    name, given = request.path("name"), request.field("max_pending").replace(",", "")
    if given and not (given.isascii() and given.isdigit() and len(given) <= 15):
        raise InvalidInput("give a whole number from 0, or nothing for no limit", path="limit")
    most = int(given) if given else None
    request.app.queues.limit(name, max_pending=most, actor=request.actor)
    limited = "has no limit" if most is None else f"takes at most {most:,} pending jobs"
    return _back(request, f"Queue {name} {limited}.")


def _back(request: PageRequest, message: str) -> Response:
    return request.go(request.address("/ui/queues"), message)
