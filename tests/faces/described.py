"""Requests that Schemathesis makes from a description, good and bad ones, and their answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from schemathesis import Case, openapi
from schemathesis.config import SchemathesisConfig
from schemathesis.core.errors import InvalidSchema
from schemathesis.generation import GenerationMode
from schemathesis.generation.hypothesis.builder import (
    HypothesisTestConfig,
    HypothesisTestMode,
    create_test,
)
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.schemas import OpenApiSchema
from starlette.types import ASGIApp

from tenure.values.payload import MAX_INTEGER, MIN_INTEGER

CONFIG = {
    "request-timeout": 60,  # a batch of 10,000 jobs on a busy machine
    # A valid request may meet a job, a queue or a key that is not as it would have to be.
    "checks": {
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "409", "413", "415", "422", "429"]
        },
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "401", "403", "404", "409", "412", "422", "429"]
        },
    },
}
EXAMPLES = 20
"""Requests by chance to each call, good ones and bad ones, after those at every boundary."""


def schema_of(built: ASGIApp, token: str) -> OpenApiSchema:
    """The description that an application gives of itself, to who has a token."""
    auth = {"openapi": {"token": {"bearer": token}}}
    config = SchemathesisConfig.from_dict({**CONFIG, "auth": auth})
    headers = {"Authorization": f"Bearer {token}"}
    return openapi.from_asgi("/openapi.json", built, config=config, headers=headers)


def do_not_wait(case: Case) -> None:
    """Long polls are tested elsewhere; here they would only take time."""
    wait = case.body.get("wait_seconds") if isinstance(case.body, dict) else None
    if type(wait) in (int, float) and 0 <= wait <= 30:
        case.body["wait_seconds"] = 0
    if case.query and case.query.get("wait"):
        case.query["wait"] = 0


def _jobs_of(case: Case) -> Sequence[Any]:
    jobs = case.body.get("jobs") if isinstance(case.body, dict) else case.body
    return jobs if isinstance(jobs, list) else [case.body]


def start_in_time(case: Case) -> None:
    """A schema cannot say that `start_by` has to be after the time when a job is due."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    jobs = _jobs_of(case)
    for job in jobs if is_valid else ():
        if isinstance(job, dict) and "start_by" in job:
            job.pop("delay", None)
            job.pop("run_at", None)


def be_unique(case: Case) -> None:
    """Nor that the payload has what is to be unique, or how `max_wait` goes with other fields."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    jobs = case.body if isinstance(case.body, list) else [case.body]
    for job in jobs if is_valid else ():
        if isinstance(job, dict) and isinstance(rule := job.get("unique"), dict):
            rule.pop("max_wait", None)
            job.pop("delay", None)
            if isinstance(rule.get("by"), list):
                rule["by"] = []


def be_due(case: Case) -> None:
    """Nor that a schedule needs one of three fields, of which two have a grammar of their own."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and isinstance(case.body, dict) and case.path.startswith(("/sched", "/preview")):
        for field in ("at", "every", "offset", "starts_at", "ends_at", "start", "end"):
            case.body.pop(field, None)
        if case.path.endswith("/backfill"):
            case.body |= {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
        elif case.path.count("/") < 3:
            case.body |= {"cron": "10 3 * * *", "zone": "Europe/Berlin"}


def be_limited(case: Case) -> None:
    """Nor that a limit has to be given, and that a burst is a part of a rate."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and isinstance(case.body, dict) and case.path.endswith("/limit"):
        case.body |= {"max_running": 1}
        for of in (case.body, case.body.get("per_partition")):
            if isinstance(of, dict):
                of |= {"rate": "10/1s", "burst": 2}


def be_paused(case: Case) -> None:
    """Nor that only a pause of a partition keeps a reason."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and isinstance(case.body, dict) and case.path.endswith("/partition"):
        case.body |= {"paused": True} if case.body.get("reason") is not None else {}


def be_linked(case: Case) -> None:
    """Nor which jobs there are to depend on, and that those of a workflow have one key together."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    for job in _jobs_of(case) if is_valid else ():
        if isinstance(job, dict) and case.path.startswith(("/jobs", "/workflows")):
            job.pop("needs", None)
            if job.get("depends_on"):
                job["depends_on"] = job["depends_on"][:1]
        if isinstance(job, dict) and case.path.startswith("/workflows"):
            for field in ("idempotency_key", "ref", "depends_on", "unique"):
                job.pop(field, None)


def report_no_jobs(case: Case) -> None:
    """Nor that jobs which cannot be added fail their attempt: the report is taken all the same."""
    if case.path == "/reports" and isinstance(case.body, list):
        for entry in case.body:
            if isinstance(entry, dict):
                entry.pop("jobs", None)


def be_an_edition(case: Case) -> None:
    """Nor that it comes without `If-None-Match`; and quotes of its pattern get lost."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and (edition := case.headers.get("If-Match")):
        plain = "".join(letter for letter in edition if letter not in '", ')
        case.headers["If-Match"] = f'"{plain}"'
        case.headers.pop("If-None-Match", None)


def be_kept(case: Case) -> None:
    """Nor, in a way that generators of clients understand, what the values in a payload may be."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and (kept := _kept(case.body)) != case.body:
        case.body = kept  # which has Schemathesis validate the case again


def _kept(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "")
        case int() if not isinstance(value, bool):
            return max(MIN_INTEGER, min(value, MAX_INTEGER))
        case list():
            return [_kept(item) for item in value]
        case dict():
            return {_kept(key): _kept(item) for key, item in value.items()}
    return value


def check(case: Case) -> None:
    be_kept(case)
    do_not_wait(case)
    report_no_jobs(case)
    be_linked(case)
    be_limited(case)
    be_paused(case)
    be_an_edition(case)
    start_in_time(case)
    be_unique(case)
    be_due(case)
    case.call_and_validate()


@st.composite
def cases(draw: st.DrawFn, operation: APIOperation) -> Case:
    """A request, good or bad."""
    mode = draw(st.sampled_from(list(GenerationMode)))
    try:
        return draw(operation.as_strategy(generation_mode=mode))
    except InvalidSchema:  # Schemathesis has made a wrong schema that no value fits
        reject()


def check_answers(operation: APIOperation, config: SchemathesisConfig, share: int) -> None:
    """Make one of `share` requests to a call, and see that each answer is one that it describes.

    Made here and not by Schemathesis's plugin, which does it in each process that collects.
    """
    numbers = itertools.count()

    def check_some(case: Case) -> None:
        if next(numbers) % share == 0:
            check(case)

    modes = [HypothesisTestMode.EXAMPLES, HypothesisTestMode.COVERAGE]
    at_boundaries = HypothesisTestConfig(project=config, modes=modes)
    create_test(operation=operation, test_func=check_some, config=at_boundaries)()
    some = EXAMPLES // share
    by_chance = settings(max_examples=some, suppress_health_check=list(HealthCheck))
    by_chance(given(cases(operation))(check))()
