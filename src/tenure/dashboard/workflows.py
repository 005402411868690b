"""The workflows, one of them with its graph, and their buttons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.responses import Response

from tenure.app.app import Tenure
from tenure.app.jobs import shape_shown, types_shown
from tenure.dashboard.graph_drawing import GraphPicture, draw
from tenure.dashboard.request import PageRequest
from tenure.lifecycle import SETTLED
from tenure.rules.search import Bulk
from tenure.rules.workflows import RelativePage, Workflow, WorkflowStatus

LISTED = 50


def listed(request: PageRequest) -> Response:
    status, name, before = (request.field(field) for field in ("status", "name", "before"))
    page = request.app.workflows.list(
        status=status or None, name=name or None, limit=LISTED, before=before or None
    )
    return request.page(
        "workflows.html",
        page=page,
        given={"status": status, "name": name, "before": before},
        states=list(WorkflowStatus),
    )


def show(request: PageRequest) -> Response:
    id = request.path("id")
    workflow, picture, types = request.cache.once(f"workflow {id}", partial(_read, request.app, id))
    jobs = workflow.jobs or {}
    settled = sum(jobs.get(status, 0) for status in SETTLED)
    return request.page(
        "workflow.html", workflow=workflow, jobs=jobs, picture=picture, types=types, settled=settled
    )


def _read(
    app: Tenure, id: str
) -> tuple[Workflow, GraphPicture | None, Mapping[str, Mapping[str, int]]]:
    """Return a workflow with its picture, or with its types if they are too many to draw."""
    workflow = app.workflows.get(id)
    shape = shape_shown(app.core, workflow.id)
    if shape is None:
        return workflow, None, types_shown(app.core, workflow.id)
    return workflow, draw(shape) if shape.stacks else None, {}


def cancel(request: PageRequest) -> Response:
    """Cancel the jobs of a workflow; jobs that run after a failure only with `everything`."""
    everything = bool(request.field("everything"))
    return _started(request, request.app.workflows.cancel, everything=everything)


def retry(request: PageRequest) -> Response:
    return _started(request, request.app.workflows.retry)


def _started(request: PageRequest, act: Any, **options: Any) -> Response:
    workflow = request.path("id")
    started: Bulk = act(workflow, actor=request.actor, reason=request.field("reason"), **options)
    where = request.address(f"/ui/workflows/{workflow}")
    return request.go(where, f"Started: {started.action} continues in the background.")


def parents(request: PageRequest) -> Response:
    """Show what a job waits for."""
    return _relatives(request, request.app.workflows.parents, "parents")


def followers(request: PageRequest) -> Response:
    """Show what waits for a job."""
    return _relatives(request, request.app.workflows.followers, "followers")


def _relatives(request: PageRequest, read: Any, part: str) -> Response:
    job = request.app.get(request.path("id"))
    page: RelativePage = read(job.id, limit=LISTED, after=request.field("after") or None)
    return request.page("relatives.html", job=job, page=page, part=part)
