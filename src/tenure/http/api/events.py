"""The event stream: every transition of every job as server-sent events, resumable by position."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from tenure.app.shown import progress_shown
from tenure.errors import InvalidInput, JobNotFound, TenureError
from tenure.http.api.call import Call
from tenure.http.waiting import LOOK_SECONDS, EventStream, Source, check_share
from tenure.jobs import ids
from tenure.jobs.ledger import EventFilter, LedgerEvent
from tenure.jobs.names import check_name
from tenure.jobs.progress import JobProgress
from tenure.lifecycle import EVENTS
from tenure.wire import requests, responses

log = logging.getLogger(__name__)

RECONNECT_MILLISECONDS = 1_000
PROGRESS = b"event: progress\ndata: %b\n\n"
MAX_AT_ONCE = 100
"""Events that are read at once; a stream holds no more in memory. Each may have 16 KiB of error."""
MAX_STREAMS = 100
MAX_NAMED = 100
"""Types, queues or events that one stream may be limited to."""


class EventsQuery(Struct, kw_only=True):
    """Where to begin, and which transitions to send; several names are separated by commas."""

    after: str | UnsetType = UNSET
    type: requests.Names | UnsetType = UNSET
    queue: requests.Names | UnsetType = UNSET
    event: requests.Names | UnsetType = UNSET
    job: Annotated[str, Meta(extra_json_schema={"pattern": ids.ID_PATTERN})] | UnsetType = UNSET


async def stream_events(call: Call) -> Response:
    """Stream every transition of every job as server-sent events, resumable by `Last-Event-ID`."""
    call.check_running()
    check_share(call.notifier.streams, MAX_STREAMS, call.caller)
    after, place = call.header("Last-Event-ID"), "Last-Event-ID"
    if after is None and call.query.after is not UNSET:
        after, place = call.query.after, "query after"
    call.app.core.limited_store.read.numbers(after or "", place)
    wanted = _wanted(call.query)
    if after is None:  # begin with what happens next
        after = await call.notifier.read(call.app.events.end)
    first = await call.notifier.read(_page, call, after, wanted)
    # Again, because others may have started meanwhile.
    check_share(call.notifier.streams, MAX_STREAMS, call.caller)
    return EventStream(
        call.request.scope, _events(call, after, first, wanted), call.notifier.streams
    )


def _wanted(query: EventsQuery) -> EventFilter:
    """Return which transitions to send; raises InvalidInput for names that cannot exist."""
    events = _names(query.event, "event", "event")
    if set(events or ()).difference(EVENTS):
        raise InvalidInput(f"no such event; give one of {', '.join(EVENTS)}", path="query event")
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
    return tuple(check_name(name, what, f"query {parameter}") for name in names)


@dataclass(frozen=True)
class _Page:
    """Events to send, and the position behind them."""

    events: bytes
    position: str
    more: bool
    progress: JobProgress | None = None


def _page(call: Call, after: str, wanted: EventFilter, seen: JobProgress | None = None) -> _Page:
    """Return the wanted transitions among the next `MAX_AT_ONCE`, and progress unless `seen`.

    Where something is redacted, errors are left out, because they may contain it; a job's history
    shows them.
    """
    page = call.app.events.read(after, MAX_AT_ONCE, wanted)
    without_errors = bool(call.redaction)
    said = _progress(call, wanted.job_id)
    moved = b"" if said in (None, seen) else PROGRESS % msgspec.json.encode(said)
    events = moved + b"".join(_event(one, without_errors=without_errors) for one in page.events)
    return _Page(events, page.position, page.more, said)


def _progress(call: Call, job_id: str | None) -> JobProgress | None:
    """Return the progress of the one job that a stream is about."""
    if job_id is None:
        return None
    try:
        job = call.app.core.get(job_id)
    except JobNotFound:
        return None
    return progress_shown(call.app.core, [job], call.redaction).get(job_id)


async def _events(call: Call, position: str, page: _Page, wanted: EventFilter) -> Source:
    """Yield the wanted transitions from `page` on, until the server stops.

    The `id` of each event is its position, so a client that reconnects misses nothing and receives
    nothing twice. A ping names the position too, so that a client that wanted nothing for a while
    does not reconnect far behind.
    """
    with call.notifier.waiter() as waiter:
        yield f"retry: {RECONNECT_MILLISECONDS}\nid: {position}\n\n".encode(), b""
        while not call.notifier.stopped:
            yield page.events, f": still here\nid: {page.position}\n\n".encode()
            if not page.more:
                await waiter.wait(LOOK_SECONDS)
            try:
                page = await call.notifier.read(_page, call, page.position, wanted, page.progress)
            except TenureError as error:
                page = _Page(b"", page.position, more=False, progress=page.progress)
                if call.notifier.repeats.is_due(error):
                    log.warning("the event stream cannot read the ledger, trying again: %s", error)


def _event(event: LedgerEvent, *, without_errors: bool) -> bytes:
    shown = event.without_errors() if without_errors else event
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        event.transition.position.encode(),
        event.transition.event.encode(),
        msgspec.json.encode(responses.event_body(shown)),  # this JSON has no line breaks
    )
