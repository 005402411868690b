"""Each of the 22 wishes of a web developer in the first week is shown by a test of the examples.

The tests here use `tenure.testing`, as an application's own tests do: no process, no pause.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from examples.fastapi_shop import jobs as shop_jobs
from examples.fastapi_shop import model
from examples.fastapi_shop.data import Mail, make_tables, sessions
from examples.fastapi_shop.jobs import (
    ask_model,
    charge_card,
    load_part,
    nightly_report,
    queue,
    send_receipt,
    sum_up,
    sync_customer,
)
from examples.fastapi_shop.web import web
from tenure import testing
from tenure.testing import Jobs

WISHES = """
1 enqueue two jobs from POST /orders    2 in the transaction of the order
3 a Pydantic model as payload           4 a Pydantic model as result
5 set up and torn down with the worker  6 a worker in its own process
7 a worker in the lifespan              8 the dashboard behind my login
9 wait for a result in a request        10 a nightly report
11 try again when the remote says       12 at most five at once, all workers
13 at most sixty a minute, all workers  14 split, fifty parts, one summary
15 a receipt after the charge           16 progress to the user
17 cancel from the page                 18 one sync per customer at a time
19 assert that a job was enqueued       20 run jobs inline, retries, time travel
21 failures are reported                22 probes of workers
"""


def test_every_wish_is_shown() -> None:
    texts = [path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    names = re.findall(r"def test_wish(?:es)?((?:_\d\d)+)_", " ".join(texts))
    shown = {int(number) for name in names for number in name[1:].split("_")}
    assert shown == set(map(int, re.findall(r"\b(\d+) [a-zA-Z]", WISHES))) == set(range(1, 23))


@pytest.mark.parametrize("engine_name", ["sqlite", "postgres"])
async def test_processes_that_make_the_tables_at_once(
    engine_name: str, tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    if engine_name == "postgres":
        postgres: str = request.getfixturevalue("postgres_url")
        url = postgres.replace("postgresql://", "postgresql+asyncpg://")
    bound = sessions.kw["bind"]
    engine = create_async_engine(url, poolclass=NullPool)
    sessions.configure(bind=engine)
    try:
        await asyncio.gather(*(make_tables() for _ in range(6)))
        async with sessions() as session:
            assert (await session.scalars(select(Mail))).all() == []
    finally:
        sessions.configure(bind=bound)
        await engine.dispose()


@pytest.fixture
async def jobs(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Jobs]:
    """The shop on a new file, with the jobs in it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/shop.db"
    with testing.on(queue, url) as jobs:
        bound = sessions.kw["bind"]
        engine = create_async_engine(url)
        sessions.configure(bind=engine)
        await make_tables()
        yield jobs
        await engine.dispose()
        sessions.configure(bind=bound)


@pytest.fixture
async def shop(jobs: Jobs) -> AsyncIterator[httpx2.AsyncClient]:
    """Its pages, without a worker."""
    transport = httpx2.ASGITransport(web)
    async with httpx2.AsyncClient(transport=transport, base_url="http://shop.test") as client:
        yield client


@pytest.fixture(autouse=True)
def a_model_that_was_not_asked() -> Iterator[None]:
    model._calls.clear()
    yield
    model._calls.clear()


async def mails() -> list[str]:
    async with sessions() as session:
        return list(await session.scalars(select(Mail.text).order_by(Mail.id)))


pytestmark = pytest.mark.anyio


async def test_wishes_01_02_03_19_an_order_and_its_jobs(
    shop: httpx2.AsyncClient, jobs: Jobs
) -> None:
    placed = await shop.post("/orders", json={"customer": "ann", "cents": 4200})
    order = placed.json()["order"]
    charge = jobs.assert_enqueued(
        charge_card, order={"id": order, "customer": "ann", "cents": 4200}
    )
    assert charge.id == placed.json()["job"]
    assert jobs.assert_enqueued(send_receipt, order=order).status == "waiting"
    assert (await shop.post("/orders", json={"customer": "eve", "cents": 2**30})).is_error
    jobs.assert_enqueued(charge_card, count=1)


async def test_wishes_04_15_20_21_jobs_run_inline_in_their_order(
    shop: httpx2.AsyncClient, jobs: Jobs
) -> None:
    for customer, cents in (("ann", 4200), ("bob", 0)):
        await shop.post("/orders", json={"customer": customer, "cents": cents})
    drained = await jobs.drain_async(raise_errors=False)
    assert [(run.job.type, run.outcome) for run in drained.runs if run.job.queue == "money"] == [
        ("charge_card", "completed"),
        ("charge_card", "failed"),
    ]
    (receipt,) = (run for run in drained.runs if run.job.queue != "money")  # in no order with them
    assert (receipt.job.type, receipt.outcome) == ("send_receipt", "completed")
    assert drained.runs[0].job.result == {"order": 1, "reference": "C-1"}
    assert sorted(await mails()) == [
        "to support: charge_card failed: order 2 of bob",
        "to the customer: receipt for order 1",
    ]


async def test_wishes_10_20_the_report_of_the_night(jobs: Jobs) -> None:
    jobs.assert_none_enqueued(nightly_report)
    (run,) = (await jobs.drain_async(until="24h")).runs
    report = run.job
    assert await mails() == [f"to the owner: 0 cents until {report.payload['day'][:10]}"]
    assert report.payload["day"][10:16] == "T03:10"  # in Berlin


async def test_wishes_11_20_the_time_of_the_next_attempt_is_that_of_the_remote(jobs: Jobs) -> None:
    asked = [await ask_model.enqueue_async(f"{n}?") for n in range(5)]
    runs = [*(await jobs.drain_async(retries=True)).runs]
    model._calls.extend([0.0] * model.QUOTA)  # its second is over
    runs += (await jobs.drain_async(until="5s")).runs
    outcomes = Counter(run.outcome for run in runs)
    assert outcomes["completed"] == 5
    assert outcomes["retried"] == 1  # HTTP 503: an attempt is charged
    assert outcomes["snoozed"] >= 1  # HTTP 429: none is
    attempts = sorted([(await queue.get_async(job.id)).attempts for job in asked])
    assert attempts == [1, 1, 1, 1, 2]


async def test_wish_14_fifty_parts_and_one_summary(shop: httpx2.AsyncClient, jobs: Jobs) -> None:
    started = (await shop.post("/imports", params={"rows": 0})).json()
    jobs.assert_enqueued(load_part, count=50)
    await jobs.drain_async()
    assert (await queue.get_async(started["summary"])).result == 0
    shown = (await shop.get(f"/imports/{started['workflow']}")).json()
    assert shown == {"status": "completed", "done": 50, "total": 50}


async def test_wishes_14_17_a_part_that_is_cancelled_is_reported(
    shop: httpx2.AsyncClient, jobs: Jobs
) -> None:
    started = (await shop.post("/imports", params={"rows": 0})).json()
    await shop.delete(f"/imports/{started['import']}")
    jobs.assert_none_enqueued(load_part)
    drained = await jobs.drain_async()
    assert sum_up.name not in {run.job.type for run in drained.runs}
    assert await mails() == [f"to the owner: import {started['import']} is not complete"]


async def test_wish_18_one_sync_per_customer(
    shop: httpx2.AsyncClient, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop_jobs, "PAGE_SECONDS", 0)
    ann, again, bob = [
        (await shop.post(f"/customers/{name}/sync")).json()["job"] for name in ("ann", "ann", "bob")
    ]
    assert ann == again != bob
    jobs.assert_enqueued(sync_customer, count=2)
    await jobs.run_async(ann)
    assert (await shop.post("/customers/ann/sync")).json()["job"] != ann
