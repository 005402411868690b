"""Enqueueing, showing and changing jobs over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Annotated, cast

from msgspec import UNSET, Meta, Struct, UnsetType, structs
from msgspec.structs import replace
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tenure.app import adding
from tenure.app.core import MAX_COUNTED
from tenure.app.enqueueing import again
from tenure.app.shown import progress_shown, steps_shown, transitions_shown
from tenure.app.twins import answer_of
from tenure.http.api.bodies import convert
from tenure.http.api.call import Call, Cursor, answer, id_of, next_page
from tenure.http.guard import check_again
from tenure.jobs.enqueue import Enqueued, NewJob, Options
from tenure.jobs.names import check_key
from tenure.jobs.queries import MAX_LISTED, TIMES, Action, Filter, Order, check_filter
from tenure.lifecycle import Status
from tenure.telemetry import tracing
from tenure.wire import requests, responses
from tenure.wire.kept import steps_body

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
    return adding.add(
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
    job = call.app.retry(call.path["id"], actor=call.caller.name, **structs.asdict(body))
    return answer(call.shown(job))
