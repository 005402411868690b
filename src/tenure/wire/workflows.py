"""Workflows as JSON: what a request adds, in which order, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from tenure.jobs.workflows import GraphDependency, GraphJob, WorkflowStatus
from tenure.lifecycle import Status
from tenure.wire import requests
from tenure.wire.responses import Answered, Id


class CancelWorkflow(requests.ReasonRequest, kw_only=True):
    """Whether to cancel also the jobs that all wait for a failure or for any ending."""

    everything: bool = False


class WorkflowBody(Answered, frozen=True):
    """A workflow; `jobs` has their number by status, in a list it is null."""

    id: Id
    name: str
    key: str | None
    status: WorkflowStatus
    jobs: Mapping[Status, int] | None
    created_at: datetime
    created_by: str
    finished_at: datetime | None


class GraphBody(Answered, frozen=True):
    """Some jobs of a workflow, oldest first, and what they depend on."""

    jobs: Sequence[GraphJob]
    dependencies: Sequence[GraphDependency]
