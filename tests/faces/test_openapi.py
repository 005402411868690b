"""The OpenAPI description is complete and true: every route is in it, and Schemathesis, which
makes requests from it, good and bad, meets no answer that it does not allow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, get_args

import pytest

from tenure import Tenure
from tenure.dependency import Meets
from tenure.http.openapi import document
from tenure.http.routes import ROUTES
from tenure.lifecycle import EVENTS, Status
from tenure.rules.queues import Reason
from tenure.server import Application, build
from tenure.settings import Settings

if TYPE_CHECKING:
    from schemathesis.specs.openapi.schemas import OpenApiSchema

TOKEN = "a-token-for-schemathesis"
SETTINGS = Settings(tokens=(TOKEN,), allowed_hosts=("testserver", "localhost"))
ENDLESS = ("/events", "/leases/ended")
CALLS = {f"{r.method} {r.path}": r for r in ROUTES if r.path not in ENDLESS}
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
    # Here, since each process of pytest imports this file: Schemathesis takes it half a second.
    from tests.faces import described

    return described.schema_of(built, TOKEN)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("call", CALLS)
def test_no_answer_that_is_not_described(call: str, share: int, schema: OpenApiSchema) -> None:
    from tests.faces import described

    operation = schema[CALLS[call].path][CALLS[call].method]
    described.check_answers(operation, schema.config, share)


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


def test_each_time_is_described_as_one(schema: OpenApiSchema) -> None:
    """Generated clients took those of workflows, schedules and progress for any text."""
    for name, each in schema.raw_schema["components"]["schemas"].items():
        for field, described in each.get("properties", {}).items():
            if field in ("at", "times") or field.endswith("_at"):
                assert '"date-time"' in json.dumps(described), (name, field)


def test_no_schema_contains_itself(schema: OpenApiSchema) -> None:
    """openapi-python-client 0.29 left out each call with such a schema, `POST /jobs` among them."""
    schemas = schema.raw_schema["components"]["schemas"]
    refers = {
        name: set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(each)))
        for name, each in schemas.items()
    }
    assert list(TopologicalSorter(refers).static_order())


def test_what_every_answer_has_is_required(schema: OpenApiSchema) -> None:
    """Fields with a default were optional, although each answer has them."""
    schemas = schema.raw_schema["components"]["schemas"]
    optional = {
        name: sorted(each["properties"].keys() - set(each.get("required", ())))
        for name, each in schemas.items()
        if "properties" in each
    }
    for name in ("JobBody", "Fire", "QueueState", "TypeState", "WorkerState", "Explanation"):
        assert optional[name] == [], name
    assert optional["HeldBody"] == ["ended_by"]
    assert "job_id" in optional["ProblemBody"]
    assert "delay" in optional["EnqueueRequest"]


def test_each_schema_is_used(schema: OpenApiSchema) -> None:
    """Those of queries, whose fields are parameters, were among them."""
    schemas = schema.raw_schema["components"]["schemas"]
    used = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema.raw_schema))
    assert schemas.keys() == set(used)


def test_no_parameter_is_a_constant(schema: OpenApiSchema) -> None:
    """openapi-python-client 0.29 left out `PUT /schedules/{name}` for a constant in a header."""
    calls = [call for path in schema.raw_schema["paths"].values() for call in path.values()]
    assert not [one for call in calls for one in call["parameters"] if "const" in one["schema"]]


def test_patterns_are_for_every_engine(schema: OpenApiSchema) -> None:
    """RE2, which clients in Go and many gateways use, has no look-around and no `\\u`."""
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\\\]|\\\\.)*")', json.dumps(schema.raw_schema)))
    assert len(patterns) > 10
    assert not [one for one in map(json.loads, patterns) if re.search(r"\(\?|\\[^.*x]", one)]


def test_closed_sets_are_described_as_such(schema: OpenApiSchema) -> None:
    """Generated clients had plain texts for events, statuses and reasons."""
    schemas = schema.raw_schema["components"]["schemas"]

    def names(of: str, field: str) -> set[str]:
        described = schemas[of]["properties"][field]
        some = [described, *described.get("anyOf", ()), described.get("items", {})]
        return {name for one in some for name in one.get("enum", ())}

    statuses, events = set(map(str, Status)), set(EVENTS)
    assert names("TransitionBody", "from") == names("TransitionBody", "to") == statuses
    assert names("Relative", "status") == names("GraphJob", "status") == statuses
    assert names("ProblemBody", "status_of_job") == names("ParentBody", "status") == statuses
    assert names("TransitionBody", "event") == names("ParentBody", "event") == events
    assert names("Explanation", "legal_events") == names("Total", "event") == events
    assert names("Relative", "meets") == names("ParentBody", "meets") == set(get_args(Meets))
    assert names("Explanation", "reason") == set(get_args(Reason))


def test_metrics_are_described_as_the_text_that_they_are(schema: OpenApiSchema) -> None:
    """JSON came first, so that generated clients asked for nothing and read JSON."""
    answers = schema.raw_schema["paths"]["/metrics"]["get"]["responses"]
    assert next(iter(answers["200"]["content"])).startswith("text/plain")


def test_only_health_and_links_are_open(schema: OpenApiSchema) -> None:
    """A link for people is its own token."""
    calls = [call for calls in schema.raw_schema["paths"].values() for call in calls.values()]
    links = ["useSignalToken", "showSignalToken"]
    found = [call["operationId"] for call in calls if call.get("security") == []]
    assert sorted(found) == sorted(["health", *links])


def test_without_a_token_none_is_described() -> None:
    assert b"security" not in document(ROUTES, secured=False)
