"""Tenure as an extension of Flask: contexts, Flask-SQLAlchemy, configuration, `flask tenure`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from tenure import InvalidInput
from tenure.contrib.flask import Tenure
from tests.support.cli import clean_environment
from tests.support.programs import Program
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed


@pytest.fixture
def queue() -> Iterator[Tenure]:
    """One that knows no application yet, as a module of handlers makes it."""
    queue = Tenure()
    yield queue
    queue.close()


def application(folder: Path, database: str = "sqlite:///shop.db") -> Flask:
    made = Flask("shop", instance_path=str(folder))
    made.config["TENURE_DATABASE"] = made.config["SQLALCHEMY_DATABASE_URI"] = database
    return made


def test_handlers_run_in_a_context_of_the_application(queue: Tenure, tmp_path: Path) -> None:
    released: list[str] = []

    @queue.job
    def plain() -> str:
        return current_app.name

    @queue.job
    async def on_the_loop() -> str:
        return current_app.name

    @queue.job(max_retries=1)
    def fails() -> None:
        raise ValueError("no")

    web = application(tmp_path)
    queue.init_app(web)
    assert web.extensions["tenure"] is queue

    @web.teardown_appcontext
    def release(error: BaseException | None) -> None:
        released.append(repr(error))

    with running_worker(queue):
        assert wait_until_completed(queue, plain.enqueue().id).result == "shop"
        assert wait_until_completed(queue, on_the_loop.enqueue().id).result == "shop"
        wait_until_failed(queue, fails.enqueue().id)
    assert released == ["None", "None", "ValueError('no')"]


def test_before_the_application_is_known_every_use_is_refused(
    queue: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="no Flask application yet"):
        queue.enqueue("send")
    with pytest.raises(InvalidInput, match="no Flask application yet"):
        queue.within(None)
    assert list(tmp_path.iterdir()) == []


def test_another_application_has_another_database(queue: Tenure, tmp_path: Path) -> None:
    """Each test makes an application, and the handlers are those of one module."""
    ids = []
    for name in ("one", "two"):
        queue.init_app(application(tmp_path / name))
        assert queue.find() == []
        ids.append(queue.enqueue("send").id)
    assert [job.id for job in queue.find()] == ids[1:]
    assert (tmp_path / "one" / "shop.db").exists()
    with pytest.raises(InvalidInput, match="another database is open"):
        queue.database = "sqlite:///other.db"


def test_the_environment_and_then_the_instance_folder_name_the_database(
    queue: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENURE_DATABASE", raising=False)
    web = application(tmp_path)
    del web.config["TENURE_DATABASE"]
    queue.init_app(web)
    assert queue.database == f"sqlite:///{tmp_path}/tenure.db"
    monkeypatch.setenv("TENURE_DATABASE", "postgres://db/shop")
    queue.init_app(web)
    assert queue.database == "postgresql://db/shop"
    web.config["TENURE_DATABASE"] = "sqlite+pysqlite:////data/jobs.db"
    queue.init_app(web)
    assert queue.database == "sqlite:////data/jobs.db"


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///", "sqlite://"])
def test_a_database_in_memory_became_a_file_of_that_name(
    queue: Tenure, tmp_path: Path, url: str
) -> None:
    """As tests of Flask-SQLAlchemy name theirs: no worker can open it."""
    queue.init_app(application(tmp_path / "instance", url))
    with pytest.raises(InvalidInput, match="is not the URL of a SQLite file"):
        queue.enqueue("send")
    assert list(tmp_path.glob("instance/*")) == []


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_jobs_are_added_in_the_session_of_flask_sqlalchemy(
    queue: Tenure, tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    """Each handler has a session, which is removed after it: huey#612, celery-once#64."""
    url = "sqlite:///shop.db"
    if engine == "postgres":
        url = request.getfixturevalue("postgres_url").replace("postgresql:", "postgresql+psycopg:")
    db = SQLAlchemy()
    sessions: list[Any] = []

    @queue.job
    def write_invoice(order: int) -> list[int]:
        sessions.append(db.session())
        return list(db.session.execute(text("SELECT number FROM orders")).scalars())

    web = application(tmp_path, url)
    db.init_app(web)
    queue.init_app(web)
    queue.open()

    @web.post("/orders/<int:number>")
    def order(number: int) -> str:
        db.session.execute(text("INSERT INTO orders VALUES (:n)"), {"n": number})
        job = write_invoice.within(db.session).enqueue(number)
        if number == 0:
            raise RuntimeError("this rolls both back")
        db.session.commit()
        return job.id

    with web.app_context():
        db.session.execute(text("CREATE TABLE orders (number integer)"))
        db.session.commit()
    client = web.test_client()
    assert client.post("/orders/0").status_code == 500
    first, second = client.post("/orders/1").text, client.post("/orders/2").text
    assert queue.count().jobs == 2
    with running_worker(queue):
        for id in (first, second):
            assert wait_until_completed(queue, id).result == [1, 2]
    assert sessions[0] is not sessions[1]
    assert [session.in_transaction() for session in sessions] == [False, False]
    with web.app_context():
        db.engine.dispose()


SHOP = """
from flask import Flask, current_app
from tenure.contrib.flask import Tenure

queue = Tenure(actor="shop")

@queue.job(max_retries=4)
def greet(name: str) -> str:
    return f"{current_app.config['GREETING']} {name}"

@queue.job(process=True)
def alone() -> None: ...

def create_app():
    app = Flask(__name__)
    app.config.from_mapping(TENURE_DATABASE="sqlite:///jobs.db", GREETING="hello")
    queue.init_app(app)
    return app
"""


def flask(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "shop.py").write_text(SHOP, "utf-8")
    return Program(
        [sys.executable, "-m", "flask", "--app", "shop", "tenure", *arguments],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = flask(folder, *arguments)
    said, complained = process.communicate(timeout=30)
    return process.returncode, said, complained


@pytest.mark.slow
def test_flask_has_the_commands_with_the_database_of_its_configuration(tmp_path: Path) -> None:
    code, said, _ = answer_of(tmp_path, "enqueue", "greet", '{"name": "ann"}')
    assert code == 0
    _, explained, _ = answer_of(tmp_path, "explain", said.split()[0])
    assert "flask tenure worker\n" in explained
    assert "--app MODULE:NAME" not in explained
    worker = flask(tmp_path, "worker", "--reload")
    queue = Tenure(Flask("other", instance_path=str(tmp_path / "instance")))
    queue.database = f"sqlite:///{tmp_path}/instance/jobs.db"
    try:
        job = wait_until_completed(queue, said.split()[0])
        assert (job.result, job.max_retries) == ("hello ann", 4)
        unready = queue.enqueue("alone", max_retries=1)
        assert "this process has made no Flask application" in wait_until_failed(queue, unready.id)
        (tmp_path / "shop.py").write_text(SHOP.replace("hello", "goodbye"), "utf-8")

        def says_goodbye() -> bool:
            again = queue.enqueue("greet", {"name": "bob"})
            return wait_until_completed(queue, again.id).result == "goodbye bob"

        wait_until(says_goodbye, "the worker to start again with the new code")
    finally:
        worker.send_signal(signal.SIGTERM)
        started, _ = worker.communicate(timeout=30)
        queue.close()
    assert "runs jobs of alone, greet from" in started
    code, said, _ = answer_of(tmp_path, "jobs", "list", "--json")
    assert (code, json.loads(said)[-1]["id"]) == (0, job.id)
    code, _, complained = answer_of(tmp_path, "enqueue", "greet", "nonsense")
    assert (code, complained[:6]) == (2, "Error:")
    assert not (tmp_path / "tenure.db").exists()
