"""The notes on Django, started as their page says."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from tenure import Tenure
from tests.examples.programs import line_with, program, serving
from tests.support.chromium import chromium
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
SITE = "examples.django_site"
SAYS = r"running on (http://\S+)"
PICTURES = os.environ.get("TENURE_TEST_PICTURES")
"""A folder for pictures of the pages, to look at."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
def web(file: Path) -> Iterator[httpx2.Client]:
    with serving(SITE, SAYS, NOTES_FILE=str(file)) as web:
        yield web


def post(web: httpx2.Client, path: str, fields: dict[str, str], at: str = "") -> httpx2.Response:
    """Send a form of a page, with the secret that is in it."""
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', web.get(at or path).text)
    assert found
    return web.post(path, data={"csrfmiddlewaretoken": found[1], **fields})


def log_in(web: httpx2.Client) -> None:
    fields = {"username": "admin", "password": "notes"}
    assert post(web, "/admin/login/?next=/jobs/", fields).headers["location"] == "/jobs/"


def test_the_notes_in_one_process(web: httpx2.Client) -> None:
    assert post(web, "/", {"text": "three short words"}).status_code == 302
    wait_until(lambda: "three short words: 3 words" in web.get("/").text, "the words")


def test_the_dashboard_is_for_the_superusers_of_the_site(web: httpx2.Client, file: Path) -> None:
    for path in ("/jobs", "/jobs/", "/jobs/ui/jobs?status=failed"):
        to = web.get(path)
        assert to.status_code == 303
        assert to.headers["location"].startswith("/admin/login/?next=/jobs/")
    assert "next=/jobs/ui/jobs%3Fstatus%3Dfailed" in to.headers["location"]
    assert web.get("/jobs/jobs").status_code == 401
    post(web, "/admin/login/", {"username": "admin", "password": "wrong"})
    assert web.get("/jobs/jobs").status_code == 401

    log_in(web)
    assert "Overview" in web.get("/jobs").text
    assert web.get("/jobs/jobs").json() == []
    with Tenure(f"sqlite:///{file}") as queue:
        job = queue.enqueue("other", delay=60)
        cancel = f"/jobs/jobs/{job.id}/cancel"
        strange = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert web.post(cancel, headers=strange).status_code == 403
        assert web.post(cancel).status_code == 200
        assert queue.history(job.id)[-1].actor == "user:admin"
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute("UPDATE auth_user SET is_superuser = false")
    assert web.get("/jobs/jobs").status_code == 403
    page = web.get("/jobs/")  # the login of the admin would send them back here, for ever
    assert (page.status_code, "sign in with another name" in page.text) == (403, True)
    token = {"Authorization": "Bearer wrong"}
    assert web.get("/jobs/jobs", headers=token).status_code == 401


@pytest.mark.postgres
def test_the_notes_with_a_worker_of_their_own(postgres_url: str) -> None:
    django = ("django", "tenure", "--settings", f"{SITE}.settings", "worker")
    with (
        serving(SITE, SAYS, DATABASE_URL=postgres_url, NOTES_WORKER="no") as web,
        Tenure(postgres_url) as queue,
    ):
        assert post(web, "/", {"text": "on PostgreSQL"}).status_code == 302
        (job,) = queue.find(status="pending")
        with program(*django, DATABASE_URL=postgres_url):
            done = queue.wait(job.id, timeout="30s")
    assert (done.type, done.result) == (f"{SITE}.tasks.count_words", 2)
    assert queue.history(job.id)[-1].event == "completed"


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"] if PICTURES else ["light"])
def test_a_job_in_the_admin(web: httpx2.Client, file: Path, browser: Browser, scheme: str) -> None:
    post(web, "/", {"text": "three short words"})
    with Tenure(f"sqlite:///{file}") as queue:
        waiting = queue.enqueue("other", {"to": "a@example.com"}, delay=3600)
        (counted,) = queue.find(type=f"{SITE}.tasks.count_words")
        queue.wait(counted.id, timeout=20)
    page = browser.new_page(base_url=str(web.base_url), color_scheme=scheme)  # type: ignore[arg-type]
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("/admin/tenure/job/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("notes")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name=f"{SITE}.tasks.count_words").first).to_be_visible()
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"admin-jobs-{scheme}.png")

    page.locator(f"input[value='{waiting.id}']").check()
    page.locator("select[name=action]").first.select_option("cancel")
    page.get_by_role("button", name=re.compile("Go|Run")).first.click()
    expect(page.get_by_text("cancel: 1 done")).to_be_visible()

    page.get_by_role("link", name="cancelled").click()
    page.locator("#result_list").get_by_role("link", name="other", exact=True).click()
    expect(page.get_by_text('"to": "a@example.com"')).to_be_visible()
    expect(page.get_by_text("user:admin")).to_be_visible()
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"admin-job-{scheme}.png", full_page=True)
    assert complaints == []


def test_its_own_tests_pass() -> None:
    """They are those of a reader: without a file, without a worker."""
    test = ("django", "test", f"{SITE}.tests", "--settings", f"{SITE}.settings")
    with program(*test) as tests:
        assert line_with(tests, r"^(OK|FAILED.*)$") == "OK"
