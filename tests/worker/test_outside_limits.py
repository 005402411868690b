"""Jobs that ask a service with limits of its own: five at once, so many in a time, HTTP 429."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tenure import RateLimited, Snooze, Tenure
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_worker

SECONDS, STARTS, AT_ONCE = 2, 20, 5
CLOSED_SECONDS = 1.5
JOBS, OPEN_FOR = 24, 8

LLM = f"""
import httpx2

from tenure import RateLimited

app.queues.limit("llm", max_running={AT_ONCE}, rate="{STARTS}/{SECONDS}s")

@app.job(queue="llm")
def ask(question: str) -> str:
    answer = httpx2.post("ADDRESS", json=question)
    if answer.status_code == 429:
        raise RateLimited(answer.headers["retry-after"], pause="queue")
    return answer.text
"""


class Service(ThreadingHTTPServer):
    """Answers `OPEN_FOR` questions, then none for `CLOSED_SECONDS`, and so on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Question)
        self.lock = threading.Lock()
        self.here = self.most = self.answered = 0
        self.closed_until = 0.0
        self.refused: list[int] = []  # of each time that it was closed
        self.opens: list[datetime] = []


class Question(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        service, now = self.server, time.monotonic()
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with service.lock:
            service.here += 1
            service.most = max(service.most, service.here)
            is_open = now >= service.closed_until
            if is_open:
                service.answered += 1
                if service.answered % OPEN_FOR == 0:
                    service.closed_until = now + CLOSED_SECONDS
                    service.refused.append(0)
                    service.opens.append(datetime.now(UTC) + timedelta(seconds=CLOSED_SECONDS))
            else:
                service.refused[-1] += 1
        if is_open:
            time.sleep(0.1)
        answer = f"answer to {text}".encode()
        with service.lock:
            service.here -= 1
        self.send_response(200 if is_open else 429)
        self.send_header("content-length", str(len(answer)))
        self.send_header("retry-after", f"{max(service.closed_until - now, 0):.3f}")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


@pytest.mark.parametrize("pause", [None, "queue"])
def test_a_pause_of_all_jobs_has_a_line_and_a_snooze_has_none(
    app: Tenure, caplog: pytest.LogCaptureFixture, pause: Any
) -> None:
    caplog.set_level(logging.INFO, "tenure")

    @app.job(queue="llm")
    def ask() -> None:
        raise RateLimited("1h", pause="queue") if pause else Snooze("1h")

    with running_worker(app):
        job = ask.enqueue()
        wait_until(lambda: app.get(job.id).event == "snoozed", "the snooze")
    lines = [vars(record) for record in caplog.records if "job_snoozed" in record.getMessage()]
    assert [(each["levelname"], each["pause"], each["delay"]) for each in lines] == (
        [("INFO", "queue", 3600.0)] if pause else []
    )


def test_an_answer_of_429_is_the_only_one_of_its_pause(
    app_on_each_engine: Tenure, service: Service, tmp_path: Path
) -> None:
    """The job that the newcomer wrote first, on two machines: seven lines with its limits."""
    app = app_on_each_engine
    source = LLM.replace("ADDRESS", f"http://127.0.0.1:{service.server_port}")
    with WorkerScript(tmp_path / "workers", app.database, source, concurrency=10) as script:
        workers = [script.start() for _ in range(2)]
        wait_until(lambda: len(app.workers.list()) == 2, "two workers")
        jobs = [app.enqueue("ask", {"question": str(n)}, queue="llm") for n in range(JOBS)]
        ends = [app.wait(job.id, timeout=30) for job in jobs]
    assert [end.result for end in ends] == [f"answer to {n}" for n in range(JOBS)]
    assert {(end.status, end.attempts) for end in ends} == {("completed", 1)}
    assert len({end.worker for end in ends}) == len(workers)
    assert service.most <= AT_ONCE
    assert len(service.refused) == JOBS // OPEN_FOR
    assert sum(service.refused) > 0
    assert max(service.refused) <= AT_ONCE  # those that had asked when the first was refused
    ledger = [entry for job in jobs for entry in app.history(job.id)]
    starts = sorted(entry.at for entry in ledger if entry.event == "claimed")
    for first, last in zip(starts, starts[STARTS:], strict=False):
        assert last - first > timedelta(seconds=SECONDS)
    pauses = [timedelta(), *(b - a for a, b in pairwise(starts))]
    assert sum(pause > timedelta(seconds=CLOSED_SECONDS * 0.7) for pause in pauses) >= 2
    met = sorted(entry.at for entry in ledger if entry.event == "snoozed")
    for opens in service.opens:  # who asked late in a pause waits for its end only
        closes = opens - timedelta(seconds=CLOSED_SECONDS)
        known = min((at for at in met if closes < at), default=opens) + timedelta(seconds=0.3)
        assert not [one for one in starts if known < one < opens]
    assert app.verify() == []
