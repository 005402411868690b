"""The shop on FastAPI does what a developer wants in the first week, started as its page says.

The numbers are those of the wishes in `test_wishes.py`, which shows the others.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tenure import Tenure
from tenure.rules.queues import Limits
from tests.examples.programs import line_with, program, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
SHOP = "examples.fastapi_shop"
SAYS = r"running on (http://\S+)"
JOBS = f"{SHOP}.jobs:queue"


def place(shop: httpx2.Client, customer: str, cents: int) -> dict[str, Any]:
    answer = shop.post("/orders", json={"customer": customer, "cents": cents})
    answer.raise_for_status()
    placed: dict[str, Any] = answer.json()
    return placed


def test_wishes_01_02_05_06_15_21_22_workers_of_their_own(postgres_url: str) -> None:
    """On PostgreSQL: jobs in the transaction of the order, a worker process that is probed."""
    url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")
    worker = ("tenure", "worker", "--app", JOBS, "--health", "0")
    with (
        Tenure(url) as queue,
        serving(SHOP, SAYS, DATABASE_URL=url, SHOP_WORKER="apart") as shop,
        program(*worker, DATABASE_URL=url, TENURE_DATABASE=url) as running,
    ):
        port = line_with(running, r"probes are answered on \S+ port (\d+)")
        probe = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx2.get(f"{probe}/ready").status_code == 200, "the worker's probe")
        assert httpx2.get(f"{probe}/live").status_code == 200
        assert [each.stopping for each in queue.workers.list()] == [False]

        placed = place(shop, "ann", 4200)
        charged = queue.wait(placed["job"], timeout="20s")
        assert charged.result == {"order": placed["order"], "reference": f"C-{placed['order']}"}
        receipt = f"to the customer: receipt for order {placed['order']}"
        wait_until(lambda: receipt in shop.get("/mails").json(), "the receipt")

        declined = place(shop, "bob", 0)
        assert queue.wait(declined["job"], timeout="20s").attempts == 1  # it is permanent
        skipped = wait_until(lambda: queue.find(type="send_receipt", status="cancelled"))[0]
        assert skipped.event == "skipped"
        told = f"to support: charge_card failed: order {declined['order']} of bob"
        wait_until(lambda: told in shop.get("/mails").json(), "the mail to support")

        assert shop.post("/orders", json={"customer": "eve", "cents": 2**30}).status_code == 402
        assert {order["customer"] for order in shop.get("/orders").json()} == {"ann", "bob"}
        assert queue.count().jobs == 4


def test_wishes_07_08_09_11_16_17_everything_in_one_process(tmp_path: Path) -> None:
    """On SQLite, by the one command of the page."""
    file = tmp_path / "shop.db"
    url = f"sqlite+aiosqlite:///{file}"
    with (
        serving(SHOP, SAYS, DATABASE_URL=url, SHOP_PASSWORD="open sesame") as shop,
        Tenure(url) as queue,
    ):
        answered = shop.post("/answers", params={"question": "why?"}).json()
        assert answered["answer"] == "The answer to 'why?' is 42."
        history = [each.event for each in queue.history(answered["job"])]
        assert history[:4] == ["enqueued", "claimed", "failed", "retried"]  # HTTP 503

        started = shop.post("/imports", params={"rows": 1000}).json()
        moved = wait_until(
            lambda: [p for j in queue.find(status="processing") if (p := queue.progress(j.id))]
        )
        assert moved[0].total == 1000
        shop.delete(f"/imports/{started['import']}").raise_for_status()
        kept = Counter(job.status for job in queue.find(tag=started["import"], limit=100))
        assert kept == {"cancelled": 50}
        last = queue.history(queue.find(type="load_part", limit=1)[0].id)[-1]
        assert (last.event, last.reason) == ("cancelled", "the owner pressed stop")

        synced = shop.post("/customers/ann/sync").json()["job"]
        shown = wait_until(lambda: (s := shop.get(f"/jobs/{synced}").json())["done"] and s)
        assert (shown["total"], shown["message"][:9]) == (40, "ann: page")

        assert shop.get("/admin/queue/").status_code != 200
        assert shop.post("/login", json={"password": "guess"}).status_code == 401
        shop.post("/login", json={"password": "open sesame"}).raise_for_status()
        wait_until(
            lambda: "ask_model" in shop.get("/admin/queue/").text, "the count of the failure"
        )
        headers = {"accept": "application/json", "origin": str(shop.base_url)}
        later = queue.enqueue("sync_customer", {"customer": "zoe"}, delay="1h").id
        shop.post(f"/admin/queue/jobs/{later}/cancel", headers=headers).raise_for_status()
        assert queue.history(later)[-1].actor == "user:owner"


def test_wishes_12_13_limits_hold_for_all_workers_together(postgres_url: str) -> None:
    """At most five at once, sixty in any minute; the model says 429 meanwhile."""
    url = postgres_url.replace("postgresql://", "postgresql+asyncpg://")
    worker = ("tenure", "worker", "--app", JOBS, "--queue", "llm")
    environ = {"DATABASE_URL": url, "TENURE_DATABASE": url}
    with Tenure(url) as queue, program(*worker, **environ) as one, ExitStack() as ends:
        line_with(one, r"(runs jobs of)")  # it has made the tables of the shop
        other = ends.enter_context(program(*worker, **environ))
        line_with(other, r"(runs jobs of)")
        limits = wait_until(lambda: limits_of(queue, "llm"), "a worker to set the limits")
        assert (limits.max_running, limits.rate) == (5, "60/1m")
        asked = [queue.enqueue("ask_model", {"question": str(n)}, queue="llm") for n in range(12)]
        wait_until(lambda: queue.count(status="completed").jobs >= 5, "five answers")
        attempts = [
            (start.at, end.at)
            for job in asked
            for start, end in pairwise(queue.history(job.id))
            if start.event == "claimed"
        ]
        together = [sum(a <= start < b for a, b in attempts) for start, _ in attempts]
        assert 1 < max(together) <= 5
        assert queue.verify() == []  # it counts the limits again from the ledger


def limits_of(queue: Tenure, name: str) -> Limits | None:
    return next((each.limits for each in queue.queues.list() if each.name == name), None)


@pytest.mark.parametrize("example", ["fastapi_shop", "flask_app"])
def test_each_page_has_one_command(example: str) -> None:
    page = (Path(__file__).parents[2] / "examples" / example / "README.md").read_text("utf-8")
    command = re.search(r"\$ (.*)", page)
    assert command is not None
    assert command[1] == f"python -m examples.{example}"
    assert os.environ.get("DATABASE_URL") is None
