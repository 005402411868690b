"""The page and the API of the shop."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from sqlalchemy import select
from starlette.types import Scope

from examples.fastapi_shop.data import Mail, Order, Session, make_tables
from examples.fastapi_shop.jobs import (
    OrderPlaced,
    ask_model,
    charge_card,
    load_part,
    queue,
    say_that_it_failed,
    send_receipt,
    sum_up,
    sync_customer,
)
from tenure.server import build

WORKER = os.environ.get("SHOP_WORKER", "inside")
"""`inside`, or `apart`: `tenure worker --app examples.fastapi_shop.jobs:queue` runs the jobs."""
PASSWORD = os.environ.get("SHOP_PASSWORD") or secrets.token_urlsafe(9)
PAGE = Path(__file__).with_name("page.html").read_text("utf-8")
logins: dict[str, str] = {}


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if WORKER == "inside":
            await stack.enter_async_context(queue.running(concurrency=8, grace=5))
        else:
            await queue.open_async()
            await make_tables()
        yield


web = FastAPI(title="A shop", lifespan=lifespan)


@web.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


class NewOrder(BaseModel):
    customer: str
    cents: int


@web.post("/orders", status_code=201)
async def place_order(new: NewOrder, session: Session) -> dict[str, int | str]:
    order = Order(customer=new.customer, cents=new.cents)
    session.add(order)
    await session.flush()  # it has its id
    placed = OrderPlaced(id=order.id, customer=new.customer, cents=new.cents)
    charge = await charge_card.within(session).enqueue_async(placed)
    await send_receipt.within(session).options(depends_on=[charge]).enqueue_async(order.id)
    if new.cents > 1_000_000:
        raise HTTPException(402, "too much")  # no order and no jobs
    return {"order": order.id, "job": charge.id}


@web.get("/orders")
async def orders(session: Session) -> list[dict[str, Any]]:
    found = await session.scalars(select(Order).order_by(Order.id.desc()).limit(10))
    return [{"id": one.id, "customer": one.customer, "state": one.state} for one in found]


@web.get("/mails")
async def mails(session: Session) -> list[str]:
    return list(await session.scalars(select(Mail.text).order_by(Mail.id.desc()).limit(10)))


@web.post("/answers")
async def answer(question: str) -> dict[str, str]:
    asked = await ask_model.submit_async(question)
    return {"job": asked.id, "answer": await asked.result_async(timeout="30s")}


@web.post("/imports", status_code=202)
async def start_import(rows: int = 60) -> dict[str, str]:
    name = f"import-{secrets.token_hex(4)}"
    load = load_part.options(tags=[name])
    flow = await queue.batch_async(
        [load.new_job(number, rows) for number in range(50)],
        on_success=sum_up.new_job(),
        on_failure=say_that_it_failed.new_job(name),
        name="import",
        key=name,
    )
    return {"import": name, "workflow": flow.id, "summary": flow.nodes[50].id}


@web.get("/imports/{workflow}")
async def show_import(workflow: str) -> dict[str, Any]:
    found = await queue.workflows.get_async(workflow)
    done = (await queue.count_async(type="load_part", workflow=workflow, status="completed")).jobs
    return {"status": found.status, "done": done, "total": 50}


@web.delete("/imports/{name}", status_code=204)
async def stop_import(name: str) -> None:
    await queue.cancel_async(tag=name, reason="the owner pressed stop")


@web.post("/customers/{customer}/sync", status_code=202)
async def sync(customer: str) -> dict[str, str]:
    return {"job": (await sync_customer.enqueue_async(customer)).id}  # the same one while it runs


@web.get("/jobs/{id}")
async def show_job(id: str) -> dict[str, Any]:
    job = await queue.get_async(id)
    progress = await queue.progress_async(id)
    return {
        "status": job.status,
        "result": job.result,
        "done": progress.done if progress else 0,
        "total": progress.total if progress else None,
        "message": progress.message if progress else "",
    }


# --- the dashboard, for who is logged in


class Login(BaseModel):
    password: str


@web.post("/login", status_code=204)
async def login(given: Login, response: Response) -> None:
    if not secrets.compare_digest(given.password.encode(), PASSWORD.encode()):
        raise HTTPException(401)
    token = secrets.token_urlsafe()
    logins[token] = "owner"
    response.set_cookie("shop", token, httponly=True, samesite="strict")


async def authorize(scope: Scope) -> tuple[str, list[str]] | None:
    user = logins.get(Request(scope).cookies.get("shop", ""))
    return (user, ["admin"]) if user else None


web.mount("/admin/queue", build(queue, authorize=authorize))
