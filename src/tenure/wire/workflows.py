"""Workflows as JSON: what a request adds, in which order, and what is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, field

from tenure.dependency import Meets
from tenure.errors import InvalidInput
from tenure.rules.dependencies import MAX_PARENTS, in_order
from tenure.rules.workflows import GraphDependency, GraphJob, Workflow
from tenure.wire import requests
from tenure.wire.requests import Id
from tenure.wire.responses import Answered

MAX_NEW_JOBS = 10_000
"""Jobs that one request adds to a workflow."""


class OtherJob(requests.Request):
    """A job that another one depends on: by the `ref` of this request, or the id of one there is.

    `meets` is the ending that counts; `name` is what the job that waits calls it.
    """

    ref: requests.Name | UnsetType = UNSET
    job_id: Id | UnsetType = UNSET
    meets: Meets = "completed"
    name: requests.Name | UnsetType = UNSET


DependsOn = Annotated[list[OtherJob | requests.Name], Meta(max_length=MAX_PARENTS)]
Needs = Literal["all", "any"] | Annotated[int, Meta(ge=1, le=MAX_PARENTS)]


class WorkflowJob(requests.EnqueueRequest, kw_only=True):
    """A job of a workflow. Others depend on it by its `ref`, which is for this request only.

    A text in `depends_on` is the `ref` of a job that has to be completed.
    """

    ref: requests.Name | UnsetType = UNSET
    depends_on: DependsOn = field(default_factory=list)  # type: ignore[assignment, unused-ignore]
    needs: Needs = "all"


Jobs = Annotated[list[WorkflowJob], Meta(min_length=1, max_length=MAX_NEW_JOBS)]


class WorkflowJobsRequest(requests.Request):
    """Jobs to add to a workflow, all or none, in any order."""

    jobs: Jobs


class WorkflowRequest(WorkflowJobsRequest, kw_only=True):
    """A workflow to add, with its first jobs."""

    name: requests.Name = "workflow"


class CancelWorkflow(requests.ReasonRequest, kw_only=True):
    """Whether to cancel also the jobs that all wait for a failure or for any ending."""

    everything: bool = False


class RetryWorkflow(requests.ReasonRequest, kw_only=True):
    """How many attempts a retry adds to the limit of each failed job."""

    more_retries: requests.MoreRetries = 1


class GraphBody(Answered, frozen=True):
    """Some jobs of a workflow, oldest first, and what they depend on."""

    jobs: Sequence[GraphJob]
    dependencies: Sequence[GraphDependency]


class AddedBody(Answered, frozen=True):
    """The workflow that a request added jobs to, and their ids by `ref`."""

    workflow: Workflow
    refs: dict[str, Id]


def ordered(jobs: Sequence[WorkflowJob]) -> list[tuple[int, str, WorkflowJob]]:
    """Return jobs with their numbers and refs, parents first; one without gets its number as ref.

    Raises InvalidInput for a ref that is there twice, one that is unknown, and for a cycle.
    """
    named: dict[str, WorkflowJob] = {}
    for number, job in enumerate(jobs):
        ref = f"#{number}" if job.ref is UNSET else job.ref
        if ref in named:
            raise InvalidInput(f"another job has the ref {ref}", path=f"$.jobs[{number}].ref")
        named[ref] = job
    ties = []
    for number, (ref, job) in enumerate(named.items()):
        for place, other in enumerate(job.depends_on):
            parent = other if isinstance(other, str) else other.ref
            by_id = not isinstance(other, str) and other.job_id is not UNSET
            if parent in named and not by_id:
                ties.append((str(parent), ref))
            elif not by_id or parent is not UNSET:
                path = f"$.jobs[{number}].depends_on[{place}]"
                said = "give the `ref` of a job of this request, or a `job_id`"
                raise InvalidInput(said, path=path)
    numbers = {ref: number for number, ref in enumerate(named)}
    return [(numbers[ref], ref, named[ref]) for ref in in_order(named, ties)]
