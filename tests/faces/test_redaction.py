"""Values under chosen keys are shown nowhere, and reach the handler whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenure import Tenure
from tenure.client import Client
from tenure.http import guard
from tenure.http import jobs as streams
from tenure.server import build
from tenure.settings import Settings
from tenure.values.redaction import MARK, without_password
from tenure.worker.process import worker_of
from tests.support.cli import run_cli
from tests.support.http import Exchange, api_client
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed

SECRET = "hunter2-canary"


@pytest.mark.requirement("C12")
def test_a_redacted_value_is_shown_nowhere_and_handled_whole(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    with Tenure(database_url) as app, api_client(app, Settings(redact=("Password", "pin"))) as api:

        @app.job(max_retries=1)
        def fail(login: dict[str, str]) -> None:
            seen.append(login["password"])
            raise ValueError(f"refused: {login['password']}")

        @app.job
        def work(password: str, pin: int) -> dict[str, object]:
            seen.append(password)
            return {"PASSWORD": password, "pin": pin, "fine": "yes"}

        given = [
            {"type": "fail", "payload": {"login": {"password": SECRET, "user": "ann"}}},
            {"type": "work", "payload": {"password": SECRET, "pin": 918273}},
        ]
        made = [api.post("/jobs", json=new) for new in given]
        first, second = (answer.json()["id"] for answer in made)
        with running_worker(app):
            assert SECRET in wait_until_failed(app, first)
            assert SECRET in (wait_until_completed(app, second).result_json or "")
        assert seen == [SECRET, SECRET]

        paths = ["", *(f"/{first}{part}" for part in ("", "/history", "/explain")), f"/{second}"]
        told = [answer.text for answer in (*made, *(api.get(f"/jobs{path}") for path in paths))]
        told += [
            str(streams._event(transition, without_errors=True))
            for transition in app.events.read().events
        ]
        monkeypatch.setenv("TENURE_REDACT", "password,pin")
        for words in ("jobs list", f"jobs show {first}", f"explain {first}", f"jobs show {second}"):
            for form in ([], ["--json"]):
                shown = run_cli(*words.split(), *form, "--database", database_url)
                assert shown.exit_code == 0
                told.append(shown.output)
        for text in told:
            assert SECRET not in text
            assert "918273" not in text
        assert api.get(f"/jobs/{second}").json()["result"] == {
            "PASSWORD": MARK,
            "pin": MARK,
            "fine": "yes",
        }
        assert "refused: [redacted]" in api.get(f"/jobs/{first}").json()["last_error"]


@pytest.mark.anyio
async def test_events_come_without_errors(sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:

        @app.job(max_retries=1)
        def fail(password: str) -> None:
            raise ValueError(password)

        with running_worker(app):
            wait_until_failed(app, fail.enqueue(password=SECRET))
        built = build(app, Settings(redact=("password",)))
        async with Exchange(built, "GET", "/events", query="after=0") as stream:
            await stream.wait_for(b"event: failed")
            assert MARK.encode() in stream.answered
            assert SECRET.encode() not in stream.answered


@pytest.mark.requirement("C12")
def test_a_key_of_another_token_is_no_way_to_guess_a_hidden_value(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with Tenure(sqlite_url) as app, api_client(app, Settings(redact=("pin",))) as api:
        tokens = {name: app.tokens.create(name, ["enqueue"])[0] for name in ("shop", "thief")}

        def enqueue(caller: str, pin: int, path: str = "/jobs") -> tuple[int, str]:
            api.headers["Authorization"] = f"Bearer {tokens[caller]}"
            new = {"type": "pay", "payload": {"pin": pin}, "idempotency_key": "order-17"}
            answer = api.post(path, json=new if path == "/jobs" else [new])
            return answer.status_code, answer.json().get("detail", "") if path == "/jobs" else ""

        assert enqueue("shop", 4711)[0] == 201
        assert enqueue("shop", 4711)[0] == 200
        assert enqueue("shop", 4712)[0] == 422
        wrong, right = enqueue("thief", 4712), enqueue("thief", 4711)
        assert wrong == right
        assert right[0] == 422
        assert enqueue("thief", 4711, "/jobs/batch") == (422, "")


def test_without_redaction_a_key_is_everybodys(sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app, api_client(app) as api:
        job = app.enqueue("pay", {"pin": 4711}, idempotency_key="order-17", actor="shop")
        new = {"type": "pay", "payload": {"pin": 4711}, "idempotency_key": "order-17"}
        assert api.post("/jobs", json=new).json()["id"] == job.id


@pytest.mark.requirement("C12")
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            "postgresql://ann:canary@host:5432/jobs?schema=a",
            "postgresql://ann:…@host:5432/jobs?schema=a",
        ),
        ("postgresql://ann:can/a@ry@host/jobs", "postgresql://ann:…@host/jobs"),
        (
            "postgresql://host/jobs?user=ann&password=canary&schema=a",
            "postgresql://host/jobs?user=ann&password=…&schema=a",
        ),
        ("host=db user=ann password=canary dbname=jobs", "host=db user=ann password=… dbname=jobs"),
        ("mysql://ann:canary@host/jobs", "mysql://ann:…@host/jobs"),
        ("postgresql://ann@host:5432/jobs", "postgresql://ann@host:5432/jobs"),
        ("sqlite:////srv/a:b@c.db", "sqlite:////srv/a:b@c.db"),
        ("sqlite:///jobs.db?filesystem=any", "sqlite:///jobs.db?filesystem=any"),
        ("postgresql://[half", "postgresql://[half"),
    ],
)
def test_an_address_is_shown_without_its_password(given: str, shown: str) -> None:
    assert without_password(given) == shown


@pytest.mark.requirement("C12")
@pytest.mark.parametrize("command", ["doctor", "migrate", "stats", "enqueue", "worker", "serve"])
@pytest.mark.parametrize(
    "url", ["mysql://ann:canary@host/jobs", "host=127.0.0.1 port=1 password=canary"]
)
def test_an_address_that_is_none_is_named_without_its_password(command: str, url: str) -> None:
    more = {"enqueue": ["mail"], "worker": ["--fake-handlers"], "serve": ["--port", "0"]}
    done = run_cli(command, *more.get(command, []), "--database", url)
    assert done.exit_code != 0
    assert "canary" not in done.output


def test_a_remote_worker_hides_the_keys_of_its_application_and_of_the_settings(
    tmp_path: Path,
) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db", redact=["password"])
    with Client("http://127.0.0.1:1") as source:
        worker = worker_of(app, Settings(redact=("token",)), source)
    assert worker._attempts._log._redaction.keys == ("password", "token")
