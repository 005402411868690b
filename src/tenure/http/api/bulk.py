"""Actions on all jobs that match a filter, over HTTP: started here, carried out by the sweepers."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct
from starlette.responses import Response

from tenure.app.core import MAX_LISTED
from tenure.http.api.call import Call, answer
from tenure.jobs.queries import Filter
from tenure.wire import requests, responses


class BulksQuery(Struct, kw_only=True):
    """How many to list."""

    limit: Annotated[int, Meta(ge=1, le=MAX_LISTED)] = 50


def start_bulk(call: Call) -> Response:
    """Start to retry or cancel all jobs that match now; the server continues in the background."""
    call.check_running()
    body: requests.BulkRequest = call.body
    given: dict[str, Any] = {
        name: value
        for name in body.filter.__struct_fields__
        if (value := getattr(body.filter, name)) is not UNSET
    }
    bulk = call.app.bulk.start(
        body.action,
        Filter(**given, hidden=call.redaction.keys),
        more_retries=1 if body.more_retries is UNSET else body.more_retries,
        actor=call.caller.name,
    )
    return answer(responses.bulk_body(bulk), 202, {"Location": call.address(f"/bulk/{bulk.id}")})


def list_bulks(call: Call) -> Response:
    """List bulk actions, newest first."""
    return answer([responses.bulk_body(bulk) for bulk in call.app.bulk.list(call.query.limit)])


def show_bulk(call: Call) -> Response:
    """Show a bulk action and its progress."""
    return answer(responses.bulk_body(call.app.bulk.get(call.path["id"])))


def stop_bulk(call: Call) -> Response:
    """Stop a bulk action; jobs that it has changed stay changed."""
    return answer(responses.bulk_body(call.app.bulk.stop(call.path["id"], actor=call.caller.name)))
