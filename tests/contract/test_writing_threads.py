"""The threads that write continue, whatever goes wrong in them."""

from __future__ import annotations

from typing import Any

import pytest

from tenure.errors import StoreUnavailable
from tests.support.store import StoreHarness
from tests.support.waiting import WAIT_SECONDS


def fail(_: Any) -> Any:
    raise ZeroDivisionError("a fault")


def leave(_: Any) -> Any:
    raise SystemExit


def test_a_fault_beside_a_transaction_ends_no_thread(
    harness: StoreHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread ended unsaid, and what was written later waited for ever."""
    assert harness.store.write("a", lambda _: 7, brings=fail).result(WAIT_SECONDS) == 7
    assert harness.store.write("b", lambda _: 8).result(WAIT_SECONDS) == 8
    assert harness.store.write("c", lambda _: 9, brings=fail).result(WAIT_SECONDS) == 9
    assert harness.store.write("d", lambda _: 10).result(WAIT_SECONDS) == 10
    (said,) = [record for record in caplog.records if record.exc_info]  # of two that are the same
    assert "a fault" in caplog.text
    assert said.levelname == "ERROR"


def test_what_ends_no_program_ends_no_transaction_either(harness: StoreHarness) -> None:
    """Who waits gets an error, and the transaction is undone."""
    with pytest.raises(StoreUnavailable, match="SystemExit"):
        harness.store.write("a", leave).result(WAIT_SECONDS)
    assert harness.store.write("b", lambda _: 8).result(WAIT_SECONDS) == 8
