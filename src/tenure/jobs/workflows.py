"""Workflows: jobs that were added together, and that may wait for each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import combinations

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenure.dependency import Meets
from tenure.jobs.durations import Time
from tenure.jobs.enqueue import CheckedJob, LinkedJob, NewJob, fingerprint
from tenure.jobs.ledger import StatusName

ENDINGS = ("cancelled", "completed", "failed", "skipped")
"""How jobs of a workflow end. `skipped`: it was cancelled because it could no longer run."""


class WorkflowStatus(StrEnum):
    """What a workflow is doing, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def status_of(endings: str | None) -> WorkflowStatus:
    """Return the status of a workflow whose jobs ended so; None while some have not.

    `endings` are those of `ENDINGS` that there were, in order, with spaces between. A job that was
    skipped does not count: either another job says what went wrong, or it was there for a failure
    that did not happen.
    """
    if endings is None:
        return WorkflowStatus.RUNNING
    ended = endings.split()
    for status in (WorkflowStatus.FAILED, WorkflowStatus.CANCELLED):
        if status in ended:
            return status
    return WorkflowStatus.COMPLETED


def endings_of(status: WorkflowStatus) -> list[str]:
    """Return every value of `endings` for which `status_of` is this status."""
    sizes = range(len(ENDINGS) + 1)
    some = (" ".join(words) for size in sizes for words in combinations(ENDINGS, size))
    return [endings for endings in some if status_of(endings) is status]


class Workflow(Struct, frozen=True, kw_only=True):
    """A workflow, and how many of its jobs have which status; None if that was not counted."""

    id: str
    name: str
    key: str | None
    status: WorkflowStatus
    jobs: Mapping[str, int] | None
    created_at: Time
    created_by: str
    finished_at: Time | None


class WorkflowPage(Struct, frozen=True):
    """Some workflows, newest first. `next` is the `before` of the next page, None on the last."""

    workflows: Sequence[Workflow]
    next: str | None


class GraphJob(Struct, frozen=True):
    """A job of a workflow, as far as its graph shows it."""

    id: str
    type: str
    queue: str
    status: StatusName
    needs: int | None  # how many of the jobs that it depends on; None: all


class GraphDependency(Struct, frozen=True):
    """That the job `child` waits for the job `parent`."""

    parent: str
    child: str
    meets: Meets
    name: str | None


class GraphPage(Struct, frozen=True):
    """Some jobs of a workflow, oldest first, and what they depend on.

    `next` is the `after` of the next page, None on the last one.
    """

    jobs: Sequence[GraphJob]
    dependencies: Sequence[GraphDependency]
    next: str | None


class Relative(Struct, frozen=True):
    """A job that another one waits for, or that waits for it, and which ending counts."""

    id: str
    type: str
    queue: str
    status: StatusName
    meets: Meets
    name: str | None


class RelativePage(Struct, frozen=True):
    """Some parents or followers of a job, oldest first.

    `next` is the `after` of the next page, None on the last one.
    """

    jobs: Sequence[Relative]
    next: str | None


def fingerprint_of(
    name: str, new_jobs: Sequence[NewJob], checked_jobs: Sequence[CheckedJob]
) -> str:
    """What makes two requests for workflows with one key the same: the jobs, and how they depend.

    Dependencies on jobs of the same request count by their place in it.
    """
    places = {checked_job.id: str(place) for place, checked_job in enumerate(checked_jobs)}
    said = [name]
    for new_job, job in zip(new_jobs, checked_jobs, strict=True):
        if type(job) is LinkedJob:
            edges = [(places.get(e.job_id, e.job_id), e.meets, e.name) for e in job.edges]
            job = replace(job, edges=edges)  # noqa: PLW2901
        said.append(fingerprint(job, new_job.options))
    return hashlib.sha256(msgspec.json.encode(said)).hexdigest()
