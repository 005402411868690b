"""Workflows over HTTP."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from tenure.http.api.call import Call, answer
from tenure.http.api.jobs import CURSOR
from tenure.jobs.queries import MAX_LISTED, Bulk
from tenure.jobs.workflows import RelativePage, Workflow, WorkflowStatus
from tenure.wire import requests, responses
from tenure.wire import workflows as forms

Limit = Annotated[int, Meta(ge=1, le=MAX_LISTED)]
Cursor = Annotated[str, Meta(pattern=CURSOR)]


class GraphQuery(Struct, kw_only=True):
    """How many jobs to list, and after which."""

    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class WorkflowsQuery(GraphQuery, kw_only=True):
    """Which workflows to list."""

    status: WorkflowStatus | UnsetType = UNSET
    name: requests.Name | UnsetType = UNSET


def list_workflows(call: Call) -> Response:
    """List workflows, newest first."""
    given = requests.given(call.query)
    given["before"] = _id(given.pop("cursor", None))
    page = call.app.workflows.list(**given)
    shown = [_shown(one) for one in page.workflows]
    return answer(shown, headers=_next(call, "/workflows", page.next))


def show_workflow(call: Call) -> Response:
    """Show a workflow, with the number of its jobs by status."""
    return answer(_shown(call.app.workflows.get(call.path["id"])))


def show_graph(call: Call) -> Response:
    """List jobs of a workflow, oldest first, and what they depend on."""
    id, query = call.path["id"], call.query
    after = _id(None if query.cursor is UNSET else query.cursor)
    page = call.app.workflows.graph(id, limit=query.limit, after=after)
    body = forms.GraphBody(jobs=page.jobs, dependencies=page.dependencies)
    return answer(body, headers=_next(call, f"/workflows/{id}/graph", page.next))


def list_parents(call: Call) -> Response:
    """List the jobs that a job waits for, or has waited for, oldest first."""
    return _relatives(call, call.app.workflows.parents, "parents")


def list_followers(call: Call) -> Response:
    """List the jobs that wait for a job, or have waited for it, oldest first."""
    return _relatives(call, call.app.workflows.followers, "followers")


def cancel_workflow(call: Call) -> Response:
    """Start to cancel the jobs of a workflow, except those that wait for such endings."""
    body: forms.CancelWorkflow = call.body
    return _started(call, call.app.workflows.cancel, everything=body.everything)


def retry_workflow(call: Call) -> Response:
    """Start to retry the failed jobs of a workflow; what they had stopped waits again."""
    return _started(call, call.app.workflows.retry, more_retries=call.body.more_retries)


def _relatives(call: Call, read: Any, part: str) -> Response:
    id, query = call.path["id"], call.query
    after = _id(None if query.cursor is UNSET else query.cursor)
    page: RelativePage = read(id, limit=query.limit, after=after)
    return answer(page.jobs, headers=_next(call, f"/jobs/{id}/{part}", page.next))


def _started(call: Call, act: Any, **options: Any) -> Response:
    started: Bulk = act(call.path["id"], actor=call.caller.name, reason=call.body.reason, **options)
    where = {"Location": call.address(f"/bulk/{started.id}")}
    return answer(responses.bulk_body(started), 202, where)


def _shown(workflow: Workflow) -> forms.WorkflowBody:
    return forms.WorkflowBody.of(workflow)


def _id(cursor: str | None) -> str | None:
    return None if cursor is None else str(UUID(cursor))


def _next(call: Call, path: str, after: str | None) -> dict[str, str]:
    if after is None:
        return {}
    query = {**call.request.query_params, "cursor": after.replace("-", "")}
    return {"Link": f'<{call.address(path)}?{urlencode(query)}>; rel="next"'}
