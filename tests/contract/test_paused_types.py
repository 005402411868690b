"""A type that is paused: no worker starts its jobs, and jobs behind them are found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, NewJob, Tenure
from tenure.app.queues import Types
from tenure.errors import Forbidden
from tenure.rules.jobs import TypeOptions
from tenure.rules.reports import ClaimRequest
from tenure.store.lanes import MAX_SEEN
from tenure.store.tables import types
from tests.support.cli import output_of
from tests.support.http import api_client, post_form
from tests.support.waiting import wait_until

ALL_TYPES = [None, ("mail", "sync")]


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Iterator[Tenure]:
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


def claim(app: Tenure, limit: int = 9, known: Sequence[str] | None = None) -> list[str]:
    names = None if known is None else tuple(known)
    request = ClaimRequest(worker="w", limit=limit, lease_seconds=60, types=names)
    return [lease.type for lease in app.core.claim(request).leases]


@pytest.mark.parametrize("known", ALL_TYPES, ids=str)
def test_no_claim_takes_a_job_of_a_paused_type(app: Tenure, known: Any) -> None:
    app.enqueue_many([NewJob(type, {}, {}) for type in ("mail", "sync", "mail")])
    assert claim(app, 1, known) == ["mail"]
    app.types.pause("mail", reason="the bank is down", actor="ann")
    paused = app.types.list()
    app.types.pause("mail", reason="again", actor="bob")
    assert app.types.list() == paused
    assert claim(app, 9, known) == ["sync"]
    assert claim(app, 9, known) == claim(app, 9, ["mail"]) == []
    (job,) = app.find(status="pending")
    explained = app.explain(job.id)
    assert explained.reason == "type_paused"
    assert explained.text == "Type mail is paused (the bank is down); resume it to continue."
    app.types.resume("mail")
    assert claim(app, 9, known) == ["mail"]
    assert app.types.list()[0].paused_at is None


@pytest.mark.parametrize("known", ALL_TYPES, ids=str)
def test_a_claim_passes_over_a_backlog_that_is_paused(app: Tenure, known: Any) -> None:
    app.enqueue_many([NewJob("mail", {}, {}) for _ in range(MAX_SEEN + 1)])
    app.enqueue("sync")
    app.types.pause("mail")
    assert claim(app, 9, known) + claim(app, 9, known) == ["sync"]


def test_it_stays_paused_whatever_workers_declare(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.types.pause("mail", actor="ann")
    monkeypatch.setattr(types, "MAX_TYPES", 1)
    app.core.declare({"mail": TypeOptions(queue="m"), "sync": TypeOptions(), "a": TypeOptions()})
    known = {type.name: type for type in app.types.list()}
    assert (known["mail"].queue, known["mail"].paused_by) == ("m", "ann")
    assert known["mail"].paused_at is not None
    assert len(known) == 2


@pytest.mark.postgres
def test_a_pause_keeps_what_a_worker_declares_meanwhile(postgres_url: str) -> None:
    columns = "name, queue, priority, max_retries, seen_at"
    declare = f"INSERT INTO tenure.type ({columns}) VALUES ('mail', 'slow', 0, 3, now())"
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url) as worker:
        app.open()
        with ThreadPoolExecutor(1) as pool:
            worker.execute(declare)
            pausing = pool.submit(app.types.pause, "mail")
            with psycopg.connect(postgres_url, autocommit=True) as watcher:
                wait_until(lambda: watcher.execute(waits).fetchone() == (1,), "the pause to wait")
            worker.commit()
            pausing.result(10)
        (found,) = app.types.list()
        assert found.queue == "slow"
        assert found.paused_at is not None


def test_what_is_no_type_of_users_is_refused(app: Tenure) -> None:
    for name in ("", "tenure.webhook"):
        with pytest.raises(InvalidInput) as refused:
            app.types.pause(name)
        assert refused.value.path == "$.type"
    types_of_some_queues = Types(app.core.limited_to(("mail",)))
    with pytest.raises(Forbidden):
        types_of_some_queues.pause("mail")


def over_http(app: Tenure, web: TestClient, verb: str) -> None:
    body = {"reason": "down"} if verb == "pause" else {}
    assert web.post(f"/types/mail/{verb}", json=body).json()["name"] == "mail"


def by_command(app: Tenure, web: TestClient, verb: str) -> None:
    reason = ("--reason", "down") if verb == "pause" else ()
    output_of("types", verb, "mail", *reason, "--database", app.database)
    shown = output_of("types", "list", "--database", app.database)
    assert ("down" in shown) == (verb == "pause")


def on_the_page(app: Tenure, web: TestClient, verb: str) -> None:
    assert post_form(web, f"/ui/types/mail/{verb}", {"reason": "down"}).status_code == 303
    assert ("down" in web.get("/ui/queues").text) == (verb == "pause")


@pytest.mark.parametrize("act", [over_http, by_command, on_the_page])
def test_every_face_pauses_and_resumes(app: Tenure, act: Any) -> None:
    app.core.declare({"mail": TypeOptions()})
    with api_client(app) as web:
        act(app, web, "pause")
        assert app.types.list()[0].pause_reason == "down"
        act(app, web, "resume")
        assert app.types.list()[0].paused_at is None
