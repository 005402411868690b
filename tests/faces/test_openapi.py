"""The OpenAPI description is complete and true: every route is in it, and Schemathesis, which
makes requests from it, good and bad, meets no answer that it does not allow."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from typing import Any

import pytest
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

from tenure import Tenure
from tenure.http.api.openapi import document
from tenure.http.api.routes import ROUTES
from tenure.jobs.payload import MAX_INTEGER, MIN_INTEGER
from tenure.server import Application, build
from tenure.settings import Settings

TOKEN = "a-token-for-schemathesis"
SETTINGS = Settings(tokens=(TOKEN,), allowed_hosts=("testserver", "localhost"))
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
CONFIG = {
    "request-timeout": 60,  # a batch of 10,000 jobs on a busy machine
    "auth": {"openapi": {"token": {"bearer": TOKEN}}},
    # A valid request may meet a job, a queue or a key that is not as it would have to be.
    "checks": {
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "409", "413", "415", "422", "429"]
        },
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "401", "403", "404", "409", "422", "429"]
        },
    },
}


ENDLESS = ("/events", "/leases/ended")
CALLS = {f"{r.method} {r.path}": r for r in ROUTES if r.path not in ENDLESS}
EXAMPLES = 20
"""Requests by chance to each call, good ones and bad ones, after those at every boundary."""
SHARES = [4, pytest.param(1, marks=pytest.mark.full)]
"""One of so many requests is made."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with Tenure(f"sqlite:///{tmp_path_factory.mktemp('openapi')}/jobs.db") as app:
        built = build(app, SETTINGS)
        yield built
        built.state.notifier.stop()


@pytest.fixture(scope="module")
def schema(built: Application) -> OpenApiSchema:
    config = SchemathesisConfig.from_dict(CONFIG)
    return openapi.from_asgi("/openapi.json", built, config=config, headers=AUTHORIZATION)


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


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("call", CALLS)
def test_no_answer_that_is_not_described(call: str, share: int, schema: OpenApiSchema) -> None:
    """Made here and not by Schemathesis's plugin, which does it in each process that collects."""
    operation = schema[CALLS[call].path][CALLS[call].method]
    numbers = itertools.count()

    def check_some(case: Case) -> None:
        if next(numbers) % share == 0:
            check(case)

    modes = [HypothesisTestMode.EXAMPLES, HypothesisTestMode.COVERAGE]
    at_boundaries = HypothesisTestConfig(project=schema.config, modes=modes)
    create_test(operation=operation, test_func=check_some, config=at_boundaries)()
    some = EXAMPLES // share
    by_chance = settings(max_examples=some, suppress_health_check=list(HealthCheck))
    by_chance(given(cases(operation))(check))()


def test_every_route_is_described_in_full(schema: OpenApiSchema) -> None:
    """Each call with its parameters, its body, its answers, and every refusal as a problem."""
    description = schema.raw_schema
    assert description["openapi"] == "3.1.0"
    described = {
        (method.upper(), path) for path, calls in description["paths"].items() for method in calls
    }
    assert described == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        call = description["paths"][route.path][route.method.lower()]
        assert call["summary"], route.path
        in_path = {p["name"] for p in call["parameters"] if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", route.path))
        assert ("requestBody" in call) == (route.body is not None)
        assert {int(status) for status in call["responses"]} >= {*route.answers, *route.refusals}
        for status, answer in call["responses"].items():
            kinds = set(answer["content"])
            assert kinds == {"application/problem+json"} if int(status) >= 400 else kinds


def test_each_name_is_described_as_one(schema: OpenApiSchema) -> None:
    """That of the schedule before a page was any text, and then refused."""
    calls = [call for path in schema.raw_schema["paths"].values() for call in path.values()]
    names = {"type", "queue", "name", "after"}
    for call in calls:
        for one in call.get("parameters", ()):
            if one["name"] in names and call["operationId"] != "streamEvents":
                described = one["schema"]
                assert any("pattern" in each for each in described.get("anyOf", [described])), call


def test_references_lead_somewhere(schema: OpenApiSchema) -> None:
    text = json.dumps(schema.raw_schema)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names <= set(schema.raw_schema["components"]["schemas"])


def test_no_schema_contains_itself(schema: OpenApiSchema) -> None:
    """openapi-python-client 0.29 left out each call with such a schema, `POST /jobs` among them."""
    schemas = schema.raw_schema["components"]["schemas"]
    refers = {
        name: set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(each)))
        for name, each in schemas.items()
    }
    assert list(TopologicalSorter(refers).static_order())


def test_only_health_and_links_are_open(schema: OpenApiSchema) -> None:
    """A link for people is its own token."""
    calls = [call for calls in schema.raw_schema["paths"].values() for call in calls.values()]
    links = ["useSignalToken", "showSignalToken"]
    found = [call["operationId"] for call in calls if call.get("security") == []]
    assert sorted(found) == sorted(["health", *links])


def test_without_a_token_none_is_described() -> None:
    assert b"security" not in document(ROUTES, secured=False)
