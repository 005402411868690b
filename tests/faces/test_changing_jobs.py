"""Change, run again, tags and reasons over HTTP and as commands, as in Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.rules.steps import Record
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.http import assert_problem
from tests.support.store import claim_request, report_snoozed


@pytest.fixture
def app(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    with Tenure(sqlite_url) as app:
        yield app


def test_over_http(app: Tenure, web: TestClient) -> None:
    new = {"type": "mail", "payload": {"n": 1}, "delay": "1h", "tags": ["b", "a", "b"]}
    job = web.post("/jobs", json=new).json()
    assert job["tags"] == ["a", "b"]
    assert [one["id"] for one in web.get("/jobs?tag=a").json()] == [job["id"]]
    assert web.get("/jobs/count?tag=c").json() == {"jobs": 0, "exact": True}
    where = f"/jobs/{job['id']}"
    changes = {"payload": {"n": 2}, "priority": 7, "timeout": None, "delay": 0, "reason": "typo"}
    changed = web.patch(where, json=changes).json()
    assert (changed["payload"], changed["priority"]) == ({"n": 2}, 7)
    assert changed["run_at"] < job["run_at"]
    assert web.patch(where, json={}).json() == changed
    assert web.patch(where, json={"queue": "other"}).status_code == 400
    web.post(f"{where}/cancel", json={"reason": "not needed"})
    assert [one["reason"] for one in web.get(f"{where}/history").json()] == [
        *(None, "typo", "not needed")
    ]
    assert web.get(f"{where}/explain").json()["text"].endswith(": not needed")
    assert web.patch(where, json={"priority": 1}).status_code == 409
    again = web.post(f"{where}/run-again", json={"payload": {"n": 3}, "priority": 2})
    assert again.status_code == 201
    body = again.json()
    assert (body["again_of"], body["payload"], body["priority"]) == (job["id"], {"n": 3}, 2)
    assert body["tags"] == ["a", "b"]
    assert again.headers["Location"] == f"/jobs/{body['id']}"
    assert web.post(f"{where}/run-again").json()["payload"] == {"n": 2}
    assert web.post("/queues/mail/pause", json={"reason": "x" * 501}).status_code == 400
    paused = web.post("/queues/mail/pause", json={"reason": "the bank is down"}).json()
    assert paused["pause_reason"] == "the bank is down"
    assert web.post("/queues/mail/resume").json()["pause_reason"] is None


def test_a_key_makes_one_job_of_two_requests_to_run_one_again(app: Tenure, web: TestClient) -> None:
    first, other = app.enqueue("mail", {"n": 1}), app.enqueue("mail", {"n": 1})
    key = {"idempotency_key": "k"}
    answers = [web.post(f"/jobs/{first.id}/run-again", json=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert web.post(f"/jobs/{other.id}/run-again", json=key).status_code == 422
    assert app.run_again(first.id, **key).id == answers[0].json()["id"]


def test_the_key_of_a_request_to_run_again_may_be_a_header(app: Tenure, web: TestClient) -> None:
    """It was ignored there, so that each request that was sent again added another job."""
    first, key = app.enqueue("mail", {"n": 1}), {"Idempotency-Key": "k"}
    where = f"/jobs/{first.id}/run-again"
    answers = [web.post(where, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert {answer.json()["idempotency_key"] for answer in answers} == {"k"}
    assert web.post(where, headers=key, json={"payload": {"n": 2}}).status_code == 422


def test_calls_that_add_jobs_ignore_no_key(app: Tenure, web: TestClient) -> None:
    """They ignored it, so that a client that repeats a request added its jobs twice."""
    refused = web.post("/jobs/batch", headers={"Idempotency-Key": "k"}, json=[{"type": "a"}])
    assert assert_problem(refused, 400, "invalid_input")["path"] == "Idempotency-Key"
    assert app.count().jobs == 0


def test_run_again_depends_on_the_same_jobs(app: Tenure, web: TestClient) -> None:
    first = app.enqueue("mail")
    job = app.enqueue("mail", depends_on={"first": first.settled})
    again = web.post(f"/jobs/{job.id}/run-again").json()
    assert again["status"] == "waiting"
    assert cli_json("jobs", "run-again", job.id)["status"] == "waiting"
    (parent,) = app.workflows.parents(again["id"]).jobs
    assert (parent.id, parent.meets, parent.name) == (first.id, "settled", "first")
    assert web.post(f"/jobs/{job.id}/run-again", json={"depends_on": []}).json()["status"] == (
        "pending"
    )


def test_as_commands(app: Tenure) -> None:
    args = ("mail", '{"n": 1}', "--delay", "1h", "--tag", "b", "--tag", "a")
    job = cli_json("enqueue", *args)
    assert job["tags"] == ["a", "b"]
    assert [one["id"] for one in cli_json("jobs", "list", "--tag", "a")] == [job["id"]]
    (changed,) = cli_json(
        *("jobs", "amend", job["id"], "--payload", '{"n": 2}', "--timeout", "none", "--delay", "0s")
    )
    assert changed["payload"] == {"n": 2}
    assert changed["run_at"] < job["run_at"]
    later = [app.enqueue("late", delay=3600, tags=["x"]) for _ in range(2)]
    assert cli_json("jobs", "run-now", later[0].id)[0]["id"] == later[0].id
    assert cli_json("jobs", "run-now", "--tag", "x", "--yes")["changed"] == 1
    bulk = cli_json("jobs", "cancel", "--tag", "x", "--yes", "--reason", "not needed")
    assert (bulk["changed"], bulk["reason"]) == (2, "not needed")
    shown = output_of("jobs", "show", later[0].id)
    assert "not needed" in shown
    again = cli_json("jobs", "run-again", later[0].id, "--payload", '{"n": 3}')
    assert (again["again_of"], again["payload"]) == (later[0].id, {"n": 3})


def test_who_runs_jobs_now_is_shown_how_many_snooze(app: Tenure, web: TestClient) -> None:
    """They are left unless the filter names them."""
    job = app.enqueue("nap", tags=["x"])
    (lease,) = app.core.claim(claim_request(limit=1)).leases
    app.core.report([report_snoozed(lease, delay=3600)])
    dry = ("jobs", "run-now", "--tag", "x", "--dry-run")
    left = "1 job is snoozed, and left out. --state snoozed selects it."
    assert output_of(*dry).splitlines() == ["This would run 0 jobs now.", left]
    assert output_of(*dry[:-1]).splitlines() == ["No job matches that it could run now.", left]
    unasked = run_cli(*dry[:-1], "--yes")
    assert (unasked.stdout[:9], left in unasked.stderr) == ("0 jobs ch", True)
    app.enqueue("late", delay=3600, tags=["x"])
    refused = run_cli(*dry[:-1])
    assert (refused.exit_code, left in refused.stderr) == (2, True)
    assert "this would run 1 job now; add --yes" in refused.stderr
    assert cli_json(*dry)["snoozed"] == {"jobs": 1, "exact": True}
    assert "snoozed" not in cli_json("jobs", "cancel", *dry[2:])
    assert left not in output_of(*dry, "--state", "snoozed")
    page = web.get("/ui/bulk?action=run_now&tag=x").text
    for text in ("1 job is snoozed, and left out.", "Run all matching jobs now<", "Run 1 job now<"):
        assert text in page
    assert "Run all now…" in web.get("/ui/jobs?status=pending").text
    for filter in ("action=cancel&tag=x", "action=run_now&tag=x&state=snoozed"):
        other = web.get(f"/ui/bulk?{filter}")
        assert (other.status_code, "snoozed, and left out" in other.text) == (200, False)
    assert cli_json(*dry[:-1], "--state", "snoozed", "--yes")["changed"] == 1
    assert app.get(job.id).event == "amended"


def test_to_run_a_job_now_is_not_offered_while_it_sleeps(app: Tenure, web: TestClient) -> None:
    """It would not wake it: the handler would come to the same sleep, and sleep the rest."""
    (later, asleep) = app.enqueue("late", delay=3600), app.enqueue("nap")
    (lease,) = app.core.claim(claim_request(limit=1)).leases
    app.core.ask(lease.id, lease.lease_id, Record("sleep:1", 1, "3600")).result()
    app.core.report([report_snoozed(lease, delay=3600)])
    for job, offered in ((later, True), (asleep, False)):
        page = web.get(f"/ui/jobs/{job.id}").text
        assert ("Run now" in page) is offered
        assert "Change…" in page
        assert ("run-now" in output_of("explain", job.id)) is offered
    assert "It sleeps until" in page
    assert web.get(f"/jobs/{asleep.id}/explain").json()["reason"] == "sleeping"
