"""The forms of the dashboard: a new job, a job again, a change of one that waits."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import date
from enum import Enum

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.rules.reports import ClaimRequest
from tests.support.http import post_form


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url, redact=["password"]) as app:

        @app.job
        def report(
            month: int,
            title: str,
            size: Size = Size.SMALL,
            due: date | None = None,
            urgent: bool = False,
            lines: tuple[str, ...] = (),
        ) -> None: ...

        app.core.declare(app.core.handlers.options())
        yield app


GIVEN = {
    "payload.month": "7",
    "payload.title": "July",
    "payload.size": "large",
    "payload.due": "2026-01-31",
    "payload.urgent": "yes",
    "payload.lines": '["a"]',
    "priority": "5",
    "delay": "1h",
}
MADE = {"month": 7, "title": "July", "size": "large", "due": "2026-01-31", "urgent": True}


def test_a_form_is_made_of_the_schema_of_its_type(app: Tenure, web: TestClient) -> None:
    page = web.get("/ui/new?type=report").text
    for part in (
        'name="payload.month" type="text" inputmode="decimal"',
        'name="payload.due" type="date"',
        'name="payload.urgent" type="checkbox"',
        '<textarea id="f-payload.lines"',
        "<option>large</option>",
    ):
        assert part in page
    assert post_form(web, "/ui/new?type=report", GIVEN).status_code == 303
    (job,) = app.find()
    assert (job.payload, job.priority) == ({**MADE, "lines": ["a"]}, 5)
    assert job.run_at > job.created_at


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("payload.month", "x", "give a whole number"),
        ("payload.month", "", "give a whole number"),
        ("payload.lines", "[1,", "not valid JSON"),
        ("priority", "5000", "give a whole number from -100 to 100"),
        ("delay", "soon", "not a duration"),
    ],
)
def test_an_error_is_shown_at_its_field(
    app: Tenure, web: TestClient, name: str, value: str, error: str
) -> None:
    answer = post_form(web, "/ui/new?type=report", {**GIVEN, name: value})
    assert answer.status_code == 422
    assert error in answer.text.split(f'id="e-{name}"')[1].split("</span>")[0]
    assert 'value="July"' in answer.text  # nothing has to be typed again
    assert app.find() == []


def test_a_job_runs_again_with_another_payload(app: Tenure, web: TestClient) -> None:
    old = app.enqueue("report", {"month": 3, "title": "March", "more": [1]})
    app.cancel(old.id)
    page = web.get(f"/ui/jobs/{old.id}/again").text
    assert 'name="payload.title" type="text" value="March"' in page
    given = {"payload.month": "4", "payload.title": "April", "payload.more": "[2]"}
    post_form(web, f"/ui/jobs/{old.id}/again", given)
    new = app.find(status="pending")[0]
    assert new.payload == {"month": 4, "title": "April", "more": [2]}
    assert new.again_of == old.id
    assert f"/ui/jobs/{new.id}" in web.get(f"/ui/jobs/{old.id}").text
    assert f"/ui/jobs/{old.id}" in web.get(f"/ui/jobs/{new.id}").text


@pytest.mark.parametrize("type", ["report", "unknown"])
def test_what_turns_a_text_around_is_escaped_where_it_is_changed(
    app: Tenure, web: TestClient, type: str
) -> None:
    """Who changes a job must see what it holds; with nothing changed, it holds the same."""
    title = "to \u202eevil\u202c\x1b[2J\u2028 \u200d"
    old = app.enqueue(type, {"month": 3, "title": title})
    app.cancel(old.id)
    page = web.get(f"/ui/jobs/{old.id}/again").text
    name = "payload.title" if type == "report" else "payload."
    (text,) = re.findall(f'(?s)<textarea id="f-{name}"[^>]*>(.*?)</textarea>', page)
    assert text.replace("\n", "").isprintable()
    given = {"payload.month": "3", name: html.unescape(text)}
    assert post_form(web, f"/ui/jobs/{old.id}/again", given).status_code == 303
    assert app.find(status="pending")[0].payload == old.payload


def test_a_job_that_waits_is_changed(app: Tenure, web: TestClient) -> None:
    job = app.enqueue("unknown", {"n": 1})
    where = f"/ui/jobs/{job.id}/amend"
    given = {"payload.": '{"n": 2}', "priority": "3", "max_retries": "10", "reason": "typo"}
    post_form(web, where, given)
    after, entry = app.get(job.id), app.history(job.id)[-1]
    assert (after.payload, after.priority) == ({"n": 2}, 3)
    assert (entry.actor, entry.reason) == ("dashboard", "typo")
    app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60))
    del given["payload."]
    assert "cannot" in post_form(web, where, given).text


def test_a_payload_that_was_typed_is_never_dropped(app: Tenure, web: TestClient) -> None:
    """The job is tried between the page and its form; then its payload stays, and so does all."""
    job = app.enqueue("unknown", {"n": 1}, backoff=3600)
    app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=0.001))
    app.core.sweep()
    answer = post_form(web, f"/ui/jobs/{job.id}/amend", {"payload.": '{"n": 2}', "priority": "3"})
    assert answer.status_code == 422
    assert "its payload can no longer change" in answer.text
    assert "textarea" not in answer.text
    assert (app.get(job.id).payload, app.get(job.id).priority) == ({"n": 1}, 0)
    assert post_form(web, f"/ui/jobs/{job.id}/amend", {"priority": "3"}).status_code == 303
    assert app.get(job.id).priority == 3


def test_a_box_that_is_emptied_is_false(app: Tenure, web: TestClient) -> None:
    old = app.enqueue("report", {**MADE, "urgent": True})
    page = web.get(f"/ui/jobs/{old.id}/again").text
    assert 'name="payload.urgent" type="checkbox" value="yes" checked' in page
    given = {name: GIVEN[name] for name in ("payload.month", "payload.title")}
    post_form(web, f"/ui/jobs/{old.id}/again", given)
    assert app.find()[0].payload["urgent"] is False


SCHEMA = """{"properties": {
    "big": {"type": "integer", "format": "int64"}, "share": {"type": "number"},
    "note": {"type": "string"}, "on": {"type": "boolean"}, "off": {"type": "boolean"},
    "odd": {"type": "integer"}, "none": {"type": "string"}, "left": {"type": "string"},
    "blank": {"type": "string"}, "ends": {"type": "string"},
    "day": {"type": "string", "format": "date"}, "soon": {"type": "string", "format": "date"}
}}"""
PAYLOAD = {
    "big": 5,
    "share": 2,
    "note": "",
    "on": True,
    "off": False,
    "odd": True,
    "none": None,
    "blank": " ",
    "ends": "a\r",
    "day": "2026-01-31",
    "soon": "next week",
    "more": {"a": ["\n", 1.5]},
    "cities": ["Zürich", "東京"],
}


def test_a_form_that_is_sent_as_it_is_repeats_the_payload(app: Tenure, web: TestClient) -> None:
    web.put("/types/work", json={"schema": SCHEMA})
    old = app.enqueue("work", PAYLOAD)
    page = web.get(f"/ui/jobs/{old.id}/again").text
    texts = re.findall(r'name="(payload[^"]+)" type="text"[^>]* value="([^"]*)"', page)
    given = {name: re.sub("[\r\n]", "", text) for name, text in texts}  # as browsers do
    given |= dict(re.findall(r'<textarea id="f-[^"]+" name="([^"]+)"[^>]*>([^<]*)<', page))
    given |= dict(re.findall(r'name="(payload[^"]+)" type="checkbox" value="(yes)" checked', page))
    dates = dict(re.findall(r'name="(payload[^"]+)" type="date"[^>]* value="([^"]*)"', page))
    given |= {name: text for name, text in dates.items() if re.fullmatch(r"\d{4}-\d\d-\d\d", text)}
    assert dates["payload.day"]
    given = {name: html.unescape(text) for name, text in given.items()}
    assert "Zürich" in given["payload.cities"]  # as it is read, not as \\u00fc
    assert post_form(web, f"/ui/jobs/{old.id}/again", given).status_code == 303
    assert app.find()[0].payload_json == old.payload_json
    given["payload.big"] = "1.5"
    answer = post_form(web, f"/ui/jobs/{old.id}/again", given)
    assert "give a whole number" in answer.text


@pytest.mark.parametrize(
    "schema",
    [
        "[" * 9_000,
        "[]",
        "7",
        '{"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}',
        '{"properties": [1]}',
        '{"properties": {"n": {"type": []}}}',
        '{"properties": {"n": {"enum": 7}}}',
        '{"properties": {"n": {"$ref": "#/definitions/N"}}}',
    ],
)
def test_a_schema_that_is_none_hurts_nobody(app: Tenure, web: TestClient, schema: str) -> None:
    web.put("/types/odd", json={"schema": schema})
    page = web.get("/ui/new?type=odd")
    assert page.status_code == 200
    assert 'name="payload."' in page.text


def test_what_is_redacted_is_not_overwritten(app: Tenure, web: TestClient) -> None:
    job = app.enqueue("unknown", {"password": "hunter2"})
    page = web.get(f"/ui/jobs/{job.id}/again").text
    assert "hunter2" not in page
    assert "textarea" not in page
    refused = post_form(web, f"/ui/jobs/{job.id}/again", {"payload.": "{}", "queue": "other"})
    assert refused.status_code == 422
    post_form(web, f"/ui/jobs/{job.id}/again", {"queue": "other"})
    assert app.find(queue="other")[0].payload == {"password": "hunter2"}
