"""Jobs over HTTP: one, many at once, all that match, what operators watch, and every transition.

The endpoints that enqueue, show and change jobs come first. What operators and their tools call
follows: health, bulk actions, types, workers, counts, metrics. The last is the stream of events:
every transition of every job as server-sent events, resumable by position.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict, replace
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tenure.app import jobs
from tenure.app.core import MAX_COUNTED
from tenure.app.jobs import again, progress_shown, steps_shown, transitions_shown
from tenure.app.twins import answer_of
from tenure.errors import InvalidInput, JobNotFound, StoreUnavailable, TenureError
from tenure.http import stats
from tenure.http.bodies import JSON, convert
from tenure.http.call import Call, Cursor, answer, id_of, next_page
from tenure.http.guard import GUARD, AccessGuard, check_again
from tenure.http.waiting import LOOK_SECONDS, EventStream, Source, check_share
from tenure.lifecycle import EVENTS, Status
from tenure.rules.jobs import Enqueued, NewJob, Options
from tenure.rules.ledger import EventFilter, LedgerEvent
from tenure.rules.search import MAX_LISTED, TIMES, Action, Bulk, Filter, Order, check_filter
from tenure.rules.steps import JobProgress
from tenure.rules.tokens import Scope
from tenure.telemetry import tracing
from tenure.values import ids
from tenure.values.names import check_key, check_name
from tenure.wire import requests, responses
from tenure.wire.kept import steps_body

log = logging.getLogger(__name__)

MAX_TRANSITIONS = 1_000
MAX_POSITION = 50
"""Characters of the position of a transition."""


class FilterQuery(requests.FilterForm):
    """Which jobs are meant: a job must match every given field."""

    created_after: requests.TimeText | UnsetType = UNSET  # type: ignore[assignment]
    created_before: requests.TimeText | UnsetType = UNSET  # type: ignore[assignment]
    finished_after: requests.TimeText | UnsetType = UNSET  # type: ignore[assignment]
    finished_before: requests.TimeText | UnsetType = UNSET  # type: ignore[assignment]


class WaitQuery(Struct, kw_only=True):
    """How many seconds to wait until the job is settled."""

    wait: Annotated[float, Meta(ge=0, le=requests.MAX_JOB_WAIT_SECONDS)] = 0.0


class HistoryQuery(Struct, kw_only=True):
    """How many transitions to show at most, and before which."""

    limit: Annotated[int, Meta(ge=1, le=MAX_TRANSITIONS)] = MAX_TRANSITIONS
    cursor: Annotated[str, Meta(min_length=1, max_length=MAX_POSITION)] | UnsetType = UNSET


class ListQuery(FilterQuery, kw_only=True):
    """Which jobs to list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 50
    cursor: Cursor | UnsetType = UNSET
    order: Order = "newest"


class CountQuery(FilterQuery, kw_only=True):
    """Which jobs to count; with `action`, those whose status allows it."""

    action: Action | UnsetType = UNSET
    at_most: Annotated[int, Meta(ge=1, le=MAX_COUNTED)] = 10_000


async def create_job(call: Call) -> Response:
    """Enqueue a job; it is on disk when this answers."""
    call.check_running()
    await call.app.core.defaults.look_up([call.body.type])
    future = await call.compute(_add, call, [call.body], call.header("Idempotency-Key"))
    (added,) = await answer_of(future)
    headers = {"Location": call.address(f"/jobs/{added.job.id}")}
    return answer(call.shown(added.job), 201 if added.created else 200, headers)


async def create_jobs(call: Call) -> Response:
    """Enqueue many jobs, all or none; the answer has them in the order of the request."""
    call.check_running()
    call.take_no_key("give each job its own idempotency_key")
    if not call.body:
        return answer([], 201)
    await call.app.core.defaults.look_up(new.type for new in call.body)
    added = await answer_of(await call.compute(partial(_add, batch=True), call, call.body))
    return await call.compute(lambda: answer([call.shown(one.job) for one in added], 201))


def _add(
    call: Call,
    jobs: Sequence[requests.EnqueueRequest],
    key: str | None = None,
    *,
    batch: bool = False,
) -> Future[list[Enqueued]]:
    new_jobs = [NewJob(new.type, new.payload, _options(call, new, key)) for new in jobs]
    return _hand_over(call, new_jobs, batch=batch)


def _hand_over(call: Call, new_jobs: Sequence[NewJob], *, batch: bool) -> Future[list[Enqueued]]:
    given = call.request.headers.getlist("traceparent")
    parent = tracing.given(given) if given else None
    # Or the holder of one token could guess what is redacted in the jobs of another.
    own_keys = bool(call.redaction)
    return jobs.add(
        call.app.core, new_jobs, batch=batch, own_keys=own_keys, traceparent=parent, looked_up=True
    )


def _options(call: Call, new: requests.AgainRequest, key: str | None = None) -> Options:
    """Return the options that are given; the application checks most of them."""
    options = {**requests.options_of(new), "actor": call.caller.name}
    if key is not None:  # the header takes precedence, but both must be valid keys
        if "idempotency_key" in options:
            check_key(options["idempotency_key"], "$.idempotency_key")
        options["idempotency_key"] = check_key(key, "Idempotency-Key")
    return cast(Options, options)


def list_jobs(call: Call) -> Response:
    """List jobs; a page may be short, or empty, and still have a next one."""
    query: ListQuery = call.query
    page = call.app.core.page(_filter(call), query.limit, id_of(query.cursor), query.order)
    headers = next_page(call, "/jobs", page.next)
    running = [job for job in page.jobs if job.status is Status.PROCESSING]
    said = progress_shown(call.app.core, running, call.redaction)
    return answer([call.shown(job, said.get(job.id)) for job in page.jobs], headers=headers)


def count_jobs(call: Call) -> Response:
    """Count the jobs that match, looking at a bounded number of rows."""
    query: CountQuery = call.query
    action = None if query.action is UNSET else query.action
    return answer(call.app.core.count(_filter(call), action=action, at_most=query.at_most))


def _filter(call: Call) -> Filter:
    given = requests.given(call.query)
    given = {name: given[name] for name in FilterQuery.__struct_fields__ if name in given}
    for name in given.keys() & set(TIMES):
        given[name] = convert(given[name], requests.RunAt, root=f"query {name}")
    return check_filter(Filter(**given, hidden=call.redaction.keys), at="query ")


async def show_job(call: Call) -> Response:
    """Show a job. With `wait`, answer once the job is settled or that time is over."""
    job = await run_in_threadpool(call.app.get, call.path["id"])
    if call.query.wait and job.finished_at is None:
        future = call.app.core.limited_store.wait(job.id)
        settled = await call.notifier.result_of(future, call.request, call.query.wait)
        await check_again(call.request.scope)
        job = await run_in_threadpool(call.app.get, job.id) if settled is None else settled
    said = await run_in_threadpool(progress_shown, call.app.core, [job], call.redaction)
    return answer(call.shown(job, said.get(job.id)))


def show_history(call: Call) -> Response:
    """Show the last transitions of a job, oldest first; the next page has those before them."""
    query: HistoryQuery = call.query
    job, before = call.app.get(call.path["id"]), query.cursor or None
    call.app.core.limited_store.read.numbers(before or "", "query cursor")
    found = call.app.history(job.id, last=query.limit + 1, before=before)
    transitions = found[-query.limit :]
    more = len(found) > len(transitions)
    headers = next_page(call, f"/jobs/{job.id}/history", transitions[0].position if more else None)
    shown = transitions_shown(transitions, job, call.redaction)
    bodies = [responses.TransitionBody.of(transition) for transition in shown]
    return answer(bodies, headers=headers)


def show_steps(call: Call) -> Response:
    """Show what the attempts of a job have kept: its steps in order, and its last checkpoint."""
    job = call.app.get(call.path["id"])
    return answer(steps_body(steps_shown(call.app.core, job, call.redaction)))


def explain_job(call: Call) -> Response:
    """Say why a job is not running, or what it is doing."""
    found = call.app.explain(call.path["id"])
    if call.redaction:
        text = call.redaction.text(found.text, call.app.get(call.path["id"]))
        found = replace(found, text=text)
    return answer(found)


def cancel_job(call: Call) -> Response:
    """Cancel a job that is pending or processing."""
    why = call.body.reason
    return answer(call.shown(call.app.cancel(call.path["id"], actor=call.caller.name, reason=why)))


def unblock_job(call: Call) -> Response:
    """Let a waiting job run now, whatever it waits for."""
    return answer(call.shown(call.app.unblock(call.path["id"], actor=call.caller.name)))


def amend_job(call: Call) -> Response:
    """Change a job that is pending."""
    body: requests.AmendRequest = call.body
    changes = requests.options_of(body)
    if body.payload is not UNSET:
        changes["payload"] = body.payload
    by, why = call.caller.name, body.reason
    return answer(call.shown(call.app.amend(call.path["id"], actor=by, reason=why, **changes)))


def run_job_again(call: Call) -> Response:
    """Add a job that does again what a job did, with another payload if one is given."""
    call.check_running()
    body: requests.AgainRequest = call.body
    payload = None if body.payload is UNSET else body.payload
    options = _options(call, body, call.header("Idempotency-Key"))
    new_job = again(call.app.core, call.app.core.get(call.path["id"]), payload, options)
    (added,) = _hand_over(call, [new_job], batch=False).result()
    headers = {"Location": call.address(f"/jobs/{added.job.id}")}
    return answer(call.shown(added.job), 201 if added.created else 200, headers)


def retry_job(call: Call) -> Response:
    """Retry a job that failed for good, with a higher limit."""
    body: requests.RetryRequest = call.body
    job = call.app.retry(call.path["id"], actor=call.caller.name, **asdict(body))
    return answer(call.shown(job))


# --- operators ------------------------------------------------------------------------------------

READY_SECONDS = 5.0
"""How long `GET /ready` waits for the database."""


async def health(call: Call) -> Response:
    """Check that the process is up."""
    return answer(responses.ProbeBody(status="ok"))


async def ready(call: Call) -> Response:
    """Check whether the process takes work and its database answers and commits."""
    call.check_running()
    try:
        check = asyncio.to_thread(call.app.core.check_store)
        await asyncio.wait_for(check, READY_SECONDS)
    except Exception as error:
        what = "the database does not answer or commit"  # the log alone says why
        unready = StoreUnavailable(f"not ready, {what}: {str(error) or 'no answer'}")
        unready._known = getattr(error, "_known", "") or what
        raise unready from error
    return answer(responses.ProbeBody(status="ready"))


class BulksQuery(Struct, kw_only=True):
    """How many to list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 50


def start_bulk(call: Call) -> Response:
    """Start to retry or cancel all jobs that match now; the server continues in the background."""
    call.check_running()
    body: requests.BulkRequest = call.body
    wanted = Filter(**requests.given(body.filter), hidden=call.redaction.keys)
    bulk = call.app.bulk.start(
        body.action,
        check_filter(wanted, at="$.filter."),
        more_retries=body.more_retries,
        actor=call.caller.name,
        reason=body.reason,
    )
    return answer(responses.bulk_body(bulk), 202, {"Location": call.address(f"/bulk/{bulk.id}")})


def list_bulks(call: Call) -> Response:
    """List bulk actions, newest first."""
    return answer([_shown(call, bulk) for bulk in call.app.bulk.list(call.query.limit)])


def show_bulk(call: Call) -> Response:
    """Show a bulk action and its progress."""
    return answer(_shown(call, call.app.bulk.get(call.path["id"])))


def _shown(call: Call, bulk: Bulk) -> responses.BulkBody:
    is_admin = call.caller.may(frozenset({Scope.ADMIN}))
    return responses.bulk_body(bulk if is_admin else bulk.without_searches)


def stop_bulk(call: Call) -> Response:
    """Stop a bulk action; jobs that it has changed stay changed."""
    return answer(responses.bulk_body(call.app.bulk.stop(call.path["id"], actor=call.caller.name)))


def list_types(call: Call) -> Response:
    """List the types whose handlers are known, with the options of their jobs."""
    return answer(call.app.types.list())


def pause_type(call: Call) -> Response:
    """Stop handing out jobs of a type; running jobs continue."""
    call.app.types.pause(call.path["name"], actor=call.caller.name, reason=call.body.reason)
    return _type(call)


def resume_type(call: Call) -> Response:
    """Hand out jobs of a type again."""
    call.app.types.resume(call.path["name"], actor=call.caller.name)
    return _type(call)


def _type(call: Call) -> Response:
    name = call.path["name"]
    return answer(next(type for type in call.app.types.list() if type.name == name))


def list_workers(call: Call) -> Response:
    """List the workers that asked for jobs lately."""
    return answer(call.app.workers.list())


def show_stats(call: Call) -> Response:
    """Count jobs by status, and by status, queue and type."""
    return answer(responses.stats_body(call.app.stats.counts()))


def show_metrics(call: Call) -> Response:
    """Show the state of everything as Prometheus text, or as JSON if JSON is asked for."""
    guard: AccessGuard = call.request.scope[GUARD]
    seen = stats.watched(call.app, guard.refusals.counts())
    if JSON in call.request.headers.get("accept", "").lower():
        return answer(seen)
    text = stats.prometheus_text(seen, call.app.core.clock())
    return Response(text, media_type=stats.CONTENT_TYPE)


# --- the stream of events -------------------------------------------------------------------------

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
