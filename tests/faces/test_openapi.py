"""The OpenAPI description is complete and true: every route is in it, and Schemathesis, which
makes requests from it, good and bad, meets no answer that it does not allow."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from starlette.types import ASGIApp, Receive, Scope, Send

from tenure import Tenure
from tenure.http.api.openapi import document
from tenure.http.api.routes import ROUTES
from tenure.server import build
from tenure.settings import Settings

TOKEN = "a-token-for-schemathesis"
SETTINGS = Settings(tokens=(TOKEN,), allowed_hosts=("testserver", "localhost"))
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
CONFIG = {
    "auth": {"openapi": {"token": {"bearer": TOKEN}}},
    # A valid request may meet a job, a queue or a key that is not as it would have to be.
    "checks": {
        "positive_data_acceptance": {
            "expected-statuses": ["2xx", "401", "403", "404", "409", "422", "429"]
        },
    },
}


class Door:
    """The application under test; what is described is the same before its database exists."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


NEVER_MIND = Path(tempfile.mkdtemp(prefix="tenure-openapi-")) / "jobs.db"
door = Door(build(Tenure(f"sqlite:///{NEVER_MIND}"), SETTINGS))
schema = schemathesis.openapi.from_asgi(
    "/openapi.json", door, config=SchemathesisConfig.from_dict(CONFIG), headers=AUTHORIZATION
)


def do_not_wait(case: schemathesis.Case) -> None:
    """Long polls are tested elsewhere; here they would only take time."""
    wait = case.body.get("wait_seconds") if isinstance(case.body, dict) else None
    if type(wait) in (int, float) and 0 <= wait <= 30:
        case.body["wait_seconds"] = 0
    if case.query and case.query.get("wait"):
        case.query["wait"] = 0


def start_in_time(case: schemathesis.Case) -> None:
    """A schema cannot say that `start_by` has to be after the time when a job is due."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    jobs = case.body if isinstance(case.body, list) else [case.body]
    for job in jobs if is_valid else ():
        if isinstance(job, dict) and "start_by" in job:
            job.pop("delay", None)
            job.pop("run_at", None)


def be_unique(case: schemathesis.Case) -> None:
    """Nor that the payload has what is to be unique, or how `max_wait` goes with other fields."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    jobs = case.body if isinstance(case.body, list) else [case.body]
    for job in jobs if is_valid else ():
        if isinstance(job, dict) and isinstance(rule := job.get("unique"), dict):
            rule.pop("max_wait", None)
            job.pop("delay", None)
            if isinstance(rule.get("by"), list):
                rule["by"] = []


def be_due(case: schemathesis.Case) -> None:
    """Nor that a schedule needs one of three fields, of which two have a grammar of their own."""
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    if is_valid and isinstance(case.body, dict) and case.path.startswith(("/sched", "/preview")):
        for field in ("at", "every", "offset", "starts_at", "ends_at", "start", "end"):
            case.body.pop(field, None)
        if case.path.endswith("/backfill"):
            case.body |= {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
        elif case.path.count("/") < 3:
            case.body |= {"cron": "10 3 * * *", "zone": "Europe/Berlin"}


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Tenure(f"sqlite:///{tmp_path_factory.mktemp('openapi')}/jobs.db") as app:
        built = build(app, SETTINGS)
        door.app = built
        yield
        built.state.notifier.stop()


@schema.exclude(path=["/events", "/leases/ended"]).parametrize()  # endless
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_no_answer_that_is_not_described(case: schemathesis.Case) -> None:
    do_not_wait(case)
    start_in_time(case)
    be_unique(case)
    be_due(case)
    case.call_and_validate()


def test_every_route_is_described_in_full() -> None:
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


def test_references_lead_somewhere() -> None:
    text = json.dumps(schema.raw_schema)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names <= set(schema.raw_schema["components"]["schemas"])


def test_only_health_is_open() -> None:
    calls = [call for calls in schema.raw_schema["paths"].values() for call in calls.values()]
    assert [call["operationId"] for call in calls if call.get("security") == []] == ["health"]


def test_without_a_token_none_is_described() -> None:
    assert b"security" not in document(ROUTES, secured=False)
