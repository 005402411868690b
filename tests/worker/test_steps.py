"""Steps, sleep and checkpoints in workers: what a job remembers across its attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenure import JobContext, Tenure
from tests.support.workers import (
    running_worker,
    wait_until_completed,
)


def charge(amount: int, calls: list[Any]) -> tuple[int, str]:
    calls.append(amount)
    return amount, "eur"


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_step_is_done_once_in_all_attempts(app_on_each_engine: Tenure, kind: str) -> None:
    app = app_on_each_engine
    calls: list[Any] = []
    seen: list[Any] = []

    def order(context: JobContext) -> None:
        seen.extend(context.step(f"charge:{n}", charge, n, calls) for n in range(2))
        seen.append(context.step("nothing", lambda: None))
        if context.attempt < 3:
            raise ValueError("later")

    async def order_async(context: JobContext) -> None:
        for n in range(2):
            thread = context.step_async(f"charge:{n}", asyncio.to_thread, charge, n, calls)
            seen.append(await thread)
        seen.append(await context.step_async("nothing", asyncio.sleep, 0))
        if context.attempt < 3:
            raise ValueError("later")

    app.job(name="order", backoff=0)(order_async if kind == "coroutine" else order)
    with running_worker(app):
        job = wait_until_completed(app, app.enqueue("order"))
    assert calls == [0, 1]
    assert len(seen) == 9
    assert seen[:3] == seen[3:6] == seen[6:]
    assert job.attempts == 3
    assert app.verify() == []
