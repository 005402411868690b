"""Rules of types and queues: how long their settled jobs are kept, and what a batch looks at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from tenure import Tenure
from tenure.errors import Forbidden, InvalidInput
from tenure.events import Cancelled
from tenure.rules.reports import Duty
from tenure.rules.retention import FOREVER_SECONDS, RetentionRule
from tenure.rules.search import Query
from tenure.store.duties import look
from tenure.webhooks.deliveries import WEBHOOK
from tests.contract.granted_role import also_as_granted_role
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness, new_job, report_completed, report_failed

HOUR = 3_600.0
DAY = 24 * HOUR


@pytest.fixture
def app(harness: StoreHarness) -> Tenure:
    return Tenure(harness.url)


def settle(harness: StoreHarness, *types: str, queue: str = "default") -> None:
    """Complete a job of each type."""
    jobs = harness.add_all(*(new_job(type, queue=queue) for type in types))
    leases = harness.claim(len(jobs))
    harness.report(*map(report_completed, leases))


def prune(harness: StoreHarness, keep: Mapping[str, float], limit: int = 500) -> list[int]:
    """Prune by the rules until nothing is left to do; what each batch answered."""
    harness.measure()
    before = {status: harness.clock.now - timedelta(seconds=age) for status, age in keep.items()}
    batches = []
    while batches[-1:] != [0]:
        batches.append(harness.store.prune(before, limit).result())
    return batches[:-1]


def left(harness: StoreHarness) -> list[str]:
    """The types of the jobs that are there."""
    return sorted(job.type for job in harness.store.read.find(Query(limit=1_000)))


def test_sql_cannot_keep_jobs_for_a_time_that_is_none(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    """No date is so long ago: each batch of retention would fail."""
    add = "INSERT INTO {retention} (subject, name, failed) VALUES ('queue', 'mail', "
    for seconds in ("-1", "315360001", "1e11", "1e400", "1e13"):
        with subtests.test(seconds), pytest.raises(Refused):
            harness.sql.run(f"{add}{seconds})")
    harness.sql.run(f"{add}{FOREVER_SECONDS})")


@also_as_granted_role
def test_a_type_is_kept_for_its_own_time(harness: StoreHarness, app: Tenure) -> None:
    app.retention.set(type="short", completed="1h")
    app.retention.set(type="long", completed="30d")
    app.retention.set(type="always", completed="forever")
    settle(harness, "short", "usual", "long", "always")
    harness.clock.advance(HOUR + 61)
    prune(harness, {"completed": 7 * DAY})
    assert left(harness) == ["always", "long", "usual"]
    harness.clock.advance(7 * DAY)
    prune(harness, {"completed": 7 * DAY})
    assert left(harness) == ["always", "long"]
    harness.clock.advance(30 * DAY)
    prune(harness, {"completed": 7 * DAY})
    assert left(harness) == ["always"]


def test_deliveries_to_webhooks_are_kept_as_an_operator_says(
    harness: StoreHarness, app: Tenure
) -> None:
    """The type was refused as reserved, so that only each queue could have a rule."""
    app.retention.set(type=WEBHOOK, completed="1h")
    queue = "tenure.webhooks.shop"
    harness.add(WEBHOOK, queue=queue)
    harness.report(*map(report_completed, harness.claim(queues=(queue,))))
    settle(harness, "mail")
    harness.clock.advance(HOUR + 61)
    prune(harness, {"completed": DAY})
    assert left(harness) == ["mail"]


def test_the_most_specific_rule_holds(harness: StoreHarness, app: Tenure) -> None:
    """Type before handler, that before queue, that before the setting; for each status alone."""
    app.retention.set(queue="q", completed="2h", failed="3h")
    app.retention.set(type="both", completed="4h")

    @app.job(queue="q", keep_completed="5h", keep_failed="forever")
    def both() -> None: ...

    @app.job(queue="q", keep_completed="3h")
    def coded() -> None: ...

    app.core.declare(app.core.handlers.options())
    assert app.retention.list() == [
        RetentionRule("handler", "both", completed=5 * HOUR, failed=FOREVER_SECONDS),
        RetentionRule("handler", "coded", completed=3 * HOUR),
        RetentionRule("queue", "q", completed=2 * HOUR, failed=3 * HOUR),
        RetentionRule("type", "both", completed=4 * HOUR),
    ]
    settle(harness, "both", "coded", "other", queue="q")
    settle(harness, "other")
    for gone, hours in (("other", 1), ("other", 2), ("coded", 3), ("both", 4)):
        before = left(harness)
        prune(harness, {"completed": HOUR})
        assert left(harness) == before
        harness.clock.advance(HOUR + 61)
        prune(harness, {"completed": HOUR})
        before.remove(gone)
        assert left(harness) == before, hours


def test_what_the_code_does_not_say_any_more_is_forgotten(
    harness: StoreHarness, app: Tenure
) -> None:
    app.job(name="mail", keep_completed="1h")(lambda: None)
    app.core.declare(app.core.handlers.options())
    app.core.declare(app.core.handlers.options())
    assert [rule.name for rule in app.retention.list()] == ["mail"]
    with Tenure(harness.url) as later:
        later.job(name="mail")(lambda: None)
        later.core.declare(later.core.handlers.options())
    assert app.retention.list() == []


def test_a_new_rule_holds_for_what_has_settled_before(harness: StoreHarness, app: Tenure) -> None:
    app.retention.set(type="a", completed="30d")
    settle(harness, "a", "b")
    harness.clock.advance(2 * DAY)
    prune(harness, {"completed": DAY})
    assert left(harness) == ["a"]
    app.retention.set(type="a", completed="1d")
    prune(harness, {"completed": DAY})
    assert left(harness) == []


def test_without_rules_again_the_setting_holds(harness: StoreHarness, app: Tenure) -> None:
    app.retention.set(type="a", completed="forever")
    settle(harness, "a")
    harness.clock.advance(2 * DAY)
    assert prune(harness, {"completed": DAY})
    assert app.retention.set(type="a", completed=None) == RetentionRule("type", "a")
    assert app.retention.list() == []
    prune(harness, {"completed": DAY})
    assert left(harness) == []


def test_rules_hold_where_nothing_else_is_deleted(harness: StoreHarness, app: Tenure) -> None:
    settle(harness, "a", "b")
    assert Duty.RETENTION not in look(harness.store.read)
    app.retention.set(type="a", completed=0)
    assert Duty.RETENTION in look(harness.store.read)
    harness.clock.advance(61)
    prune(harness, {})
    assert left(harness) == ["b"]


def test_a_rule_holds_from_the_next_batch_on(harness: StoreHarness, app: Tenure) -> None:
    """Also if the last look of a worker saw no rule."""
    app.retention.set(type="a", completed="forever")
    settle(harness, "a", "b")
    harness.clock.advance(DAY)
    prune(harness, {"completed": 0})
    assert left(harness) == ["a"]


def test_what_is_kept_longer_is_not_in_the_way(harness: StoreHarness, app: Tenure) -> None:
    """Bites smaller than what is kept at the front; later batches do not go over it again."""
    app.retention.set(type="kept", completed="forever")
    for _ in range(20):
        settle(harness, *["kept"] * 150)
    harness.clock.advance(60)
    settle(harness, *["mail"] * 30)
    harness.clock.advance(DAY)
    prune(harness, {"completed": HOUR}, limit=10)
    assert set(left(harness)) == {"kept"}
    settle(harness, *["mail"] * 5)
    harness.clock.advance(HOUR + 61)
    harness.clock.advance(-HOUR / 2)  # the next round at the front is not due
    assert sum(prune(harness, {"completed": HOUR / 4})) < 20
    assert set(left(harness)) == {"kept"}


def test_what_a_batch_puts_aside_counts_towards_its_limit(
    harness: StoreHarness, app: Tenure
) -> None:
    app.retention.set(type="kept", cancelled="forever")
    settle(harness, *["mail"] * 20)
    for added in harness.add_all(*(new_job("kept") for _ in range(9))):
        app.cancel(added.job.id)
    harness.clock.advance(DAY)
    harness.measure()
    before = dict.fromkeys(("cancelled", "completed"), harness.clock.now)
    harness.store.prune(before, 10).result()
    assert left(harness).count("mail") == 19


def test_a_worker_that_has_not_asked_for_a_day_is_forgotten(harness: StoreHarness) -> None:
    harness.claim(worker="old")
    for passed, known in ((DAY - 1, 1), (2, 0)):
        harness.clock.advance(passed)
        prune(harness, {})
        assert harness.sql.value("SELECT count(*) FROM {worker}") == known


def test_what_others_need_stays_however_short_the_rule(harness: StoreHarness, app: Tenure) -> None:
    app.retention.set(queue="default", completed=0)
    parent = app.enqueue("parent")
    child = app.enqueue("child", depends_on=[parent.id])
    other = app.enqueue("other", delay="1d", depends_on=[parent.id])
    harness.report(*map(report_completed, harness.claim(1)))
    harness.clock.advance(61)
    prune(harness, {})
    assert "parent" in left(harness)
    for job in (child, other):
        harness.store.apply(job.id, Cancelled()).result()
    for _ in range(2):
        harness.clock.advance(HOUR + 61)
        prune(harness, {})
    assert left(harness) == ["child", "other"]


@pytest.mark.parametrize("keep", [{}, {"completed": HOUR}])
def test_what_others_waited_for_goes_at_its_time(
    harness: StoreHarness, app: Tenure, keep: dict[str, float]
) -> None:
    if not keep:
        app.retention.set(queue="default", completed=HOUR)
    for _ in range(3):
        parent = app.enqueue("parent")
        app.enqueue("child", depends_on=[parent.id])
    for _ in range(2):
        harness.report(*map(report_completed, harness.claim(3)))
    harness.clock.advance(HOUR + 61)
    prune(harness, keep, limit=2)
    assert left(harness) == []


@pytest.mark.parametrize("ruled", [False, True])
def test_what_others_wait_for_is_not_in_the_way(
    harness: StoreHarness, app: Tenure, ruled: bool
) -> None:
    if ruled:
        app.retention.set(queue="elsewhere", completed="forever")
    parents = [app.enqueue("parent") for _ in range(4)]
    harness.report(*map(report_completed, harness.claim(4)))
    for parent in parents:
        app.enqueue("child", delay="7d", depends_on=[parent.id])
    harness.clock.advance(61)
    settle(harness, "mail")
    harness.clock.advance(DAY)
    for _ in range(4):
        harness.measure()
        before = {"completed": harness.clock.now - timedelta(seconds=HOUR)}
        harness.store.prune(before, 2).result()
    assert set(left(harness)) == {"parent", "child"}


def test_what_holds_up_a_line_is_not_in_the_way(harness: StoreHarness, app: Tenure) -> None:
    """As many as one batch deletes were looked at again by each, and no other job was deleted."""
    app.queues.limit("ordered", ordered="halt")
    for n in range(4):
        app.enqueue("first", queue="ordered", partition=f"{n}", max_retries=0)
    harness.report(*map(report_failed, harness.claim(4)))
    harness.clock.advance(61)
    app.enqueue("mail", max_retries=0)
    harness.report(*map(report_failed, harness.claim(1)))
    harness.clock.advance(DAY)
    for _ in range(4):
        before = {"failed": harness.clock.now - timedelta(seconds=HOUR)}
        harness.store.prune(before, 2).result()
    assert left(harness) == ["first"] * 4
    for job in app.find(type="first"):
        app.retry(job.id)
    harness.report(*map(report_failed, harness.claim(4)))
    app.queues.limit("ordered", ordered=None)
    harness.clock.advance(DAY)
    prune(harness, {"failed": HOUR})
    assert left(harness) == []


def test_a_rule_that_means_nothing_is_refused(app: Tenure) -> None:
    with pytest.raises(InvalidInput, match="name a type or a queue"):
        app.retention.set(completed="1h")
    with pytest.raises(InvalidInput, match=r"not a duration.*; or 'forever'"):
        app.retention.set(type="a", completed="soon")
    with pytest.raises(InvalidInput, match="keep_failed"):
        app.job(name="a", keep_failed=-1)(lambda: None)
    with pytest.raises(TypeError, match="no option keep"):
        app.job(keep="1h")  # type: ignore[call-overload]


def test_a_token_for_some_queues_sees_and_sets_theirs(harness: StoreHarness, app: Tenure) -> None:
    from tenure.app.app import limited_to

    app.retention.set(type="a", failed="1h")
    app.retention.set(queue="theirs", failed="1h")
    mine = limited_to(app, ("mine*",))
    mine.retention.set(queue="mine", failed="forever")
    assert [rule.name for rule in mine.retention.list()] == ["mine"]
    with pytest.raises(Forbidden):
        mine.retention.set(queue="theirs", failed=0)
    with pytest.raises(Forbidden):
        mine.retention.set(type="a", failed=0)
    mine.job(name="a", queue="mine", keep_failed=0)(lambda: None)
    mine.core.declare(mine.core.handlers.options())
    assert not [rule for rule in app.retention.list() if rule.subject == "handler"]
