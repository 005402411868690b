"""What an attempt reads and keeps, as JSON: steps, the last state, the jobs that it depends on."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Raw, Struct, UnsetType, structs

from tenure.dependency import Meets
from tenure.handlers.results import storable_result
from tenure.rules.ledger import EventName, StatusName
from tenure.rules.signals import check_link_label, signal_text
from tenure.rules.steps import (
    FoundSignal,
    JobSteps,
    KeepState,
    KeepToken,
    Loaded,
    ParentJob,
    Parents,
    ReadParents,
    Record,
    Step,
)
from tenure.values.durations import Time
from tenure.values.names import check_name
from tenure.wire.reports import StateRequest, StepRequest, TokenRequest
from tenure.wire.requests import Id, Name, embedded
from tenure.wire.responses import Answered, AnyJson, text_of


class StepBody(Answered, frozen=True):
    """A step on record; `token` is that of the attempt that recorded it."""

    name: str
    number: int
    token: int
    at: Time
    result: Annotated[Raw, AnyJson]


class KeptBody(Answered, frozen=True):
    """What earlier attempts have kept; `now` is the time of the store."""

    now: Time
    steps: list[StepBody]
    state: Annotated[Raw, AnyJson]


class FoundBody(Answered, frozen=True):
    """What a signal says and when it was sent, if it is there."""

    found: bool
    payload: Annotated[Raw, AnyJson]
    at: Time | None


def found_body(signal: FoundSignal | None) -> FoundBody:
    if signal is None:
        return FoundBody(False, embedded(None), None)
    return FoundBody(True, embedded(signal.payload), signal.at)


def found_of(body: FoundBody) -> FoundSignal | None:
    return None if body.at is None else FoundSignal(bytes(body.payload).decode(), body.at)


def token_of(request: TokenRequest) -> KeepToken:
    """Return the one-use token that a worker made; raises InvalidInput, PayloadTooLarge."""
    payload = None if request.payload is None else signal_text(request.payload)
    return KeepToken(request.digest, request.name, payload, check_link_label(request.label))


class StepsBody(Answered, frozen=True):
    """What the attempts of a job have kept: steps in order, and the last checkpoint."""

    steps: list[StepBody]
    state: Annotated[Raw, AnyJson]
    state_at: Time | None


def steps_body(kept: JobSteps) -> StepsBody:
    steps = [step_body(step) for step in kept.steps]
    return StepsBody(steps=steps, state=embedded(kept.state_json), state_at=kept.state_at)


class ParentsQuery(Struct, kw_only=True):
    """Which jobs that the leased job depends on: behind one, or with a name."""

    after: Id | UnsetType = UNSET
    name: Name | UnsetType = UNSET


class ParentBody(Answered, frozen=True):
    """A job that the leased job depends on: `meets` is the ending that counts."""

    id: str
    meets: Meets
    name: str | None
    type: str
    queue: str
    status: StatusName
    event: EventName
    actor: str | None
    result: Annotated[Raw, AnyJson]
    error: str | None


class ParentsBody(Answered, frozen=True):
    """Some of the jobs that the leased job depends on; whether there are more behind the last."""

    jobs: list[ParentBody]
    more: bool


def parents_asked(query: ParentsQuery) -> ReadParents:
    return ReadParents(query.after or "", query.name or None)


def parents_body(parents: Parents) -> ParentsBody:
    shown = [structs.asdict(one) for one in parents.jobs]
    jobs = [ParentBody(result=embedded(one.pop("result_json")), **one) for one in shown]
    return ParentsBody(jobs=jobs, more=parents.more)


def parents_of(body: ParentsBody) -> Parents:
    read = [structs.asdict(one) for one in body.jobs]
    jobs = [ParentJob(result_json=text_of(one.pop("result")), **one) for one in read]
    return Parents(jobs, body.more)


def record_of(request: StepRequest) -> Record:
    """Return what a worker records; raises InvalidInput, PayloadTooLarge."""
    result = None if request.result is None else storable_result(request.result)
    return Record(check_name(request.name, "step", "$.name"), request.number, result)


def state_of(request: StateRequest) -> KeepState:
    """Return what a worker keeps; raises InvalidInput, PayloadTooLarge."""
    return KeepState(request.number, storable_result(request.state))


def step_body(step: Step) -> StepBody:
    return StepBody(step.name, step.number, step.token, step.at, embedded(step.result_json))


def kept_body(loaded: Loaded) -> KeptBody:
    steps = [step_body(step) for step in loaded.steps]
    return KeptBody(loaded.now, steps, embedded(loaded.state))


def step_of(body: StepBody) -> Step:
    return Step(body.name, body.number, body.token, body.at, text_of(body.result))


def loaded_of(body: KeptBody) -> Loaded:
    return Loaded(body.now, [step_of(step) for step in body.steps], text_of(body.state))
