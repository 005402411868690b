"""The jobs of the shop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.fastapi_shop import model
from examples.fastapi_shop.data import (
    DATABASE_URL,
    Mail,
    Order,
    engine,
    make_tables,
    sessions,
    transaction,
)
from tenure import Failure, JobContext, RateLimited, RetryAfter, Tenure, Unique
from tenure.contrib.fastapi import with_dependencies

queue = Tenure(DATABASE_URL, actor="shop")


@queue.lifespan
@asynccontextmanager
async def life_of_a_worker() -> AsyncIterator[None]:
    await make_tables()
    await asyncio.to_thread(queue.queues.limit, "llm", max_running=5, rate="60/1m", burst=10)
    yield
    await engine.dispose()


@queue.on_failure
async def tell_support(failure: Failure) -> None:
    if failure.final:
        async with sessions.begin() as session:
            session.add(Mail(text=f"to support: {failure.type} failed: {failure.exception}"))


# --- orders


class OrderPlaced(BaseModel):
    id: int
    customer: str
    cents: int


class Charge(BaseModel):
    order: int
    reference: str


class CardDeclined(Exception):
    pass


@queue.job(queue="money", max_retries=5, permanent=(CardDeclined,))
@with_dependencies
async def charge_card(order: OrderPlaced, session: AsyncSession = Depends(transaction)) -> Charge:
    if order.cents == 0:
        raise CardDeclined(f"order {order.id} of {order.customer}")
    (await session.get_one(Order, order.id)).state = "charged"
    return Charge(order=order.id, reference=f"C-{order.id}")


@queue.job
@with_dependencies
async def send_receipt(order: int, session: AsyncSession = Depends(transaction)) -> None:
    session.add(Mail(text=f"to the customer: receipt for order {order}"))


@queue.schedule(cron="10 3 * * *", zone="Europe/Berlin", time_key="day")
@queue.job
@with_dependencies
async def nightly_report(day: str, session: AsyncSession = Depends(transaction)) -> int:
    sold = await session.scalar(select(func.sum(Order.cents)).where(Order.state == "charged")) or 0
    session.add(Mail(text=f"to the owner: {sold} cents until {day[:10]}"))
    return sold


# --- questions to a language model, with a limit of ours and one of theirs


@queue.job(queue="llm")
async def ask_model(question: str) -> str:
    try:
        return await model.complete(question)
    except model.Refused as refused:
        if refused.status == 429:  # no worker calls before that; no attempt is charged
            raise RateLimited(refused.retry_after, pause="queue") from None
        raise RetryAfter(refused.retry_after) from refused


# --- an import: fifty parts side by side, then a summary


@queue.job(queue="imports", max_retries=3)
async def load_part(context: JobContext, number: int, rows: int) -> int:
    for row in range(rows):
        context.progress(row, total=rows)
        await asyncio.sleep(0.02)
    return rows


@queue.job
async def sum_up(context: JobContext) -> int:
    return sum([rows async for rows in context.results_async(int)])


@queue.job
@with_dependencies
async def say_that_it_failed(name: str, session: AsyncSession = Depends(transaction)) -> None:
    session.add(Mail(text=f"to the owner: import {name} is not complete"))


# --- one sync per customer at a time

PAGE_SECONDS = 0.05


@queue.job(unique=Unique(by=("customer",)))
async def sync_customer(context: JobContext, customer: str) -> str:
    for step in range(40):
        context.progress(step, total=40, message=f"{customer}: page {step}")
        await asyncio.sleep(PAGE_SECONDS)
    return f"{customer} is up to date"
