"""Limits on the page of a queue and what its forms change, in metrics and for the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import PerPartition, Tenure
from tenure.rules.queues import Limits
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.stats import PartitionState, QueueState
from tenure.settings import Settings
from tenure.values.findings import CheckResult
from tests.support.cli import output_of, run_cli
from tests.support.http import api_client, assert_problem, post_form
from tests.support.waiting import wait_until

HOSTILE = "<script>alert(1)</script>\"'>&\u202e"
PAGE = "/ui/queues/llm"


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


def queue(app: Tenure) -> QueueState:
    return next(one for one in app.queues.list() if one.name == "llm")


def partition(app: Tenure, name: str) -> PartitionState:
    return next(one for one in app.queues.partitions("llm") if one.partition == name)


def form(web: TestClient) -> dict[str, str]:
    """The fields of the form for limits, as a browser sends them back."""
    (text,) = re.findall(r'action="/ui/queues/llm/limit".*?</form>', web.get(PAGE).text, re.DOTALL)
    fields = {
        name: unescape(value)
        for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', text)
        if name != "form"
    }
    for name, options in re.findall(r'<select [^>]*name="([^"]+)">(.*?)</select>', text):
        (fields[name],) = re.findall(r'<option value="([^"]*)" selected>', options)
    return fields


def limit(web: TestClient, **changes: str) -> str:
    """Send the form for limits with some fields changed; the page that follows."""
    answer = post_form(web, f"{PAGE}/limit", {**form(web), **changes})
    return web.get(PAGE).text if answer.status_code == 303 else answer.text


def send(web: TestClient, action: str, name: str, **fields: str) -> str:
    post_form(web, f"{PAGE}/partition/{action}", {"partition": name, **fields})
    return web.get(PAGE).text


def claim(app: Tenure) -> Any:
    request = ClaimRequest(worker="w", limit=1, lease_seconds=60, queues=("llm",))
    (lease,) = app.core.claim(request).leases
    return lease


@pytest.mark.parametrize("page", ["/ui/queues/a%00b", "/ui/queues?search=a%00b"])
def test_a_queue_that_none_can_be_called_is_refused(web: TestClient, page: str) -> None:
    """PostgreSQL was asked for a text with NUL, which it refuses: that was a 500."""
    assert web.get(page).status_code == 400


def test_each_limit_is_set_and_removed(app: Tenure, web: TestClient) -> None:
    assert "Any number of jobs may run." in web.get(PAGE).text
    page = limit(web, max_pending="1,000", max_running="50", rate="900/1m", burst="9")
    assert "The limits of queue llm are set." in page
    assert "0 of 50 run, starts 900/1m" in page
    assert "1,000 pending, 0 of 50 run, starts 900/1m" in web.get("/ui/queues").text
    assert queue(app).max_pending == 1000
    assert queue(app).limits == Limits(50, "900/1m", 9)

    limit(web, per_max_running="2", per_rate="10/1s")
    assert queue(app).limits == Limits(50, "900/1m", 9, PerPartition(2, "10/1s", 1))
    limit(web, rate="60/1m", per_rate="", ordered="halt")
    assert queue(app).limits == Limits(50, "60/1m", 6, PerPartition(2), "halt")
    limit(web, max_pending="", max_running="0", rate="", ordered="")
    assert queue(app).limits == Limits(0, None, None, PerPartition(2))
    assert queue(app).max_pending is None
    limit(web, max_running="", per_partition="")
    assert not [one for one in app.queues.list() if one.limits]
    limit(web, per_partition="turns")
    assert queue(app).limits == Limits(per_partition=PerPartition())


def test_a_form_changes_only_what_was_changed_in_it(app: Tenure, web: TestClient) -> None:
    app.queues.limit("llm", max_running=5, max_pending=9)
    old = form(web)
    app.queues.limit("llm", max_running=7, per_partition=PerPartition(1))
    post_form(web, f"{PAGE}/limit", {**old, "max_pending": "8"})
    assert (queue(app).max_pending, queue(app).limits) == (
        8,
        Limits(7, None, None, PerPartition(1)),
    )
    assert "are as they were" in limit(web)


@pytest.mark.parametrize(
    ("field", "value"), [("max_running", "-1"), ("max_running", "five"), ("rate", "fast")]
)
def test_what_is_no_limit_is_said(app: Tenure, web: TestClient, field: str, value: str) -> None:
    app.queues.limit("llm", max_running=5)
    assert field in limit(web, **{field: value})
    assert queue(app).limits == Limits(5)


def test_a_partition_is_paused_weighted_and_resumed(app: Tenure, web: TestClient) -> None:
    app.queues.limit("llm", per_partition=PerPartition(5))
    for name in (HOSTILE, None):
        app.enqueue("email", queue="llm", partition=name)
    for name in (HOSTILE, ""):
        page = send(web, "pause", name, reason=HOSTILE)
        assert partition(app, name).paused_by == "dashboard"
        send(web, "limit", name, weight="4", max_running="3")
        assert (partition(app, name).weight, partition(app, name).max_running) == (4, 3)
        page = send(web, "limit", name, **{"weight": "", "was.weight": "4", "max_running": "3"})
        assert (partition(app, name).weight, partition(app, name).max_running) == (None, 3)
        assert "<script>alert" not in page
        assert "\\u202e" in page
        assert "0 of 3" in re.sub("</?a.*?>", "", page)
        send(web, "resume", name)
        assert partition(app, name).paused_at is None
    assert "The partition of jobs without one is open." in send(web, "resume", "")


def test_every_door_says_why_a_partition_is_not_paused(app: Tenure, web: TestClient) -> None:
    app.enqueue("email", queue="llm", partition="acme")
    pause = {"partition": "acme", "paused": True}
    command = ("queues", "partition", "llm", "acme", "--pause")
    environ = {"TENURE_DATABASE": app.database}

    refused = assert_problem(web.put("/queues/llm/partition", json=pause), 409, "limit_conflict")
    assert "take no turns" in refused["detail"]
    said = post_form(web, f"{PAGE}/partition/pause", {"partition": "acme"})
    assert (said.status_code, "take no turns" in said.text) == (409, True)
    done = run_cli(*command, **environ)
    assert (done.exit_code, "take no turns" in done.output) == (1, True)

    app.queues.limit("llm", per_partition=PerPartition())
    output_of(*command, **environ)
    refused = assert_problem(
        web.put("/queues/llm/limit", json={"per_partition": None}), 409, "limit_conflict"
    )
    assert "acme" in refused["detail"]
    assert "acme" in limit(web, per_partition="")
    done = run_cli("queues", "limit", "llm", "--per-partition", "none", **environ)
    assert (done.exit_code, "'acme' is paused" in done.output) == (1, True)
    assert queue(app).limits == Limits(per_partition=PerPartition())


def test_the_job_that_halts_a_partition_is_named_and_passed_over(
    app: Tenure, web: TestClient
) -> None:
    app.queues.limit("llm", ordered="halt")
    first = app.enqueue("email", queue="llm", partition="acme", max_retries=1).id
    app.enqueue("email", queue="llm", partition="acme")
    lease = claim(app)
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")])
    page = web.get(PAGE).text
    assert "halted" in page
    assert f'href="/ui/jobs/{first}"' in page
    assert f"Partition acme continues. Job {first} stays failed." in send(web, "pass-over", "acme")
    assert partition(app, "acme").halted_by is None
    assert "no failed job halts Partition acme" in send(web, "pass-over", "acme")


@pytest.mark.parametrize("pause", ["queue", "partition"])
def test_what_waits_for_a_limit_outside_is_shown_and_resumed(
    app: Tenure, web: TestClient, pause: Any
) -> None:
    app.queues.limit("llm", per_partition=PerPartition())
    app.enqueue("email", queue="llm", partition="acme")
    lease = claim(app)
    snoozed = Report(lease.id, lease.lease_id, Outcome.SNOOZED, delay=60, pause=pause)
    app.core.report([snoozed])
    said = {"queue": "one has met a rate limit outside", "partition": "waits</span>"}
    wait_until(lambda: said[pause] in web.get(PAGE).text, "what was read before to be read again")
    page = web.get(PAGE).text
    assert [name for name, text in said.items() if text in page] == [pause]
    listed = output_of("queues", "list", "--wide", TENURE_DATABASE=app.database)
    rests = re.compile("starts none for [1-5][0-9]s")
    assert (rests.search(listed) is not None) is (pause == "queue")
    if pause == "queue":
        wait_until(lambda: rests.search(web.get("/ui/queues").text), "also in the list of queues")
    if pause == "queue":
        assert 'aria-label="Resume queue llm"' in page
        post_form(web, f"{PAGE}/resume")
        assert queue(app).resume_at is None
    else:
        assert 'aria-label="Resume partition acme"' in page
        send(web, "resume", "acme")
        assert partition(app, "acme").resume_at is None


def test_limits_are_shown_to_who_may_only_read(app: Tenure, web: TestClient) -> None:
    app.queues.limit("llm", max_running=5, per_partition=PerPartition(5))
    app.enqueue("email", queue="llm", partition="acme")
    token, _ = app.tokens.create("viewer", ["read"])
    with api_client(app, Settings(tokens=("boss-token",))) as guarded:
        post_form(guarded, "/ui/sign-in", {"token": token})
        page = guarded.get(PAGE).text
        assert "0 of 5 run" in page
        assert "acme" in page
        assert set(re.findall(r'<form [^>]*action="([^"]+)"', page)) == {"/ui/sign-out"}


def test_a_queue_nobody_named_and_no_name(web: TestClient) -> None:
    assert "Any number" in web.get("/ui/queues/new").text
    assert web.get("/ui/queues/a b").status_code == 400


def test_metrics_say_how_full_a_limited_queue_is(app: Tenure, web: TestClient) -> None:
    app.queues.limit("llm", max_running=5)
    app.queues.limit("turns", per_partition=PerPartition())
    app.enqueue("email", queue="llm")
    app.enqueue("email", queue="free")
    claim(app)
    lines = web.get("/metrics", headers={"Accept": "text/plain"}).text.splitlines()
    found = [line for line in lines if re.match(r"tenure_queue_(max_)?running\{", line)]
    assert sorted(found) == [
        'tenure_queue_max_running{queue="llm"} 5.0',
        'tenure_queue_running{queue="llm"} 1.0',
        'tenure_queue_running{queue="turns"} 0.0',
    ]


def test_the_doctor_names_queues_that_may_run_nothing(app: Tenure) -> None:
    def check() -> tuple[CheckResult, str, str]:
        (found,) = [check for check in app.check() if check.name == "limits"]
        return found.health, found.found, found.advice

    app.queues.limit("llm", rate="1/1m", per_partition=PerPartition(0))
    assert check() == (CheckResult.OK, "queues with limits: 1", "")
    app.queues.limit("llm", max_running=0)
    health, _, advice = check()
    assert health is CheckResult.WARNING
    assert advice.startswith("llm: at most 0 jobs may run")
