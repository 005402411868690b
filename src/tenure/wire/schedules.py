"""Schedules as JSON. They are flat, as the arguments of `app.schedules`, so errors name the same
paths."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Raw, UnsetType, defstruct, field, json, structs

from tenure.jobs.enqueue import NewJob
from tenure.jobs.redaction import Redaction
from tenure.jobs.schedule_times import When
from tenure.jobs.schedules import MAX_FIRES, MAX_TIME_KEY_LENGTH, Missed, Overlap, Schedule
from tenure.wire import requests
from tenure.wire.requests import JsonObject, Name, Request, RunAt, Seconds, Timeout, schema


class ScheduledJob(requests.TypeRequest, kw_only=True):
    """The job that a schedule adds. The options that are left out are those of its type."""

    type: Name
    payload: Annotated[dict[str, Any], JsonObject] = field(default_factory=dict)
    tags: requests.Tags | UnsetType = UNSET
    partition: requests.Partition | UnsetType = UNSET
    start_by: Timeout | UnsetType = UNSET


class WhenRequest(Request):
    """When a schedule is due: give one of `cron`, `every` and `at`."""

    cron: str | None = None
    every: Timeout | None = None
    offset: Seconds | None = None
    at: RunAt | None = None
    zone: str = "UTC"
    starts_at: RunAt | None = None
    ends_at: RunAt | None = None


TimeKey = Annotated[str, schema(minLength=1, maxLength=MAX_TIME_KEY_LENGTH)]


class ScheduleRequest(WhenRequest, kw_only=True):
    """A whole schedule: a new one, or one that replaces the old."""

    job: ScheduledJob
    time_key: TimeKey | None = None
    jitter: Seconds = 0.0
    missed: Missed = "one"
    grace: Seconds = 60.0
    catch_up: Annotated[int, schema(minimum=1, maximum=MAX_FIRES)] = 100
    catch_up_window: Timeout | None = None
    overlap: Overlap = "allow_all"
    note: requests.Reason | None = None


class ResumeRequest(Request):
    """Whether to make up for the ticks since the pause, as the schedule says."""

    catch_up: bool = False


class TriggerRequest(Request):
    """What to do if the last job is not settled. Left out: as the schedule says."""

    overlap: Overlap | None = None


class BackfillRequest(Request):
    """The ticks from `start`, before `end`, and what differs for their jobs."""

    start: RunAt
    end: RunAt
    overlap: Overlap = "buffer_all"
    queue: Name | None = None
    priority: requests.Priority | None = None
    dry_run: bool = False


def arguments_of(request: Request) -> dict[str, Any]:
    """Return what a request says as the arguments of `app.schedules`."""
    arguments = structs.asdict(request)
    if (job := arguments.get("job")) is not None:
        options: Any = requests.options_of(job)
        arguments["job"] = NewJob(job.type, job.payload, options)
    return arguments


SHOWN = (*structs.fields(When), *structs.fields(Schedule))
ScheduleBody = defstruct(
    "ScheduleBody",
    [
        ("job", dict[str, Any]),
        *((one.name, one.type) for one in SHOWN if one.name not in ("when", "template")),
    ],
)


def schedule_body(schedule: Schedule, redaction: Redaction) -> Any:
    """Show a schedule, without the hidden values of its payload."""
    fields = structs.asdict(schedule)
    when, template = fields.pop("when"), fields.pop("template")
    payload = redaction.document(json.encode(template.payload).decode())
    job = {"type": template.type, "payload": Raw(payload.encode()), **template.options}
    return ScheduleBody(job=job, **structs.asdict(when), **fields)
