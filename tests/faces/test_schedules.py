"""Schedules over HTTP, on the command line and in the dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import NewJob, Tenure
from tenure.app.schedules import Schedules, decide_due, declare
from tenure.rules.schedules import Schedule
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.clock import START, Clock
from tests.support.http import api_client, assert_problem, post_form

NIGHTLY = {
    "job": {"type": "report", "payload": {"n": 1, "password": "hunter2"}, "queue": "slow"},
    "cron": "10 3 * * *",
    "zone": "Europe/Berlin",
}
DAY = timedelta(days=1)


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url, redact=["password"]) as app:
        yield app
        assert app.verify() == []


@pytest.fixture
def clock(app: Tenure) -> Iterator[Clock]:
    app.open()
    clock = Clock(app.database)
    yield clock
    clock.close()


@pytest.fixture
def api(app: Tenure, clock: Clock) -> Iterator[TestClient]:
    with api_client(app) as api:
        yield api


def put(api: TestClient, name: str = "nightly", **changes: Any) -> dict[str, Any]:
    response = api.put(f"/schedules/{name}", json={**NIGHTLY, **changes})
    assert response.status_code in (200, 201), response.text
    shown: dict[str, Any] = response.json()
    return shown


# --- HTTP -----------------------------------------------------------------------------------------


def test_a_schedule_is_made_shown_replaced_and_deleted(app: Tenure, api: TestClient) -> None:
    made = api.put("/schedules/nightly", json={**NIGHTLY, "overlap": "skip", "time_key": "day"})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    shown = made.json()
    assert shown["job"] == {
        "type": "report",
        "payload": {"n": 1, "password": "[redacted]"},
        "queue": "slow",
    }
    assert (shown["cron"], shown["zone"], shown["overlap"]) == (*list(NIGHTLY.values())[1:], "skip")
    assert (shown["next_at"], shown["created_by"]) == ("2026-01-01T02:10:00Z", "http")
    assert app.schedules.get("nightly").template.payload["password"] == "hunter2"
    assert api.get("/schedules/nightly").json() == shown
    assert api.get("/schedules").json() == [shown]
    assert api.get("/schedules?after=nightly").json() == []

    replaced = api.put("/schedules/nightly", json={"job": {"type": "report"}, "every": "1h"})
    assert (replaced.status_code, replaced.headers["etag"]) == (200, '"2"')
    whole = replaced.json()
    assert (whole["cron"], whole["every"], whole["zone"]) == (None, 3600, "UTC")
    assert (whole["overlap"], whole["time_key"]) == ("allow_all", None), "what is left out"
    assert whole["job"] == {"type": "report", "payload": {}}

    assert api.delete("/schedules/nightly").json()["name"] == "nightly"
    assert_problem(api.get("/schedules/nightly"), 404, "schedule_not_found")


def test_a_time_key_has_the_bounds_that_are_described(api: TestClient) -> None:
    """An empty one was valid by the description, and then refused."""
    described = api.get("/openapi.json").json()["components"]["schemas"]["ScheduleRequest"]
    (key, _) = described["properties"]["time_key"]["anyOf"]
    assert (key["minLength"], key["maxLength"]) == (1, 128)
    for name in ("k", "k" * 128):
        assert put(api, time_key=name)["time_key"] == name
    for name in ("", "k" * 129):
        refused = api.put("/schedules/nightly", json={**NIGHTLY, "time_key": name})
        assert assert_problem(refused, 400, "invalid_input")["path"] == "$.time_key"


def test_a_change_names_the_edition_that_it_is_made_for(api: TestClient) -> None:
    put(api)
    put(api, overlap="skip")
    refused = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": '"1"'})
    assert_problem(refused, 412, "precondition_failed")
    assert api.get("/schedules/nightly").json()["overlap"] == "skip"
    changed = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": '"2"'})
    assert changed.headers["etag"] == '"3"'
    odd = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": "3"})
    assert assert_problem(odd, 400, "invalid_input")["path"] == "If-Match"


@pytest.mark.parametrize("match", ["*", '"1"', '"7", "1"', 'W/"2","1"'])
def test_if_match_is_met(api: TestClient, match: str) -> None:
    """RFC 9110, 13.1.1. `*` and lists were refused as invalid."""
    none = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": match})
    assert_problem(none, 412, "precondition_failed")
    put(api)
    changed = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": match})
    assert changed.headers["etag"] == '"2"'
    if match == "*":
        assert api.delete("/schedules/nightly", headers={"If-Match": match}).status_code == 200


@pytest.mark.parametrize("match", ['"2"', '"01"', '"one"', '""', 'W/"1"', '"2", W/"1"'])
def test_if_match_is_not_met(api: TestClient, match: str) -> None:
    """It was a conflict (409), or invalid."""
    put(api)
    for refused in (
        api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": match}),
        api.delete("/schedules/nightly", headers={"If-Match": match}),
    ):
        assert_problem(refused, 412, "precondition_failed")
    assert api.get("/schedules/nightly").headers["etag"] == '"1"'


def test_a_trigger_is_sent_again(app: Tenure, api: TestClient) -> None:
    put(api)
    key = {"Idempotency-Key": "k"}
    fires = [api.post("/schedules/nightly/trigger", headers=key) for _ in range(2)]
    assert fires[0].json() == fires[1].json()
    assert app.count().jobs == 1
    other = {"overlap": "skip"}
    refused = api.post("/schedules/nightly/trigger", headers=key, json=other)
    problem = assert_problem(refused, 422, "idempotency_key_reused")
    assert problem["job_id"] == fires[0].json()["job_id"]
    odd = api.post("/schedules/nightly/trigger", headers={"Idempotency-Key": "a b\t"})
    assert assert_problem(odd, 400, "invalid_input")["path"] == "Idempotency-Key"


def test_a_schedule_changes_while_if_match_is_looked_up(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(api)
    update = Schedules.update

    def second(self: Schedules, name: str, **rules: Any) -> Schedule:
        update(self, name, note="of another caller")
        return update(self, name, **rules)

    monkeypatch.setattr(Schedules, "update", second)
    refused = api.put("/schedules/nightly", json=NIGHTLY, headers={"If-Match": '"1"'})
    assert_problem(refused, 412, "precondition_failed")
    assert app.schedules.get("nightly").note == "of another caller"


def test_one_that_is_declared_in_code_cannot_be_replaced(app: Tenure, api: TestClient) -> None:
    app.schedule(every="90s", name="often")(app.job(name="mail")(lambda: None))
    declare(app.core)
    for match in ({}, {"If-Match": "*"}, {"If-Match": '"1"'}):
        refused = api.put("/schedules/often", json=NIGHTLY, headers=match)
        assert assert_problem(refused, 409, "illegal_edition")["edition"] == 1


def test_a_delete_names_the_edition_that_it_is_made_for(api: TestClient) -> None:
    """It deleted a schedule that another caller had just changed."""
    api.put("/schedules/nightly", json=NIGHTLY)
    api.put("/schedules/nightly", json=NIGHTLY)
    refused = api.delete("/schedules/nightly", headers={"If-Match": '"1"'})
    assert_problem(refused, 412, "precondition_failed")
    odd = api.delete("/schedules/nightly", headers={"If-Match": "2"})
    assert assert_problem(odd, 400, "invalid_input")["path"] == "If-Match"
    assert api.get("/schedules/nightly").status_code == 200
    assert api.delete("/schedules/nightly", headers={"If-Match": '"2"'}).status_code == 200
    assert api.get("/schedules/nightly").status_code == 404
    assert_problem(
        api.delete("/schedules/nightly", headers={"If-Match": "*"}), 404, "schedule_not_found"
    )


def test_a_schedule_is_made_only_if_there_is_none(api: TestClient) -> None:
    """RFC 9110, 13.1.2. The header was ignored, and the schedule replaced."""
    none = {"If-None-Match": "*"}
    made = api.put("/schedules/nightly", json=NIGHTLY, headers=none)
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    other = {"job": {"type": "other"}, "every": "1h"}
    refused = api.put("/schedules/nightly", json=other, headers=none)
    assert_problem(refused, 412, "schedule_exists")
    odd = api.put("/schedules/nightly", json=other, headers={"If-None-Match": '"1"'})
    assert assert_problem(odd, 400, "invalid_input")["path"] == "If-None-Match"
    both = api.put("/schedules/nightly", json=other, headers={**none, "If-Match": '"1"'})
    assert assert_problem(both, 400, "invalid_input")["path"] == "If-None-Match"
    assert api.get("/schedules/nightly").json() == made.json()
    wrong = api.put("/schedules/new", json={**NIGHTLY, "cron": "never"}, headers=none)
    assert assert_problem(wrong, 400, "invalid_input")["path"] == "$.cron"


def test_two_make_a_schedule_at_once(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Schedules.create

    def second(self: Schedules, name: str, job: NewJob, **rules: Any) -> Schedule:
        create(self, name, NewJob("other", {}, {}), every=60)
        return create(self, name, job, **rules)

    monkeypatch.setattr(Schedules, "create", second)
    assert put(api)["edition"] == 2
    assert app.schedules.get("nightly").template.type == "report"
    refused = api.put("/schedules/s", json={**NIGHTLY, "cron": "never"})
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$.cron"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"cron": "10 3 * *"}, "$.cron"),
        ({"every": 60}, "$"),
        ({"zone": "Europe/Atlantis"}, "$.zone"),
        ({"catch_up": 0}, "$.catch_up"),
        ({"overlap": "queue"}, "$.overlap"),
        ({"job": {"type": "a b"}}, "$.type"),
        ({"job": {"type": "a", "delay": 5}}, "$.job"),
        ({"jobs": 1}, "$"),
    ],
)
def test_what_is_wrong_is_named(api: TestClient, changes: dict[str, Any], path: str) -> None:
    refused = api.put("/schedules/s", json={**NIGHTLY, **changes})
    assert assert_problem(refused, 400, "invalid_input")["path"] == path
    assert api.get("/schedules").json() == []


def test_ticks_over_http(app: Tenure, api: TestClient, clock: Clock) -> None:
    put(api, overlap="skip")
    paused = api.post("/schedules/nightly/pause", json={"reason": "broken"}).json()
    assert (paused["pause_reason"], paused["paused_by"], paused["next_at"]) == (
        *("broken", "http"),
        None,
    )
    clock.advance(2 * DAY.total_seconds())
    assert api.post("/schedules/nightly/resume").json()["paused_at"] is None
    triggered = api.post("/schedules/nightly/trigger").json()
    assert (triggered["outcome"], triggered["how"]) == ("fired", "trigger")
    assert app.get(triggered["job_id"]).queue == "slow"
    assert api.post("/schedules/nightly/trigger").json()["outcome"] == "overlapped"
    forced = api.post("/schedules/nightly/trigger", json={"overlap": "allow_all"}).json()
    assert forced["outcome"] == "fired"

    range = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z", "priority": 9}
    planned = api.post("/schedules/nightly/backfill", json={**range, "dry_run": True}).json()
    assert [(fire["at"], fire["job_id"]) for fire in planned] == [
        ("2026-01-01T02:10:00Z", None),
        ("2026-01-02T02:10:00Z", None),
    ]
    made = api.post("/schedules/nightly/backfill", json=range).json()
    assert {app.get(fire["job_id"]).priority for fire in made} == {9}
    assert api.post("/schedules/nightly/backfill", json=range).json() == []
    fires = api.get("/schedules/nightly/fires").json()
    assert [fire["how"] for fire in fires if fire["outcome"] == "fired"].count("backfill") == 2
    before = api.get("/schedules/nightly/fires?before=2026-01-02T00:00:00Z&limit=5").json()
    assert {fire["at"] for fire in before} == {"2026-01-01T02:10:00Z"}
    odd = api.get("/schedules/nightly/fires?before=yesterday")
    assert assert_problem(odd, 400, "invalid_input")["path"] == "query before"


def test_the_next_ticks_and_a_preview(api: TestClient) -> None:
    put(api)
    ahead = api.get("/schedules/nightly/next?count=2").json()
    assert ahead["times"] == ["2026-01-01T03:10:00+01:00", "2026-01-02T03:10:00+01:00"]
    when = {"cron": "*/30 2 * * *", "zone": "Europe/Berlin"}
    seen = api.post("/preview?count=3", json=when).json()
    assert len(seen["times"]) == 3
    assert [day.partition(":")[0] for day in seen["unusual_days"]] == ["2026-03-29", "2026-10-25"]
    assert_problem(api.post("/preview?count=101", json=when), 400, "invalid_input")


def test_metrics(app: Tenure, api: TestClient, clock: Clock) -> None:
    put(api, cron="* * * * *", missed="skip")
    clock.advance(600)
    form = api.get("/metrics", headers={"Accept": "application/json"}).json()
    assert form["next_tick"] == "2026-01-01T00:01:00Z"
    assert "tenure_schedule_late_seconds 540.0" in api.get("/metrics").text
    decide_due(app.core, set())
    text = api.get("/metrics").text
    assert "tenure_schedule_late_seconds 0.0" in text
    fires = 'tenure_schedule_fires_total{outcome="missed",schedule="nightly"} '
    assert float(text.partition(fires)[2].split()[0]) >= 8


# --- the command line -----------------------------------------------------------------------------


def test_a_newcomer_on_the_command_line(app: Tenure, clock: Clock) -> None:
    here = {"TENURE_DATABASE": app.database, "TENURE_REDACT": "password"}
    when = ["--cron", "10 3 * * *", "--zone", "Europe/Berlin"]
    payload = '{"password": "hunter2"}'
    made = output_of("schedules", "create", "nightly", "report", payload, *when, **here)
    assert "hunter2" not in made
    assert made.splitlines()[-6:] == [
        "At 03:10 every day, Europe/Berlin",
        *(f"  {day} 2026-01-0{n} 03:10:00+01:00" for n, day in enumerate(DAYS, 1)),
    ]
    listed = output_of("schedules", "list", "--wide", **here)
    assert "nightly  At 03:10 every day, Europe/Berlin  report" in listed
    assert output_of("schedules", "preview", *when, **here) == "\n".join(made.splitlines()[-6:])
    (shown,) = cli_json("--database", app.database, "schedules", "list")
    assert shown == cli_json("--database", app.database, "schedules", "show", "nightly")
    assert shown["job"]["type"] == "report"

    edit = ("schedules", "edit", "nightly", "--overlap", "skip", "--edition", "1")
    assert "edition:          2" in output_of(*edit, **here)
    again = run_cli(*edit, **here)
    assert (again.exit_code, "at edition 2" in again.stderr) == (1, True)
    output_of("schedules", "edit", "nightly", "other", "--queue", "slow", **here)
    assert app.schedules.get("nightly").template.type == "other"
    assert app.schedules.get("nightly").overlap == "skip", "what is not given stays"
    assert run_cli("schedules", "show", "none", **here).exit_code == 3
    assert run_cli("schedules", "create", "s", "t", "--cron", "x", **here).exit_code == 2


def test_options_of_the_job_change_without_its_type(app: Tenure) -> None:
    """They were ignored, and the command said that the schedule had changed."""
    options: Any = {"queue": "slow", "start_by": timedelta(hours=1)}
    app.schedules.create("nightly", NewJob("report", {"a": 1}, options), every=60)
    edit = ("schedules", "edit", "nightly", "--queue", "fast", "--tag", "new")
    shown = cli_json("--database", app.database, *edit)
    assert shown["edition"] == 2
    job = app.schedules.get("nightly").template
    assert (job.type, job.payload) == ("report", {"a": 1})
    assert job.options == {"queue": "fast", "start_by": 3600, "tags": ["new"]}


def test_the_ends_of_a_backfill_may_be_how_long_ago_they_are(app: Tenure, clock: Clock) -> None:
    here = {"TENURE_DATABASE": app.database}
    app.schedules.create("hourly", NewJob("report", {}, {}), cron="0 * * * *")
    clock.advance(DAY.total_seconds())
    for start, end, ticks in (("1d", "now", 24), ("3h", "1h", 2), ("PT2H", "now", 2)):
        planned = output_of("schedules", "backfill", "hourly", start, end, "--dry-run", **here)
        assert planned.count("backfill") == ticks, (start, end)
    output_of("schedules", "backfill", "hourly", "2h", "now", **here)
    for before, rows in (("now", 2), ("90m", 1), ("1d", 0)):
        found = output_of("schedules", "fires", "hourly", "--before", before, **here)
        assert found.count("backfill") == rows, before
    for wrong in ("3", "3 days", "-1d", "today", ""):
        said = run_cli("schedules", "backfill", "hourly", "--", wrong, "now", **here)
        assert (said.exit_code, "start: not a time" in said.stderr) == (2, True), wrong
        assert "or how long ago, such as 2h or 3d, or now" in said.stderr


def test_the_ends_of_a_backfill_in_the_wrong_order_are_refused(
    app: Tenure, api: TestClient, clock: Clock
) -> None:
    app.schedules.create("hourly", NewJob("report", {}, {}), cron="0 * * * *")
    clock.advance(DAY.total_seconds())
    said = run_cli("schedules", "backfill", "hourly", "now", "3d", "--database", app.database)
    assert (said.exit_code, "end: it is before the start" in said.stderr) == (2, True)
    ends = {"start": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}
    refused = api.post("/schedules/hourly/backfill", json=ends)
    assert assert_problem(refused, 400, "invalid_input")["path"] == "$.end"


DAYS = ("Thu", "Fri", "Sat", "Sun", "Mon")


def test_did_the_nightly_job_run(app: Tenure, clock: Clock) -> None:
    here = {"TENURE_DATABASE": app.database}
    app.schedules.create("nightly", NewJob("report", {}, {}), cron="10 3 * * *", zone=BERLIN)
    clock.advance(3 * DAY.total_seconds())
    planned = output_of(
        *("schedules", "backfill", "nightly", "2026-01-01", "2026-01-03", "--dry-run"), **here
    )
    assert planned.count("backfill") == 2
    output_of("schedules", "backfill", "nightly", "2026-01-01", "2026-01-03", **here)
    again = output_of("schedules", "backfill", "nightly", "2026-01-01", "2026-01-03", **here)
    assert again == "no past tick in that time is without a job"
    heads, *rows = output_of(
        "schedules", "fires", "nightly", "--before", "2026-01-03", **here
    ).splitlines()
    assert heads.split() == ["TICK", "UNTIL", "OUTCOME", "HOW", "JOB", "STATUS"]
    assert [row[:25] for row in rows] == ["2026-01-02 03:10:00+01:00", "2026-01-01 03:10:00+01:00"]
    assert [row.split()[-1] for row in rows] == ["waiting", "pending"]
    early = ("schedules", "fires", "nightly", "--before", "2026-01-02T02:30")  # there, not in UTC
    assert "2026-01-02" not in output_of(*early, **here)

    paused = output_of("schedules", "pause", "nightly", "--reason", "broken", **here)
    assert paused == "schedule nightly is paused"
    assert "    broken" in output_of("schedules", "list", **here)
    none = "none of these ticks adds a job"
    assert none in output_of("schedules", "show", "nightly", **here)
    output_of("schedules", "resume", "nightly", "--catch-up", **here)
    assert none not in output_of("schedules", "show", "nightly", **here)
    job = output_of("schedules", "trigger", "nightly", "--overlap", "allow_all", **here)
    assert app.get(job).type == "report"
    assert output_of("schedules", "trigger", "nightly", "--overlap", "skip", **here) == "overlapped"
    refused = run_cli("schedules", "delete", "nightly", "--edition", "99", **here)
    assert (refused.exit_code, "it was changed since" in refused.stderr) == (1, True)
    assert output_of("schedules", "delete", "nightly", **here) == "schedule nightly is deleted"
    assert app.schedules.list() == []


def test_a_schedule_that_is_over_says_so(app: Tenure, clock: Clock) -> None:
    here = {"TENURE_DATABASE": app.database}
    for name in ("over", "paused"):
        app.schedules.create(name, NewJob("report", {}, {}), every=60, ends_at=START + DAY)
    app.schedules.update("over", ends_at=START - DAY)
    app.schedules.pause("paused")
    _, over, paused = output_of("schedules", "list", **here).splitlines()
    assert "ended" in over
    assert "ended" not in paused
    assert output_of("schedules", "show", "over", **here).endswith("Every minute\n  no more ticks")
    with api_client(app) as api:
        page = api.get("/ui/schedules").text
    assert page.count(">ended<") == 1


BERLIN = "Europe/Berlin"


# --- the dashboard --------------------------------------------------------------------------------


def test_the_pages_say_what_became_of_ticks(app: Tenure, api: TestClient, clock: Clock) -> None:
    assert "There is no schedule here" in api.get("/ui/schedules").text
    put(api, cron="0 * * * *", note="<b>for</b> the boss", zone="UTC")
    clock.advance(4 * 3600)
    decide_due(app.core, set())
    page = api.get("/ui/schedules").text
    assert 'aria-label="1 fired 1 missed "' in page
    one = api.get("/ui/schedules/nightly").text
    assert "hunter2" not in one
    assert "&lt;b&gt;for&lt;/b&gt; the boss" in one
    assert one.count("data-local") == 10
    job_id = app.schedules.get("nightly").last_job_id
    assert f"/ui/jobs/{job_id}" in one
    app.cancel(str(job_id))
    assert "cancelled" in api.get("/ui/schedules/nightly").text
    assert (
        "No tick is on record before this time"
        in api.get("/ui/schedules/nightly?before=2026-01-01").text
    )
    assert api.get("/ui/schedules/nightly?before=x").status_code == 400
    assert api.get("/ui/schedules/none").status_code == 404


def test_a_page_that_ends_with_two_fires_of_a_tick_has_a_next_one(
    app: Tenure, api: TestClient, clock: Clock
) -> None:
    """It had 51 fires, which were taken for the last ones."""
    app.schedules.create("nightly", NewJob("report", {}, {}), every=60, missed="skip", grace=0)
    for _ in range(60):
        clock.advance(120)  # each time the tick between is missed
        decide_due(app.core, set())
    ticks = [fire.at for fire in app.schedules.fires("nightly", limit=50)]
    assert len(set(ticks)) == 50
    app.schedules.backfill("nightly", min(ticks), min(ticks) + timedelta(seconds=60))
    assert len(app.schedules.fires("nightly", limit=50)) == 51
    assert 'rel="next"' in api.get("/ui/schedules/nightly").text


def test_unusual_days_are_shown(api: TestClient) -> None:
    put(api, cron="*/30 2 * * *")
    assert "2026-03-29: not at all" in api.get("/ui/schedules/nightly").text


def test_buttons(app: Tenure, api: TestClient) -> None:
    put(api)
    assert post_form(api, "/ui/schedules/nightly/trigger").status_code == 303
    assert [job.type for job in app.find()] == ["report"]
    post_form(api, "/ui/schedules/nightly/pause", {"reason": "broken"})
    paused = app.schedules.get("nightly")
    assert (paused.pause_reason, paused.paused_by) == ("broken", "dashboard")
    assert "broken" in api.get("/ui/schedules/nightly").text
    assert "None of these adds a job" in api.get("/ui/schedules/nightly").text
    post_form(api, "/ui/schedules/nightly/resume")
    assert "None of these adds a job" not in api.get("/ui/schedules/nightly").text
    assert app.schedules.get("nightly").paused_at is None


def test_all_is_not_well_if_nobody_decides_ticks(api: TestClient, clock: Clock) -> None:
    put(api)
    clock.advance(DAY.total_seconds())
    assert "A tick of a schedule has been due for 21h 50m, and no process decides it." in (
        api.get("/").text
    )


def test_a_list_of_schedules_goes_on(
    app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(51):
        app.schedules.create(f"s{number:02}", NewJob("a", {}, {}), every=60)
    asked, reader = list[str](), app.core.store.read
    rows = reader.rows

    def counted(statement: str, values: Sequence[Any] = ()) -> list[Any]:
        asked.append(statement)
        return rows(statement, values)

    with monkeypatch.context() as counting:
        counting.setattr(reader, "rows", counted)
        first = api.get("/ui/schedules").text
    assert len([statement for statement in asked if "tenure_fire" in statement]) == 1
    assert len([statement for statement in asked if "tenure_schedule" in statement]) <= 3
    assert first.count('<tr id="schedule-') == 50
    assert "/ui/schedules?after=s49" in first
    assert 'id="schedule-s50"' in api.get("/ui/schedules?after=s49").text
    assert len(cli_json("--database", app.database, "schedules", "list")) == 51
