"""Workflows over HTTP, on the command line and in the dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.store.tables import workflows
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.http import UNKNOWN_ID, assert_problem, claim_jobs, post_form, report
from tests.support.workflows import add_workflow, finish


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url) as app:
        yield app
        assert app.verify() == []


# --- HTTP -----------------------------------------------------------------------------------------


def test_a_workflow_is_shown(app: Tenure, api: TestClient) -> None:
    id, jobs = add_workflow(app, key="import-1")
    shown = api.get(f"/workflows/{id}").json()
    assert shown | {"created_at": None} == {
        "id": id,
        "name": "import",
        "key": "import-1",
        "status": "running",
        "jobs": {"waiting": 3, "pending": 5},
        "created_at": None,
        "created_by": "test",
        "finished_at": None,
    }
    pages = read_pages(api, f"/workflows/{id}/graph?limit=3")
    assert [job["id"] for page in pages for job in page["jobs"]] == list(jobs.values())
    ties = [tie for page in pages for tie in page["dependencies"]]
    assert len(ties) == 7
    last = {"parent": jobs["total"], "child": jobs["clean"], "meets": "settled", "name": None}
    assert ties[-1] == last
    parents = read_pages(api, f"/jobs/{jobs['total']}/parents?limit=2")
    assert [job["id"] for page in parents for job in page] == list(jobs.values())[:5]
    (followers,) = read_pages(api, f"/jobs/{jobs['total']}/followers")
    assert followers[0] == {
        "id": jobs["alert"],
        "type": "alert",
        "queue": "default",
        "status": "waiting",
        "meets": "failed",
        "name": None,
    }
    found = api.get("/jobs", params={"workflow": id, "status": "waiting"}).json()
    assert len(found) == 3


def read_pages(api: TestClient, address: str) -> list[Any]:
    pages = []
    while address:
        response = api.get(address)
        assert response.status_code == 200, response.text
        pages.append(response.json())
        address = response.links.get("next", {}).get("url", "")
    return pages


def test_lists_are_paged_and_filtered(app: Tenure, api: TestClient) -> None:
    ids = [add_workflow(app, name=name)[0] for name in ("a", "b", "a")]
    pages = read_pages(api, "/workflows?limit=2&status=running")
    assert [[one["id"] for one in page] for page in pages] == [ids[:0:-1], ids[:1]]
    assert pages[0][0]["jobs"] is None
    assert [one["id"] for one in api.get("/workflows?name=a").json()] == [ids[2], ids[0]]
    assert api.get("/workflows?status=failed").json() == []
    assert_problem(api.get("/workflows?status=waiting"), 400, "invalid_input")


def test_a_workflow_is_cancelled_and_retried(app: Tenure, api: TestClient) -> None:
    id, _ = add_workflow(app)
    for lease in claim_jobs(api, 5):
        report(api, lease, "failed")
    for_one_job = api.post(f"/workflows/{id}/retry", json={"from_scratch": True})
    assert_problem(for_one_job, 400, "invalid_input")
    body = {"more_retries": 2, "reason": "the site is up"}
    started = api.post(f"/workflows/{id}/retry", json=body)
    assert started.status_code == 202
    bulk = api.get(started.headers["location"]).json()
    assert (bulk["action"], bulk["reason"], bulk["total"]) == ("retry", "the site is up", 5)
    finish(app, bulk["id"])
    assert api.get(f"/workflows/{id}").json()["jobs"]["pending"] == 5
    started = api.post(f"/workflows/{id}/cancel", json={"everything": True})
    assert started.json()["actor"] == "http"
    finish(app, started.json()["id"])
    assert api.get(f"/workflows/{id}").json()["jobs"] == {"cancelled": 8}
    for path in ("", "/graph"):
        problem = assert_problem(
            api.get(f"/workflows/{UNKNOWN_ID}{path}"), 404, "workflow_not_found"
        )
        assert problem["workflow_id"] == UNKNOWN_ID


ADDED: dict[str, Any] = {
    "name": "import",
    "jobs": [  # children first: the order is Tenure's to find
        {"type": "alert", "depends_on": [{"ref": "total", "meets": "failed"}]},
        {"ref": "total", "type": "sum", "depends_on": ["a", "b"], "needs": "any"},
        {"ref": "a", "type": "fetch", "payload": {"n": 1}, "max_retries": 1.0},
        {"ref": "b", "type": "fetch", "queue": "slow"},
    ],
}


def test_what_cannot_go_with_a_key_is_named(api: TestClient) -> None:
    """The place was `$.jobs[1].key`, a field that no job has, of a job that is not unique."""
    jobs = [{"type": "a", "unique": {"by": "k"}}, {"type": "b"}]
    key = {"Idempotency-Key": "import-1"}
    refused = assert_problem(
        api.post("/workflows", json={"jobs": jobs}, headers=key), 400, "invalid_input"
    )
    assert refused["path"] == "$.jobs[0].unique"
    assert "null" in refused["detail"]


def test_a_workflow_is_added_once(app: Tenure, api: TestClient) -> None:
    key = {"Idempotency-Key": "import-1"}
    made = api.post("/workflows", json=ADDED, headers=key)
    assert made.status_code == 201, made.text
    id, refs = made.json()["workflow"]["id"], made.json()["refs"]
    assert made.headers["location"] == f"/workflows/{id}"
    assert made.json()["workflow"]["jobs"] == {"waiting": 2, "pending": 2}
    assert sorted(refs) == ["a", "b", "total"]
    assert (app.get(refs["a"]).payload, app.get(refs["a"]).max_retries) == ({"n": 1}, 1)
    assert app.get(refs["b"]).queue == "slow"
    assert [one.meets for one in app.workflows.followers(refs["total"]).jobs] == ["failed"]
    assert app.get(refs["total"]).need == 1
    again = api.post("/workflows", json=ADDED, headers=key)
    assert (again.status_code, again.json()["refs"]) == (200, refs)
    other = api.post("/workflows", json=ADDED | {"name": "x"}, headers=key)
    problem = assert_problem(other, 422, "idempotency_key_reused")
    assert problem["workflow_id"] == id
    assert "job_id" not in problem  # it was there, and was the id of the workflow
    jobs = [
        {"ref": "mail", "type": "mail", "depends_on": [{"job_id": refs["total"]}, "pdf"]},
        {"ref": "pdf", "type": "pdf"},
    ]
    added = api.post(f"/workflows/{id}/jobs", json={"jobs": jobs})
    assert added.status_code == 201, added.text
    assert added.json()["workflow"]["jobs"] == {"waiting": 3, "pending": 3}
    assert app.get(added.json()["refs"]["mail"]).workflow == id
    missing = api.post(f"/workflows/{UNKNOWN_ID}/jobs", json={"jobs": jobs[1:]})
    assert_problem(missing, 404, "workflow_not_found")


def test_jobs_are_added_to_a_workflow_once(app: Tenure, api: TestClient) -> None:
    """Who had no answer could not send it again: each request added its jobs."""
    flow, other = (api.post("/workflows", json=ADDED).json()["workflow"]["id"] for _ in range(2))
    key = {"Idempotency-Key": "more"}
    more = {"jobs": ADDED["jobs"]}
    answers = [api.post(f"/workflows/{flow}/jobs", json=more, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json() == answers[1].json()
    assert sum(answers[1].json()["workflow"]["jobs"].values()) == 8
    for jobs in (ADDED["jobs"][2:], [*ADDED["jobs"], {"type": "x"}]):
        refused = api.post(f"/workflows/{flow}/jobs", json={"jobs": jobs}, headers=key)
        problem = assert_problem(refused, 422, "idempotency_key_reused")
        assert (problem["workflow_id"], problem["idempotency_key"]) == (flow, "more")
    assert api.post(f"/workflows/{other}/jobs", json=more, headers=key).status_code == 201


@pytest.mark.parametrize(
    ("jobs", "path", "text"),
    [
        ([{"ref": "a", "type": "t"}, {"ref": "a", "type": "t"}], "$.jobs[1].ref", "the ref a"),
        ([{"type": "t", "depends_on": ["b"]}], "$.jobs[0].depends_on[0]", "`ref` of a job"),
        ([{"type": "t", "depends_on": [{"meets": "failed"}]}], "$.jobs[0].depends_on[0]", "job_id"),
        ([{"type": "t", "depends_on": [{"ref": "b"}]}], "$.jobs[0].depends_on[0]", "`ref` of a"),
        (
            [
                {"ref": "a", "type": "t"},
                {"type": "t", "depends_on": [{"ref": "a", "job_id": UNKNOWN_ID}]},
            ],
            "$.jobs[1].depends_on[0]",
            "or a `job_id`",
        ),
        (
            [
                {"ref": "a", "type": "t", "depends_on": ["b"]},
                {"ref": "b", "type": "t", "depends_on": ["a"]},
            ],
            "",
            "a cycle: ",
        ),
        ([], "$.jobs", ""),
        ([{"type": "t"}, {"type": "t", "idempotency_key": "k"}], "$.jobs[1]", "to the workflow"),
        ([{"type": "t", "depends_on": ["a"]}, {"ref": "a", "type": "x!"}], "$.jobs[1].type", ""),
        ([{"type": "t", "needs": "some"}], "$.jobs[0]", ""),
    ],
)
def test_what_is_not_added(
    app: Tenure, api: TestClient, jobs: list[dict[str, Any]], path: str, text: str
) -> None:
    problem = assert_problem(api.post("/workflows", json={"jobs": jobs}), 400, "invalid_input")
    assert path in str(problem)
    assert text in problem["detail"]
    assert app.find() == []
    assert app.workflows.list().workflows == []


# --- the command line -----------------------------------------------------------------------------


def test_commands(
    app: Tenure, api: TestClient, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    id, jobs = add_workflow(app, key="import-1")
    (listed,) = cli_json("workflows", "list", "--status", "running")
    assert (listed["id"], listed["jobs"]) == (id, None)
    assert "import-1" in output_of("workflows", "list")
    assert cli_json("workflows", "show", id)["jobs"] == {"waiting": 3, "pending": 5}
    assert "jobs:     3 waiting, 5 pending" in output_of("workflows", "show", id)
    rows = [line.split() for line in output_of("workflows", "graph", id).splitlines()]
    assert rows[1:] == [
        ["1", "fetch", "5", "5", "pending", "-"],
        ["2", "sum", "1", "1", "waiting", "1"],
        ["3", "alert", "1", "1", "waiting", "2:failed"],
        ["4", "clean_up", "1", "1", "waiting", "2:settled"],
    ]
    assert output_of("workflows", "graph", id, "--mermaid").splitlines() == [
        "flowchart TD",
        '    n1["fetch (5)<br/>5 pending"]',
        '    n2["sum<br/>waiting"]',
        '    n3["alert<br/>waiting"]',
        '    n4["clean_up<br/>waiting"]',
        "    n1 --> n2",
        "    n2 -. failed .-> n3",
        "    n2 -. settled .-> n4",
    ]
    assert len(cli_json("workflows", "graph", id)["stacks"]) == 4
    assert "8 jobs changed" in output_of(
        "workflows", "cancel", id, "--everything", "--reason", "no"
    )
    assert app.history(jobs["total"])[-1].reason == "no"
    assert cli_json("workflows", "retry", id)["changed"] == 0
    assert run_cli("workflows", "show", UNKNOWN_ID).exit_code == 3


# --- the dashboard --------------------------------------------------------------------------------


def test_pages_and_buttons(app: Tenure, api: TestClient) -> None:
    id, jobs = add_workflow(app, key="import-1")
    listed = api.get("/ui/workflows?name=import&status=running").text
    assert f"/ui/workflows/{id}" in listed
    assert "import-1" in listed
    assert f"/ui/workflows/{id}" not in api.get("/ui/workflows?status=failed").text
    page = api.get(f"/ui/workflows/{id}").text
    assert page.count('class="box node') == 4
    assert 'aria-label="fetch: 5 pending"' in page
    assert f'href="/ui/jobs/{jobs["total"]}"' in page
    assert f"/ui/jobs?workflow={id}&amp;type=fetch" in page
    assert api.get(f"/ui/jobs?workflow={id}&type=fetch").text.count("<b>fetch</b>") == 5
    for lease in claim_jobs(api, 5):
        report(api, lease, "failed")
    for action, fields in (("retry", {"reason": "up"}), ("cancel", {"everything": "on"})):
        assert post_form(api, f"/ui/workflows/{id}/{action}", fields).status_code == 303
        bulk = app.bulk.list()[0]
        assert (bulk.action, bulk.actor) == (action, "dashboard")
        assert bulk.reason == fields.get("reason")
        finish(app, bulk.id)
    assert "100% settled" in api.get(f"/ui/workflows/{id}").text
    assert api.get(f"/ui/workflows/{UNKNOWN_ID}").status_code == 404


def test_what_cannot_be_drawn_is_shown_by_type(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows, "MAX_MEMBERS", 7)
    id, _ = add_workflow(app)
    page = api.get(f"/ui/workflows/{id}").text
    assert '<svg class="graph"' not in page
    assert "too many different jobs to draw" in page
    assert f"/ui/jobs?workflow={id}&amp;type=clean_up" in page


def test_a_job_shows_what_it_waits_for(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenure.dashboard.jobs.MAX_RELATIVES", 3)
    id, jobs = add_workflow(app)
    page = api.get(f"/ui/jobs/{jobs['total']}").text
    shown = [name for name, job in jobs.items() if f'/ui/jobs/{job}"' in page]
    assert shown == ["page_0", "page_1", "page_2", "alert", "clean"]
    assert "any ending counts" in page
    assert f"/ui/workflows/{id}" in page
    assert f"/ui/jobs/{jobs['total']}/parents" in page
    assert f"/ui/jobs/{jobs['total']}/followers" not in page
    rest = api.get(f"/ui/jobs/{jobs['total']}/parents").text
    assert all(f"/ui/jobs/{jobs[f'page_{n}']}" in rest for n in range(5))
    assert api.get(f"/ui/jobs/{jobs['total']}/followers").status_code == 200
