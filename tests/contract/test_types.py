"""The table of types: who writes into it what, and what is read from it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tenure import Tenure
from tenure.app.queues import Types
from tenure.errors import Forbidden
from tenure.retry import RetryPolicy
from tenure.rules.jobs import NewJob, TypeOptions
from tenure.rules.stats import TypeState
from tenure.store.tables import types
from tests.support.store import StoreHarness

DAY = 86_400
MAIL = TypeOptions(
    queue="mail", priority=-3, max_retries=5, timeout=2.5, backoff=RetryPolicy(base=0.25, cap=60)
)
OWN = ("mail", "post.*")
"""What a token is for."""


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


def test_one_tenant_pushes_out_no_type_of_others(
    harness: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of those that are added by name would get the usual options."""
    monkeypatch.setattr(types, "MAX_TYPES", 4)
    monkeypatch.setattr(types, "MAX_OF_QUEUES", 2)
    declare(harness, everybodys=MAIL)
    declare(harness, ("mail",), theirs=MAIL)
    for number in range(5):
        harness.clock.advance(1)
        declare(harness, OWN, **{f"own{number}": MAIL})
    assert list(known(harness)) == ["everybodys", "own3", "own4", "theirs"]


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
    declare(harness, OWN, send=MAIL)
    declare(harness, bill=TypeOptions(queue="billing"))
    declare(harness, OWN, send=TypeOptions(queue="post.a"))
    for other in ({"send": TypeOptions(queue="billing")}, {"bill": TypeOptions(queue="mail")}):
        with pytest.raises(Forbidden):
            declare(harness, OWN, **other)
    assert (known(harness)["send"].queue, known(harness)["send"].queues) == ("post.a", OWN)
    assert (known(harness)["bill"].queue, known(harness)["bill"].queues) == ("billing", None)


def test_a_caller_for_some_queues_changes_no_type_of_more_queues(harness: StoreHarness) -> None:
    """A tenant could give a timeout of 10 ms to jobs of another one, or of everybody."""
    hostile = TypeOptions(queue="mail", timeout=0.01)
    declare(harness, send=MAIL)
    declare(harness, OWN, send=MAIL)  # which changes nothing
    with pytest.raises(Forbidden, match="has declared this type"):
        declare(harness, OWN, send=hostile)
    assert (known(harness)["send"].timeout, known(harness)["send"].queues) == (2.5, None)

    declare(harness, OWN, other=MAIL)
    with pytest.raises(Forbidden):
        declare(harness, ("mail",), other=hostile)
    declare(harness, ("mail", "post.*", "z"), other=hostile)  # has the right to all of them
    assert known(harness)["other"].queues == ("mail", "post.*", "z")
    declare(harness, other=hostile)
    assert known(harness)["other"].queues is None


def test_a_type_that_is_paused_before_it_is_declared_is_nobodys(harness: StoreHarness) -> None:
    """No token for some queues could ever declare it, as if one for all had."""
    with Tenure(harness.url) as app:
        app.types.pause("send")
        assert app.enqueue("send").queue == "default"
        declare(harness, OWN, send=MAIL)
        send = known(harness)["send"]
        assert (send.timeout, send.queues, send.paused_at is None) == (2.5, OWN, False)


def test_options_count_in_the_queues_of_the_token_that_declared_them(harness: StoreHarness) -> None:
    declare(harness, OWN, send=MAIL)
    declare(harness, OWN, plain=TypeOptions(queue="post.b", timeout=3.0))
    timeouts = {None: 2.5, "mail": 2.5, "post.a": 2.5, "post": None, "mails": None}
    with Tenure(harness.url) as app:
        for queue, timeout in timeouts.items():
            options: Any = {"queue": queue} if queue else {}
            assert app.enqueue("send", **options).timeout == timeout, queue
        several = [NewJob("send", {}, {"queue": queue}) for queue in ("mail", "billing")]
        assert [job.timeout for job in app.enqueue_many(several)] == [2.5, None]
        foreign = app.enqueue("send", queue="billing")
        assert (foreign.priority, foreign.max_retries, foreign.backoff) == (0, 10, RetryPolicy())


def test_a_list_for_some_queues_names_no_pattern_of_others(harness: StoreHarness) -> None:
    declare(harness, ("mail", "secret.*"), send=MAIL)
    with Tenure(harness.url) as app:
        (send,) = Types(app.core.limited_to(("mail",))).list()
        assert (send.name, send.queues) == ("send", ("mail",))
        assert app.types.list()[0].queues == ("mail", "secret.*")


def test_a_list_for_some_of_the_queues_of_a_type_names_these(harness: StoreHarness) -> None:
    """It named none, as if the options counted in no queue of the token."""
    declare(harness, OWN, send=MAIL, parcel=TypeOptions(queue="post.b"))
    with Tenure(harness.url) as app:
        own = Types(app.core.limited_to(("mail", "post.b", "z"))).list()
        assert {type.name: type.queues for type in own} == dict.fromkeys(
            ("parcel", "send"), ("mail", "post.b")
        )
