"""An outage that hits what the handler of a job asks for."""

from __future__ import annotations

from typing import Any

import pytest

from tenure.errors import StoreUnavailable
from tenure.handlers import step_book
from tenure.rules.steps import StepCall
from tenure.store.tables import steps


def lose_one_call(monkeypatch: pytest.MonkeyPatch, kind: type[StepCall]) -> None:
    """Let the database fail at the first call of a kind, which is not asked again."""
    answer, lost = steps.answer, list[StepCall]()

    def answer_later(*args: Any, call: StepCall, **kwargs: Any) -> Any:
        if isinstance(call, kind) and not lost:
            lost.append(call)
            monkeypatch.setattr(step_book, "ASK_SECONDS", -1.0)
            raise StoreUnavailable("the database failed")
        # Other calls may be asked again: a heartbeat can have the job's lock just then.
        monkeypatch.setattr(step_book, "ASK_SECONDS", patience)
        return answer(*args, call=call, **kwargs)

    patience = step_book.ASK_SECONDS
    monkeypatch.setattr(steps, "answer", answer_later)
