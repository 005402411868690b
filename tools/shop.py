"""The shop whose jobs are on the pictures of the documentation: see tools/pictures.py.

What a job does follows from its payload, so every run shows the same mix: most succeed, some
e-mails fail at first, some cards are declined for good, and reports of one month meet a fault.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from tenure import JobContext, NewJob, PermanentFailure, Tenure
from tenure.rules.jobs import Options

app = Tenure(os.environ["TENURE_DATABASE"])
work = asyncio.sleep
"""What takes time. The past is played without waiting for it."""
BROKEN_MONTH = "2026-10"
NAMES = ("mia", "noah", "lena", "finn", "emma", "luca", "ida", "jonas")
TEMPLATES = ("order_confirmed", "order_shipped", "password_reset", "invoice")


class CardDeclined(PermanentFailure):
    """The bank says no; it will say no again."""


@app.job(queue="mail", max_retries=5)
async def send_email(context: JobContext, to: str, template: str, order: int) -> str:
    await work(0.2 + order % 7 / 10)
    if order % 23 == 0 and context.attempt == 1:
        raise ConnectionResetError("smtp.example.com closed the connection")
    return f"250 queued as {order:x}"


@app.job(queue="billing", max_retries=8)
async def charge_card(context: JobContext, order: int, cents: int) -> dict[str, Any]:
    await work(0.4 + order % 5 / 5)
    if order % 29 == 0:
        raise CardDeclined(f"insufficient_funds for order {order}")
    if order % 17 == 0 and context.attempt < 3:
        raise TimeoutError("payments.example.com did not answer within 10 s")
    return {"charged": cents, "currency": "EUR"}


@app.job(queue="imports", timeout="5m")
async def import_orders(marketplace: str, page: int) -> int:
    await work(4 + page % 7)
    return 40 + page % 9


@app.job(queue="media")
async def resize_image(path: str, width: int) -> str:
    await work(0.3 + width / 2_000)
    return path.replace(".jpg", f"-{width}.webp")


@app.job(queue="reports", backoff="1s")
async def render_report(month: str, country: str) -> str:
    await work(1.5 + len(country))
    rates = {"DE": 19, "FR": 20, "AT": 20} if month != BROKEN_MONTH else {"DE": 19}
    return f"reports/{month}-{country}-{rates[country]}.pdf"


def new_job(number: int) -> NewJob:
    """The job number `number` of an endless, always equal stream of them."""
    order = 10_000 + number
    name = NAMES[number % len(NAMES)]
    exchange = number % 20
    if exchange in (3, 13):
        payload: dict[str, Any] = {
            "marketplace": ("amazon", "otto")[number % 2],
            "page": number // 20,
        }
        return NewJob("import_orders", payload, {"queue": "imports"})
    if exchange == 17:
        month = BROKEN_MONTH if number % 7 == 0 else "2026-11"
        payload = {"month": month, "country": ("DE", "FR", "AT")[number // 20 % 3]}
        return NewJob("render_report", payload, {"queue": "reports", "backoff": 1})
    if exchange % 4 == 1:
        options: Options = {"queue": "billing", "max_retries": 8, "priority": -10}
        return NewJob("charge_card", {"order": order, "cents": 990 + 250 * exchange}, options)
    if exchange % 4 == 2:
        payload = {"path": f"products/{order}.jpg", "width": (320, 640, 1280)[number % 3]}
        return NewJob("resize_image", payload, {"queue": "media"})
    payload = {"to": f"{name}@example.com", "template": TEMPLATES[number // 3 % 4], "order": order}
    return NewJob("send_email", payload, {"queue": "mail", "max_retries": 5})
