"""Child processes in a test: where a worker has them, if the test asks for them."""

from __future__ import annotations

import os

import pytest

from tenure import InvalidInput, Tenure, testing
from tenure.rules.reports import ClaimRequest
from tests.testing import handlers
from tests.testing.conftest import transaction


@pytest.fixture
def found(nowhere: Tenure) -> Tenure:
    """An application whose handlers a child process finds."""
    nowhere.core.take_over(handlers.app.core)
    return nowhere


def test_handlers_run_in_child_processes_only_if_the_test_asks(found: Tenure) -> None:
    with testing.on(found) as jobs:
        adds = [found.enqueue(name) for name in ("process", "plain")]
        jobs.drain()
        assert [found.get(job.id).result for job in adds] == [os.getpid()] * 2
        adds = [found.enqueue(name) for name in ("process", "plain")]
        assert jobs.drain(real_processes=True).completed == 2
        assert [found.get(job.id).result == os.getpid() for job in adds] == [False, True]


@pytest.mark.anyio
async def test_coroutines_of_a_test_may_ask_too(found: Tenure) -> None:
    with testing.on(found) as jobs:
        job = await found.enqueue_async("process")
        await jobs.drain_async(real_processes=True)
        assert found.get(job.id).result != os.getpid()


def test_the_attempt_after_a_dead_worker_has_a_child_process(found: Tenure) -> None:
    with testing.on(found) as jobs:
        job = found.enqueue("plain")
        found.core.claim(ClaimRequest(worker="dead", limit=1, lease_seconds=30.0))
        jobs.travel("1m")
        jobs.drain(retries=True, real_processes=True)
        assert found.get(job.id).result not in (None, os.getpid())


def test_a_child_process_that_does_not_start_ends_the_test(
    found: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers.process.handler.function, "__module__", "deleted")
    with testing.on(found) as jobs:
        job = found.enqueue("process")
        with pytest.raises(RuntimeError, match=rf"job {job.id} \(process\) cannot be started"):
            jobs.drain(real_processes=True)
        assert found.get(job.id).event == "released"
        assert found.verify() == []


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_transaction_of_a_test_has_no_child_processes(
    found: Tenure, engine: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{engine}_url")
    with transaction(url) as connection, testing.within(found, connection) as jobs:
        found.enqueue("process")
        with pytest.raises(InvalidInput, match="does not see the transaction"):
            jobs.drain(real_processes=True)
        assert jobs.drain().completed == 1
