"""Requests as JSON: the shape of every request body; those of workers are in `reports`.

What `payload`, `names` and the application check is only described here, for OpenAPI, so that HTTP
gives the same errors as Python. Schedules are flat, as the arguments of `app.schedules`, so errors
name the same paths; `ScheduleBody` shows one in the same form.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, defstruct, field, json, structs

from tenure.dependency import Meets
from tenure.errors import InvalidInput
from tenure.handlers.arguments import MAX_SCHEMA_LENGTH
from tenure.lifecycle import Status
from tenure.retry import MAX_DELAYS
from tenure.rules.dependencies import MAX_PARENTS, dependencies_of
from tenure.rules.jobs import PLAIN_OPTIONS, NewJob, check_job
from tenure.rules.queues import MAX_RUNNING, MAX_STARTS, MAX_WEIGHT, Ordered
from tenure.rules.retention import FOREVER_SECONDS
from tenure.rules.schedules import MAX_FIRES, MAX_TIME_KEY_LENGTH, Missed, Overlap, Schedule
from tenure.rules.search import MAX_SEARCHED_FOR, Action, State
from tenure.rules.signals import MAX_LINK_LABEL
from tenure.rules.times import When
from tenure.rules.unique_keys import OnConflict, Until
from tenure.values import ids, names
from tenure.values.payload import JsonText, canonical
from tenure.values.redaction import Redaction

MAX_JOB_WAIT_SECONDS = 60.0


def schema(**keywords: Any) -> Meta:
    """Describe a value by keywords of JSON Schema, without checking it."""
    return Meta(extra_json_schema=keywords)


def matching(pattern: str, max_length: int | None = None) -> Meta:
    """Check a text by a pattern of JSON Schema that ends with `$`.

    In Python alone, `$` also matches before a last line break.
    """
    return Meta(pattern=pattern.removesuffix("$") + r"\Z", max_length=max_length)


def component(name: str) -> Meta:
    return schema(**{"$ref": f"#/components/schemas/{name}"})


Name = Annotated[str, schema(pattern=names.NAME_PATTERN, maxLength=names.MAX_NAME_LENGTH)]
NAMES = names.NAME_PATTERN.strip("^$")
Names = Annotated[str, schema(pattern=f"^{NAMES}(,{NAMES})*$")]
"""Names separated by commas."""
Key = Annotated[str, schema(pattern=names.KEY_PATTERN, maxLength=names.MAX_KEY_LENGTH)]
LINE = "^[!-~]([ -~]*[!-~])?$"
"""Visible ASCII and spaces between."""
Label = Annotated[str, matching(LINE, max_length=names.MAX_LABEL_LENGTH)]
RunAt = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "^[1-8]"})]
TimeText = Annotated[str, schema(format="date-time", pattern="^[1-8]")]
"""A time in a query, where a number is not accepted."""
Tag = Annotated[str, schema(minLength=1, maxLength=names.MAX_TAG_LENGTH, pattern=names.KEY_PATTERN)]
Tags = Annotated[list[Tag], schema(maxItems=names.MAX_TAGS)]
Partition = Annotated[
    str, schema(minLength=1, maxLength=names.MAX_PARTITION_LENGTH, pattern=names.TEXT_PATTERN)
]
LinkLabel = Annotated[
    str, schema(minLength=1, maxLength=MAX_LINK_LABEL, pattern=names.TEXT_PATTERN)
]
Id = Annotated[str, schema(pattern=ids.ID_PATTERN)]
Reason = Annotated[str, schema(maxLength=names.MAX_REASON_LENGTH, pattern=r"^[^\x00]*$")]
SearchText = Annotated[str, schema(minLength=1, maxLength=MAX_SEARCHED_FOR, pattern="^[^\\x00]*$")]
JsonObject = component("JsonObject")
Json = Annotated[Any, component("Json")]
Seconds = Annotated[float | str, component("Duration")]
Timeout = Annotated[float | str, component("PositiveDuration")]
StartBy = Annotated[float | str, component("StartBy")]
Priority = Annotated[int, schema(minimum=-100, maximum=100)]
Retries = Annotated[int, schema(minimum=0, maximum=1_000)]
MoreRetries = Annotated[int, schema(minimum=1, maximum=1_000)]
Factor = Annotated[float, schema(minimum=1, maximum=1_000)]
KeptSeconds = Annotated[float, Meta(ge=0, le=FOREVER_SECONDS)]
Delays = Annotated[list[Seconds], schema(minItems=1, maxItems=MAX_DELAYS)]


def embedded(text: str | None) -> Raw:
    """Embed JSON text in other JSON unchanged; None is null."""
    return Raw(b"null" if text is None else text.encode())


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request. Unknown fields are refused, so that a typing error is found."""

    def pack(self, path: str) -> None:
        """Replace the values that a caller made up by their text. `path` is of this request."""


def given(request: Struct) -> dict[str, Any]:
    """Return the fields of a request that are set, by name."""
    return {name: value for name, value in structs.asdict(request).items() if value is not UNSET}


# --- jobs -----------------------------------------------------------------------------------------


class Backoff(Request):
    """Exponential backoff: `base` after the first failure, times `factor`, up to `cap`.

    With `delays`, these are the waits after each failure; the last one repeats.
    """

    base: Seconds | UnsetType = UNSET
    factor: Factor | UnsetType = UNSET
    cap: Seconds | UnsetType = UNSET
    delays: Annotated[list[Seconds], schema(maxItems=MAX_DELAYS)] | UnsetType = UNSET


class TypeRequest(Request):
    """The options of a type's jobs. Durations are seconds, or text such as `30s`, `1h30m`, `PT5M`.

    An option that is left out has Tenure's default.
    """

    queue: Name | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET  # null: no limit
    backoff: Backoff | Seconds | Delays | UnsetType = UNSET  # a policy, its base, or its delays


class KeepForm(Request):
    """How many seconds settled jobs are kept, by status; more than ten years: forever."""

    completed: KeptSeconds | UnsetType = UNSET
    cancelled: KeptSeconds | UnsetType = UNSET
    failed: KeptSeconds | UnsetType = UNSET


class DeclareRequest(TypeRequest, kw_only=True):
    """What a worker knows of a type: its options, and the JSON schema of its payloads, as text."""

    schema: Annotated[str, Meta(max_length=MAX_SCHEMA_LENGTH)] | None = None
    keep: KeepForm | UnsetType = UNSET


class UniqueRequest(Request):
    """With which other jobs a job is the same, and what happens if one of them is there.

    `by` names values of the payload; `[]` allows one job of the type, a text is the key itself,
    and null stands for the whole payload.
    """

    by: Annotated[str | list[str] | None, component("UniqueBy")] = None
    until: Until | None = None
    within: Timeout | None = None
    on_conflict: OnConflict = "return"
    max_wait: Timeout | None = None
    across_queues: bool = True


class DependencyRequest(Request):
    """A job that has to end before another one runs, and which ending of it counts."""

    job_id: Id
    meets: Meets = "completed"
    name: Name | None = None


Parents = Annotated[list[Id | DependencyRequest], schema(maxItems=MAX_PARENTS)]


class AgainRequest(TypeRequest, kw_only=True):
    """A job to add that does again what another one did. What is left out is as of that job."""

    payload: Annotated[dict[str, Any], JsonObject] | UnsetType = UNSET
    tags: Tags | None = None
    partition: Partition | None = None
    unique: UniqueRequest | UnsetType | None = UNSET  # null: not unique, whatever its type says
    depends_on: Parents | None = None  # jobs that have to end before
    needs: Annotated[str | int, component("Needs")] | UnsetType = UNSET  # how many of them
    run_at: RunAt | None = None
    delay: Seconds | None = None
    start_by: StartBy | None = None
    idempotency_key: Key | None = None

    def pack(self, path: str) -> None:
        """Replace the payload by its text; raises InvalidInput."""
        if self.payload is not UNSET:
            text = JsonText(canonical(self.payload, path=f"{path}.payload"))
            structs.force_setattr(self, "payload", text)


class EnqueueRequest(AgainRequest, kw_only=True):
    """A job to add. The options that are left out are those of its type."""

    type: Name
    payload: Annotated[dict[str, Any], JsonObject] = {}


class ReasonRequest(Request):
    """Why this is done, for the ledger."""

    reason: Reason | None = None


class AmendRequest(ReasonRequest, kw_only=True):
    """What changes of a pending job. What is left out stays."""

    payload: Annotated[dict[str, Any], JsonObject] | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    max_retries: Retries | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET  # null: no limit
    backoff: Backoff | Seconds | Delays | UnsetType = UNSET
    run_at: RunAt | UnsetType = UNSET
    delay: Seconds | UnsetType = UNSET  # from now; 0: at once
    pack = AgainRequest.pack


MAY_BE_NONE = frozenset({"timeout", "unique"})


def options_of(request: Request) -> dict[str, Any]:
    """Return the options that a request gives. Only those of `MAY_BE_NONE` can be None."""
    return {
        name: [_plain(one) for one in value] if type(value) is list else _plain(value)
        for name, value in given(request).items()
        if (value is not None or name in MAY_BE_NONE) and name not in {"type", "payload", "reason"}
    }


def _plain(value: object) -> object:
    return given(value) if isinstance(value, Request) else value


class RetryRequest(ReasonRequest, kw_only=True):
    """How many attempts a retry adds to the job's limit; `from_scratch` deletes what it kept."""

    more_retries: MoreRetries = 1
    from_scratch: bool = False


class FilterForm(Request):
    """Selects the jobs that match every given field."""

    status: Status | UnsetType = UNSET
    state: State | UnsetType = UNSET
    running_longer_than: Timeout | UnsetType = UNSET
    type: Name | UnsetType = UNSET
    queue: Name | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    partition: Partition | UnsetType = UNSET
    workflow: Id | UnsetType = UNSET
    created_after: RunAt | UnsetType = UNSET
    created_before: RunAt | UnsetType = UNSET
    finished_after: RunAt | UnsetType = UNSET
    finished_before: RunAt | UnsetType = UNSET
    error: SearchText | UnsetType = UNSET
    text: SearchText | UnsetType = UNSET


class BulkRequest(ReasonRequest, kw_only=True):
    """An action on all jobs that match now; `more_retries` as for one job."""

    action: Action
    filter: Annotated[FilterForm, schema(minProperties=1)]
    more_retries: MoreRetries = 1


class NoFields(Request):
    """An empty object; the body may be left out."""


def new_job(new_job: NewJob, at: str) -> dict[str, Any]:
    """Return a job as the API takes it, checked before anything is sent.

    JSON would have null for NaN, which leaves an option out, and a text for bytes or a UUID.
    """
    options: dict[str, Any] = {
        name: value
        for name, value in new_job.options.items()
        if (value is not None or name in MAY_BE_NONE) and name != "actor"  # the server names it
    }
    if "tags" in options:
        options["tags"] = names.check_tags(options["tags"], f"{at}.tags")
    checked = structs.replace(new_job, options=options)
    try:
        check_job(checked, "", defaults=PLAIN_OPTIONS, actor="")
    except InvalidInput as error:
        raise error.inside(at) from error.__cause__
    if "depends_on" in options:
        edges = dependencies_of(options["depends_on"])
        options["depends_on"] = [
            {name: v for name, v in structs.asdict(edge).items() if v is not None} for edge in edges
        ]
    return {"type": new_job.type, "payload": new_job.payload, **options}


# --- queues ---------------------------------------------------------------------------------------

MaxPending = Annotated[int, schema(minimum=0, maximum=2**53)]
MaxRunning = Annotated[int, schema(minimum=0, maximum=MAX_RUNNING)]
RateText = Annotated[str, schema(examples=["900/1m"], maxLength=40)]
Burst = Annotated[int, schema(minimum=1, maximum=MAX_STARTS)]
Weight = Annotated[int, schema(minimum=1, maximum=MAX_WEIGHT)]


class PerPartitionForm(Request):
    """What holds for each partition of a queue; `{}`: they only take turns."""

    max_running: MaxRunning | None = None
    rate: RateText | None = None
    burst: Burst | None = None


class LimitRequest(Request):
    """The limits of a queue to change. Null removes one; a limit that is left out stays."""

    max_pending: MaxPending | UnsetType | None = UNSET
    max_running: MaxRunning | UnsetType | None = UNSET
    rate: RateText | UnsetType | None = UNSET
    burst: Burst | UnsetType | None = UNSET
    per_partition: PerPartitionForm | UnsetType | None = UNSET
    ordered: Ordered | UnsetType | None = UNSET


class PartitionRequest(Request):
    """A partition of a queue; empty for the jobs without one."""

    partition: Annotated[
        str, schema(maxLength=names.MAX_PARTITION_LENGTH, pattern=names.TEXT_PATTERN)
    ] = ""


class PartitionSettings(PartitionRequest, kw_only=True):
    """What differs for a partition; null removes it, and what is left out stays."""

    max_running: MaxRunning | UnsetType | None = UNSET
    weight: Weight | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET
    reason: Reason | None = None


# --- schedules ------------------------------------------------------------------------------------

TimeKey = Annotated[str, schema(minLength=1, maxLength=MAX_TIME_KEY_LENGTH)]


class ScheduledJob(TypeRequest, kw_only=True):
    """The job that a schedule adds. The options that are left out are those of its type."""

    type: Name
    payload: Annotated[dict[str, Any], JsonObject] = field(default_factory=dict)
    tags: Tags | UnsetType = UNSET
    partition: Partition | UnsetType = UNSET
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
    note: Reason | None = None


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
    priority: Priority | None = None
    dry_run: bool = False


def arguments_of(request: Request) -> dict[str, Any]:
    """Return what a request says as the arguments of `app.schedules`."""
    arguments = structs.asdict(request)
    if (job := arguments.get("job")) is not None:
        options: Any = options_of(job)
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
