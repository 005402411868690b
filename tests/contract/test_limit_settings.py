"""Limits of queues and partitions: they are set, read, changed in part and removed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tenure import Tenure
from tenure.app.app import limited_to
from tenure.errors import Forbidden, InvalidInput, LimitConflict
from tenure.rules.queues import Limits, PerPartition
from tenure.rules.stats import QueueState
from tests.support.clock import Clock
from tests.support.raw_sql import RawSql

ROWS = "SELECT count(*) FROM {queue_limit}"
PARTITIONS = "SELECT count(*) FROM {partition_limit}"


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Tenure:
    return app_on_each_engine


@pytest.fixture
def raw(app: Tenure) -> Iterator[RawSql]:
    app.open()
    raw = RawSql(app.database)
    yield raw
    raw.close()


def state(app: Tenure, queue: str = "sync") -> QueueState:
    (found,) = [each for each in app.queues.list() if each.name == queue]
    return found


def test_limits_are_read_as_they_were_set(app: Tenure) -> None:
    per = PerPartition(max_running=2, rate="10/1s", burst=3)
    app.queues.limit("sync", max_pending=9, max_running=50, rate="900/m", per_partition=per)
    found = state(app)
    assert found.max_pending == 9
    assert found.limits == Limits(50, "900/1m", 90, per, None)
    assert (found.running, found.resume_at) == (0, None)
    app.queues.limit("plain", max_pending=1)
    assert (state(app, "plain").limits, state(app, "plain").running) == (None, None)


def test_what_is_not_given_stays(app: Tenure) -> None:
    app.queues.limit("sync", max_pending=9, max_running=5, rate="20/1h", burst=7)
    app.queues.limit("sync", max_running=6)
    assert (state(app).limits, state(app).max_pending) == (Limits(6, "20/1h", 7), 9)
    app.queues.limit("sync", burst=2)
    assert state(app).limits == Limits(6, "20/1h", 2)
    app.queues.limit("sync", rate="40/1h")
    assert state(app).limits == Limits(6, "40/1h", 4)  # of a new rate
    app.queues.limit("sync", max_running=None, max_pending=None)
    assert (state(app).limits, state(app).max_pending) == (Limits(None, "40/1h", 4), None)


def test_an_ordered_queue_is_divided_and_stays_so(app: Tenure) -> None:
    app.queues.limit("sync", ordered="halt")
    assert state(app).limits == Limits(per_partition=PerPartition(), ordered="halt")
    app.queues.limit("sync", ordered=None)
    assert state(app).limits == Limits(per_partition=PerPartition())
    app.queues.limit("sync", ordered="pass", per_partition=None)
    assert state(app).limits == Limits(per_partition=PerPartition(), ordered="pass")


def test_a_queue_without_limits_has_no_row(app: Tenure, raw: RawSql) -> None:
    app.queues.limit("sync", max_running=5, per_partition=PerPartition())
    app.queues.limit("sync", max_running=None)
    assert raw.value(ROWS) == 1
    app.queues.limit("sync", per_partition=None)
    assert raw.value(ROWS) == 0
    assert state(app).limits is None


def test_a_queue_that_plain_sql_has_limited_is_listed(app: Tenure, raw: RawSql) -> None:
    raw.run("INSERT INTO {queue_limit} (queue, max_running) VALUES ('raw', 3)")
    assert state(app, "raw").limits == Limits(3)


NO_LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"max_running": -1}, "$.max_running"),
    ({"max_running": 2**31}, "$.max_running"),
    ({"max_running": True}, "$.max_running"),
    ({"max_pending": -1}, "$.max_pending"),
    ({"rate": "many"}, "$.rate"),
    ({"burst": 3}, "$.burst"),
    ({"rate": "5/1m", "burst": 6}, "$.burst"),
    ({"per_partition": {"max_running": 2}}, "$.per_partition"),
    ({"ordered": "fifo"}, "$.ordered"),
    ({"ordered": ["halt"]}, "$.ordered"),
]


def test_a_limit_that_is_none_changes_nothing(
    app: Tenure, raw: RawSql, subtests: pytest.Subtests
) -> None:
    for given, path in NO_LIMITS:
        with subtests.test(str(given)):
            with pytest.raises(InvalidInput) as caught:
                app.queues.limit("sync", **{"max_pending": 1, **given})
            assert caught.value.path == path
            assert raw.value(ROWS) == 0
            assert app.queues.list() == []


def test_a_limit_of_a_partition_needs_a_valid_name_and_number(app: Tenure) -> None:
    limit = app.queues.limit_partition
    for given, path in (
        ({"weight": 0}, "$.weight"),
        ({"weight": 1001}, "$.weight"),
        ({"max_running": -1}, "$.max_running"),
        ({"partition": "x" * 129}, "$.partition"),
        ({"partition": "a\nb"}, "$.partition"),
        ({"partition": None}, "$.partition"),
        ({"queue": "a b"}, "$.queue"),
    ):
        with pytest.raises(InvalidInput) as caught:
            limit(**{"queue": "sync", "partition": "acme", **given})
        assert caught.value.path == path


def test_partitions_are_limited_paused_and_resumed(app: Tenure, raw: RawSql) -> None:
    columns = "SELECT max_running, weight, paused_by, pause_reason, paused_at IS NULL"
    app.queues.limit("sync", per_partition=PerPartition())
    read = columns + " FROM {partition_limit} WHERE queue = 'sync' AND partition = ?"
    app.queues.limit_partition("sync", "acme", weight=4)
    app.queues.limit_partition("sync", "acme", max_running=0)
    app.queues.pause_partition("sync", "acme", actor="ada", reason="too many")
    app.queues.pause_partition("sync", "acme", actor="bob")  # it is paused already
    app.queues.pause_partition("sync", "")
    rows = [tuple(raw.run(read, partition)[0]) for partition in ("acme", "")]
    assert [(*row[:4], not row[4]) for row in rows] == [
        (0, 4, "ada", "too many", True),
        (None, None, app.core.actor, None, True),
    ]
    raw.run("UPDATE {partition_limit} SET resume_at = paused_at")
    app.queues.resume_partition("sync", "acme", actor="bob")
    assert raw.value("SELECT count(*) FROM {partition_limit} WHERE resume_at IS NULL") == 1
    app.queues.limit_partition("sync", "acme", weight=None)
    (row,) = raw.run(read, "acme")
    assert (*row[:4], bool(row[4])) == (0, None, "bob", None, True)


def test_where_partitions_take_no_turns_none_is_paused_or_limited(app: Tenure, raw: RawSql) -> None:
    """It was taken, listed as paused, and its jobs ran."""
    queues = app.queues
    for others in ({}, {"max_running": 1}):
        queues.limit("sync", **others)
        for call in (
            lambda: queues.pause_partition("sync", "acme"),
            lambda: queues.limit_partition("sync", "acme", max_running=0),
            lambda: queues.limit_partition("sync", "", weight=4),
        ):
            with pytest.raises(LimitConflict, match="take no turns"):
                call()
        queues.limit_partition("sync", "acme", weight=None, max_running=None)
        queues.resume_partition("sync", "acme")  # what SQL has paused can be put right
        queues.resume_partition("sync", "never-was")
    app.core.store.set_times_right().result()
    assert raw.value(PARTITIONS) == 0


@pytest.mark.parametrize("turns", [{"per_partition": PerPartition()}, {"ordered": "pass"}])
def test_turns_stay_while_a_partition_is_paused(app: Tenure, turns: Any) -> None:
    """Also one that was misspelt, and has no jobs: the refusal names it."""
    queues, none = app.queues, {"per_partition": None, "ordered": None}
    queues.limit("sync", **turns)
    before = state(app).limits
    for name, said in (("acmee", "partition 'acmee'"), ("", "jobs without a partition")):
        queues.pause_partition("sync", name)
        for others in ({}, {"max_running": 3}):
            with pytest.raises(LimitConflict, match=said):
                queues.limit("sync", **none, **others)
        assert state(app).limits == before
        queues.limit("sync", per_partition=PerPartition(max_running=2))
        queues.limit("sync", **{"per_partition": None, **turns})
        queues.resume_partition("sync", name)
    queues.limit("sync", **none)
    assert state(app).limits is None


def test_with_rights_for_some_queues_the_limits_of_others_are_out_of_reach(app: Tenure) -> None:
    app.queues.limit("sync", max_running=1)
    mine = limited_to(app, ("mail",)).queues
    for call in (
        lambda: mine.limit("sync", max_running=2),
        lambda: mine.limit_partition("sync", "a", weight=2),
        lambda: mine.pause_partition("sync", "a"),
        lambda: mine.resume_partition("sync", "a"),
        lambda: mine.pass_over("sync", "a"),
        lambda: mine.partitions("sync"),
    ):
        with pytest.raises(Forbidden):
            call()
    mine.limit("mail", max_running=2, per_partition=PerPartition())
    mine.limit_partition("mail", "a", weight=2)
    assert [each.partition for each in mine.partitions("mail")] == ["a"]
    assert [each.name for each in mine.list()] == ["mail"]
    assert state(app).limits == Limits(1)


def test_a_wait_for_a_rate_limit_outside_is_shown_and_ended(
    app: Tenure, clock: Clock, raw: RawSql
) -> None:
    later = clock.now + timedelta(seconds=30)
    raw.run("INSERT INTO {queue_limit} (queue, resume_at) VALUES ('sync', ?)", raw.time(later))
    assert (state(app).limits, state(app).resume_at) == (Limits(), later)
    app.queues.limit("sync", max_running=2)
    app.queues.limit("sync", max_running=None)
    assert state(app).resume_at == later
    app.queues.resume("sync")
    assert state(app).resume_at is None
    app.core.store.set_times_right().result()
    assert state(app).limits is None


def test_rows_that_limit_nothing_are_deleted(app: Tenure, clock: Clock, raw: RawSql) -> None:
    now = round(clock.now.timestamp() * 10**6)
    app.queues.limit("sync", per_partition=PerPartition(rate="10/1s", burst=2))
    for name, tat in (("used", now + 400_000), ("idle", now - 1)):
        raw.run(
            "INSERT INTO {partition_limit} (queue, partition, tat) VALUES ('sync', ?, ?)", name, tat
        )
    later = raw.time(clock.now + timedelta(seconds=1))
    raw.run(
        "INSERT INTO {partition_limit} (queue, partition, resume_at) VALUES ('sync', 'waits', ?)",
        later,
    )
    app.queues.limit_partition("sync", "heavy", weight=2)
    app.queues.pause_partition("sync", "paused")
    app.queues.limit_partition("sync", "closed", max_running=0)
    tidy = lambda: app.core.store.set_times_right().result()  # noqa: E731
    tidy()
    assert raw.value(PARTITIONS) == 5
    clock.advance(1)
    tidy()
    assert raw.value(PARTITIONS) == 3
    assert raw.value(ROWS) == 1
    app.queues.resume_partition("sync", "paused")
    app.queues.limit("sync", per_partition=None)
    assert raw.value(PARTITIONS) == 3


def test_a_rate_that_a_clock_ahead_has_used_is_set_right(
    app: Tenure, clock: Clock, raw: RawSql
) -> None:
    """An hour back costs what a burst takes, instead of an hour."""
    now = round(clock.now.timestamp() * 10**6)
    hour = now + 3_600 * 10**6
    app.queues.limit("sync", rate="10/1s", burst=2, per_partition=PerPartition(rate="1/10s"))
    app.queues.limit_partition("sync", "a", weight=2)
    raw.run("UPDATE {queue_limit} SET tat = ?", hour)
    raw.run("UPDATE {partition_limit} SET tat = ?", hour)
    app.core.store.set_times_right().result()
    every = -(-(10**6) // 9)
    assert raw.value("SELECT tat FROM {queue_limit}") == now + 2 * every
    assert raw.value("SELECT tat FROM {partition_limit}") == now + 10**7
    raw.run("UPDATE {queue_limit} SET tat = ?", now + 2 * every + 1_999_999)  # a start may be ahead
    app.core.store.set_times_right().result()
    assert raw.value("SELECT tat FROM {queue_limit}") == now + 2 * every + 1_999_999
