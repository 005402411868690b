"""Workflows over HTTP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from tenure.app.workflows import NewWorkflow, Node
from tenure.dependency import Dependency
from tenure.errors import InvalidInput
from tenure.http.call import Call, Cursor, answer, id_of, next_page
from tenure.rules.jobs import NewJob
from tenure.rules.search import MAX_LISTED, Bulk
from tenure.rules.workflows import RelativePage, WorkflowStatus
from tenure.values.names import check_key
from tenure.wire import requests, responses
from tenure.wire import workflows as forms

Limit = Annotated[int, Meta(ge=1, le=MAX_LISTED)]


class GraphQuery(Struct, kw_only=True):
    """How many jobs to list, and after which."""

    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class WorkflowsQuery(GraphQuery, kw_only=True):
    """Which workflows to list."""

    status: WorkflowStatus | UnsetType = UNSET
    name: requests.Name | UnsetType = UNSET


def create_workflow(call: Call) -> Response:
    """Add a workflow with its first jobs, all or none; it is on disk when this answers."""
    flow = _new(call, call.body.name)
    added = _added(call, flow)
    where = {"Location": call.address(f"/workflows/{flow.id}")}
    return answer(added, 201 if flow.created else 200, where)


def add_to_workflow(call: Call) -> Response:
    """Add jobs to a workflow, all or none; they can depend on jobs of the workflow."""
    flow = _new(call, "workflow", extends=call.path["id"])
    added = _added(call, flow)
    return answer(added, 201 if flow.created else 200)


def _new(call: Call, name: str, **more: Any) -> NewWorkflow:
    key = call.header("Idempotency-Key")
    key = key and check_key(key, "Idempotency-Key")
    own = bool(call.redaction)
    return NewWorkflow(call.app, name, key, call.caller.name, own_keys=own, **more)


def list_workflows(call: Call) -> Response:
    """List workflows, newest first."""
    given = requests.given(call.query)
    given["before"] = id_of(given.pop("cursor", UNSET))
    page = call.app.workflows.list(**given)
    return answer(page.workflows, headers=next_page(call, "/workflows", page.next))


def show_workflow(call: Call) -> Response:
    """Show a workflow, with the number of its jobs by status."""
    return answer(call.app.workflows.get(call.path["id"]))


def show_graph(call: Call) -> Response:
    """List jobs of a workflow, oldest first, and what they depend on."""
    id, query = call.path["id"], call.query
    page = call.app.workflows.graph(id, limit=query.limit, after=id_of(query.cursor))
    body = forms.GraphBody(jobs=page.jobs, dependencies=page.dependencies)
    return answer(body, headers=next_page(call, f"/workflows/{id}/graph", page.next))


def list_parents(call: Call) -> Response:
    """List the jobs that a job waits for, or has waited for, oldest first."""
    return _relatives(call, call.app.workflows.parents, "parents")


def list_followers(call: Call) -> Response:
    """List the jobs that wait for a job, or have waited for it, oldest first."""
    return _relatives(call, call.app.workflows.followers, "followers")


def cancel_workflow(call: Call) -> Response:
    """Start to cancel the jobs of a workflow, except jobs that wait for such endings."""
    body: forms.CancelWorkflow = call.body
    return _started(call, call.app.workflows.cancel, everything=body.everything)


def retry_workflow(call: Call) -> Response:
    """Start to retry the failed jobs of a workflow; what they had stopped waits again."""
    return _started(call, call.app.workflows.retry, more_retries=call.body.more_retries)


def _added(call: Call, flow: NewWorkflow) -> forms.AddedBody:
    call.check_running()
    ordered, nodes = forms.ordered(call.body.jobs), dict[str, Node[Any]]()
    try:
        with flow:
            for _, ref, job in ordered:
                options: Any = {**requests.options_of(job), "actor": call.caller.name}
                needs = options.pop("needs", "all")
                options = {n: v for n, v in options.items() if n not in ("ref", "depends_on")}
                parents = [_parent(nodes, other) for other in job.depends_on]
                new_job = NewJob(job.type, job.payload, options)
                nodes[ref] = flow.add(new_job, depends_on=parents, needs=needs)
    except InvalidInput as error:  # the block counts jobs in the order in which it added them
        place = _place_in(error.path)
        number = ordered[min(int(place[1]) if place else len(nodes), len(ordered) - 1)][0]
        rest = error.path[place.end() :] if place else error.path.removeprefix("$")
        path = f"$.jobs[{number}]{rest}"
        raise type(error)(error.message, path=path, code=error.code) from error.__cause__
    refs = {ref: node.id for ref, node in nodes.items() if not ref.startswith("#")}
    return forms.AddedBody(workflow=call.app.workflows.get(flow.id), refs=refs)


_place_in = re.compile(r"\$\[(\d+)\]").match


def _parent(nodes: Mapping[str, Node[Any]], other: forms.OtherJob | str) -> Dependency:
    if isinstance(other, str):
        return Dependency(nodes[other].id)
    by_ref = other.job_id if other.ref is UNSET else nodes[other.ref].id
    return Dependency(str(by_ref), other.meets, None if other.name is UNSET else other.name)


def _relatives(call: Call, read: Any, part: str) -> Response:
    id, query = call.path["id"], call.query
    page: RelativePage = read(id, limit=query.limit, after=id_of(query.cursor))
    return answer(page.jobs, headers=next_page(call, f"/jobs/{id}/{part}", page.next))


def _started(call: Call, act: Any, **options: Any) -> Response:
    started: Bulk = act(call.path["id"], actor=call.caller.name, reason=call.body.reason, **options)
    where = {"Location": call.address(f"/bulk/{started.id}")}
    return answer(responses.bulk_body(started), 202, where)
