"""The queues, one of them with its limits and partitions, their actions, and the workers."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from operator import attrgetter
from typing import Any

from starlette.responses import Response

from tenure.app.jobs import queue_shown, queues_shown
from tenure.dashboard import format as fmt
from tenure.dashboard.overview import LATE
from tenure.dashboard.push import MAX_QUEUES
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.lifecycle import Job, Status
from tenure.rules.explain import is_live
from tenure.rules.queues import Limits, PerPartition
from tenure.rules.stats import limits_of

MAX_RUNNING = 500
LIMITS = ("max_pending", "max_running", "rate", "burst", "ordered")
PER_PARTITION = ("max_running", "rate", "burst")
TEXTS = ("rate", "ordered")
"""The limits that are not numbers."""


def show(request: PageRequest) -> Response:
    """Show the queues by name; if there are many, the first ones by `attention`."""
    cache, now = request.cache, request.now
    workers = [worker for worker in cache.workers() if is_live(worker, now)]
    search = request.field("search")
    ask = partial(queues_shown, request.app.core, search, MAX_QUEUES)
    queues, number = cache.once(f"queues with {search}", ask) if search else cache.queues()
    return request.page(
        "queues.html",
        queues=queues if number > len(queues) else sorted(queues, key=attrgetter("name")),
        number=number,
        search=search,
        rates=fmt.queue_rates(cache.activity(), now),
        lag=cache.lag(now, "queues"),
        late=now - LATE,
        limits_of=limits_of,
        types=cache.types(),
        takers={queue.name: sum(w.serves(queue.name) for w in workers) for queue in queues},
    )


def show_one(request: PageRequest) -> Response:
    name, ask = request.path("name"), request.app.queues.partitions
    queue = request.cache.once(f"queue {name}", partial(queue_shown, request.app.core, name))
    limits = queue.limits or Limits()
    return request.page(
        "queue.html",
        queue=queue,
        limits=limits,
        per=limits.per_partition,
        limits_of=limits_of,
        partitions=request.cache.partitions(name) if queue.limits else ask(name),
    )


def workers(request: PageRequest) -> Response:
    running: dict[str, list[Job]] = defaultdict(list)
    for job in request.app.find(status=Status.PROCESSING, limit=MAX_RUNNING):
        running[job.worker or ""].append(job)
    return request.page(
        "workers.html", workers=request.cache.workers(), running=running, is_live=is_live
    )


def pause(request: PageRequest) -> Response:
    name = request.path("name")
    request.app.queues.pause(name, actor=request.actor, reason=request.field("reason"))
    return _to_queue(
        request, f"Queue {name} is paused. Running jobs continue, new ones are accepted."
    )


def resume(request: PageRequest) -> Response:
    name = request.path("name")
    request.app.queues.resume(name, actor=request.actor)
    return _to_queue(request, f"Queue {name} is open.")


def pause_type(request: PageRequest) -> Response:
    name = request.path("name")
    request.app.types.pause(name, actor=request.actor, reason=request.field("reason"))
    return _back(request, f"Type {name} is paused. Running jobs continue, new ones are accepted.")


def resume_type(request: PageRequest) -> Response:
    request.app.types.resume(request.path("name"), actor=request.actor)
    return _back(request, f"Type {request.path('name')} is open.")


def limit(request: PageRequest) -> Response:
    """Change those limits of a queue that differ from what the form showed."""
    name = request.path("name")
    given = {key: _limit(request, key) for key in LIMITS if _changed(request, key)}
    if any(_changed(request, f"per_{key}") for key in ("partition", *PER_PARTITION)):
        given["per_partition"] = _per_partition(request)
    if given:
        request.app.queues.limit(name, **given, actor=request.actor)
    return _to_queue(
        request, f"The limits of queue {name} are {'set' if given else 'as they were'}."
    )


def _per_partition(request: PageRequest) -> PerPartition | None:
    if _changed(request, "per_partition") and not request.field("per_partition"):
        return None
    values = {key: _limit(request, key, "per_") for key in PER_PARTITION}
    if _changed(request, "per_rate") and not _changed(request, "per_burst"):
        values["burst"] = None
    return PerPartition(**values)


def _changed(request: PageRequest, key: str) -> bool:
    """Whether a field was sent and differs from what it held when the page was made."""
    return request.fields.get(key) != request.fields.get(f"was.{key}")


def _limit(request: PageRequest, key: str, prefix: str = "") -> Any:
    given = request.field(prefix + key)
    if not given or key in TEXTS:
        return given or None
    digits = given.replace(",", "")
    if digits.isascii() and digits.isdigit() and len(digits) <= 15:
        return int(digits)
    raise InvalidInput("give a whole number, or nothing for no limit", path=prefix + key)


def limit_partition(request: PageRequest) -> Response:
    keys = [key for key in ("max_running", "weight") if _changed(request, key)]
    given = {key: _limit(request, key) for key in keys}
    request.app.queues.limit_partition(*_partition(request), **given, actor=request.actor)
    return _to_queue(request, f"{_called(request)} is changed.")


def pause_partition(request: PageRequest) -> Response:
    why = request.field("reason")
    request.app.queues.pause_partition(*_partition(request), actor=request.actor, reason=why)
    return _to_queue(request, f"{_called(request)} is paused. Running jobs continue.")


def resume_partition(request: PageRequest) -> Response:
    request.app.queues.resume_partition(*_partition(request), actor=request.actor)
    return _to_queue(request, f"{_called(request)} is open.")


def pass_over(request: PageRequest) -> Response:
    """Let a partition continue after the failed job that halts it."""
    passed = request.app.queues.pass_over(*_partition(request), actor=request.actor)
    if passed is None:
        return _to_queue(request, f"Not done: no failed job halts {_called(request)}.", "bad")
    return _to_queue(request, f"{_called(request)} continues. Job {passed} stays failed.")


def _partition(request: PageRequest) -> tuple[str, str]:
    return request.path("name"), request.fields.get("partition", "")


def _called(request: PageRequest) -> str:
    name = request.fields.get("partition", "")
    return f"Partition {name}" if name else "The partition of jobs without one"


def _to_queue(request: PageRequest, message: str, tone: str = "good") -> Response:
    return request.go(request.address(f"/ui/queues/{request.path('name')}"), message, tone)


def _back(request: PageRequest, message: str) -> Response:
    return request.go(request.address("/ui/queues"), message)
