"""serve and worker, as programs: they run jobs, and end in good order when asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenure import Job, Tenure
from tenure.cli.running import _place
from tenure.client import Client
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.cli import PROGRAM, clean_environment, run_cli, run_program
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import wait_until_completed, wait_until_settled

SHOP = """
import asyncio
import threading

from tenure import Job; from tenure import Tenure

app = Tenure("sqlite:///shop.db")
other = Tenure("sqlite:///other.db", redact=["name"])
empty = Tenure("sqlite:///shop.db")
number = 7

@app.job
def greet(name: str) -> str:
    farewell.enqueue(name)
    return f"Hello {name}"

@other.job
def farewell(name: str) -> str:
    return f"Goodbye {name}"

@app.job(name="stuck")
async def stuck() -> None:
    print("stuck", flush=True)
    await asyncio.to_thread(threading.Event().wait)
"""


def drop_urls(shop: Path) -> None:
    """Let the applications of the shop take their database from the environment."""
    source = SHOP.replace('"sqlite:///shop.db"', "").replace('"sqlite:///other.db", ', "")
    (shop / "shop" / "jobs.py").write_text(source)


def test_what_any_of_several_applications_hides_is_hidden(shop: Path, sqlite_url: str) -> None:
    drop_urls(shop)
    with Tenure(sqlite_url) as app:
        app.enqueue("later", {"name": "ada"}, delay="1h")
    apps = ("--app", "shop.jobs:app", "--app", "shop.jobs:other")
    environ = {"TENURE_DATABASE": sqlite_url}
    with running("serve", "--port", "0", *apps, cwd=shop, **environ) as server:
        assert server.stdout is not None
        with Client(server.stdout.readline().split()[-1]) as client:
            (job,) = client.find()
    assert job.payload_json == '{"name":"[redacted]"}'


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    """A folder with somebody's application in it."""
    folder = tmp_path / "home"
    (folder / "shop").mkdir(parents=True)
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "jobs.py").write_text(SHOP)
    (folder / "broken.py").write_text("import a_module_that_is_missing\n")
    yield folder
    for name in ("shop", "shop.jobs", "broken"):
        sys.modules.pop(name, None)


@contextmanager
def running(
    *arguments: str, cwd: Path | None = None, **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """A program, killed at the end if it is still there."""
    process = Program(
        [*PROGRAM, *arguments],
        cwd=cwd,
        env=clean_environment(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stopped(
    process: subprocess.Popen[str], by: signal.Signals = signal.SIGTERM, *, failures: bool = False
) -> str:
    """Stop a program in good order; what it wrote to standard error.

    `failures`: handlers have failed, whose tracebacks are logged.
    """
    process.send_signal(by)
    _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, errors
    assert failures or "Traceback" not in errors
    return errors


@contextmanager
def serving(*arguments: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port, and its address."""
    with running("serve", "--port", "0", *arguments, **environ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line.startswith("{"):  # with --log-format json
            line = json.loads(line)["message"]
        assert line.startswith("Tenure listens on http://127.0.0.1:"), process.communicate()[1]
        yield process, line.split()[-1]


def settle(app: Tenure, job: Job, outcome: Outcome) -> None:
    """Have a worker claim the next job, which is to be `job`, and say how it ended."""
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")).leases
    assert lease.id == job.id
    app.core.report([Report(lease.id, lease.lease_id, outcome)])


# --- worker -----------------------------------------------------------------------------------


def test_a_worker_runs_the_handlers_of_all_applications(database_url: str, shop: Path) -> None:
    drop_urls(shop)
    apps = ("--app", "shop.jobs:app", "--app", "shop.jobs:other")
    with Tenure(database_url) as app:
        job = app.enqueue("greet", {"name": "Ann"})
        with running("worker", *apps, cwd=shop, TENURE_DATABASE=database_url) as worker:
            assert wait_until_completed(app, job).result_json == '"Hello Ann"'
            (second,) = app.find(type="farewell")  # enqueued by the first, on the same database
            assert wait_until_completed(app, second).result_json == '"Goodbye Ann"'
            stopped(worker)
    assert not list(shop.glob("*.db"))


@pytest.mark.requirement("C12")
@pytest.mark.parametrize("command", ["worker", "serve"])
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_no_process_runs_an_application_that_enqueues_elsewhere(
    command: str, by: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer's jobs went to an SQLite file while the worker looked at PostgreSQL."""
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))
    elsewhere = "postgresql://me:s3cret@127.0.0.1:9/jobs"
    arguments = [command, "--app", "shop.jobs:app"]
    if by == "flag":
        arguments += ["--database", elsewhere]
    else:
        monkeypatch.setenv("TENURE_DATABASE", elsewhere)
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert "--app shop.jobs:app: it uses sqlite:///shop.db, but" in result.stderr
    assert "postgresql://me:…@127.0.0.1:9/jobs" in result.stderr
    assert "Write Tenure() without a URL" in result.stderr
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://app@db/jobs", "postgresql://worker:pw@db:5432/jobs?sslmode=require", True),
        ("postgresql:///jobs?host=/run/pg", "postgresql://me@/jobs?host=/run/pg", True),
        ("postgresql://db/jobs", "postgresql://db/jobs?schema=other", False),
        ("postgresql://db/jobs", "postgresql://db:6432/jobs", False),
        ("postgresql://db/jobs", "postgresql://db/other", False),
        ("sqlite:///jobs.db", "sqlite:////{here}/jobs.db", True),
        ("sqlite:///jobs.db", "sqlite:///other.db", False),
    ],
)
def test_urls_are_of_one_database_for_any_user(one: str, other: str, same: bool) -> None:
    here = str(Path.cwd()).removeprefix("/")
    assert (_place(one) == _place(other.replace("{here}", here))) is same


def test_an_application_without_a_url_shares_the_database_of_its_worker(
    database_url: str, shop: Path
) -> None:
    (shop / "mail.py").write_text(
        "import tenure\napp = tenure.Tenure()\n@app.job\ndef send() -> None: ...\n"
    )
    environ = clean_environment(TENURE_DATABASE=database_url)
    enqueue = [sys.executable, "-c", "import mail; print(mail.send.enqueue().id)"]
    with (
        Tenure(database_url) as app,
        running("worker", "--app", "mail:app", cwd=shop, **environ) as worker,
    ):
        added = subprocess.check_output(enqueue, cwd=shop, env=environ, timeout=WAIT_SECONDS)
        wait_until_completed(app, app.get(added.decode().strip()))
        stopped(worker)
    assert not list(shop.glob("*.db"))


def test_a_worker_uses_the_database_of_its_application(shop: Path) -> None:
    with (
        Tenure(f"sqlite:///{shop}/other.db") as app,
        running("worker", "--app", "shop.jobs:other", cwd=shop) as worker,
    ):
        assert worker.stdout is not None
        # The whole path, although the application has a relative one: in which folder is it?
        assert worker.stdout.readline().endswith(f" from sqlite:///{shop}/other.db\n")
        wait_until_completed(app, app.enqueue("farewell", {"name": "Ann"}))
        stopped(worker, signal.SIGINT)


@pytest.mark.parametrize(
    "command", [("worker",), ("serve", "--port", "0")], ids=["worker", "serve"]
)
def test_a_thread_that_a_handler_left_behind_holds_up_nobody(
    command: tuple[str, ...], sqlite_url: str, shop: Path
) -> None:
    drop_urls(shop)
    arguments = (*command, "--app", "shop.jobs:app", "--grace", "0", "--database", sqlite_url)
    with Tenure(sqlite_url) as app:
        job = app.enqueue("stuck")
        with running(*arguments, cwd=shop) as process:
            assert process.stdout is not None
            assert "stuck\n" in iter(process.stdout.readline, "")
            stopped(process)
        assert [entry.event for entry in app.history(job.id)][-2:] == ["claimed", "interrupted"]


def test_a_worker_with_fake_handlers_fails_by_rule_and_keeps_to_its_queues(sqlite_url: str) -> None:
    rules = ("--fake-handlers", "--fail-type", "payment", "--fail-every", "3", "--queue", "money")
    quick = {"backoff": 0.01, "queue": "money", "max_retries": 3}
    with Tenure(sqlite_url) as app:
        elsewhere = app.enqueue("payment")
        types = ("payment", "invoice", "invoice", "invoice")
        jobs = [app.enqueue(type, **quick) for type in types]  # type: ignore[arg-type]
        with running("worker", *rules, "--database", sqlite_url) as worker:
            ends = [wait_until_settled(app, job) for job in jobs]
            assert "Traceback" in stopped(worker, failures=True)
        assert [(str(job.status), job.attempts) for job in ends] == [
            ("failed", 3),
            ("completed", 1),
            ("completed", 2),
            ("completed", 1),
        ]
        assert app.get(elsewhere.id).status == "pending"


def test_a_worker_that_is_killed_loses_no_job(database_url: str) -> None:
    arguments = ("worker", "--fake-handlers", "--lease", "1s", "--database", database_url)
    with Tenure(database_url) as app:
        job = app.enqueue("fake.crash", backoff=0.01)
        with running(*arguments) as first:
            assert first.wait(WAIT_SECONDS) == -signal.SIGKILL
        with running(*arguments) as second:
            assert wait_until_completed(app, job).attempts == 2
            stopped(second)
        events = [entry.event for entry in app.history(job.id)]
        assert events == [
            *("enqueued", "claimed", "lease_expired", "retried", "claimed", "completed")
        ]


@pytest.mark.parametrize("command", [("worker",), ("serve", "--port", "0")], ids=lambda c: c[0])
def test_a_first_start_warns_of_nothing(command: tuple[str, ...], database_url: str) -> None:
    """A newcomer was warned of a missing schema by the program that was making it."""
    with running(*command, "--fake-handlers", "--database", database_url) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Tenure ")
        with Tenure(database_url) as app:
            wait_until_completed(app, app.enqueue("email"))
        assert "WARNING" not in stopped(process)


def test_a_worker_prunes_when_it_is_told_to(sqlite_url: str) -> None:
    arguments = ("worker", "--fake-handlers", "--prune", "--database", sqlite_url)
    with Tenure(sqlite_url) as app:
        gone, kept = app.enqueue("email"), app.enqueue("email")
        settle(app, gone, Outcome.COMPLETED)
        app.cancel(kept.id)
        with running(*arguments, TENURE_KEEP_COMPLETED="0s", TENURE_KEEP_CANCELLED="forever"):
            wait_until(lambda: [job.id for job in app.find()] == [kept.id])


def test_a_worker_deletes_nothing_unless_told(sqlite_url: str) -> None:
    arguments = ("worker", "--fake-handlers", "--database", sqlite_url)
    with Tenure(sqlite_url) as app:
        old = app.enqueue("email")
        settle(app, old, Outcome.COMPLETED)
        with running(*arguments, TENURE_KEEP_COMPLETED="0s"):
            done = app.enqueue("email")
            wait_until(lambda: app.get(done.id).status == "completed")
        assert {job.id for job in app.find()} == {old.id, done.id}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to run"),
        (["shop.jobs:app"], "shop.jobs:app is no option; an application is given as --app"),
        (["--app", "shop.jobs"], "write module:name"),
        (["--app", ":app"], "write module:name"),
        (["--app", "nowhere:app"], "no module 'nowhere'"),
        (["--app", "shop.nowhere:app"], "no module 'shop.nowhere'"),
        (["--app", "nowhere.py:app"], "write nowhere:app"),
        (["--app", "shop.jobs:nothing"], "has no such name"),
        (["--app", "shop.jobs:number"], "holds a value of type int there"),
        (["--app", "shop.jobs:empty"], "--app shop.jobs:empty: nothing to run: it has no handlers"),
        (["--app", "shop.jobs:app", "--app", "shop.jobs:other"], "different databases"),
        (["--app", "shop.jobs:app", "--fail-every", "2"], "need --fake-handlers"),
        (["--fake-handlers", "--fail-every", "0"], "fail_every"),
        (["--fake-handlers", "--fail-type", "no name"], "job type"),
        (["--fake-handlers", "--queue", "a,b"], "give --queue once for each queue"),
        (["--fake-handlers", "--concurrency", "0"], "--concurrency: give a whole number"),
        (["--fake-handlers", "--lease", "0.5"], "--lease: a lease lasts 1 second to a day"),
        (["--fake-handlers", "--grace", "never"], "--grace: not a duration"),
        (["--fake-handlers", "--server", "example.com"], "give an address such as"),
        (["--fake-handlers", "--server", "http://a", "--prune"], "--prune: the server deletes"),
        (["--fake-handlers", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
    ],
)
def test_a_worker_that_cannot_work_says_why(
    shop: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))
    for name in ("TENURE_DATABASE", "TENURE_CONFIG", "TENURE_CONCURRENCY", "TENURE_PORT", "PORT"):
        monkeypatch.delenv(name, raising=False)

    result = run_cli("worker", *arguments)

    assert result.exit_code == 2
    assert reason in result.stderr


def test_a_fault_in_the_application_itself_is_shown_where_it_is(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))

    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        run_cli("worker", "--app", "broken:app")


# --- serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_server_with_fake_handlers(database_url: str, by: signal.Signals) -> None:
    with (
        Tenure(database_url) as app,
        serving("--fake-handlers", "--database", database_url) as (server, url),
        Client(url) as client,
    ):
        job = client.enqueue("email", {"to": "a@example.com"})
        wait_until_completed(app, job)
        assert client.get(job.id).status == "completed"
        stopped(server, by)


def test_a_server_alone_runs_nothing(sqlite_url: str) -> None:
    with (
        Tenure(sqlite_url) as app,
        serving("--database", sqlite_url) as (server, url),
        Client(url) as client,
    ):
        job = client.enqueue("email")
        assert app.get(job.id).status == "pending"
        assert app.workers.list() == []
        stopped(server)


def test_a_worker_works_over_http(sqlite_url: str, shop: Path) -> None:
    apps = ("--app", "shop.jobs:other")
    token = {"TENURE_TOKEN": "0123456789abcdef"}
    with (
        Tenure(sqlite_url) as app,
        serving("--database", sqlite_url, **token) as (server, url),
        running("worker", "--server", url, *apps, cwd=shop, **token) as worker,
    ):
        job = app.enqueue("farewell", {"name": "Ann"})
        assert wait_until_completed(app, job).result_json == '"Goodbye Ann"'
        assert [one.label for one in app.workers.list()]
        assert "HTTP Request" not in stopped(worker)
        assert app.workers.list() == []
        stopped(server)
    assert not list(shop.glob("*.db*"))


@pytest.mark.requirement("C12")
def test_a_worker_shows_no_password_of_its_server(sqlite_url: str, shop: Path) -> None:
    address = "http://me:s3cretpw@127.0.0.1:9"
    with running("worker", "--server", address, "--app", "shop.jobs:other", cwd=shop) as worker:
        assert worker.stderr is not None
        assert worker.stdout is not None
        shown = [worker.stdout.readline()]
        while "no answer from" not in shown[-1]:
            shown.append(worker.stderr.readline())
        shown.append(stopped(worker))
    assert "from http://me:…@127.0.0.1:9" in shown[0]
    assert "no answer from http://me:…@127.0.0.1:9" in "".join(shown)
    assert "s3cretpw" not in "".join(shown)


def test_the_log_may_be_json(sqlite_url: str) -> None:
    with serving("--database", sqlite_url, "--log-format", "json", "--fake-handlers") as (
        server,
        _,
    ):
        lines = stopped(server).splitlines()

    assert lines
    assert {json.loads(line)["logger"].split(".")[0] for line in lines} == {"tenure"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "token"),  # noqa: S104 - which is what is refused
        (["--port", "65536"], "--port: give a whole number"),
        (["--fail-type", "email"], "need --fake-handlers"),
    ],
)
def test_a_server_that_cannot_serve_says_why(
    sqlite_url: str, arguments: list[str], reason: str
) -> None:
    done = run_program("serve", *arguments, "--database", sqlite_url)

    assert done.returncode == 2
    assert reason in done.stderr


def test_a_server_whose_database_does_not_answer() -> None:
    done = run_program("serve", "--port", "0", "--database", "sqlite:////no/such/folder/jobs.db")

    assert done.returncode == 4
    assert "Traceback" not in done.stderr
