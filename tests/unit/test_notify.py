"""Who is notified of work, and of what came before."""

from __future__ import annotations

import pytest

from tenure.store import notify
from tenure.store.notify import Notifier


def test_who_begins_to_wait_learns_of_work_just_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker claims, finds nothing, and subscribes: a job added in between must not wait."""
    notifier = Notifier(lambda notify, stop: None)
    told: list[str] = []
    notifier.subscribe(lambda: told.append("nothing came yet"))()
    notifier.notify()
    notifier.subscribe(lambda: told.append("first"))()
    notifier.notify(None)
    notifier.subscribe(lambda: told.append("second"))()
    notifier.subscribe(lambda: told.append("a worker, of its cancels"), "w1")()
    monkeypatch.setattr(notify, "RECENT_SECONDS", 0.0)
    notifier.subscribe(lambda: told.append("too late"))()
    notifier.close()
    assert told == ["first", "second"]


def test_a_cancel_is_no_work() -> None:
    notifier = Notifier(lambda notify, stop: None)
    told: list[str] = []
    notifier.notify("w1")
    notifier.subscribe(lambda: told.append("work"))()
    notifier.close()
    assert told == []
