"""An outage that hits what the handler of a job asks for."""

from __future__ import annotations

from typing import Any

import pytest

from tenure.errors import StoreUnavailable
from tenure.jobs import step_book
from tenure.jobs.steps import StepCall
from tenure.store.tables import steps


def lose_one_call(monkeypatch: pytest.MonkeyPatch, kind: type[StepCall]) -> None:
    """Let the database fail at the first call of a kind, which is not asked again."""
    answer, lost = steps.answer, list[StepCall]()

    def answer_later(*args: Any, call: StepCall, **kwargs: Any) -> Any:
        if isinstance(call, kind) and not lost:
            lost.append(call)
            raise StoreUnavailable("the database failed")
        return answer(*args, call=call, **kwargs)

    monkeypatch.setattr(steps, "answer", answer_later)
    monkeypatch.setattr(step_book, "ASK_SECONDS", -1.0)
