"""What idle processes ask of the server, counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenure.store import Store, open_store
from tests.support.store import claim_request, new_job, report_completed
from tests.support.waiting import wait_until
from tests.unit.postgres.connections import Connection


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


def announced(raw: Connection, least: int = 0) -> int:
    """The notifications that have come since the last call, after a wait for some."""
    found = len(list(raw.notifies(timeout=30, stop_after=least))) if least else 0
    return found + len(list(raw.notifies(timeout=0.1)))


def test_only_what_brings_work_is_announced(store: Store, raw: Connection) -> None:
    raw.execute("LISTEN tenure")
    store.add([new_job(max_retries=3) for _ in range(2)]).result()
    assert announced(raw, least=1) == 1
    (first, second) = store.exchange([], claim_request(2)).result().leases
    assert store.sweep().result() == []
    store.exchange([report_completed(first)], None).result()
    store.renew([(second.id, second.lease_id)], 60)
    wait_until(lambda: store.update_stats() > 0, "transitions to be added up")
    assert store.prune({"completed": store.read.clock()}).result() == 1
    assert announced(raw) == 0
    raw.execute(
        "UPDATE tenure.job SET lease_expires_at = tenure.clock() WHERE id = %s", (second.id,)
    )
    assert len(store.sweep().result()) == 1
    assert announced(raw, least=1) == 1
