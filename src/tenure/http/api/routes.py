"""The HTTP API, every call of it. Routes and the OpenAPI description are both made from this."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from starlette.responses import Response

from tenure.app.app import MAX_JOBS_AT_ONCE
from tenure.http.api import bulk, jobs, leases, openapi, operations
from tenure.http.api.metrics import CONTENT_TYPE
from tenure.http.api.routing import SMALL_BODY, Answer, Body, Call, Route
from tenure.jobs import payload
from tenure.tokens.scopes import EVERY_SCOPE, Scope
from tenure.wire import requests, responses

ONE_JOB = payload.MAX_PAYLOAD_BYTES + SMALL_BODY
ONE_REPORT = 2 * payload.MAX_PAYLOAD_BYTES
MANY = 32 * 1024 * 1024
"""Bytes of one batch of jobs or of reports."""
MAX_LEASES = 10_000
JOB_DEPTH = payload.MAX_DEPTH + 1  # a payload lies one level deep in a job, two in a batch

Job = responses.JobBody
Batch = Annotated[list[requests.EnqueueRequest], Meta(max_length=MAX_JOBS_AT_ONCE)]
Reports = Annotated[list[requests.ReportEntry], Meta(max_length=MAX_LEASES)]
LeaseNames = Annotated[list[requests.LeaseName], Meta(max_length=MAX_LEASES)]
OPEN: frozenset[Scope] = frozenset()
ANY = EVERY_SCOPE
ENQUEUE, WORK, READ, ADMIN = (frozenset({scope}) for scope in Scope)
NO_BODY = Body(requests.NoFields, optional=True)
TRACEPARENT = {
    "traceparent": {
        "type": "string",
        "description": "Of W3C Trace Context: kept for workers that ask. Not valid, it is ignored.",
    }
}


def describe(call: Call) -> Response:
    """Describe this API as OpenAPI 3.1."""
    return Response(
        openapi.document(ROUTES, secured=call.caller.known), media_type="application/json"
    )


def _one(kind: object, text: str) -> dict[int, Answer]:
    return {200: Answer(kind, text)}


def _many(kind: type, text: str) -> dict[int, Answer]:
    return {200: Answer(list[kind], text)}  # type: ignore[valid-type]


ROUTES: tuple[Route, ...] = (
    # --- is it up
    Route(
        method="GET",
        path="/health",
        name="health",
        scopes=OPEN,
        endpoint=operations.health,
        answers=_one(responses.Health, "It is up."),
    ),
    Route(
        method="GET",
        path="/ready",
        name="ready",
        scopes=ANY,
        endpoint=operations.ready,
        answers=_one(responses.Health, "It takes work."),
    ),
    # --- jobs
    Route(
        method="POST",
        path="/jobs",
        name="createJob",
        scopes=ENQUEUE,
        endpoint=jobs.create_job,
        body=Body(requests.EnqueueRequest, limit=ONE_JOB, depth=JOB_DEPTH),
        headers={
            "Idempotency-Key": {
                "type": "string",
                "pattern": payload.KEY_PATTERN,
                "maxLength": payload.MAX_KEY_LENGTH,
                "description": "The same key and body again is answered with the first job.",
            },
            **TRACEPARENT,
        },
        answers={
            201: Answer(Job, "The new job.", headers=("Location",)),
            200: Answer(Job, "The job of an earlier request with this key.", headers=("Location",)),
        },
        refusals=(422, 429),
    ),
    Route(
        method="POST",
        path="/jobs/batch",
        name="createJobs",
        scopes=ENQUEUE,
        endpoint=jobs.create_jobs,
        body=Body(Batch, limit=MANY, depth=JOB_DEPTH + 1),
        headers=TRACEPARENT,
        answers={201: Answer(list[Job], "The jobs, in the order of the request.")},
        refusals=(422, 429),
    ),
    Route(
        method="GET",
        path="/jobs",
        name="listJobs",
        scopes=READ,
        endpoint=jobs.list_jobs,
        query=jobs.ListQuery,
        answers={
            200: Answer(list[Job], "A page of jobs; `Link` names the next.", headers=("Link",))
        },
    ),
    Route(
        method="GET",
        path="/jobs/count",
        name="countJobs",
        scopes=READ,
        endpoint=jobs.count_jobs,
        query=jobs.CountQuery,
        answers=_one(responses.CountedBody, "How many there are, or at least are."),
    ),
    Route(
        method="GET",
        path="/jobs/{id}",
        name="showJob",
        scopes=READ,
        endpoint=jobs.show_job,
        answers=_one(Job, "The job."),
        refusals=(404,),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/history",
        name="showHistory",
        scopes=READ,
        endpoint=jobs.show_history,
        answers=_many(responses.TransitionBody, "Its moves."),
        refusals=(404,),
    ),
    Route(
        method="GET",
        path="/jobs/{id}/explain",
        name="explainJob",
        scopes=READ,
        endpoint=jobs.explain_job,
        answers=_one(responses.ExplanationBody, "The reason."),
        refusals=(404,),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/cancel",
        name="cancelJob",
        scopes=ADMIN,
        endpoint=jobs.cancel_job,
        body=NO_BODY,
        answers=_one(Job, "The job, cancelled."),
        refusals=(404, 409),
    ),
    Route(
        method="POST",
        path="/jobs/{id}/retry",
        name="retryJob",
        scopes=ADMIN,
        endpoint=jobs.retry_job,
        body=Body(requests.RetryRequest, optional=True),
        answers=_one(Job, "The job, pending again."),
        refusals=(404, 409),
    ),
    # --- actions on all jobs of a filter
    Route(
        method="POST",
        path="/bulk",
        name="startBulk",
        scopes=ADMIN,
        endpoint=bulk.start_bulk,
        body=Body(requests.BulkRequest),
        answers={202: Answer(responses.BulkBody, "The action, on record.", headers=("Location",))},
    ),
    Route(
        method="GET",
        path="/bulk",
        name="listBulks",
        scopes=READ,
        endpoint=bulk.list_bulks,
        query=bulk.BulksQuery,
        answers=_many(responses.BulkBody, "The actions."),
    ),
    Route(
        method="GET",
        path="/bulk/{id}",
        name="showBulk",
        scopes=READ,
        endpoint=bulk.show_bulk,
        answers=_one(responses.BulkBody, "The action."),
        refusals=(404,),
    ),
    Route(
        method="POST",
        path="/bulk/{id}/stop",
        name="stopBulk",
        scopes=ADMIN,
        endpoint=bulk.stop_bulk,
        body=NO_BODY,
        answers=_one(responses.BulkBody, "The action, ended."),
        refusals=(404,),
    ),
    # --- what workers call
    Route(
        method="POST",
        path="/leases",
        name="leaseJobs",
        scopes=WORK,
        endpoint=leases.lease_jobs,
        body=Body(requests.LeaseRequest, limit=2 * 1024 * 1024),
        answers=_many(responses.LeaseBody, "The leased jobs; none if there were none in time."),
    ),
    Route(
        method="POST",
        path="/leases/{lease_id}/complete",
        name="completeLease",
        scopes=WORK,
        endpoint=leases.complete_lease,
        body=Body(requests.CompleteRequest, limit=ONE_REPORT, optional=True, lenient=True),
        answers=_one(responses.VerdictBody, "It is on record."),
        refusals=(409,),
    ),
    Route(
        method="POST",
        path="/leases/{lease_id}/fail",
        name="failLease",
        scopes=WORK,
        endpoint=leases.fail_lease,
        body=Body(requests.FailRequest, limit=ONE_REPORT, lenient=True),
        answers=_one(responses.VerdictBody, "It is on record."),
        refusals=(409,),
    ),
    Route(
        method="POST",
        path="/leases/{lease_id}/release",
        name="releaseLease",
        scopes=WORK,
        endpoint=leases.release_lease,
        body=NO_BODY,
        answers=_one(responses.VerdictBody, "It is on record."),
        refusals=(409,),
    ),
    Route(
        method="POST",
        path="/leases/{lease_id}/heartbeat",
        name="renewLease",
        scopes=WORK,
        endpoint=leases.renew_lease,
        body=Body(requests.HeartbeatRequest, optional=True),
        answers=_one(responses.HeldBody, "The lease is held."),
        refusals=(409,),
    ),
    Route(
        method="POST",
        path="/reports",
        name="reportMany",
        scopes=WORK,
        endpoint=leases.report_many,
        body=Body(Reports, limit=MANY, lenient=True),
        answers=_many(responses.VerdictBody, "A verdict for each report, in order."),
    ),
    Route(
        method="POST",
        path="/heartbeats",
        name="renewLeases",
        scopes=WORK,
        endpoint=leases.renew_leases,
        query=leases.HeartbeatQuery,
        body=Body(LeaseNames, limit=4 * 1024 * 1024, lenient=True),
        answers=_many(responses.HeldBody, "Whether each lease is held, in order."),
    ),
    # --- what operators call
    Route(
        method="GET",
        path="/queues",
        name="listQueues",
        scopes=READ,
        endpoint=operations.list_queues,
        answers=_many(responses.QueueBody, "The queues."),
    ),
    Route(
        method="POST",
        path="/queues/{name}/pause",
        name="pauseQueue",
        scopes=ADMIN,
        endpoint=operations.pause_queue,
        body=NO_BODY,
        answers=_one(responses.QueueBody, "The queue, paused."),
    ),
    Route(
        method="POST",
        path="/queues/{name}/resume",
        name="resumeQueue",
        scopes=ADMIN,
        endpoint=operations.resume_queue,
        body=NO_BODY,
        answers=_one(responses.QueueBody, "The queue, running."),
    ),
    Route(
        method="PUT",
        path="/queues/{name}/limit",
        name="limitQueue",
        scopes=ADMIN,
        endpoint=operations.limit_queue,
        body=Body(requests.LimitRequest),
        answers=_one(responses.QueueBody, "The queue, limited."),
    ),
    Route(
        method="GET",
        path="/workers",
        name="listWorkers",
        scopes=READ,
        endpoint=operations.list_workers,
        answers=_many(responses.WorkerBody, "The workers."),
    ),
    Route(
        method="GET",
        path="/stats",
        name="showStats",
        scopes=READ,
        endpoint=operations.show_stats,
        answers=_one(responses.StatsBody, "The counts."),
    ),
    Route(
        method="GET",
        path="/metrics",
        name="showMetrics",
        scopes=READ,
        endpoint=operations.show_metrics,
        answers={200: Answer(responses.MetricsBody, "The values.", also=(CONTENT_TYPE,))},
    ),
    Route(
        method="GET",
        path="/events",
        name="streamEvents",
        scopes=READ,
        endpoint=operations.stream_events,
        query=operations.EventsQuery,
        headers={
            "Last-Event-ID": {
                "type": "string",
                "maxLength": 64,
                "description": "The `id` of the last event seen; the stream goes on after it.",
            }
        },
        answers={200: Answer(None, "The stream.", also=("text/event-stream",))},
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="describe",
        scopes=ANY,
        endpoint=describe,
        answers=_one(dict, "The description."),
    ),
)
