"""Workers one of whose jobs a transaction of another program has locked, on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tenure import PermanentFailure, Tenure
from tenure.store.postgres import reader, session
from tenure.worker import exchanges, worker
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed
from tests.worker import children


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store waits for a lock for a moment only."""
    monkeypatch.setattr(session, "BEGIN", session.BEGIN.replace("'10s'", "'20ms'"))


@pytest.fixture
def raw(postgres_url: str) -> Iterator[psycopg.Connection]:
    """The session of another program."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def lock(raw: psycopg.Connection, job_id: str) -> None:
    """Lock a job in a transaction that does not end."""
    raw.execute("BEGIN")
    raw.execute("SELECT FROM tenure.job WHERE id = %s FOR UPDATE", (job_id,))


@pytest.mark.postgres
def test_a_worker_goes_on_while_one_of_its_jobs_is_locked(
    postgres_url: str,
    raw: psycopg.Connection,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(exchanges, "BUSY_SECONDS", 0.001)
    locked = threading.Event()
    with Tenure(postgres_url) as app:

        @app.job()
        def mail(waits: bool) -> None:
            assert not waits or locked.wait(WAIT_SECONDS)

        with running_worker(app, concurrency=2):
            held = mail.enqueue(True)
            wait_until(lambda: app.get(held.id).status == "processing", "the first job to run")
            lock(raw, held.id)
            locked.set()
            said = f"the outcome of job {held.id} (mail) cannot be recorded: another transaction"
            wait_until(lambda: said in caplog.text, "the worker to name the job")
            monkeypatch.setattr(reader, "SHORT_SECONDS", 0.0)
            assert app.explain(held.id).reason == "running", "so it does not say who that is"
            assert "until that ends; `tenure doctor` says who it is" in caplog.text
            for _ in range(10):
                wait_until_completed(app, mail.enqueue(False))
            assert app.get(held.id).status == "processing"
            raw.execute("ROLLBACK")
            wait_until_completed(app, held)
        assert app.get(held.id).attempts == 1
        assert caplog.text.count(said) == 1
        assert app.verify() == []


@pytest.mark.postgres
def test_a_worker_names_a_locked_job_of_a_child_process_too(
    postgres_url: str, raw: psycopg.Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reported the outcome each second without a word, as the handler might have the lock."""
    with Tenure(postgres_url) as app:
        app.core.take_over(children.app.core)
        path = tmp_path / "runs"
        with running_worker(app):
            held = app.enqueue("hang", {"path": str(path)}, timeout=1, max_retries=1)
            wait_until(path.exists, "the job to run")
            lock(raw, held.id)
            said = f"the outcome of job {held.id} (hang) cannot be recorded: another transaction"
            wait_until(lambda: said in caplog.text, "the worker to name the job")
            raw.execute("ROLLBACK")
            wait_until_failed(app, held)


@pytest.mark.postgres
def test_a_worker_that_stops_says_how_many_outcomes_a_lock_keeps_from_the_record(
    postgres_url: str,
    raw: psycopg.Connection,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ended without a word, and the job ran again when its lease was over."""
    monkeypatch.setattr(worker, "FINAL_REPORT_SECONDS", 0.2)
    locked = threading.Event()
    with Tenure(postgres_url) as app:

        @app.job(max_retries=1)
        def mail() -> None:
            assert locked.wait(WAIT_SECONDS)
            raise PermanentFailure

        with running_worker(app):
            held = mail.enqueue()
            wait_until(lambda: app.get(held.id).status == "processing", "the job to run")
            lock(raw, held.id)
            locked.set()
            wait_until(lambda: "cannot be recorded" in caplog.text, "the worker to meet the lock")
    assert "the store has not recorded 1 outcome in time" in caplog.text
