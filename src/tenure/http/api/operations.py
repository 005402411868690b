"""What operators and their tools call over HTTP: health, bulk actions, queues, counts, metrics."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from tenure.errors import StoreUnavailable
from tenure.http.api import metrics
from tenure.http.api.bodies import JSON
from tenure.http.api.call import Call, answer
from tenure.http.guard import GUARD, AccessGuard
from tenure.jobs.queries import MAX_LISTED, Bulk, Filter, check_filter
from tenure.tokens.scopes import Scope
from tenure.wire import requests, responses

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
    seen = metrics.watched(call.app, guard.refusals.counts())
    if JSON in call.request.headers.get("accept", "").lower():
        return answer(seen)
    text = metrics.prometheus_text(seen, call.app.core.clock())
    return Response(text, media_type=metrics.CONTENT_TYPE)
