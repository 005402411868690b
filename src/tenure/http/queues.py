"""Queues and their limits over HTTP."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from tenure.app.jobs import queue_shown
from tenure.errors import InvalidInput
from tenure.http.call import Call, answer
from tenure.rules.queues import PerPartition
from tenure.values.names import MAX_NAME_LENGTH, check_pause_reason
from tenure.wire.requests import LimitRequest, PartitionRequest, given

PartOfName = Annotated[str, Meta(pattern="^[ -~]*$", max_length=MAX_NAME_LENGTH)]


class QueuesQuery(Struct, kw_only=True):
    """Which queues to list, by name."""

    search: PartOfName | None = None
    after: PartOfName | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 1_000


class PartitionsQuery(Struct, kw_only=True):
    """How many partitions to list."""

    limit: Annotated[int, Meta(ge=1, le=1_000)] = 20


def list_queues(call: Call) -> Response:
    """List queues with jobs waiting or running, or with settings, by name."""
    query: QueuesQuery = call.query
    found = call.app.queues.list(search=query.search, after=query.after, limit=query.limit)
    return answer(found)


def pause_queue(call: Call) -> Response:
    """Stop handing out jobs of a queue; running jobs continue."""
    call.app.queues.pause(call.path["name"], actor=call.caller.name, reason=call.body.reason)
    return _queue(call)


def resume_queue(call: Call) -> Response:
    """Hand out jobs of a queue again."""
    call.app.queues.resume(call.path["name"], actor=call.caller.name)
    return _queue(call)


def limit_queue(call: Call) -> Response:
    """Change limits of a queue. A limit that is left out stays; null removes one."""
    body: LimitRequest = call.body
    limits = given(body)
    if not limits:
        raise InvalidInput("give a limit of a queue, or null for none", path="$")
    if body.per_partition:
        limits["per_partition"] = PerPartition(**given(body.per_partition))
    call.app.queues.limit(call.path["name"], **limits, actor=call.caller.name)
    return _queue(call)


def list_partitions(call: Call) -> Response:
    """List the partitions of a queue that have jobs or settings, those with most jobs first."""
    return answer(call.app.queues.partitions(call.path["name"], call.query.limit))


def set_partition(call: Call) -> Response:
    """Change what differs for a partition of a queue; pause or resume it."""
    queues, body = call.app.queues, call.body
    reason = check_pause_reason(body.reason, pauses=body.paused is True)
    of, by = (call.path["name"], body.partition), {"actor": call.caller.name}
    queues.limit_partition(*of, max_running=body.max_running, weight=body.weight, **by)
    if body.paused is True:
        queues.pause_partition(*of, reason=reason, **by)
    elif body.paused is False:
        queues.resume_partition(*of, **by)
    return _queue(call)


def pass_over(call: Call) -> Response:
    """Let a partition continue that a failed job has halted."""
    body: PartitionRequest = call.body
    queues = call.app.queues
    queues.pass_over(call.path["name"], body.partition, actor=call.caller.name)
    return _queue(call)


def _queue(call: Call) -> Response:
    return answer(queue_shown(call.app.core, call.path["name"]))
