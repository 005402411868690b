"""What operators and their tools call over HTTP: health, queues, workers, counts, the events."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.http.api import events as streams
from tenure.http.api import metrics
from tenure.http.api.routing import JSON, Call, answer
from tenure.jobs import ids, payload
from tenure.jobs.ledger import EventFilter
from tenure.lifecycle import EVENTS
from tenure.tokens.scopes import may_stay
from tenure.wire import requests, responses

log = logging.getLogger(__name__)


MAX_NAMED = 100
"""Types, queues or events that one stream may be limited to."""


class EventsQuery(Struct, kw_only=True):
    """Where to begin, and which moves to tell; several names are separated by commas."""

    after: str | UnsetType = UNSET
    type: requests.Names | UnsetType = UNSET
    queue: requests.Names | UnsetType = UNSET
    event: requests.Names | UnsetType = UNSET
    job: Annotated[str, Meta(extra_json_schema={"pattern": ids.ID_PATTERN})] | UnsetType = UNSET


async def health(call: Call) -> Response:
    """Say that the process is up."""
    return answer(responses.Health(status="ok"))


async def ready(call: Call) -> Response:
    """Say whether the process takes work and its database answers."""
    call.notifier.check_running()
    try:
        await asyncio.to_thread(call.app.ping)
    except Exception as error:
        log.warning("not ready, the database does not answer: %s", error)
        raise StoreUnavailable("the database does not answer") from error
    return answer(responses.Health(status="ready"))


def list_queues(call: Call) -> Response:
    """List every queue with jobs waiting or running, or with settings."""
    return answer([responses.queue_body(queue) for queue in call.app.queues()])


def pause_queue(call: Call) -> Response:
    """Stop handing out jobs of a queue; those that run go on."""
    call.app.pause(call.path["name"], actor=call.caller.name)
    return _queue(call)


def resume_queue(call: Call) -> Response:
    """Hand out jobs of a queue again."""
    call.app.resume(call.path["name"], actor=call.caller.name)
    return _queue(call)


def limit_queue(call: Call) -> Response:
    """Set how many jobs of a queue may wait, or lift the limit."""
    call.app.limit(call.path["name"], call.body.max_pending, actor=call.caller.name)
    return _queue(call)


def _queue(call: Call) -> Response:
    name = call.path["name"]
    return answer(next(responses.queue_body(q) for q in call.app.queues() if q.name == name))


def list_workers(call: Call) -> Response:
    """List the workers that asked for jobs lately."""
    return answer([responses.worker_body(worker) for worker in call.app.workers()])


def show_stats(call: Call) -> Response:
    """Count jobs by status, and by status, queue and type."""
    return answer(responses.stats_body(call.app.stats()))


def show_metrics(call: Call) -> Response:
    """Show the state of everything as Prometheus text, or as JSON if JSON is asked for."""
    seen = metrics.watched(call.app)
    if JSON in call.request.headers.get("accept", "").lower():
        return answer(responses.metrics_body(seen))
    return Response(metrics.prometheus_text(seen), media_type=metrics.CONTENT_TYPE)


async def stream_events(call: Call) -> Response:
    """Stream every move of every job as server-sent events, resumable by `Last-Event-ID`."""
    streams.check_room(call.notifier)
    last = call.header("Last-Event-ID")
    if last is None and call.query.after is not UNSET:
        last = call.query.after
    wanted = _wanted(call.query)
    start = await streams.start_of(call.app, last, wanted)
    streams.check_room(call.notifier)  # again: others have come in meanwhile
    told = streams.events(
        call.app,
        call.notifier,
        start,
        wanted,
        without_errors=bool(call.redaction),
        may_stay=partial(may_stay, call.request.scope),
    )
    return streams.EventStream(call.notifier, told)


def _wanted(query: EventsQuery) -> EventFilter:
    """The moves that a stream is to tell; raises InvalidInput for what can be none."""
    events = _names(query.event, "event", "event")
    if unknown := set(events or ()).difference(EVENTS):
        raise InvalidInput(
            f"no such event: {', '.join(sorted(unknown))}; one of {', '.join(EVENTS)}",
            path="query event",
        )
    return EventFilter(
        types=_names(query.type, "job type", "type"),
        queues=_names(query.queue, "queue", "queue"),
        events=events,
        job_id=None if query.job is UNSET else ids.check_id(query.job, "query job"),
    )


def _names(given: str | UnsetType, what: str, parameter: str) -> tuple[str, ...] | None:
    if given is UNSET:
        return None
    names = given.split(",")
    if len(names) > MAX_NAMED:
        raise InvalidInput(f"name at most {MAX_NAMED}", path=f"query {parameter}")
    return tuple(payload.check_name(name, what, f"query {parameter}") for name in names)
