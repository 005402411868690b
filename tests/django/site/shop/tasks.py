"""Tasks of the site."""

import asyncio
import os
import signal
import time
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.db import connection, transaction

from shop.caches import closed
from shop.models import Order
from shop.task_api import task
from tenure import RetryAfter, Snooze
from tenure.contrib.django import app


@task
def ship(number: int, by: int = 1) -> dict[str, int]:
    """Ship an order."""
    order = Order.objects.get(number=number)
    order.shipped += by
    order.save()
    return {"shipped": order.shipped}


@task
async def ship_async(number: int) -> int:
    """Ship an order with Django's asynchronous queries."""
    order = await Order.objects.aget(number=number)
    order.shipped += 1
    await order.asave()
    return order.shipped


@task
def fail() -> None:
    """Fail."""
    raise ValueError("no such order")


@task
def ship_once(number: int, dies: str = "", fails: bool = False) -> int:
    """Ship an order; an atomic task by OPTIONS. Its worker `dies` once, before or after commit."""
    order = Order.objects.get(number=number)
    order.shipped += 1
    order.save()
    if fails:
        raise ValueError("undo it")
    if dies and not os.path.exists(dies):  # noqa: PTH110
        with open(dies, "w"):  # noqa: PTH123
            pass
        if dies.endswith("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return order.shipped


@task
def ship_slowly(number: int, seconds: float) -> int:
    """Ship an order in a transaction that lasts; atomic by OPTIONS."""
    order = Order.objects.get(number=number)
    time.sleep(seconds)
    order.shipped += 1
    order.save()
    return order.shipped


@task(takes_context=True)
def tell(context: Any, what: str) -> Any:
    """Return something of the context."""
    job, result = context.job, context.task_result
    return {
        "attempt": context.attempt,
        "ids": [job.id == result.id, result.status],
        "connection": id(connection.connection),
    }[what]


@task
def odd(kind: str) -> Any:
    """End in an unusual way."""
    if kind == "exit":
        raise SystemExit(3)
    if kind == "snooze":
        raise Snooze("1h")
    if kind == "snoozes":
        raise ExceptionGroup("of two tasks", [Snooze("1h"), Snooze("2h")])
    if kind == "again":
        raise RetryAfter(0)
    return {1, 2}


@task
def flaky(path: str) -> int:
    """Fail until there are three lines in a file."""
    with open(path, "a+") as file:  # noqa: PTH123
        file.write("once\n")
        file.seek(0)
        if (times := len(file.readlines())) < 3:
            raise ConnectionError(times)
    return times


@task
def broken() -> None:
    """Leave the connection of this thread unusable, as a restart of the database does."""
    connection.ensure_connection()
    connection.connection.close()
    Order.objects.count()


@task
def session() -> int:
    """Return the session of PostgreSQL that the connection of this thread has."""
    connection.ensure_connection()
    return connection.connection.info.backend_pid


@task
def apart(end: str = "") -> list[int]:
    """Return of which process this is a child, which one it is, and what it still has open."""
    if end == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "raises":
        raise ValueError
    if end == "times out":
        time.sleep(30)
    caches["default"].set("a", 1)
    connection.ensure_connection()
    session = connection.connection.info.backend_pid if connection.vendor != "sqlite" else 0
    return [os.getppid(), os.getpid(), session, len(closed)]


@task
def hosts() -> list[str]:
    """Return which hosts may be called: Django's tests add one. Runs in a child process."""
    return list(settings.ALLOWED_HOSTS)


@task
def wait(path: str) -> None:
    """Say that it runs, and run until the file is gone."""
    with open(path, "w"):  # noqa: PTH123
        pass
    while os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)


@task
async def linger() -> None:
    """Take half a minute."""
    await asyncio.sleep(30)


@app.job
def count_orders(least: int) -> int:
    """Count orders: a job type of Tenure beside the tasks of Django."""
    return Order.objects.filter(shipped__gte=least).count()
