"""Tenure's backend with what Django's own two backends have besides, for their tests."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from asgiref.sync import sync_to_async
from django.db import transaction

from tenure.contrib.django import TenureBackend
from tenure.contrib.django.testing import jobs_of
from tenure.testing import Jobs


class Listed(TenureBackend):
    """Keeps a list of what it has enqueued, as `DummyBackend` does."""

    def __init__(self, alias: str, params: Any) -> None:
        super().__init__(alias, params)
        self.results: list[Any] = []

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Add a task and note its result."""
        self.results.append(super().enqueue(task, args, kwargs))
        return self.results[-1]

    def clear(self) -> None:
        """Delete all jobs."""
        self.results.clear()
        with transaction.atomic(using=self.database), jobs_of(self) as jobs:
            jobs.clear(force=True)  # workers of other tests asked


class AtOnce(TenureBackend):
    """Runs a task before `enqueue` returns, as `ImmediateBackend` does, but as a worker does."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Add a task and run it; return its result afterwards."""
        with ExitStack() as stack:
            jobs = self._begin(stack)
            result = super().enqueue(task, args, kwargs)
            jobs.drain(raise_errors=False)
            return self.get_result(result.id)

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Do the same from a coroutine."""
        stack = ExitStack()
        jobs = await sync_to_async(self._begin)(stack)
        try:
            result = await sync_to_async(super().enqueue)(task, args, kwargs)
            await jobs.drain_async(raise_errors=False)
            return await self.aget_result(result.id)
        finally:
            await sync_to_async(stack.close)()

    def _begin(self, stack: ExitStack) -> Jobs:
        stack.enter_context(transaction.atomic(using=self.database))
        return stack.enter_context(jobs_of(self))
