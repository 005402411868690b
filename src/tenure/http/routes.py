"""Every call of the HTTP API. The server's routing and the OpenAPI description are made from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from msgspec import Meta
from starlette.responses import Response

from tenure.handlers import results
from tenure.http import jobs, leases, openapi, queues, retention, schedules, signals, workflows
from tenure.http.bodies import JSON, SMALL_BODY
from tenure.http.call import LINK, OF_LEASE, SCHEDULE, TO_JOB, Body, Call, Reply, Route
from tenure.http.stats import CONTENT_TYPE
from tenure.rules.explain import Explanation
from tenure.rules.jobs import MAX_JOBS_AT_ONCE
from tenure.rules.retention import RetentionRule
from tenure.rules.schedules import Fire
from tenure.rules.search import Counted
from tenure.rules.signals import MAX_SIGNAL_BYTES
from tenure.rules.stats import PartitionState, QueueState, TypeState, WorkerState
from tenure.rules.times import Preview
from tenure.rules.tokens import EVERY_SCOPE, Scope
from tenure.rules.workflows import Relative, Workflow
from tenure.values import payload
from tenure.wire import kept, reports, requests, responses
from tenure.wire import workflows as flows

MAX_JOB_BYTES = payload.MAX_PAYLOAD_BYTES + SMALL_BODY
MAX_BATCH_BYTES = 32 * 1024 * 1024
"""Largest batch of jobs or of reports, in bytes."""
MAX_WORKFLOW_BYTES = 8 * 1024 * 1024
"""Largest body of jobs of a workflow, in bytes; it has up to `bodies.MAX_VALUES` values."""
MAX_LEASES = 10_000
MAX_KEPT_BYTES = results.MAX_RESULT_BYTES + SMALL_BODY
JOB_DEPTH = payload.MAX_DEPTH + 1  # a payload lies one level deep in a job, two in a batch

Job = responses.JobBody
Batch = Annotated[list[requests.EnqueueRequest], Meta(max_length=MAX_JOBS_AT_ONCE)]
Reports = Annotated[list[reports.ReportEntry], Meta(max_length=MAX_LEASES)]
Progress = Annotated[list[reports.ProgressEntry], Meta(max_length=MAX_LEASES)]
LeaseNames = Annotated[list[reports.LeaseName], Meta(max_length=MAX_LEASES)]

OPEN: frozenset[Scope] = frozenset()
ANY = EVERY_SCOPE
ENQUEUE, WORK, READ, ADMIN = (frozenset({scope}) for scope in Scope)

ONE_JOB_BODY = Body(requests.EnqueueRequest, limit=MAX_JOB_BYTES, depth=JOB_DEPTH)
BATCH_BODY = Body(
    Batch,
    limit=MAX_BATCH_BYTES,
    depth=JOB_DEPTH + 1,
    item=requests.EnqueueRequest,
    most=MAX_JOBS_AT_ONCE,
)
AGAIN = Body(requests.AgainRequest, limit=MAX_JOB_BYTES, depth=JOB_DEPTH, optional=True)
AMEND = Body(requests.AmendRequest, limit=MAX_JOB_BYTES, depth=JOB_DEPTH)
RETRY = Body(requests.RetryRequest, optional=True)
LEASE = Body(reports.LeaseRequest, limit=2 * 1024 * 1024)
REPORTS = Body(
    Reports, limit=MAX_BATCH_BYTES, lenient=True, item=reports.ReportEntry, most=MAX_LEASES
)
HEARTBEATS = Body(
    LeaseNames, limit=4 * 1024 * 1024, lenient=True, item=reports.LeaseName, most=MAX_LEASES
)
PROGRESS = Body(
    Progress, limit=MAX_BATCH_BYTES, lenient=True, item=reports.ProgressEntry, most=MAX_LEASES
)
SIGNAL = Body(requests.Json, limit=MAX_SIGNAL_BYTES, depth=payload.MAX_DEPTH, optional=True)
TOKEN_KEPT = Body(
    reports.TokenRequest, limit=MAX_SIGNAL_BYTES + SMALL_BODY, depth=payload.MAX_DEPTH + 1
)
BY_FORM = replace(SIGNAL, form=True)
DONE_STEP = Body(reports.StepRequest, limit=MAX_KEPT_BYTES, depth=JOB_DEPTH)
STATE = Body(reports.StateRequest, limit=MAX_KEPT_BYTES, depth=JOB_DEPTH)
TYPE_OPTIONS = Body(requests.DeclareRequest)
LIMIT = Body(requests.LimitRequest)
PARTITION = Body(requests.PartitionSettings)
PASS_OVER = Body(requests.PartitionRequest)
KEEP = Body(retention.RetentionRequest)
BULK_REQUEST = Body(requests.BulkRequest)
REASON = Body(requests.ReasonRequest, optional=True)
NO_BODY = Body(requests.NoFields, optional=True)
SCHEDULED = Body(requests.ScheduleRequest, limit=MAX_JOB_BYTES, depth=JOB_DEPTH + 1)
RESUME = Body(requests.ResumeRequest, optional=True)
TRIGGER = Body(requests.TriggerRequest, optional=True)
WORKFLOW = Body(flows.WorkflowRequest, limit=MAX_WORKFLOW_BYTES, depth=JOB_DEPTH + 2)
WORKFLOW_JOBS = Body(flows.WorkflowJobsRequest, limit=MAX_WORKFLOW_BYTES, depth=JOB_DEPTH + 2)
RETRY_WORKFLOW = Body(flows.RetryWorkflow, optional=True)
CANCEL_WORKFLOW = Body(flows.CancelWorkflow, optional=True)
BACKFILL, WHEN = Body(requests.BackfillRequest), Body(requests.WhenRequest)

TRACE = ("traceparent",)
KEY = ("traceparent", "Idempotency-Key")
LAST_EVENT = ("Last-Event-ID",)
MATCH = ("If-Match",)

NEW_JOB = Reply(Job, "The new job.", status=201, headers=("Location",))
OLD_JOB = Reply(Job, "The job of an earlier request with this key.", headers=("Location",))
NEW_JOBS = Reply(list[Job], "The jobs, in the order of the request.", status=201)
JOB_PAGE = Reply(list[Job], "A page of jobs; `Link` names the next.", headers=("Link",))
COUNTED = Reply(Counted, "How many jobs there are, or at least are.")
JOB = Reply(Job, "The job.")
CANCELLED = Reply(Job, "The job, cancelled.")
UNBLOCKED = Reply(Job, "The job, pending.")
AMENDED = Reply(Job, "The job, changed.")
RETRIED = Reply(Job, "The job, pending again.")
HISTORY = Reply(
    list[responses.TransitionBody],
    "The job's last transitions; `Link` names the page of those before.",
    headers=("Link",),
)
FOUND = Reply(kept.FoundBody, "The signal, if it is there.")
SIGNALLED = Reply(responses.SignalBody, "The signal.")
SIGNALS = Reply(list[responses.SignalBody], "The signals.")
PAGE = Reply(None, "A page for people.", also=("text/html",))
STEPS = Reply(kept.StepsBody, "The steps and the state that its attempts have kept.")
EXPLANATION = Reply(Explanation, "The reason.")
NEW_WORKFLOW = Reply(flows.AddedBody, "The new workflow.", status=201, headers=("Location",))
OLD_WORKFLOW = Reply(
    flows.AddedBody, "The workflow of an earlier request with this key.", headers=("Location",)
)
MORE_JOBS = Reply(flows.AddedBody, "The workflow, with the new jobs.", status=201)
OLD_JOBS = Reply(flows.AddedBody, "The jobs of an earlier request with this key.")
WORKFLOW_PAGE = Reply(
    list[Workflow], "A page of workflows; `Link` names the next.", headers=("Link",)
)
ONE_WORKFLOW = Reply(Workflow, "The workflow.")
RELATIVES = Reply(list[Relative], "A page of jobs; `Link` names the next.", headers=("Link",))
GRAPH = Reply(flows.GraphBody, "Some jobs and what they depend on.", headers=("Link",))
NEW_BULK = Reply(responses.BulkBody, "The action, started.", status=202, headers=("Location",))
BULKS = Reply(list[responses.BulkBody], "The actions.")
BULK = Reply(responses.BulkBody, "The action.")
LEASES = Reply(list[responses.LeaseBody], "The leased jobs; none if there were none in time.")
VERDICTS = Reply(list[responses.VerdictBody], "A verdict for each report, in order.")
HELD = Reply(list[responses.HeldBody], "Whether each lease is held, in order.")
PROGRESS_ON_RECORD = Reply(responses.RecordedBody, "How many entries were stored.")
KEPT = Reply(kept.KeptBody, "What is kept.")
PARENTS = Reply(kept.ParentsBody, "The jobs, oldest first.")
STEP = Reply(kept.StepBody, "The step on record.")
STATE_KEPT = Reply(responses.RecordedBody, "The state is kept.")
QUEUES = Reply(list[QueueState], "The queues.")
QUEUE = Reply(QueueState, "The queue, changed.")
PARTITIONS = Reply(list[PartitionState], "The partitions.")
TYPES = Reply(list[TypeState], "The types.")
TYPE = Reply(TypeState, "The type.")
RULES = Reply(list[RetentionRule], "The rules.")
RULE = Reply(RetentionRule, "The rule, changed.")
WORKERS = Reply(list[WorkerState], "The workers.")
SCHEDULES = Reply(list[requests.ScheduleBody], "The schedules.")  # type: ignore[valid-type]
ONE_SCHEDULE = Reply(requests.ScheduleBody, "The schedule.", headers=("ETag",))
MADE = Reply(requests.ScheduleBody, "The new schedule.", status=201, headers=("ETag",))
FIRE = Reply(Fire, "The fire: what became of the tick.")
FIRES = Reply(list[Fire], "The fires.")
TICKS = Reply(Preview, "The next times.")
STATS = Reply(responses.StatsBody, "The counts.")
STREAM = Reply(None, "The stream.", also=("text/event-stream",))
METRICS = Reply(responses.MetricsBody, "The values.", also=(CONTENT_TYPE,))


def describe(call: Call) -> Response:
    """Describe this API as OpenAPI 3.1."""
    return Response(openapi.document(ROUTES, secured=call.caller.known), media_type=JSON)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/health", OPEN, jobs.health, Reply(responses.ProbeBody, "It is up.")),
    Route("GET", "/ready", ANY, jobs.ready, Reply(responses.ProbeBody, "It takes work.")),
    Route("GET", "/openapi.json", ANY, describe, Reply(dict, "The description.")),
    # --- jobs
    Route(
        "POST", "/jobs", ENQUEUE, jobs.create_job, NEW_JOB, OLD_JOB, body=ONE_JOB_BODY, headers=KEY
    ),
    Route(
        "POST", "/jobs/batch", ENQUEUE, jobs.create_jobs, NEW_JOBS, body=BATCH_BODY, headers=TRACE
    ),
    Route("GET", "/jobs", READ, jobs.list_jobs, JOB_PAGE, query=jobs.ListQuery),
    Route("GET", "/jobs/count", READ, jobs.count_jobs, COUNTED, query=jobs.CountQuery),
    Route("GET", "/jobs/{id}", READ, jobs.show_job, JOB, query=jobs.WaitQuery),
    Route("GET", "/jobs/{id}/history", READ, jobs.show_history, HISTORY, query=jobs.HistoryQuery),
    Route("GET", "/jobs/{id}/steps", READ, jobs.show_steps, STEPS),
    Route("GET", "/jobs/{id}/explain", READ, jobs.explain_job, EXPLANATION),
    Route("PATCH", "/jobs/{id}", ADMIN, jobs.amend_job, AMENDED, body=AMEND),
    Route(
        *("POST", "/jobs/{id}/run-again", ADMIN, jobs.run_job_again, NEW_JOB, OLD_JOB),
        body=AGAIN,
        headers=KEY,
    ),
    Route("POST", "/jobs/{id}/cancel", ADMIN, jobs.cancel_job, CANCELLED, body=REASON),
    Route("POST", "/jobs/{id}/retry", ADMIN, jobs.retry_job, RETRIED, body=RETRY),
    Route("POST", "/jobs/{id}/unblock", ADMIN, jobs.unblock_job, UNBLOCKED),
    Route(
        *("POST", TO_JOB, ENQUEUE, signals.send_signal, SIGNALLED),
        body=SIGNAL,
        headers=("Idempotency-Key",),
    ),
    Route("GET", "/jobs/{id}/signals", READ, signals.list_signals, SIGNALS),
    Route("POST", LINK, OPEN, signals.use_signal_token, SIGNALLED, body=BY_FORM),
    Route("GET", LINK, OPEN, signals.show_signal_token, PAGE),
    # --- workflows
    Route(
        *("GET", "/jobs/{id}/parents", READ, workflows.list_parents, RELATIVES),
        query=workflows.GraphQuery,
    ),
    Route(
        *("GET", "/jobs/{id}/followers", READ, workflows.list_followers, RELATIVES),
        query=workflows.GraphQuery,
    ),
    Route(
        *("POST", "/workflows", ENQUEUE, workflows.create_workflow, NEW_WORKFLOW, OLD_WORKFLOW),
        body=WORKFLOW,
        headers=("Idempotency-Key",),
    ),
    Route(
        *("POST", "/workflows/{id}/jobs", ENQUEUE, workflows.add_to_workflow, MORE_JOBS, OLD_JOBS),
        body=WORKFLOW_JOBS,
        headers=("Idempotency-Key",),
    ),
    Route(
        *("GET", "/workflows", READ, workflows.list_workflows, WORKFLOW_PAGE),
        query=workflows.WorkflowsQuery,
    ),
    Route("GET", "/workflows/{id}", READ, workflows.show_workflow, ONE_WORKFLOW),
    Route(
        *("GET", "/workflows/{id}/graph", READ, workflows.show_graph, GRAPH),
        query=workflows.GraphQuery,
    ),
    Route(
        *("POST", "/workflows/{id}/cancel", ADMIN, workflows.cancel_workflow, NEW_BULK),
        body=CANCEL_WORKFLOW,
    ),
    Route(
        *("POST", "/workflows/{id}/retry", ADMIN, workflows.retry_workflow, NEW_BULK),
        body=RETRY_WORKFLOW,
    ),
    # --- actions on all jobs that match a filter
    Route("POST", "/bulk", ADMIN, jobs.start_bulk, NEW_BULK, body=BULK_REQUEST),
    Route("GET", "/bulk", READ, jobs.list_bulks, BULKS, query=jobs.BulksQuery),
    Route("GET", "/bulk/{id}", READ, jobs.show_bulk, BULK),
    Route("POST", "/bulk/{id}/stop", ADMIN, jobs.stop_bulk, BULK, body=NO_BODY),
    # --- schedules
    Route(
        *("GET", "/schedules", READ, schedules.list_schedules, SCHEDULES),
        query=schedules.SchedulesQuery,
    ),
    Route("GET", SCHEDULE, READ, schedules.show_schedule, ONE_SCHEDULE),
    Route(
        *("PUT", SCHEDULE, ADMIN, schedules.put_schedule, ONE_SCHEDULE, MADE),
        body=SCHEDULED,
        headers=(*MATCH, "If-None-Match"),
    ),
    Route("DELETE", SCHEDULE, ADMIN, schedules.delete_schedule, ONE_SCHEDULE, headers=MATCH),
    Route("POST", f"{SCHEDULE}/pause", ADMIN, schedules.pause_schedule, ONE_SCHEDULE, body=REASON),
    Route(
        "POST", f"{SCHEDULE}/resume", ADMIN, schedules.resume_schedule, ONE_SCHEDULE, body=RESUME
    ),
    Route(
        *("POST", f"{SCHEDULE}/trigger", ADMIN, schedules.trigger_schedule, FIRE),
        body=TRIGGER,
        headers=("Idempotency-Key",),
    ),
    Route("POST", f"{SCHEDULE}/backfill", ADMIN, schedules.backfill_schedule, FIRES, body=BACKFILL),
    Route(
        "GET", f"{SCHEDULE}/fires", READ, schedules.list_fires, FIRES, query=schedules.FiresQuery
    ),
    Route("GET", f"{SCHEDULE}/next", READ, schedules.next_ticks, TICKS, query=schedules.TimesQuery),
    Route(
        *("POST", "/preview", READ, schedules.preview_schedule, TICKS),
        body=WHEN,
        query=schedules.TimesQuery,
    ),
    # --- what workers call
    Route("POST", "/leases", WORK, leases.lease_jobs, LEASES, body=LEASE),
    Route("POST", "/reports", WORK, leases.report_many, VERDICTS, body=REPORTS),
    Route(
        *("POST", "/heartbeats", WORK, leases.renew_leases, HELD),
        query=reports.HeartbeatRequest,
        body=HEARTBEATS,
    ),
    Route("GET", "/leases/ended", WORK, leases.stream_ends, STREAM, query=reports.EndsRequest),
    Route("POST", "/progress", WORK, leases.record_progress, PROGRESS_ON_RECORD, body=PROGRESS),
    Route("GET", f"{OF_LEASE}/steps", WORK, leases.load_steps, KEPT),
    Route(
        *("GET", f"{OF_LEASE}/parents", WORK, leases.show_parents, PARENTS), query=kept.ParentsQuery
    ),
    Route("POST", f"{OF_LEASE}/steps", WORK, leases.record_step, STEP, body=DONE_STEP),
    Route("POST", f"{OF_LEASE}/checkpoint", WORK, leases.keep_state, STATE_KEPT, body=STATE),
    Route(
        *("GET", f"{OF_LEASE}/signals/{{signal}}", WORK, leases.find_signal, FOUND),
        query=reports.SignalQuery,
    ),
    Route(
        *("POST", f"{OF_LEASE}/signal-tokens", WORK, leases.keep_signal_token, STATE_KEPT),
        body=TOKEN_KEPT,
    ),
    Route("PUT", "/types/{name}", WORK, leases.declare_type, TYPE, body=TYPE_OPTIONS),
    # --- what operators call
    Route("GET", "/queues", READ, queues.list_queues, QUEUES, query=queues.QueuesQuery),
    Route("POST", "/queues/{name}/pause", ADMIN, queues.pause_queue, QUEUE, body=REASON),
    Route("POST", "/queues/{name}/resume", ADMIN, queues.resume_queue, QUEUE, body=NO_BODY),
    Route("PUT", "/queues/{name}/limit", ADMIN, queues.limit_queue, QUEUE, body=LIMIT),
    Route(
        *("GET", "/queues/{name}/partitions", READ, queues.list_partitions, PARTITIONS),
        query=queues.PartitionsQuery,
    ),
    Route("PUT", "/queues/{name}/partition", ADMIN, queues.set_partition, QUEUE, body=PARTITION),
    Route("POST", "/queues/{name}/pass-over", ADMIN, queues.pass_over, QUEUE, body=PASS_OVER),
    Route("POST", "/types/{name}/pause", ADMIN, jobs.pause_type, TYPE, body=REASON),
    Route("POST", "/types/{name}/resume", ADMIN, jobs.resume_type, TYPE, body=NO_BODY),
    Route("GET", "/types", READ, jobs.list_types, TYPES),
    Route("GET", "/retention", READ, retention.list_rules, RULES),
    Route("PUT", "/types/{name}/retention", ADMIN, retention.keep_type, RULE, body=KEEP),
    Route("PUT", "/queues/{name}/retention", ADMIN, retention.keep_queue, RULE, body=KEEP),
    Route("GET", "/workers", READ, jobs.list_workers, WORKERS),
    Route("GET", "/stats", READ, jobs.show_stats, STATS),
    Route("GET", "/metrics", READ, jobs.show_metrics, METRICS),
    Route(
        *("GET", "/events", READ, jobs.stream_events, STREAM),
        query=jobs.EventsQuery,
        headers=LAST_EVENT,
    ),
)

OPEN_PATHS = tuple(route.path for route in ROUTES if not route.scopes and "{" not in route.path)
"""Paths that are answered without a token."""
