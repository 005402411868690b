"""Acting on all jobs that match, over HTTP and on the command line, seen through by a sweeper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, NewJob, Tenure
from tenure.rules.search import Filter
from tenure.settings import Settings
from tests.support.cli import (
    PROGRAM,
    clean_environment,
    cli_json,
    output_of,
    output_on_terminal,
    run_cli,
)
from tests.support.http import UNKNOWN_ID, api_client, assert_problem
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        new_jobs = [NewJob("mail", {"to": f"ann{n}", "password": "hunter2"}, {}) for n in range(5)]
        app.enqueue_many([*new_jobs, NewJob("sms", {}, {})])
        yield app


@pytest.fixture
def api(app: Tenure) -> Iterator[TestClient]:
    with api_client(app, Settings(redact=("password",))) as api:
        yield api


def test_an_action_over_http_is_gone_on_with_by_a_sweeper(app: Tenure, api: TestClient) -> None:
    asked = {"action": "cancel", "filter": {"type": "mail", "text": "ANN"}}
    assert api.get("/jobs/count?type=mail&text=ANN&action=cancel").json() == {
        "jobs": 5,
        "exact": True,
    }
    response = api.post("/bulk", json=asked)
    assert response.status_code == 202
    begun = response.json()
    assert (begun["total"], begun["exact"], begun["changed"], begun["actor"]) == (
        5,
        True,
        0,
        "http",
    )
    assert begun["filter"] == asked["filter"]
    with running_sweeper(app):
        wait_until(lambda: api.get(response.headers["location"]).json()["finished_at"], "its end")
    (shown,) = api.get("/bulk").json()
    assert (shown["changed"], shown["examined"], shown["refused"]) == (5, 5, 0)
    assert {job["status"] for job in api.get("/jobs?type=mail").json()} == {"cancelled"}
    job = api.get("/jobs?type=mail&limit=1").json()[0]
    last = api.get(f"/jobs/{job['id']}/history").json()[-1]
    assert last["actor"] == f"http (bulk {begun['id']})"
    assert_problem(api.get(f"/bulk/{UNKNOWN_ID}"), 404, "bulk_not_found")
    assert_problem(api.post(f"/bulk/{UNKNOWN_ID}/stop"), 404, "bulk_not_found")


def test_one_that_is_stopped_over_http_changes_nothing_more(app: Tenure, api: TestClient) -> None:
    begun = api.post("/bulk", json={"action": "cancel", "filter": {"status": "pending"}}).json()
    assert api.post(f"/bulk/{begun['id']}/stop").json()["stopped_by"] == "http"
    app.bulk.step(begun["id"])
    assert app.core.count(app.bulk.get(begun["id"]).filter, action="cancel").jobs == 6


def test_an_action_names_its_jobs(app: Tenure, api: TestClient) -> None:
    """A filter whose field was forgotten cancelled every job; commands never took such a one.

    In Python too, as one for the workflow of a job that is in none.
    """
    job = app.enqueue("alone", queue="apart")
    for field in ({}, {"workflow": app.get(job.id).workflow}, {"hidden": ("token",)}):
        with pytest.raises(InvalidInput, match=r"^\$\.filter: this would be about every job"):
            app.bulk.start("cancel", Filter(**field))
    app.cancel(job.id)
    refused = api.post("/bulk", json={"action": "cancel", "filter": {}})
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$.filter"
    assert app.bulk.list() == []
    every = {"created_before": "2999-01-01T00:00:00Z"}
    assert api.post("/bulk", json={"action": "cancel", "filter": every}).json()["total"] == 6


@pytest.mark.requirement("C12")
@pytest.mark.parametrize("name", ["text", "error"])
def test_only_an_administrator_sees_what_was_searched_for(
    app: Tenure, api: TestClient, name: str
) -> None:
    """It may be a secret that leaked, and in no job that a reader sees."""
    bulk = app.bulk.start("cancel", Filter(queue="default", **{name: "canary"})).id
    paths = ("/bulk", f"/bulk/{bulk}", "/ui/bulk", f"/ui/bulk/{bulk}")
    tokens = {
        "reader": app.tokens.create("reader", ["read"])[0],
        "tenant": app.tokens.create("tenant", ["read"], queues=["default"])[0],
        "admin": app.tokens.create("admin", ["admin"])[0],
    }
    for caller, token in tokens.items():
        api.headers["Authorization"] = f"Bearer {token}"
        for path in paths:
            shown = api.get(path).text
            found = ("canary" in shown, "[redacted]" in shown)
            assert found == (caller == "admin", caller != "admin"), (caller, path)


def test_hidden_values_are_not_found_over_http(api: TestClient) -> None:
    assert api.get("/jobs?text=hunter2").json() == []
    assert api.get("/jobs/count?text=hunter2").json()["jobs"] == 0
    assert (
        api.post("/bulk", json={"action": "cancel", "filter": {"text": "hunter2"}}).json()["total"]
        == 0
    )
    assert len(api.get("/jobs?text=ann1").json()) == 1


@pytest.mark.parametrize("query", ["text=", "error=" + "x" * 201, "text=%00", "created_after=1"])
def test_what_cannot_be_searched_for_is_refused(api: TestClient, query: str) -> None:
    assert assert_problem(api.get(f"/jobs?{query}"), 400, "invalid_input")["path"].startswith(
        "query "
    )


def test_a_refused_filter_is_named_where_it_is_in_the_body(api: TestClient) -> None:
    """The place was `$.error`, which is no field of the body."""
    wanted = {"action": "retry", "filter": {"error": ""}}
    refused = assert_problem(api.post("/bulk", json=wanted), 400, "invalid_input")
    assert refused["path"] == "$.filter.error"


def test_the_command_line_previews_asks_and_sees_it_through(app: Tenure) -> None:
    here = {"TENURE_DATABASE": app.database}
    preview = output_of("jobs", "cancel", "--type", "mail", "--dry-run", **here)
    assert preview.startswith("This would cancel 5 jobs.\nID")
    refused = run_cli("jobs", "cancel", "--type", "mail", **here)
    assert refused.exit_code == 2
    assert "would cancel 5 jobs; add --yes" in refused.stderr
    assert run_cli("jobs", "cancel", **here).exit_code == 2
    assert run_cli("jobs", "retry", UNKNOWN_ID, "--type", "mail", **here).exit_code == 2
    assert app.core.count(Filter(), action="cancel").jobs == 6
    shown = output_on_terminal(
        *PROGRAM, "jobs", "cancel", "--type", "mail", "--yes", **clean_environment(**here)
    )
    assert "5/5" in shown
    assert "5 jobs changed, 0 refused" in shown
    (record,) = cli_json("--database", app.database, "bulk", "list")
    assert record["changed"] == 5
    assert record["id"] in output_of("bulk", "show", record["id"], **here)
    one = ("--status", "pending", "--dry-run")
    assert output_of("jobs", "cancel", *one, **here).startswith("This would cancel 1 job.\n")
    assert cli_json("--database", app.database, "bulk", "stop", record["id"]) == record
    assert run_cli("bulk", "show", UNKNOWN_ID, **here).exit_code == 3
    heads, row = output_of("bulk", "list", COLUMNS="80", **here).splitlines()
    assert heads.split() == ["ID", "ACTION", "ENDED", "TOTAL", "CHANGED", "REFUSED"]
    assert row.startswith(f"{record['id']}  cancel  ")
    assert "…" not in row
    nothing = output_of("jobs", "cancel", "--type", "mail", **here)
    assert nothing == "No job matches that it could cancel."
    assert len(app.bulk.list()) == 1
    found = cli_json("--database", app.database, "jobs", "list", "--text", "ANN1")
    assert [job["status"] for job in found] == ["cancelled"]


@pytest.mark.parametrize("action", ["cancel", "run-now", "retry"])
def test_a_preview_of_jobs_by_id_changes_none(app: Tenure, action: str) -> None:
    (job,) = app.find(type="mail", limit=1)
    here = {"TENURE_DATABASE": app.database}
    refused = run_cli("jobs", action, job.id, "--dry-run", **here)
    assert refused.exit_code == 2
    assert "--dry-run is for jobs that match options" in refused.stderr
    assert app.get(job.id) == job
