"""The log: a line for each move, and the job's fields on whatever its handler logs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tenure import JobContext, NewJob, Tenure
from tenure.app.bulk import run_batches
from tenure.client import Client
from tenure.rules.search import Filter
from tenure.telemetry.logs import (
    LOG_FIELDS,
    MAX_FIELD,
    JobFields,
    JsonLines,
    TextLines,
    configure,
    log_failure,
    log_transition,
)
from tenure.values.redaction import MARK, Redaction
from tenure.worker import log as worker_log
from tests.support.http import ServerProcess
from tests.support.waiting import wait_until
from tests.support.workers import (
    running_sweeper,
    running_worker,
    wait_until_all_settled,
    wait_until_completed,
    wait_until_failed,
)

HOSTILE = 'a b\nERROR tenure: forged \x1b[2J \u202e \U000e0041 "%s" {} job=1'

HANDLERS = """
# {name}.py
import logging
import sys
from tenure import Tenure

app = Tenure("{database}")
log = logging.getLogger("shop")

@app.job
async def on_loop(): log.info("from %s", "the loop", extra={{"order": 17}})

@app.job
def in_thread(): log.warning("from a thread")

@app.job(process=True)
def in_child(): log.info("from a child")
"""


class Lines(logging.Handler):
    """Keeps what is logged, as it would be written as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(JobFields())
        self.kept: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(json.loads(JsonLines().format(record)))

    def of(self, job: str) -> list[dict[str, Any]]:
        """The lines about one job."""
        return [line for line in list(self.kept) if line.get("job") == job]


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger = logging.getLogger("tenure")
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_every_move_is_a_line_with_the_fields_of_its_job(sqlite_url: str, lines: Lines) -> None:
    with Tenure(sqlite_url, actor="shop") as app:

        @app.job(queue="mail", max_retries=1)
        def send(ok: bool) -> None:
            if not ok:
                raise ValueError("no such address\nand more")

        good, bad = send.enqueue(ok=True), send.enqueue(ok=False)
        with running_worker(app) as worker:
            wait_until_completed(app, good)
            wait_until_failed(app, bad)
            wait_until(lambda: len(lines.of(bad.id)) == 3 and len(lines.of(good.id)) == 3)
        told = [line["message"] for line in lines.of(good.id)]
        assert told == ["job_enqueued", "job_claimed", "job_completed"]
        *_, end = lines.of(bad.id)
        assert end["message"] == "job_failed"
        assert 0 <= end["duration"] < 60
        assert end["traceback"].startswith("ValueError: no such address\nand more\nTraceback")
        assert ".send\n" in end["traceback"]
        del end["time"], end["duration"], end["traceback"]
        assert end == {
            "level": "error",
            "logger": "tenure.worker.log",
            "message": "job_failed",
            "job": bad.id,
            "type": "send",
            "queue": "mail",
            "attempt": 1,
            "worker": worker.id,
            "error": "ValueError: no such address",
        }
        app.retry(bad.id, actor="ann")
        app.cancel(bad.id, actor="ann")
        retried, cancelled = lines.of(bad.id)[3:]
        assert (retried["message"], cancelled["message"]) == ("job_retried", "job_cancelled")
        assert (cancelled["actor"], cancelled["status"]) == ("ann", "cancelled")


def test_a_lease_that_ran_out_is_a_line(sqlite_url: str, lines: Lines) -> None:
    from tenure.rules.reports import ClaimRequest

    with Tenure(sqlite_url) as app:
        job = app.enqueue("mail", backoff=100)
        app.core.claim(ClaimRequest(worker="gone", limit=1, lease_seconds=0.001))
        with running_sweeper(app):
            wait_until(lambda: len(lines.of(job.id)) == 3)
    _, expired, retried = lines.of(job.id)
    assert (expired["level"], expired["message"]) == ("warning", "job_lease_expired")
    assert (expired["worker"], expired["status"], expired["actor"]) == ("gone", "pending", "sweep")
    assert expired["delay"] == retried["delay"]
    assert (retried["level"], retried["message"]) == ("info", "job_retried")
    assert (retried["worker"], retried["status"], retried["actor"]) == ("gone", "pending", "store")
    assert 50 < retried["delay"] < 120, "100 seconds, give or take the jitter"


def test_a_lease_that_ran_out_for_good_brings_no_line_of_a_retry(
    sqlite_url: str, lines: Lines
) -> None:
    from tenure.rules.reports import ClaimRequest

    with Tenure(sqlite_url) as app:
        job = app.enqueue("mail", max_retries=1)
        app.core.claim(ClaimRequest(worker="gone", limit=1, lease_seconds=0.001))
        with running_sweeper(app):
            wait_until_failed(app, job)
    told = [(line["message"], line["level"], line["status"]) for line in lines.of(job.id)]
    assert told == [("job_enqueued", "debug", "pending"), ("job_lease_expired", "error", "failed")]


@pytest.mark.parametrize("over_http", [False, True], ids=["beside the store", "over HTTP"])
def test_a_retry_is_a_line_that_says_when_it_runs(
    sqlite_url: str, lines: Lines, over_http: bool
) -> None:
    with Tenure(sqlite_url) as app, contextlib.ExitStack() as opened:

        @app.job(queue="mail", max_retries=2, backoff=0.05)
        async def send() -> None:
            raise ValueError("no such address")

        source = None
        if over_http:
            server = opened.enter_context(ServerProcess(sqlite_url))
            source = opened.enter_context(Client(server.url))
        job = send.enqueue()
        with running_worker(app, source) as worker:
            wait_until_failed(app, job)
            wait_until(lambda: len(lines.of(job.id)) == 6)
    told = [(line["message"], line["level"], line.get("attempt")) for line in lines.of(job.id)]
    assert told == [
        ("job_enqueued", "debug", 0),
        ("job_claimed", "debug", 1),
        ("job_failed", "warning", 1),
        ("job_retried", "info", 1),
        ("job_claimed", "debug", 2),
        ("job_failed", "error", 2),
    ]
    retried = lines.of(job.id)[3]
    assert 0.04 < retried.pop("delay") < 0.06
    del retried["time"]
    assert retried == {
        "level": "info",
        "logger": "tenure.worker.log",
        "message": "job_retried",
        "job": job.id,
        "type": "send",
        "queue": "mail",
        "attempt": 1,
        "worker": worker.id,
        "actor": "store",
    }


def test_a_bulk_action_is_a_line_at_its_beginning_and_its_end(
    database_url: str, lines: Lines
) -> None:
    logging.getLogger("tenure").setLevel(logging.INFO)
    with Tenure(database_url) as app:
        app.enqueue_many([NewJob("mail", {}, {}) for _ in range(3)])
        done, stopped = (
            app.bulk.start("cancel", Filter(type="mail"), actor="ann") for _ in range(2)
        )
        app.bulk.stop(stopped.id, actor="bob")
        app.bulk.stop(stopped.id, actor="eve")  # which changes nothing
        while run_batches(app.core):
            pass
        app.bulk.step(done.id)
    what = "cancel 3 jobs, {} changed, 0 refused, bulk action {}"
    assert [(line["message"], line["actor"]) for line in lines.kept if "actor" in line] == [
        (f"bulk_started: {what.format(0, done.id)}", "ann"),
        (f"bulk_started: {what.format(0, stopped.id)}", "ann"),
        (f"bulk_stopped: {what.format(0, stopped.id)}", "bob"),
        (f"bulk_ended: {what.format(3, done.id)}", "ann"),
    ]


def test_at_the_default_level_one_completion_a_second_has_a_line(
    sqlite_url: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer, who saw no line at all, thought that nothing had run."""
    logging.getLogger("tenure").setLevel(logging.INFO)
    monkeypatch.setattr(worker_log, "SHOWN_SECONDS", 3600)
    with Tenure(sqlite_url) as app:

        @app.job(max_retries=1)
        async def work(ok: bool) -> None:
            assert ok

        first = work.enqueue(ok=True)
        with running_worker(app):
            wait_until(lambda: lines.of(first.id))
            jobs = app.enqueue_many([NewJob("work", {"ok": n != 7}, {}) for n in range(20)])
            wait_until_all_settled(app, jobs)
            wait_until(lambda: lines.of(jobs[7].id))
            assert [one["job"] for one in lines.kept if one["message"] == "job_completed"] == [
                first.id
            ]
            monkeypatch.setattr(worker_log, "SHOWN_SECONDS", 0)
            last = work.enqueue(ok=True)
            wait_until(lambda: lines.of(last.id))
            monkeypatch.setattr(worker_log, "SHOWN_SECONDS", 3600)
            wait_until_all_settled(app, [work.enqueue(ok=True) for _ in range(3)])
    completed = [line for line in lines.kept if line["message"] == "job_completed"]
    assert sum(1 + line.get("others", 0) for line in completed) == 24, "when the worker ends, too"
    assert "others" not in completed[0]
    assert completed[0]["duration"] >= 0


@pytest.fixture
def few(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Three failures of a type have lines."""
    monkeypatch.setattr(worker_log, "SHOWN_SECONDS", 3600)
    monkeypatch.setattr(worker_log, "MAX_FAILURES", 3)
    return lines


@contextlib.contextmanager
def failed_at_first(url: str) -> Iterator[None]:
    """Have 10 jobs of `work` and 1 of `other` fail once, and 5 for good; the worker goes on."""
    with Tenure(url) as app:

        async def at_first(context: JobContext) -> None:
            assert context.attempt > 1, "the first time"

        async def hopeless() -> None:
            raise ValueError("for good")

        for name in ("work", "other"):
            app.job(at_first, name=name, backoff=0)
        app.job(hopeless, max_retries=1)
        types = ["work"] * 10 + ["other"] + ["hopeless"] * 5
        jobs = app.enqueue_many([NewJob(type, {}, {}) for type in types])
        with running_worker(app):
            wait_until_all_settled(app, jobs)
            yield


def failures(lines: Lines) -> list[tuple[str, str, int]]:
    """The type, level and `others` of each line about a failure."""
    return sorted(
        (line["type"], line["level"], line.get("others", 0))
        for line in list(lines.kept)
        if line["message"] == "job_failed"
    )


SHOWN = [*[("hopeless", "error", 0)] * 5, ("other", "warning", 0), *[("work", "warning", 0)] * 3]


def test_of_many_failures_that_are_tried_again_one_line_says_how_many_others(
    sqlite_url: str, few: Lines
) -> None:
    """A line for each took a worker 15 % of its time where every job fails at once."""
    logging.getLogger("tenure").setLevel(logging.INFO)
    with failed_at_first(sqlite_url):
        wait_until(lambda: len(failures(few)) == len(SHOWN))
        assert failures(few) == SHOWN
    assert failures(few) == [*SHOWN, ("work", "warning", 6)], "when the worker ends"
    failed = [line for line in few.kept if line["message"] == "job_failed"]
    assert all("Traceback" in line["traceback"] for line in failed)
    retried = [line["job"] for line in few.kept if line["message"] == "job_retried"]
    assert sorted(retried) == sorted(one["job"] for one in failed if one["level"] == "warning")


def test_failures_without_lines_are_not_kept_for_long(
    sqlite_url: str, few: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("tenure").setLevel(logging.INFO)
    with failed_at_first(sqlite_url):
        monkeypatch.setattr(worker_log, "SHOWN_SECONDS", 0)
        wait_until(lambda: ("work", "warning", 6) in failures(few))


def test_at_debug_each_failure_has_a_line(sqlite_url: str, few: Lines) -> None:
    with failed_at_first(sqlite_url):
        wait_until(lambda: len(failures(few)) == 16)


class Exceptions(logging.Handler):
    """Keeps the exceptions of errors, as Sentry's integration of logging does."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.kept: list[BaseException | None] = []
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.exc_info[1] if record.exc_info else None)
        self.texts.append(logging.Formatter().format(record))


@pytest.mark.requirement("C12")
@pytest.mark.parametrize("over_http", [False, True], ids=["beside the store", "over HTTP"])
def test_a_final_failure_brings_its_exception_to_other_programs(
    sqlite_url: str, lines: Lines, over_http: bool
) -> None:
    seen = Exceptions()
    log = logging.getLogger("tenure.worker.log")
    log.addHandler(seen)
    error = ValueError("no such address: hunter2-canary")
    with Tenure(sqlite_url) as app, contextlib.ExitStack() as opened:
        opened.callback(log.removeHandler, seen)

        @app.job(max_retries=2, backoff=0)
        def send(password: str) -> None:
            raise error

        @app.job(max_retries=1, timeout="50ms")
        async def hang() -> None:
            await asyncio.sleep(60)

        source = None
        if over_http:
            source = opened.enter_context(
                Client(opened.enter_context(ServerProcess(sqlite_url)).url)
            )
        jobs = [send.enqueue(password="hunter2-canary"), hang.enqueue()]
        with running_worker(app, source, redaction=Redaction(["password"])):
            for job in jobs:
                wait_until_failed(app, job)
            wait_until(lambda: len(seen.kept) == 2)
    assert sorted(map(repr, seen.kept)) == ["None", repr(error)]
    (text,) = (text for text in seen.texts if "Traceback" in text)
    assert text.startswith(f"job_failed job={jobs[0].id} type=send queue=default attempt=2 worker=")
    (other,) = (text for text in seen.texts if "Traceback" not in text)
    assert other.startswith(f"job_failed job={jobs[1].id} type=hang ")
    assert ' error="timed out' in other
    assert ".send\n" in text
    assert "canary" not in text
    assert MARK in text


def test_a_result_that_cannot_be_stored_is_a_warning(sqlite_url: str, lines: Lines) -> None:
    """A newcomer's model and long text were replaced by a note without a word."""
    with Tenure(sqlite_url) as app:

        @app.job
        def too_long(length: int) -> str:
            return "x" * length

        job = too_long.enqueue(length=70_000)
        with running_worker(app):
            wait_until_completed(app, job)
    (line,) = (one for one in lines.kept if "cannot be stored" in one["message"])
    assert line["level"] == "warning"
    assert f"the result of job {job.id} (too_long) cannot be stored" in line["message"]
    assert "PayloadTooLarge" in line["message"]


@pytest.mark.requirement("C12")
def test_an_error_in_the_log_hides_what_is_redacted(sqlite_url: str, lines: Lines) -> None:
    with Tenure(sqlite_url, redact=["password"]) as app:

        @app.job(max_retries=1)
        def login(password: str) -> None:
            raise ValueError(f"refused: {password}")

        job = login.enqueue(password="hunter2-canary")
        with running_worker(app, redaction=Redaction(["password"])):
            wait_until_failed(app, job)
            wait_until(lambda: [one for one in lines.of(job.id) if "error" in one])
    assert "canary" not in json.dumps(lines.kept)
    assert lines.of(job.id)[-1]["error"] == f"ValueError: refused: {MARK}"


@pytest.mark.requirement("C13")
def test_fields_are_values_whatever_they_hold() -> None:
    record = logging.makeLogRecord(
        {"msg": "job_failed", "name": HOSTILE, "error": HOSTILE, "attempt": 10**30}
    )
    text = TextLines().format(record)
    assert text.isprintable()
    assert text.count(" job=1") == 2, "in the logger's name, and within the quotes of the field"
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["error"] == HOSTILE
    assert json.loads(line)["attempt"] == str(10**30)
    record = logging.makeLogRecord({"msg": "m", "error": "x" * 10**6})
    assert len(JsonLines().format(record)) < MAX_FIELD + 200


@pytest.mark.requirement("C13")
def test_other_formatters_get_the_fields_of_a_job_in_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An embedded worker whose program sets up no logging, or its own, said `job_failed` alone."""
    fields = {"attempt": 2, "job": "j", "error": HOSTILE}
    log_transition(logging.getLogger("shop"), "failed", fields, logging.WARNING)
    (record,) = caplog.records
    for text in (logging.Formatter().format(record), str(record.args)):
        assert text.isprintable()
        assert " job=j attempt=2 error=" in text
    assert record.getMessage().startswith("job_failed job=j ")
    assert TextLines().format(record).count(" job=j attempt=2 ") == 1
    assert json.loads(JsonLines().format(record))["message"] == "job_failed"


@pytest.mark.requirement("C13")
@pytest.mark.parametrize(
    "formatter", [TextLines(), JsonLines(), logging.Formatter("%(levelname)s %(message)s")]
)
def test_a_line_through_a_queue_is_the_same(formatter: logging.Formatter) -> None:
    """`QueueHandler` makes one text of message and arguments: each field was there twice."""
    waiting: SimpleQueue[logging.LogRecord] = SimpleQueue()
    direct, queued = (logging.StreamHandler(io.StringIO()) for _ in range(2))
    first = QueueHandler(waiting)
    log = logging.getLogger("through.a.queue")
    for handler in (direct, queued):
        handler.setFormatter(formatter)
    for handler in (direct, first):
        handler.addFilter(JobFields())
        log.addHandler(handler)
    listener = QueueListener(waiting, queued)
    listener.start()
    of_handler = LOG_FIELDS.set(lambda: {"worker": "w", "queue": "other"})
    try:
        fields = {"attempt": 2, "job": "j", "queue": "mail", "error": HOSTILE, "delay": 0.5}
        log_transition(log, "retried", fields, logging.WARNING)
        log_transition(log, "enqueued", {}, logging.WARNING)
        error = ValueError("no such address")
        log_failure(log, "failed", fields, logging.ERROR, f"{error!r}\nTraceback: line 1", error)
        log.warning("job_done is the %s of a program", "message", extra={"job": "j"})
        log.warning("and another")
    finally:
        LOG_FIELDS.reset(of_handler)
        listener.stop()
        for handler in (direct, first):
            log.removeHandler(handler)
    written = queued.stream.getvalue()
    assert written == direct.stream.getvalue()
    assert written.count("Traceback") == 1


@pytest.mark.requirement("C12", "C13")
def test_json_keeps_what_a_line_says_by_extra() -> None:
    """A newcomer's fields were dropped."""
    circle: list[object] = []
    circle.append(circle)
    extra = {
        "order": 17,
        "paid": True,
        "note": HOSTILE,
        "at": Path("/x"),
        "none": None,
        "who": {"name": "ann", "Password": "canary"},
        "password": "canary",
        "level": "forged",
        "long": "x" * 10**6,
        "half": "\ud800",
        "color_message": "again",
    }
    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", "name": "shop", **extra})
    line = JsonLines(Redaction(["password"])).format(record)
    assert line.isprintable()
    event = json.loads(line)
    assert (event["order"], event["paid"], event["note"], event["at"], event["none"]) == (
        *(17, True, HOSTILE, "/x", None),
    )
    assert json.loads(event["who"]) == {"name": "ann", "Password": MARK}
    assert (event["password"], event["level"], event["half"]) == (MARK, "info", "\\ud800")
    assert len(event["long"]) < MAX_FIELD + 100
    assert "color_message" not in event
    many = {f"field{n}": n for n in range(1_000)} | {"circle": circle}
    assert len(json.loads(JsonLines().format(logging.makeLogRecord(many)))) < 100
    event = json.loads(JsonLines().format(logging.makeLogRecord({"circle": circle})))
    assert event["circle"] == MARK


def test_what_handlers_log_carries_their_job(sqlite_url: str, tmp_path: Path) -> None:
    source = HANDLERS.format(name="shop_logs", database=sqlite_url)
    (tmp_path / "shop_logs.py").write_text(source, "utf-8")
    with (
        Tenure(sqlite_url) as app,
        ServerProcess(
            sqlite_url,
            *("--app", "shop_logs:app", "--log-format", "json"),
            PYTHONPATH=str(tmp_path),
        ) as server,
    ):
        jobs = {name: app.enqueue(name) for name in ("on_loop", "in_thread", "in_child")}
        for job in jobs.values():
            wait_until_completed(app, job)
        _, errors = server.stop()
    assert json.loads(server.greeting)["message"] == f"Tenure listens on {server.url}"
    told = {}
    for line in errors.splitlines():
        entry = json.loads(line)
        if entry["logger"] == "shop":
            assert entry.get("order") == (17 if entry["type"] == "on_loop" else None)
            told[entry["message"]] = (entry["job"], entry["type"], entry["queue"], entry["attempt"])
    assert told == {
        text: (jobs[name].id, name, "default", 1)
        for text, name in (
            ("from the loop", "on_loop"),
            ("from a thread", "in_thread"),
            ("from a child", "in_child"),
        )
    }


def test_a_closed_standard_error_stops_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure()
        closed = io.StringIO()
        closed.close()
        monkeypatch.setattr(sys, "stderr", closed)
        logging.getLogger("tenure.worker").warning("the lease is lost")
        opened = io.StringIO()
        monkeypatch.setattr(sys, "stderr", opened)
        logging.getLogger("tenure.worker").warning("the next one")
        assert "the next one" in opened.getvalue()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
