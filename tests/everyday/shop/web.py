"""The pages and the API of the shop."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import Scope

from tenure.server import build
from tests.everyday.shop.data import Base, Order, engine, sessions
from tests.everyday.shop.jobs import OrderPlaced, app, ask_model, charge_card, import_rows


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if "WORKER" in os.environ:
            await stack.enter_async_context(app.running(concurrency=4, grace=5))
        else:
            await app.open_async()
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
        yield


async def transaction() -> AsyncIterator[AsyncSession]:
    async with sessions.begin() as session:
        yield session


web = FastAPI(lifespan=lifespan)
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]


@web.post("/orders", status_code=201)
async def place_order(customer: str, cents: int, session: Transaction) -> dict[str, int | str]:
    order = Order(customer=customer, cents=cents)
    session.add(order)
    await session.flush()
    placed = OrderPlaced(id=order.id, customer=customer, cents=cents)
    job = await charge_card.within(session).enqueue_async(placed)
    if customer == "changed her mind":
        raise RuntimeError("this rolls the order and its job back")
    return {"order": order.id, "job": job.id}


@web.get("/answers")
async def answer(question: str) -> dict[str, str]:
    return {"answer": await (await ask_model.submit_async(question)).result_async(timeout="10s")}


@web.post("/imports", status_code=202)
async def start_import(number: int) -> dict[str, str]:
    job = await import_rows.options(tags=[f"import-{number}"]).enqueue_async(5_000)
    return {"job": job.id}


@web.delete("/imports/{number}")
async def stop_import(number: int) -> None:
    await app.cancel_async(tag=f"import-{number}", reason="the user pressed stop")


async def authorize(scope: Scope) -> tuple[str, list[str]] | None:
    headers = dict(scope["headers"])
    return ("ann", ["admin"]) if headers.get(b"x-login") == b"ann" else None


web.mount("/admin/queue", build(app, authorize=authorize))
