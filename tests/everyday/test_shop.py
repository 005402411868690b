"""A real small application does what a web developer wants in the first week, as he would type it.

FastAPI and SQLAlchemy on PostgreSQL, with the worker in its own process and in the lifespan of the
web application. The numbers of the wishes are those of the report that started this work.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tenure import Tenure
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@contextmanager
def program(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
        print(f"--- {' '.join(command)}, exit {process.returncode}:\n{said}")
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn ends by the signal it got


def line_with(process: subprocess.Popen[str], pattern: str) -> str:
    """Read what a program says until it says this."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError(f"it ended without saying {pattern}")


@contextmanager
def shop(url: str, **environ: str) -> Iterator[httpx2.Client]:
    """The web application on a free port."""
    environ["DATABASE_URL"] = url
    web = ("uvicorn", "--port", "0", "tests.everyday.shop.web:web")
    with program(*web, **environ) as server:
        address = line_with(server, r"running on (http://\S+)")
        with httpx2.Client(base_url=address, timeout=20) as client:
            yield client


@pytest.fixture
def url(postgres_url: str) -> str:
    """The address as SQLAlchemy writes it: one variable for both."""
    return postgres_url.replace("postgresql://", "postgresql+asyncpg://")


def mails(url: str) -> list[str]:
    with psycopg.connect(url.replace("+asyncpg", "")) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM mails ORDER BY id")]


def place(web: httpx2.Client, customer: str, cents: int) -> dict[str, Any]:
    answer = web.post("/orders", params={"customer": customer, "cents": cents})
    answer.raise_for_status()
    placed: dict[str, Any] = answer.json()
    return placed


def test_orders_with_a_worker_of_their_own(url: str) -> None:
    """Wishes 1 to 6, 15, 19, 21 and 22."""
    worker = ("tenure", "worker", "--app", "tests.everyday.shop.jobs:app", "--health", "0")
    with (
        Tenure(url) as queue,
        program(*worker, DATABASE_URL=url, TENURE_DATABASE=url) as running,
        shop(url) as web,
    ):
        port = line_with(running, r"probes are answered on \S+ port (\d+)")
        probe = f"http://127.0.0.1:{port}/ready"
        wait_until(lambda: httpx2.get(probe).status_code == 200, "the worker to be ready")
        placed = place(web, "ann", 4200)
        charged = queue.wait(placed["job"], timeout="20s")
        assert charged.result == {"order": placed["order"], "reference": f"C-{placed['order']}"}
        wait_until(lambda: f"receipt for order {placed['order']}" in mails(url))

        free = place(web, "bob", 0)
        assert queue.wait(free["job"], timeout="20s").attempts == 1  # ValueError is permanent
        wait_until(lambda: len(mails(url)) == 2)
        assert mails(url)[1].startswith("charge_card: ValueError('nothing to charge'), final: True")

        with pytest.raises(httpx2.HTTPStatusError):
            place(web, "changed her mind", 1)
        assert {job.payload["order"]["customer"] for job in queue.find(type="charge_card")} == {
            "ann",
            "bob",
        }
        assert [each.label for each in queue.workers.list()] != []


def test_everything_in_one_process(url: str) -> None:
    """Wishes 7, 8, 9, 11, 16 and 17."""
    with Tenure(url) as queue, shop(url, WORKER="inside") as web:
        answer = web.get("/answers", params={"question": "why?"})
        assert answer.json() == {"answer": "why? 2 3"}
        (asked,) = queue.find(type="ask_model")
        events = [each.event for each in queue.history(asked.id)]
        assert events.count("snoozed") == 1
        assert asked.attempts == 2

        started = web.post("/imports", params={"number": 7}).json()["job"]
        moved = wait_until(lambda: queue.progress(started), "progress")
        assert moved.total == 5_000
        web.delete("/imports/7").raise_for_status()
        cancelled = queue.get(started)
        assert cancelled.status == "cancelled"
        assert queue.history(started)[-1].reason == "the user pressed stop"

        assert web.get("/admin/queue/").status_code != 200
        page = web.get("/admin/queue/", headers={"x-login": "ann"})
        assert page.status_code == 200
        assert "All is well" in page.text or "ask_model" in page.text
