"""Unique jobs over HTTP, through the client and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import DuplicateJob, Tenure, Unique
from tenure.app.app import limited_to
from tenure.client import Client
from tests.support.cli import output_of, run_cli
from tests.support.http import ServerProcess, assert_problem


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app
        assert app.verify() == []


def body(doc: int = 1, type: str = "index", **rule: Any) -> dict[str, Any]:
    return {"type": type, "payload": {"doc": doc}, "unique": {"by": ["doc"], **rule}}


def test_a_second_request_is_answered_with_the_first_job(api: TestClient, app: Tenure) -> None:
    first = api.post("/jobs", json=body())
    again = api.post("/jobs", json=body())
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    id = first.json()["id"]
    assert app.enqueue("index", {"doc": 1}, unique=Unique(("doc",))).id == id
    refused = api.post("/jobs", json=body(on_conflict="error"))
    assert assert_problem(refused, 409, "duplicate_job")["job_id"] == id
    batch = [body(2), body(2, on_conflict="replace", max_wait="5m") | {"delay": "1h"}, body(3)]
    two, same, three = api.post("/jobs/batch", json=batch).json()
    assert two == same
    assert three["id"] != two["id"]
    assert api.post("/jobs/batch", json=[body(4), body(2, on_conflict="error")]).status_code == 409
    assert app.count().jobs == 3
    again = api.post(f"/jobs/{id}/run-again", json={"unique": body()["unique"]})
    assert (again.status_code, again.json()["id"]) == (200, id)


def test_a_server_with_the_handler_knows_its_rule(api: TestClient, app: Tenure) -> None:
    app.job(name="index", unique=Unique(("doc",)))(lambda doc: None)
    plain = {"type": "index", "payload": {"doc": 1}}
    ids = [api.post("/jobs", json=plain).json()["id"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert api.post("/jobs", json={**plain, "unique": None}).json()["id"] != ids[0]


NO_RULES = [
    ({"by": ["page"]}, "$.unique.by"),
    ({"by": "two words"}, "$.unique.by"),
    ({"until": "completed"}, "$.unique.until"),
    ({"on_conflict": "ignore"}, "$.unique.on_conflict"),
    ({"within": 0}, "$.unique.within"),
    ({"max_wait": 1}, "$.unique.max_wait"),
    ({"states": []}, "$.unique"),
    ("doc", "$.unique"),
]


def test_a_rule_that_is_none_is_refused(api: TestClient, subtests: pytest.Subtests) -> None:
    for rule, path in NO_RULES:
        with subtests.test(f"{rule!a:.60}"):
            response = api.post(
                "/jobs", json={"type": "index", "payload": {"doc": 1}, "unique": rule}
            )
            assert assert_problem(response, 400, "invalid_input")["path"] == path


def test_the_client_sends_a_rule(app: Tenure) -> None:
    with ServerProcess(app.database) as server, Client(server.url) as client:
        rule = Unique(("doc",), "started", on_conflict="replace", max_wait="5m")
        first = client.enqueue("index", {"doc": 1, "n": 1}, unique=rule, delay=60)
        again = client.enqueue("index", {"doc": 1, "n": 2}, unique=rule, delay=60)
        assert (again.id, again.payload["n"]) == (first.id, 2)
        assert client.enqueue("index", {"doc": 1}, unique=None).id != first.id
        with pytest.raises(DuplicateJob) as refusal:
            client.enqueue("index", {"doc": 1}, unique=Unique(("doc",), on_conflict="error"))
        assert refusal.value.job_id == first.id
    assert app.count().jobs == 2


def test_the_command_line_names_the_values(app: Tenure) -> None:
    command = ["enqueue", "index", '{"doc": 1, "n": 1}', "--unique-by", "doc"]
    database = {"TENURE_DATABASE": app.database}
    first = output_of(*command, **database)
    assert output_of(*command, "--unique-until", "settled", **database) == first
    assert output_of(*command, "--unique-by", "n", **database) != first
    refused = run_cli(*command, "--on-conflict", "error", **database)
    assert refused.exit_code == 1
    assert f"job {first} is the same as this one" in refused.stderr
    assert run_cli(*command, "--unique-until", "soon", **database).exit_code == 2


def test_who_has_some_queues_learns_nothing_of_the_others(app: Tenure) -> None:
    rule = Unique("nightly")
    foreign = app.enqueue("index", queue="billing", unique=rule)
    shop = limited_to(app, ("mail", "shop.*"))
    own = shop.enqueue("index", queue="mail", unique=rule)
    assert own.id != foreign.id
    assert shop.enqueue("index", queue="mail", unique=rule) == own
    assert shop.enqueue("index", queue="shop.a", unique=rule).id != own.id
    assert app.enqueue("index", queue="mail", unique=rule) == foreign
