"""The table of types: who writes into it what, and what is read from it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tenure import Tenure
from tenure.errors import Forbidden
from tenure.jobs.enqueue import TypeOptions
from tenure.jobs.stats import TypeState
from tenure.retry import RetryPolicy
from tenure.store.tables import types
from tests.support.store import StoreHarness

DAY = 86_400
MAIL = TypeOptions(
    queue="mail", priority=-3, max_retries=5, timeout=2.5, backoff=RetryPolicy(base=0.25, cap=60)
)


def declare(harness: StoreHarness, queues: tuple[str, ...] | None = None, **named: Any) -> None:
    """Start a program with these handlers, closed at once; it may have a token for some queues."""
    with Tenure(harness.url) as app:
        core = app.core if queues is None else app.core.limited_to(queues)
        core.declare(named)


def known(harness: StoreHarness) -> dict[str, TypeState]:
    return types.every(harness.store.read)


def test_what_is_declared_is_known(harness: StoreHarness) -> None:
    declare(harness, send=MAIL, plain=TypeOptions())

    send, plain = known(harness)["send"], known(harness)["plain"]
    assert send == TypeState(
        name="send",
        seen_at=harness.clock.now,
        queue="mail",
        priority=-3,
        max_retries=5,
        timeout=2.5,
        backoff=RetryPolicy(base=0.25, cap=60),
    )
    assert (plain.queue, plain.timeout, plain.backoff) == ("default", None, RetryPolicy())


@pytest.mark.parametrize(
    "changed",
    [
        TypeOptions(queue="letters"),
        TypeOptions(queue="mail", priority=1),
        TypeOptions(queue="mail", max_retries=0),
        TypeOptions(queue="mail", timeout=1.0),
        TypeOptions(queue="mail", backoff=RetryPolicy(base=9)),
    ],
)
def test_each_option_that_differs_is_written(harness: StoreHarness, changed: TypeOptions) -> None:
    declare(harness, send=TypeOptions(queue="mail"))
    declare(harness, send=changed)
    send = known(harness)["send"]
    assert all(
        getattr(send, name) == getattr(changed, name) for name in TypeOptions.__struct_fields__
    )


def test_only_what_differs_is_written(harness: StoreHarness) -> None:
    declare(harness, send=MAIL, other=MAIL)
    first = harness.clock.now
    harness.clock.advance(DAY)
    declare(harness, send=MAIL, other=TypeOptions(queue="mail"))
    assert known(harness)["send"].seen_at == first
    assert known(harness)["other"].seen_at == harness.clock.now

    harness.clock.advance(0.001)
    declare(harness, send=MAIL)
    assert known(harness)["send"].seen_at == harness.clock.now


def test_the_types_seen_last_are_kept(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(types, "MAX_TYPES", 2)
    for name in ("a", "b", "c"):
        declare(harness, **{name: MAIL})
        harness.clock.advance(1)
    assert list(known(harness)) == ["b", "c"]


NOT_ALLOWED = {
    "letter": "queue = 'no name'",
    "hook": "queue = 'tenure.webhook.x'",
    "urgent": "priority = 101",
    "once": "max_retries = -1",
    "short": "timeout = 0",
}


def test_options_that_no_job_may_have_do_not_count(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    """Else one row that SQL wrote would refuse every enqueue of its type."""
    declare(harness, **dict.fromkeys([*NOT_ALLOWED, "other"], MAIL))
    table = "tenure_type" if harness.sql.engine == "sqlite" else "tenure.type"
    for name, change in NOT_ALLOWED.items():
        harness.sql.run(f"UPDATE {table} SET {change} WHERE name = ?", name)
    assert list(known(harness)) == ["other"]
    with Tenure(harness.url) as app:
        for name in NOT_ALLOWED:
            with subtests.test(name):
                assert app.enqueue(name).queue == "default"


def test_a_type_that_changes_its_queue_is_warned_of(
    harness: StoreHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """B4: jobs of the type would lie in a queue that no worker takes from."""
    with caplog.at_level(logging.WARNING):
        declare(harness, send=MAIL)
        declare(harness, send=MAIL, other=MAIL)
        declare(harness, send=TypeOptions(queue="mail"))
        assert caplog.messages == []
        declare(harness, send=TypeOptions(queue="letters"))
    (warning,) = caplog.messages
    assert warning.startswith("jobs of type send went to queue mail, and go to letters from now on")


def test_a_caller_for_some_queues_declares_their_types_only(harness: StoreHarness) -> None:
    declare(harness, send=MAIL, bill=TypeOptions(queue="billing"))
    declare(harness, ("mail", "post.*"), send=TypeOptions(queue="post.a"))
    for other in ({"send": TypeOptions(queue="billing")}, {"bill": TypeOptions(queue="mail")}):
        with pytest.raises(Forbidden):
            declare(harness, ("mail", "post.*"), **other)
    assert known(harness)["send"].queue == "post.a"
    assert known(harness)["bill"].queue == "billing"
