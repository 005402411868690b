"""Which jobs are the same, and what becomes of a batch of them: no database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure import InvalidInput, NewJob, Unique
from tenure.errors import DuplicateJob
from tenure.lifecycle import Job, Status
from tenure.rules.jobs import CheckedJob, TypeOptions, check_job
from tenure.rules.unique_keys import Seen, Throttled, checked_for, plan, uniqueness
from tenure.values.ids import new_id

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def key(rule: Unique, payload: str, type: str = "mail", queue: str = "default") -> str:
    return uniqueness(rule, type, queue, payload).key


def checked(payload: Any = None, type: str = "mail", **options: Any) -> CheckedJob:
    new_job = NewJob(type, payload or {}, options)  # type: ignore[arg-type]
    return check_job(new_job, new_id(), defaults=TypeOptions(), actor="ann")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2) | st.floats(0, 1),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)


def typed(value: Any) -> Any:
    """A value with its types: Python holds true to be 1."""
    if isinstance(value, dict):
        return {name: typed(each) for name, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    return type(value), repr(value)


@given(VALUES, VALUES, VALUES, VALUES)
def test_keys_are_injective(a: Any, b: Any, c: Any, d: Any) -> None:
    """F27, oban#1363: ("ab", "c") and ("a", "bc"), 1 and "1", a missing value and null."""
    one, other = checked({"x": a, "y": b}), checked({"y": d, "x": c})
    same = typed([a, b]) == typed([c, d])
    for rule in (Unique(("x", "y")), Unique()):
        assert (key(rule, one.payload) == key(rule, other.payload)) is same


def test_what_a_key_is_made_of() -> None:
    payload = '{"a":{"b":1},"c":2}'
    assert len(key(Unique(), payload)) == 32
    assert key(Unique(("c", "a.b")), payload) == key(
        Unique(("a.b", "c", "c")), '{"a":{"b":1},"c":2}'
    )
    different = {
        key(Unique(), payload),
        key(Unique(), "{}"),
        key(Unique(()), payload),
        key(Unique(("c",)), payload),
        key(Unique(("a.b",)), '{"a":{"b":2}}'),
        key(Unique(("c",)), payload, type="other"),
        key(Unique(("c",), across_queues=False), payload),
        key(Unique(("c",), across_queues=False), payload, queue="other"),
        key(Unique("c"), payload),
        key(Unique('[["c",2]]'), payload),
    }
    assert len(different) == 10
    assert key(Unique("c"), payload) == key(Unique("c"), "{}", type="other", queue="other")
    assert key(Unique(("c",)), payload) == key(Unique(("c",)), '{"c":2,"d":3}', queue="other")
    for missing in ("d", "a.c", "a.b.c", "c.d"):
        with pytest.raises(InvalidInput, match=r"\$\.unique\.by: the payload has no value"):
            key(Unique((missing,)), payload)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("by", 3),
        ("by", ""),
        ("by", "two words"),
        ("by", ("",)),
        ("by", (1,)),
        ("by", ("x",) * 21),
        ("until", "completed"),
        ("within", 0),
        ("within", "soon"),
        ("on_conflict", "ignore"),
        ("max_wait", 0),
        ("across_queues", 1),
        ("other", 1),
    ],
)
def test_what_is_no_rule_is_refused(field: str, value: object) -> None:
    rule = {"on_conflict": "replace", field: value}
    with pytest.raises(InvalidInput, match=r"\$\.unique"):
        checked({"x": 1}, unique=rule)
    if field != "other":
        with pytest.raises(InvalidInput, match=rf"\$\.unique\.{field}"):
            Unique(**rule)  # type: ignore[arg-type]


def test_a_rule_that_puts_off_says_for_how_long() -> None:
    """inngest#3554: a steady stream of requests starves the job."""
    with pytest.raises(InvalidInput, match=r"\$\.unique\.max_wait: each request delays"):
        checked(unique=Unique(until="started", on_conflict="replace"), delay=5)
    with pytest.raises(InvalidInput, match=r"\$\.unique\.max_wait"):
        Unique(max_wait="5m")
    rule = Unique(until="started", on_conflict="replace", max_wait="3s")
    assert checked(unique=rule, delay=5).delay == 3
    with pytest.raises(InvalidInput, match=r"\$\.unique\.max_wait"):
        checked(unique=rule, run_at=NOW)


@pytest.mark.parametrize(
    ("by", "flaw"),
    [
        ("customer", r"one key for all jobs; for the value of customer, give \('customer',\)"),
        (("custmer",), "sync has no parameter custmer"),
        (("order.id", "customer"), "sync has no parameter order.id"),
    ],
)
def test_the_rule_of_a_type_names_its_parameters(by: Any, flaw: str) -> None:
    with pytest.raises(InvalidInput, match=flaw):
        checked_for("sync", {"by": by}, ["customer"])
    assert checked_for("sync", {"by": by}, None).by == Unique(by).by


def test_a_rule_of_a_type_can_be_a_text() -> None:
    for by in ("nightly", ("customer.id",), (), None):
        assert checked_for("sync", Unique(by), ["customer"]) == Unique(by)


def test_a_rule_can_be_an_object_of_its_fields() -> None:
    rule = Unique(("b", "a"), "started", "10m", "replace", 60, across_queues=False)
    fields = {"by": ["a", "b"], "until": "started", "within": "PT10M", "on_conflict": "replace"}
    as_object = checked(
        {"a": 1, "b": 2}, unique={**fields, "max_wait": 60.0, "across_queues": False}
    )
    assert as_object.unique == checked({"b": 2, "a": 1}, unique=rule).unique
    assert checked(unique=None).unique is None
    time_alone = checked(unique=Unique(within="1h"))
    assert (time_alone.unique_key, time_alone.unique_until) == (None, None)
    assert checked(unique=Unique()).unique_until == "settled"
    with pytest.raises(InvalidInput, match=r"\$\.unique"):
        checked(unique="key")


def test_an_idempotency_key_stands_for_the_rule_that_was_given() -> None:
    prints = {
        checked(idempotency_key="k", **more).fingerprint
        for more in ({}, {"unique": None}, {"unique": Unique()}, {"unique": Unique(())})
    }
    assert len(prints) == 4


def stored(job: CheckedJob, **fields: Any) -> Job:
    return Job(
        **{
            "id": job.id,
            "type": job.type,
            "payload_json": job.payload,
            "created_at": NOW,
            "run_at": NOW + timedelta(seconds=job.delay),
            **fields,
        }
    )


def test_a_batch_is_one_job_for_each_key() -> None:
    """One write for a hot key, not one for each request."""
    rule = Unique((), on_conflict="replace", max_wait=60)
    jobs = [checked({"n": n}, unique=rule, delay=n) for n in range(5)]
    others = [checked({"n": n}) for n in range(2)]
    made = plan([*jobs, *others], Seen(NOW))
    assert [(job.id, job.payload, job.delay) for job in made.fresh[:1]] == [
        (jobs[0].id, '{"n":4}', 4.0)
    ]
    assert made.fresh[1:] == others
    assert made.answers == [0] * 5 + [1, 2]
    kept = checked(unique=Unique("k"), delay=1)
    assert plan([kept, checked(unique=Unique("k"), delay=2)], Seen(NOW)).fresh == [kept]
    other = checked(type="other", unique=Unique("k", on_conflict="replace", max_wait=60), delay=2)
    assert plan([kept, other], Seen(NOW)).fresh == [kept]
    assert jobs[0].unique is not None
    holder = stored(jobs[0], run_at=NOW)
    again = plan(jobs, Seen(NOW, held={jobs[0].unique.key: holder}))
    assert again.answers == [holder.id] * 5
    ((before, after),) = again.changed.values()
    assert (before, after.payload_json, after.run_at) == (
        holder,
        '{"n":4}',
        NOW + timedelta(seconds=4),
    )


@pytest.mark.parametrize("on_conflict", ["return", "error", "replace", "reschedule"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"token": 1},
        {"status": Status.PROCESSING},
        {"status": Status.WAITING},
        {"type": "other"},
    ],
)
def test_what_becomes_of_the_holder(on_conflict: Any, fields: dict[str, Any]) -> None:
    """oban#635, windmill#9780: what was claimed keeps its payload."""
    rule = Unique("k", on_conflict=on_conflict)
    holder = stored(checked(), run_at=NOW + timedelta(hours=1), **fields)
    job = checked({"n": 1}, unique=rule, priority=5)
    assert job.unique is not None
    made = plan([job], Seen(NOW, held={job.unique.key: holder}))
    assert made.fresh == []
    if on_conflict == "error":
        assert [error.job_id for error in made.answers if isinstance(error, DuplicateJob)] == [
            holder.id
        ]
        return
    assert made.answers == [holder.id]
    if on_conflict == "return" or fields:
        assert made.changed == {}
        return
    ((_, after),) = made.changed.values()
    assert (after.event, after.actor, after.run_at) == ("amended", "ann", NOW)
    replaced = (after.payload_json, after.priority) == ('{"n":1}', 5)
    assert replaced is (on_conflict == "replace")


def test_a_job_that_is_put_off_runs_in_time() -> None:
    rule = Unique("k", until="started", on_conflict="reschedule", max_wait=60)
    job = checked(unique=rule, delay=30)
    assert job.unique is not None
    holder = stored(job)
    times = []
    for second in (10, 29, 31, 59, 61):
        now = NOW + timedelta(seconds=second)
        made = plan([job], Seen(now, held={job.unique.key: holder}))
        times.append((made.holders[holder.id].run_at - NOW).total_seconds())
    assert times == [40, 59, 60, 60, 60]
    at_once = checked(unique=Unique("k", on_conflict="reschedule"))
    late = stored(job, run_at=NOW - timedelta(hours=1))
    made = plan([at_once], Seen(NOW, held={job.unique.key: late}))
    assert made.holders[late.id].run_at == late.run_at  # not behind others by every request


def test_a_rule_for_a_time() -> None:
    job = checked(unique=Unique("k", within="10m"))
    assert job.unique is not None
    for seconds, there in ((-1, False), (0, False), (1, True), (600, True), (601, False)):
        expires_at = NOW + timedelta(seconds=seconds)
        last = stored(checked())
        for kept in (last, None):
            seen = Seen(NOW, throttled={job.unique.key: Throttled(last.id, expires_at, kept)})
            made = plan([job, job], seen)
            if not there:
                assert made.answers == [0, 0]
            elif kept:
                assert made.answers == [last.id] * 2
            else:
                assert all(isinstance(answer, DuplicateJob) for answer in made.answers)
