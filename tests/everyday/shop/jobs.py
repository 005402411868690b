"""The jobs of the shop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from tenure import Failure, JobContext, RetryAfter, Snooze, Tenure
from tests.everyday.shop.data import DATABASE_URL, Base, Mail, Order, engine, sessions

app = Tenure(DATABASE_URL)


class OrderPlaced(BaseModel):
    id: int
    customer: str
    cents: int


class Charge(BaseModel):
    order: int
    reference: str


@app.lifespan
@asynccontextmanager
async def tables() -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


@app.on_failure
async def tell_support(failure: Failure) -> None:
    async with sessions.begin() as session:
        session.add(Mail(text=f"{failure.type}: {failure.exception!r}, final: {failure.final}"))


@app.job(queue="money", max_retries=5, permanent=(ValueError,))
async def charge_card(order: OrderPlaced) -> Charge:
    if order.cents <= 0:
        raise ValueError("nothing to charge")
    async with sessions.begin() as session:
        row = await session.get_one(Order, order.id)
        row.state = "charged"
    await send_receipt.options(idempotency_key=f"receipt-{order.id}").enqueue_async(order.id)
    return Charge(order=order.id, reference=f"C-{order.id}")


@app.job
async def send_receipt(order: int) -> None:
    async with sessions.begin() as session:
        session.add(Mail(text=f"receipt for order {order}"))


@app.job
async def ask_model(context: JobContext, question: str) -> str:
    if context.attempt == 1:
        raise RetryAfter(0.05)  # 429 Too Many Requests, Retry-After: 0.05
    if context.token == 2:
        raise Snooze(0.05)  # no quota left: as if nothing had happened
    return f"{question} {context.attempt} {context.token}"


@app.job(queue="imports")
async def import_rows(context: JobContext, rows: int) -> int:
    for row in range(rows):
        context.progress(row, total=rows)
        await asyncio.sleep(0.02)
    return rows
