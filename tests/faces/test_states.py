"""Filters as people say them: scheduled, ready, retrying, snoozed, and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, Tenure
from tenure.client import Client
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.rules.search import Filter, check_filter
from tests.support.cli import cli_json, run_cli
from tests.support.clock import Clock
from tests.support.http import ServerProcess, api_client, assert_problem
from tests.support.raw_sql import RawSql

BLOCKED = "01a20e38-9c21-74ab-b468-bccbb24dbffa"
Ids = dict[str, str]


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


@pytest.fixture
def ids(app: Tenure, clock: Clock) -> Ids:
    """One job of each kind; the store's clock stands still after."""
    retrying = app.enqueue("a", backoff="1h").id
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    app.core.report([Report(lease.id, lease.lease_id, Outcome.FAILED, error="away")])
    snoozed = app.enqueue("a", backoff=1).id
    for outcome in (Outcome.FAILED, Outcome.SNOOZED):  # not tried again: it has got further
        (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
        assert lease.id == snoozed
        error = "away" if outcome is Outcome.FAILED else ""
        delay = 0.0 if error else 3600.0
        app.core.report([Report(lease.id, lease.lease_id, outcome, error=error, delay=delay)])
    running = app.enqueue("a").id
    app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=9_000))
    clock.advance(301)
    ready, scheduled = app.enqueue("a").id, app.enqueue("a", delay="1h").id
    with closing(RawSql(app.database)) as sql:
        columns = "INSERT INTO {job} (id, type, run_at, created_at, status, need)"
        sql.run(f"{columns} VALUES (?, 'a', {{now}}, {{now}}, 'waiting', 1)", BLOCKED)
    return {
        "retrying": retrying,
        "ready": ready,
        "scheduled": scheduled,
        "snoozed": snoozed,
        "blocked": BLOCKED,
        "5m": running,
    }


Find = Callable[..., list[str]]


@contextmanager
def by_find(app: Tenure) -> Iterator[Find]:
    def find(**wanted: Any) -> list[str]:
        found = [job.id for job in app.find(**wanted)]
        if not wanted.keys() & {"order", "after"}:
            assert app.count(**wanted).jobs == len(found)
        return found

    yield find


@contextmanager
def by_http(app: Tenure) -> Iterator[Find]:
    with api_client(app) as api:
        yield lambda **wanted: [job["id"] for job in api.get("/jobs", params=wanted).json()]


@contextmanager
def by_page(app: Tenure) -> Iterator[Find]:
    with api_client(app) as web:

        def find(**wanted: Any) -> list[str]:
            page = web.get("/ui/jobs", params=wanted).text
            return [part[:36] for part in page.split('<tr id="job-')[1:]]

        yield find


@contextmanager
def by_client(app: Tenure) -> Iterator[Find]:
    with ServerProcess(app.database) as server, Client(server.url) as client:
        yield lambda **wanted: [job.id for job in client.find(**wanted)]


@contextmanager
def by_command(app: Tenure) -> Iterator[Find]:
    def find(**wanted: Any) -> list[str]:
        options = [word for k, v in wanted.items() for word in (f"--{k.replace('_', '-')}", v)]
        found = cli_json("jobs", "list", *options, "--database", app.database)
        return [job["id"] for job in found]

    yield find


DOORS = [by_find, by_http, by_page, by_client, by_command]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_finds_them(
    door: Callable[[Tenure], AbstractContextManager[Find]], app: Tenure, ids: Ids
) -> None:
    with door(app) as find:
        for state, id in ids.items():
            wanted = {"running_longer_than": state} if state == "5m" else {"state": state}
            assert find(**wanted) == [id], state
        assert find(running_longer_than="302s") == []
        assert find(state="ready", status="failed") == []


@pytest.mark.parametrize("door", [by_find, by_http, by_client, by_command])
def test_every_door_lists_the_oldest_first(
    door: Callable[[Tenure], AbstractContextManager[Find]], app: Tenure, ids: Ids
) -> None:
    with door(app) as find:
        for wanted in ({}, {"status": "pending"}, {"type": "a"}):
            newest = find(**wanted)
            assert newest == sorted(newest, reverse=True)
            assert len(newest) > 3
            assert find(order="oldest", **wanted) == newest[::-1]
            if door is not by_http:
                assert find(order="oldest", after=newest[-2], **wanted) == newest[-3::-1]


def test_pages_of_the_oldest_first(app: Tenure, ids: Ids) -> None:
    with api_client(app) as api:
        page = api.get("/jobs?order=oldest&limit=4")
        rest = api.get(page.links["next"]["url"])
        assert "next" not in rest.links
        newest = [job["id"] for job in api.get("/jobs").json()]
        assert [job["id"] for job in (*page.json(), *rest.json())] == newest[::-1]
        assert_problem(api.get("/jobs?order=largest"), 400, "invalid_input")
    here = ("--database", app.database)
    said = run_cli("jobs", "list", "--order", "oldest", "--limit", "2", *here)
    assert f"next page: --order oldest --after {newest[-2]}" in said.stderr
    with pytest.raises(InvalidInput) as refused:
        app.find(order="largest")  # type: ignore[arg-type]
    assert refused.value.path == "$.order"


def test_an_action_changes_what_is_so_when_it_comes_by(app: Tenure, clock: Clock, ids: Ids) -> None:
    scheduled = app.bulk.start("cancel", Filter(state="scheduled"))
    running = app.bulk.start("cancel", Filter(running_longer_than="5m"))
    assert (scheduled.total, running.total) == (1, 1)
    clock.advance(3600)
    assert app.bulk.step(scheduled.id).changed == 0  # it is ready by now
    assert app.bulk.step(running.id).changed == 1
    assert app.get(ids["5m"]).status == "cancelled"


def test_what_has_snoozed_is_ready_when_its_time_has_come(
    app: Tenure, clock: Clock, ids: Ids
) -> None:
    clock.advance(3600)
    with by_find(app) as find:
        assert find(state="snoozed") == []
        assert ids["snoozed"] in find(state="ready")
        assert find(state="retrying") == [ids["retrying"]]


@pytest.fixture
def web(sqlite_url: str) -> Iterator[TestClient]:
    with api_client(Tenure(sqlite_url)) as web:
        yield web


@pytest.mark.parametrize(
    ("wanted", "path"),
    [({"state": "late"}, "state"), ({"running_longer_than": "0s"}, "running_longer_than")],
    ids=repr,
)
def test_what_cannot_be_is_refused_at_every_door(
    sqlite_url: str, web: TestClient, wanted: dict[str, Any], path: str
) -> None:
    app = Tenure(sqlite_url)
    with pytest.raises(InvalidInput) as refused:
        app.find(**wanted)
    assert refused.value.path == f"$.{path}"
    assert_problem(web.get("/jobs", params=wanted), 400, "invalid_input")
    assert web.get("/ui/jobs", params=wanted).status_code == 400
    options = [word for k, v in wanted.items() for word in (f"--{k.replace('_', '-')}", v)]
    result = run_cli("jobs", "list", *options, "--database", sqlite_url)
    assert result.exit_code == 2
    assert f"--{path.replace('_', '-')}: " in result.output


def test_each_filter_means_a_status_which_an_index_finds() -> None:
    assert check_filter(Filter(state="retrying")).status == "pending"
    assert check_filter(Filter(state="blocked")).status == "waiting"
    assert check_filter(Filter(running_longer_than=1)).status == "processing"
    assert check_filter(Filter(state="ready", status="failed")).status == "failed"
