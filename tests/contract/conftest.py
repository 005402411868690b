"""Every test here runs once against each engine and ends with an audit of what it left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenure.store import open_store
from tests.clock import Clock
from tests.contract import zoo
from tests.contract.desk import Desk
from tests.raw import Raw


@pytest.fixture
def unaudited_desk(database_url: str) -> Iterator[Desk]:
    """A desk whose data may be broken at the end."""
    store = open_store(database_url)
    clock = Clock(database_url)
    raw = Raw(database_url)
    try:
        yield Desk(store, clock, raw)
    finally:
        store.close()
        clock.close()
        raw.close()


@pytest.fixture
def desk(unaudited_desk: Desk) -> Iterator[Desk]:
    """A desk whose data must obey every invariant at the end."""
    yield unaudited_desk
    assert unaudited_desk.store.read.violations(10) == []


@pytest.fixture
def ids(desk: Desk) -> dict[str, str]:
    """A job in every situation (`zoo.SITUATIONS`): its name -> the id."""
    return zoo.fill(desk)
