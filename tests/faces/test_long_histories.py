"""A job that was changed very often: answers and pages about it stay small."""

from __future__ import annotations

import pytest

from tenure import Tenure
from tenure.client import Client
from tenure.dashboard.jobs import MAX_TRANSITIONS as MOST_ON_A_PAGE
from tenure.http.jobs import MAX_TRANSITIONS
from tests.support.http import ServerProcess, api_client

TOKEN = "a-token-for-the-client"
CHANGES = MAX_TRANSITIONS + 5


@pytest.fixture(scope="module")
def often_changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A database, and the id of a job that was amended so often."""
    database = f"sqlite:///{tmp_path_factory.mktemp('often')}/jobs.db"
    with Tenure(database) as app:
        job = app.enqueue("wait", delay="1h")
        for number in range(CHANGES):
            app.amend(job.id, priority=number % 2 + 1)
    return database, job.id


def test_the_history_comes_in_pages_the_last_one_first(often_changed: tuple[str, str]) -> None:
    database, id = often_changed
    with Tenure(database) as app, api_client(app) as api:
        whole = [entry.position for entry in app.history(id)]
        first = api.get(f"/jobs/{id}/history")
        second = api.get(first.links["next"]["url"])
        assert "next" not in second.links
        pages = [[entry["position"] for entry in page.json()] for page in (second, first)]
        assert [len(page) for page in pages] == [CHANGES + 1 - MAX_TRANSITIONS, MAX_TRANSITIONS]
        assert [*pages[0], *pages[1]] == whole
        few = api.get(f"/jobs/{id}/history?limit=2")
        assert [entry["position"] for entry in few.json()] == whole[-2:]
        assert "limit=2" in few.links["next"]["url"]
        refused = api.get(f"/jobs/{id}/history?cursor=x")
        assert (refused.status_code, refused.json()["path"]) == (400, "query cursor")


def test_a_page_that_is_just_full_is_the_last(often_changed: tuple[str, str]) -> None:
    database, id = often_changed
    with Tenure(database) as app, api_client(app) as api:
        third = app.history(id)[2].position
        page = api.get(f"/jobs/{id}/history?limit=2&cursor={third}")
        assert [entry["event"] for entry in page.json()] == ["enqueued", "amended"]
        assert "next" not in page.links


def test_a_client_gets_all_of_it(often_changed: tuple[str, str]) -> None:
    database, id = often_changed
    with (
        ServerProcess(database, TENURE_TOKEN=TOKEN) as server,
        Client(server.url, TOKEN) as client,
        Tenure(database) as app,
    ):
        assert [entry.position for entry in client.history(id)] == [
            entry.position for entry in app.history(id)
        ]


def test_the_page_of_the_job_shows_the_last_transitions(often_changed: tuple[str, str]) -> None:
    """The page of a job that was snoozed 8,000 times had 10 MB."""
    database, id = often_changed
    with Tenure(database) as app, api_client(app) as api:
        page = api.get(f"/ui/jobs/{id}").text
        assert page.count('id="transition-') == MOST_ON_A_PAGE
        assert f"These are the last {MOST_ON_A_PAGE} transitions" in page
        young = app.enqueue("wait")
        assert "These are the last" not in api.get(f"/ui/jobs/{young.id}").text
