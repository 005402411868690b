"""The jobs that a run adds if it completes, as JSON: in reports, and from child processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tenure.errors import InvalidInput
from tenure.jobs import ids
from tenure.jobs.enqueue import NewJob
from tenure.jobs.follow_ups import MAX_FOLLOW_UPS, UNKNOWN, FollowUp, FollowUps
from tenure.jobs.reading import learn
from tenure.wire.requests import EnqueueRequest, embedded, matching, new_job, options_of

NewId = Annotated[str, matching(ids.ID_PATTERN)]


class FollowUpRequest(EnqueueRequest, kw_only=True):
    """A job to add with a completion; `id`: what it will have, by default a new one.

    `again_of` is the id of the job that it runs again, if it does.
    """

    id: NewId | UnsetType = UNSET
    again_of: NewId | UnsetType = UNSET


class ChildRequest(FollowUpRequest, kw_only=True):
    """The same from a child process, which may say who adds it; over HTTP the server says that."""

    actor: str | UnsetType = UNSET


FollowUpRequests = Annotated[list[FollowUpRequest], Meta(max_length=MAX_FOLLOW_UPS)]


def entries(follow_ups: Sequence[FollowUp]) -> Any:
    """Return jobs as a report has them. What only the handler here says of them is named."""
    return [_entry(one) for one in follow_ups]


def _entry(one: FollowUp) -> dict[str, Any]:
    checked = one.checked
    body = {**new_job(one.new_job, "$"), "payload": embedded(checked.payload), "id": checked.id}
    if checked.again_of is not None:
        body["again_of"] = checked.again_of
    if checked.partition is not None:
        body["partition"] = checked.partition
    if checked.unique is not None:
        body["unique"] = checked.unique.rule
    return body


def written(follow_ups: FollowUps) -> str:
    """Return jobs as JSON; raises InvalidInput for an option that JSON does not have."""
    try:
        jobs = [_entry(one) | _actor_of(one) for one in follow_ups.jobs]
        return msgspec.json.encode(jobs).decode()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"an option of a job to add cannot be written: {error}") from error


def _actor_of(one: FollowUp) -> dict[str, Any]:
    return {} if one.checked.actor == UNKNOWN else {"actor": one.checked.actor}


def read(text: str, into: FollowUps) -> None:
    """Add the jobs of `written`; raises InvalidInput."""
    learn(list[ChildRequest])
    try:
        requests = msgspec.json.decode(text, type=list[ChildRequest])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"a job to add: {error}") from error
    for request in requests:
        add(request, into)


def add(request: FollowUpRequest, into: FollowUps, actor: str | None = None) -> None:
    """Add the job of a request; raises InvalidInput."""
    options: Any = options_of(request)
    id, again_of = options.pop("id", None), options.pop("again_of", None)
    if actor is not None:
        options["actor"] = actor
    into.add(NewJob(request.type, request.payload, options, again_of), id)
