"""The dashboard as HTTP: who gets in, what forms may do, what answers carry, what is escaped."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from importlib import resources
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.dashboard import overview, push, queues, site
from tenure.demo import add_fake_handlers
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.settings import Settings
from tests.support.cli import cli_json
from tests.support.http import HERE, UNKNOWN_ID, Exchange, api_client, post_form, secret_of
from tests.support.waiting import wait_until

PAGES = [path for path in site.PAGES if "{" not in path]
MOMENT = timedelta(milliseconds=1)
HOSTILE = "<script>alert(1)</script>\"'>&\u202e\u2066\x07"


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url, redact=["password"]) as app:
        yield app


@pytest.fixture
def guarded(app: Tenure) -> Iterator[TestClient]:
    """A server that asks for a token; `boss-token` may do everything."""
    with api_client(app, Settings(tokens=("boss-token",))) as web:
        yield web


def sign_in(web: TestClient, token: str) -> httpx2.Response:
    return post_form(web, "/ui/sign-in", {"token": token})


def fail(app: Tenure, error: str = "boom", **options: Any) -> str:
    """A job that failed for good; its id."""
    job = app.enqueue("email", options.pop("payload", {}), max_retries=1, **options)
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error=error)])
    while app.core.measure():
        pass
    return job.id


# --- pages ----------------------------------------------------------------------------------------


def test_every_page_is_there_empty_and_with_jobs_of_every_status(database_url: str) -> None:
    with Tenure(database_url) as app, api_client(app) as web:
        assert [web.get(path).status_code for path in PAGES] == [200] * len(PAGES)

        ids = [fail(app), app.enqueue("email").id, app.enqueue("late", delay="1h").id]
        app.cancel(app.enqueue("email", queue="other").id)
        app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60))
        app.queues.pause("other")
        pages = [*PAGES, *(f"/ui/jobs/{job_id}" for job_id in ids)]
        assert [web.get(path).status_code for path in pages] == [200] * len(pages)
        everything = {"status": "failed", "type": "email", "queue": "default", "since": "1h"}
        everything |= {"from": "2020-01-01T00:00", "to": "2100-01-01T00:00"}
        assert ids[0] in web.get("/ui/jobs", params={**everything, "error": "BOOM"}).text
        assert ids[0] not in web.get("/ui/jobs", params={**everything, "error": "bang"}).text


def test_all_is_well_only_if_the_jobs_that_failed_for_good_have_been_looked_at(
    app: Tenure, web: TestClient
) -> None:
    def says(start: str) -> None:  # soon: what pages show is read again in turns
        wait_until(lambda: f"data-announce>{start}" in web.get("/").text, start)

    first = fail(app)
    says("1 job failed for good since you last looked at the failures.")
    web.get("/ui/failures")
    says("All is well")
    fail(app)
    says("1 job failed for good")
    web.get("/ui/failures")
    says("All is well")
    app.retry(first)
    app.cancel(first)
    wait_until(lambda: web.get("/") and web.cookies["tenure_seen"] == "1", "one of two to be left")
    fail(app)
    says("1 job failed for good")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/nothing", 404),
        (f"/ui/jobs/{UNKNOWN_ID}", 404),
        ("/ui/jobs/x", 404),
        (f"/ui/jobs/{UNKNOWN_ID}/payload", 404),
        (f"/ui/bulk/{UNKNOWN_ID}", 404),
        ("/ui/jobs?status=odd", 400),
        ("/ui/jobs?type=%3Cscript%3E", 400),
        ("/ui/jobs?from=yesterday", 400),
        ("/ui/jobs?cursor=x", 400),
        ("/ui/jobs?order=odd", 400),
        ("/ui/bulk?action=delete", 400),
        ("/ui/static/old/tenure.css", 404),
    ],
)
def test_what_is_not_there_is_said_on_a_page(web: TestClient, path: str, status: int) -> None:
    answer = web.get(path)
    assert answer.status_code == status
    assert "<script>" not in answer.text


def test_numbers_that_are_old_are_said_to_be_old(
    app: Tenure, web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are old after a pause too, not only after many transitions."""
    app.enqueue("work")
    wait_until(lambda: "Attempts per minute" in web.get("/").text, "the job to be counted")
    for rates, jobs, said in (
        (5.0, 2.0, ""),
        (25.0, 0.0, " rates and failures are 25s behind."),
        (0.0, 21.0, " numbers of jobs are 21s behind."),
        (25.0, 21.0, " rates and failures are 25s behind, numbers of jobs are 21s behind."),
    ):
        lag = push.Lag(rates, jobs)
        monkeypatch.setattr(push.ReadCache, "lag", lambda *_, lag=lag: lag)
        found = re.findall(
            r"Newer numbers are on their way:([^<]*\.) Everything", web.get("/").text
        )
        assert found == [said] * bool(said)


def test_the_beginning_of_every_address_leads_to_the_overview(web: TestClient) -> None:
    answer = web.get("/ui", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_the_api_stays_as_it_is(web: TestClient) -> None:
    assert web.get("/jobs").json() == []
    assert web.get("/jobs/x").headers["content-type"] == "application/problem+json"


def test_pages_work_below_a_root_path(app: Tenure) -> None:
    from tenure.server import build

    with TestClient(build(app), base_url="http://localhost", root_path="/desk", client=HERE) as web:
        page = web.get("/desk/ui/jobs").text
        links = re.findall(r'(?:href|src|action|data-live)="(/[^"]*)"', page)
        assert links
        assert [link for link in links if not link.startswith("/desk/")] == []


def test_a_list_goes_on_where_it_ended(app: Tenure, web: TestClient) -> None:
    ids = [app.enqueue("email").id for _ in range(55)]
    first = web.get("/ui/jobs").text
    (older,) = re.findall(r'rel="next" href="([^"]+)"', first)
    shown = re.findall(r'id="job-([^"]+)"', first + web.get(older.replace("&amp;", "&")).text)
    assert shown == ids[::-1]
    assert {*re.findall(r"[?;]order=(\w*)", first)} == {"oldest"}, "no link has an empty order"


def test_a_list_begins_with_the_oldest_and_keeps_its_filters(app: Tenure, web: TestClient) -> None:
    """Where many wait, those that matter are at the end of the list of the newest."""

    def follow(page: str, link: str) -> str:
        (found,) = re.findall(rf'href="([^"]+)">{link}<', page)
        return web.get(html.unescape(found)).text

    def shown(*pages: str) -> list[str]:
        return re.findall(r'id="job-([^"]+)"', "".join(pages))

    ids = [app.enqueue("email", queue=queue).id for queue in ("a", "b") * 51]
    first = follow(web.get("/ui/jobs?queue=b").text, "Oldest first")
    second = follow(first, "Newer")
    assert shown(first, second) == ids[1::2]
    assert 'name="order" value="oldest"' in second, "a changed filter keeps the order"
    assert shown(follow(second, "Oldest")) == shown(first)
    assert shown(follow(second, "Newest first")) == ids[:1:-2]


def test_joiners_are_shown_as_a_browser_shows_them(app: Tenure, web: TestClient) -> None:
    """Words of Persian and many emoji are written with them, and cannot be read as escapes."""
    want, family = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f467"
    job_id = fail(app, f"{want} {family} \u200f", payload={"to": f"{want} {family}"})
    pages = [f"/ui/jobs/{job_id}", f"/ui/jobs/{job_id}/payload", "/ui/jobs", "/ui/failures"]
    for page in (web.get(path).text for path in pages):
        assert f"{want} {family}" in page
    assert "\\u200f" in page


# --- headers, forms, tokens -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ui/jobs", "/ui/nothing", "/ui/sign-in"])
def test_pages_forbid_what_is_not_theirs(web: TestClient, path: str) -> None:
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["referrer-policy"] == "same-origin"  # else forms come with `Origin: null`


@pytest.mark.parametrize("template", [p.name for p in site.FOLDER.joinpath("templates").iterdir()])
def test_no_page_has_anything_inline(template: str) -> None:
    source = site.FOLDER.joinpath("templates", template).read_text("utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)|javascript:", source)
    assert "|safe" not in source


def test_what_others_made_is_as_they_made_it() -> None:
    folder = resources.files("tenure.dashboard").joinpath("static", "vendor")
    manifest = json.loads(folder.joinpath("manifest.json").read_text("utf-8"))
    known = {"manifest.json"}
    for part in manifest:
        assert part["licence"] in {"0BSD", "MIT"}
        assert part["version"]
        for name, digest in part["files"].items():
            known.add(name)
            found = hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest()
            assert found == digest, name
    assert {file.name for file in folder.iterdir()} == known


def test_files_are_kept_for_good_under_an_address_of_their_version(guarded: TestClient) -> None:
    answer = guarded.get(f"/ui/static/{site.VERSION}/tenure.css")
    assert answer.status_code == 200
    assert "immutable" in answer.headers["cache-control"]


def test_a_form_needs_the_secret_of_its_browser(app: Tenure, web: TestClient) -> None:
    job = app.enqueue("email")
    path = f"/ui/jobs/{job.id}/cancel"
    assert web.post(path, data={"x": "y"}).status_code == 403
    assert web.post(path, data={"form": "0" * 32}).status_code == 403
    secret = secret_of(web)
    web.cookies.clear()
    assert web.post(path, data={"form": secret}).status_code == 403
    assert app.get(job.id).status == "pending"

    assert post_form(web, path).status_code == 303
    assert app.get(job.id).status == "cancelled"
    assert app.history(job.id)[-1].actor == "dashboard"


def test_a_form_of_another_site_is_refused(app: Tenure, web: TestClient) -> None:
    job = app.enqueue("email")
    sent = {"form": secret_of(web)}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        path = f"/ui/jobs/{job.id}/cancel"
        assert web.post(path, data=sent, headers=headers).status_code == 403
    assert app.get(job.id).status == "pending"


@pytest.mark.parametrize("payload", [{"text": "y" * 900_000}, {"text": " \u00e9" * 9_000}])
def test_a_job_with_a_large_payload_is_run_again_as_it_was(
    app: Tenure, web: TestClient, payload: dict[str, str]
) -> None:
    """The form held the payload, and was then refused as too large."""
    job = app.enqueue("email", payload, delay="1h")
    page = web.get(f"/ui/jobs/{job.id}/again").text
    assert "too large to be changed here" in page
    assert len(page) < 20_000
    assert post_form(web, f"/ui/jobs/{job.id}/again", {"priority": "7"}).status_code == 303
    (made,) = [one for one in app.find() if one.id != job.id]
    assert (made.payload, made.priority) == (job.payload, 7)
    changed = post_form(web, f"/ui/jobs/{job.id}/amend", {"priority": "8"})
    assert changed.status_code == 303
    assert (app.get(job.id).payload, app.get(job.id).priority) == (job.payload, 8)


def test_forms_are_bounded(web: TestClient) -> None:
    assert post_form(web, "/ui/jobs", {"text": "x" * 70_000}).status_code == 413
    assert web.post("/ui/jobs", json={}).status_code == 415


def test_with_tokens_there_is_a_way_to_sign_in_and_out(app: Tenure, guarded: TestClient) -> None:
    asked = guarded.get("/ui/jobs?status=failed", follow_redirects=False)
    assert asked.status_code == 303
    assert asked.headers["location"] == "/ui/sign-in?next=%2Fui%2Fjobs%3Fstatus%3Dfailed"
    assert guarded.get("/ui/live").status_code == 401

    assert sign_in(guarded, "wrong").status_code == 403
    assert 'role="alert"' not in guarded.get("/ui/sign-in?token=wrong").text  # not a form
    entered = post_form(guarded, "/ui/sign-in", {"token": "boss-token", "next": "/ui/jobs"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/ui/jobs")
    cookie = next(c for c in entered.headers.get_list("set-cookie") if "tenure_session" in c)
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "boss-token" not in guarded.get("/").text

    assert guarded.get("/jobs").status_code == 401  # a cookie opens no API
    assert post_form(guarded, "/ui/sign-out").status_code == 303
    refresh = guarded.get("/", headers={"Tenure-Refresh": "1"})  # of another window
    assert "You are signed out" not in refresh.text
    assert "You are signed out" in guarded.get("/").text
    assert guarded.get("/", follow_redirects=False).status_code == 303


@pytest.mark.parametrize("where", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_signing_in_leads_nowhere_else(guarded: TestClient, where: str) -> None:
    entered = post_form(guarded, "/ui/sign-in", {"token": "boss-token", "next": where})
    assert entered.headers["location"] == "/"


@pytest.mark.parametrize(
    ("referer", "where"),
    [
        ("http://a/ui/new?type=x", "?next=%2Fui%2Fnew%3Ftype%3Dx"),
        ("http://[", ""),
        ("http://a//b", ""),
    ],
)
def test_a_form_after_the_session_leads_to_sign_in_and_back(
    guarded: TestClient, referer: str, where: str
) -> None:
    answer = guarded.post("/ui/jobs", data={}, headers={"Referer": referer}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/sign-in{where}")


def test_a_link_from_another_site_is_asked_for_again_with_the_cookie(guarded: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    answer = guarded.get("/ui/jobs", headers=link)
    assert answer.status_code == 200
    assert 'http-equiv="refresh"' in answer.text


def test_another_site_gets_nothing_but_links_to_pages(web: TestClient) -> None:
    for dest in ("empty", "image", "script", "iframe", ""):
        for path in ("/", "/ui/jobs", "/ui/live"):
            headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": dest}
            assert web.get(path, headers=headers).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert web.get("/ui/jobs", headers=link).status_code == 200
    assert web.get("/ui/jobs", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_who_may_only_read_sees_no_button_and_changes_nothing(
    app: Tenure, guarded: TestClient
) -> None:
    token, _ = app.tokens.create("viewer", ["read"])
    failed, waiting = fail(app), app.enqueue("email").id
    assert sign_in(guarded, token).status_code == 303
    for path in ("/", "/ui/queues", "/ui/jobs", f"/ui/jobs/{failed}", "/ui/bulk?action=retry"):
        page = guarded.get(path)
        assert page.status_code == 200
        forms = re.findall(r'<form method="post" action="([^"]+)"', page.text)
        assert set(forms) <= {"/ui/sign-out", "/ui/jobs"}
        assert "<button name=" not in page.text
        assert "read-only" in page.text
    for path in site.ACTIONS:
        there = path.replace("{id}", failed).replace("{name}", "default")
        assert post_form(guarded, there, {"action": "cancel", "id": waiting}).status_code == 403, (
            path
        )
    assert app.get(failed).status == "failed"
    assert app.get(waiting).status == "pending"
    assert app.bulk.list() == []


def test_who_may_not_even_read_sees_nothing(app: Tenure, guarded: TestClient) -> None:
    token, _ = app.tokens.create("producer", ["enqueue"])
    assert sign_in(guarded, token).status_code == 303
    assert [guarded.get(path).status_code for path in PAGES] == [403] * len(PAGES)
    assert guarded.get("/ui/live").status_code == 403
    assert "data-live" not in guarded.get("/").text


# --- actions --------------------------------------------------------------------------------------


def test_everything_that_is_done_is_on_record_under_its_name(
    app: Tenure, guarded: TestClient
) -> None:
    token, _ = app.tokens.create("boss", ["admin"])
    assert sign_in(guarded, token).status_code == 303
    failed, other, waiting = fail(app), fail(app), app.enqueue("email").id
    assert post_form(guarded, f"/ui/jobs/{failed}/retry", {"more_retries": "4"}).status_code == 303
    assert app.get(failed).max_retries == 5
    back = {"action": "cancel", "id": [failed, waiting, other], "back": "/ui/jobs?type=email"}
    answer = post_form(guarded, "/ui/jobs", back)
    assert answer.headers["location"] == "/ui/jobs?type=email"
    said = guarded.get("/ui/jobs").text
    assert "2 jobs cancelled. 1 job could not be" in said
    assert "2 jobs cancelled" not in guarded.get("/ui/jobs").text  # once
    for job_id in (failed, waiting):
        assert app.get(job_id).status == "cancelled"
        assert app.history(job_id)[-1].actor == "token:boss"
    assert post_form(guarded, f"/ui/jobs/{failed}/retry").status_code == 303
    assert "Not done: the job is cancelled now" in guarded.get("/ui/jobs").text

    for action, value in (("pause", ""), ("resume", ""), ("limit", "1,000"), ("limit", "")):
        sent = {"max_pending": value}
        assert post_form(guarded, f"/ui/queues/night/{action}", sent).status_code == 303
        queue = next(queue for queue in app.queues.list() if queue.name == "night")
        assert (queue.paused_at is not None) == (action == "pause")
        assert queue.max_pending == (1000 if value else None)


def test_the_page_of_queues_is_bounded_and_says_so(
    app: Tenure, web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(address: str) -> list[str]:
        return re.findall('<tr id="queue-([^"]*)"', web.get(address).text)

    for name in ("mail", "night", "mail-2"):
        app.enqueue("email", queue=name)
    app.queues.pause("night")
    assert "Name contains" not in web.get("/ui/queues").text
    monkeypatch.setattr(push, "MAX_QUEUES", 2)
    monkeypatch.setattr(queues, "MAX_QUEUES", 2)
    with api_client(app) as web:
        assert shown("/ui/queues") == ["night", "mail"]
        assert "2 of 3 queues" in web.get("/ui/queues").text
        assert shown("/ui/queues?search=MAIL") == ["mail", "mail-2"]
        assert "Name contains" in web.get("/ui/queues?search=MAIL").text
        assert "No queue with pending" in web.get("/ui/queues?search=none").text
        assert 'value="&lt;i&gt;"' in web.get("/ui/queues?search=<i>").text
        monkeypatch.setattr(overview, "MAX_ROWS", 1)
        assert "2 more queues" in web.get("/").text


def test_all_that_match_are_retried_as_one_action(app: Tenure, web: TestClient) -> None:
    ids = [fail(app, "disk full"), fail(app, "disk full"), fail(app, "other")]
    preview = web.get("/ui/bulk?action=retry&status=failed&error=DISK").text
    assert "Retry 2 jobs" in preview
    begun = post_form(web, "/ui/bulk", {"action": "retry", "status": "failed", "error": "DISK"})
    (one,) = app.bulk.list()
    assert begun.headers["location"] == f"/ui/bulk/{one.id}"
    assert (one.action, one.filter.error, one.actor) == ("retry", "DISK", "dashboard")
    assert "running" in web.get(begun.headers["location"]).text
    while app.bulk.step(one.id).finished_at is None:
        pass
    assert "done" in web.get(begun.headers["location"]).text
    assert [app.get(job_id).status for job_id in ids] == ["pending", "pending", "failed"]

    post_form(web, "/ui/bulk", {"action": "cancel"})
    assert post_form(web, f"/ui/bulk/{app.bulk.list()[0].id}/stop").status_code == 303
    assert app.bulk.list()[0].stopped_by == "dashboard"


def test_what_failed_lately_is_found_and_retried_whenever_it_was_enqueued(
    app: Tenure, web: TestClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was enqueued before the hour of an outage fails in it, too."""
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    before, at = fail(app), app.get(fail(app)).finished_at
    assert at is not None
    wait_until(lambda: app.core.clock() > at + MOMENT, "another moment")
    later, open_job = fail(app), app.enqueue("email").id
    listed = web.get("/ui/jobs?settled=1h").text
    assert [job_id in listed for job_id in (before, later, open_job)] == [True, True, False]
    since = (at + MOMENT).isoformat()
    for found in (
        [job.id for job in app.find(finished_after=at + MOMENT)],
        [job["id"] for job in web.get("/jobs", params={"finished_after": since}).json()],
        [job["id"] for job in cli_json("jobs", "list", "--finished-after", since)],
        re.findall('id="job-([^"]+)"', web.get("/ui/jobs", params={"settled": since}).text),
    ):
        assert found == [later]
    assert before in {job.id for job in app.find(finished_before=at + MOMENT)}

    preview = web.get("/ui/bulk?action=retry&settled=1h").text
    fixed = re.findall('name="settled" value="([^"]+)"', preview)
    assert fixed
    assert fixed != ["1h"]  # not another hour by the time that a person confirms
    post_form(web, "/ui/bulk", {"action": "retry", "settled": since})
    (one,) = app.bulk.list()
    assert (one.total, one.filter.finished_after) == (1, at + MOMENT)
    while app.bulk.step(one.id).finished_at is None:
        pass
    assert [app.get(job_id).status for job_id in (before, later)] == ["failed", "pending"]


def test_sample_jobs_are_offered_where_a_worker_pretends(app: Tenure, web: TestClient) -> None:
    assert "Add sample jobs" not in web.get("/").text
    add_fake_handlers(app.core.handlers)
    assert "Add sample jobs" in web.get("/").text
    assert post_form(web, "/ui/samples").status_code == 303
    assert len(app.find()) == 16


def test_all_is_not_well_while_most_attempts_fail(app: Tenure, web: TestClient) -> None:
    for _ in range(10):
        fail(app)
    said = "data-announce>10 of 10 attempts in the last 10 minutes failed."
    wait_until(lambda: said in web.get("/").text, "the first line")


def test_jobs_that_are_tried_again_are_behind_the_link_of_their_failures(
    app: Tenure, web: TestClient
) -> None:
    """The link led to jobs that had failed for good, of which there were none."""
    job = app.enqueue("email", max_retries=9, backoff="1h")
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="away")])
    while app.core.measure():
        pass
    page = wait_until(lambda: re.search('href="(/ui/jobs[?][^"]*)"', failures(web)), "the link")
    assert job.id in web.get(html.unescape(page[1])).text


def failures(web: TestClient) -> str:
    return web.get("/ui/failures").text.partition("<tbody>")[2]


# --- what jobs hold -------------------------------------------------------------------------------


def test_hostile_texts_are_shown_and_do_nothing(app: Tenure, web: TestClient) -> None:
    payload = {"to": HOSTILE.replace("\x07", ""), "big": "y" * 900_000, HOSTILE[:20]: 1}
    job_id = fail(app, f"{HOSTILE}\n  Traceback {HOSTILE}", payload=payload)
    pages = [f"/ui/jobs/{job_id}", "/ui/jobs", "/", "/ui/failures"]
    for path in pages:
        page = web.get(path).text
        assert "<script>alert" not in page
        assert not set(page) & set("\u202e\u2066\x07"), path
        assert len(page) < 100_000
    assert "\\u202e" in web.get(pages[0]).text
    whole = web.get(f"/ui/jobs/{job_id}/payload")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.text.count("y") >= 900_000
    assert "\u202e" not in whole.text


def test_what_is_redacted_is_nowhere(app: Tenure, web: TestClient) -> None:
    payload = {"password": "correcthorse", "to": "a"}
    job_id = fail(app, "login correcthorse refused", payload=payload)
    assert job_id in web.get("/ui/failures").text
    for path in ("/", "/ui/failures", "/ui/jobs", f"/ui/jobs/{job_id}"):
        assert "correct" not in web.get(path).text, path
    for part in ("payload", "error"):
        assert "correcthorse" not in web.get(f"/ui/jobs/{job_id}/{part}").text
    assert job_id not in web.get("/ui/jobs?text=correcthorse").text
    assert job_id not in web.get("/ui/jobs?error=correcthorse").text


# --- live -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_viewers_are_told_what_moved_and_no_more(app: Tenure) -> None:
    from tenure.server import build

    built = build(app)
    async with Exchange(built, "GET", "/ui/live") as one, Exchange(built, "GET", "/ui/live") as two:
        await one.wait_for(b"event: hello")
        await two.wait_for(b"event: hello")
        job = app.enqueue("email")
        await one.wait_for(job.id.encode())
        await two.wait_for(job.id.encode())
        app.enqueue_many([*(_new_job() for _ in range(2_000))])
        await one.wait_for(b'"jobs":null')
        assert len(one.answered) < 4_000
        built.state.notifier.stop()
        async with asyncio.timeout(10):
            await one.task


def _new_job() -> Any:
    from tenure.rules.jobs import NewJob

    return NewJob("email", {}, {})


@pytest.mark.parametrize("time", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00", "soon"])
def test_a_time_that_cannot_be_is_refused_in_plain_words(web: TestClient, time: str) -> None:
    answer = web.get("/ui/jobs", params={"from": time})
    assert answer.status_code == 400
    assert "write a time like" in answer.text


@pytest.mark.parametrize("time", ["0001-01-01T00:00", "9999-12-31T23:59"])
def test_the_first_and_the_last_day_can_be_searched(
    app: Tenure, web: TestClient, time: str
) -> None:
    job = app.enqueue("mail")
    answer = web.get("/ui/jobs", params={"from": "0001-01-01T00:00", "to": time})
    assert answer.status_code == 200
    assert (f"job-{job.id}" in answer.text) is time.startswith("9")


def test_the_overview_names_a_type_that_was_paused(app: Tenure, web: TestClient) -> None:
    app.enqueue("email")
    app.enqueue("report")
    app.types.pause("email", reason="it mails twice")
    named = re.compile(r"Type email has been paused for \S+; 1 job waits\.")
    wait_until(lambda: named.search(web.get("/").text), "the type on the overview")
    assert "Type report" not in web.get("/").text
