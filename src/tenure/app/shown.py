"""What is shown of transitions and failures where keys are redacted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from tenure.app.core import Core
from tenure.app.queues import part_of_name
from tenure.errors import JobNotFound
from tenure.jobs.hiding import MARK
from tenure.jobs.ledger import Transition
from tenure.jobs.names import check_name
from tenure.jobs.progress import JobProgress
from tenure.jobs.redaction import NOTHING_HIDDEN, Redaction
from tenure.jobs.schedules import Fire
from tenure.jobs.stacks import Shape, shape_of
from tenure.jobs.stats import FailureGroup, QueueQuery, QueueState
from tenure.jobs.steps import JobSteps
from tenure.lifecycle import Job
from tenure.store.tables import progress, queues, schedules, steps, workflows


def queue_shown(core: Core, name: str) -> QueueState:
    """A queue, which need not have jobs or settings. Raises InvalidInput."""
    check_name(name, "queue", "$.queue")
    found = core.limited_store.read.queues(QueueQuery(name=name, within=core.queues))
    return found[0] if found else QueueState(name, None, None, 0, 0, None)


def queues_shown(core: Core, search: str, most: int) -> tuple[list[QueueState], int]:
    """The queues that need attention first, and how many there are in all.

    Raises InvalidInput.
    """
    part = part_of_name(search, "$.search")
    wanted = QueueQuery(search=part, within=core.queues, order="attention", limit=most)
    return queues.listed(core.limited_store.read, wanted)


def run_again_as(core: Core, job_id: str) -> list[Job]:
    """The newest jobs that run a job again."""
    found = []
    for other in core.limited_store.read.again(job_id):
        with suppress(JobNotFound):
            found.append(core.get(other))
    return found


def fires_of(core: Core, names: Sequence[str], most: int) -> Mapping[str, Sequence[Fire]]:
    """The newest fires of schedules, by name."""
    found: dict[str, list[Fire]] = {name: [] for name in names}
    for fire in schedules.page(core.store.read, names, most):
        found[fire.schedule].append(fire)
    return found


def statuses_of(core: Core, fires: Sequence[Fire]) -> Mapping[str, str]:
    """The status of the job of each fire, by its id, where retention has not deleted it."""
    return core.limited_store.read.statuses([f.job_id for f in fires if f.job_id is not None])


def shape_shown(core: Core, workflow_id: str) -> Shape | None:
    """What is drawn of a workflow in the queues of who asks; None if that is too much."""
    found = workflows.members(core.limited_store.read, workflow_id, core.queues)
    return found and shape_of(*found)


def types_shown(core: Core, workflow_id: str) -> Mapping[str, Mapping[str, int]]:
    """The jobs of a workflow in the queues of who asks, by type and status."""
    return workflows.by_type(core.limited_store.read, workflow_id, core.queues)


def transitions_shown(
    transitions: Sequence[Transition], job: Job, redaction: Redaction
) -> Sequence[Transition]:
    """The transitions of a job, with its redacted values cut out of their errors."""
    if not redaction:
        return transitions
    shown = redaction.hider(job.payload_json, job.result_json)
    return [
        one if one.detail is None else dataclasses.replace(one, detail=shown(one.detail))
        for one in transitions
    ]


def progress_shown(
    core: Core, jobs: Sequence[Job], redaction: Redaction = NOTHING_HIDDEN
) -> Mapping[str, JobProgress]:
    """Return how far jobs have come, by id, of those whose handlers have said so."""
    ran = {job.id: job for job in jobs if job.token}
    found = progress.of(core.limited_store.read, list(ran)) if ran else {}
    if not redaction:
        return found
    return {
        id: replace(one, message=redaction.text(one.message, ran[id])) for id, one in found.items()
    }


def steps_shown(core: Core, job: Job, redaction: Redaction = NOTHING_HIDDEN) -> JobSteps:
    """Return what the attempts of a job have kept."""
    if not job.token:
        return JobSteps()
    kept = steps.of(core.limited_store.read, job.id)
    if not redaction:
        return kept
    shown = [replace(one, result_json=_hidden(one.result_json, redaction)) for one in kept.steps]
    return replace(kept, steps=tuple(shown), state_json=_hidden(kept.state_json, redaction))


def _hidden(text: str | None, redaction: Redaction) -> str | None:
    return None if text is None else redaction.document(text)


def failures_shown(
    core: Core, groups: Sequence[FailureGroup], redaction: Redaction
) -> list[FailureGroup]:
    """Groups of failures, each with the redacted error of its last job if anything is redacted.

    A group's own error has what varies taken out, so that redacted values can no longer be found
    in it.
    """
    if not redaction:
        return list(groups)
    return [replace(group, error=_last_error(core, group, redaction)) for group in groups]


def _last_error(core: Core, group: FailureGroup, redaction: Redaction) -> str:
    try:
        job = redaction.job(core.get(group.last_job_id))
    except JobNotFound:
        return MARK
    return (job.last_error or MARK).partition("\n")[0]
