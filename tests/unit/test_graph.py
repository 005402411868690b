"""What may be depended on, how it is counted, and what follows when a job ends."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from tenure import Dependency, InvalidInput, NewJob, Status
from tenure.rules.dependencies import (
    Edge,
    Numbers,
    Tally,
    counted,
    gate_of,
    in_order,
    is_met,
    restored_by,
    skipped_by,
)
from tenure.rules.jobs import CheckedJob, LinkedJob, TypeOptions, check_job
from tenure.values.ids import new_id, new_ids

A, B, C, D = new_ids(4)


def checked(**options: Any) -> CheckedJob:
    new_job = NewJob("mail", {}, options)  # type: ignore[arg-type]
    return check_job(new_job, new_id(), defaults=TypeOptions(), actor="a")


def linked(depends_on: Any, **options: Any) -> LinkedJob:
    job = checked(depends_on=depends_on, **options)
    assert type(job) is LinkedJob
    return job


def test_a_dependency_is_said_in_each_form() -> None:
    assert linked([{"job_id": A}]).edges == (Dependency(A),)
    assert len(linked(new_ids(10_000)).edges) == 10_000
    job = linked([A, Dependency(B, "failed", "b"), {"job_id": C, "meets": "settled"}])
    assert job.edges == (Dependency(A), Dependency(B, "failed", "b"), Dependency(C, "settled"))
    assert linked({"left": A, "right": Dependency(B, "failed")}).edges == (
        Dependency(A, name="left"),
        Dependency(B, "failed", "right"),
    )
    assert (job.needs, linked([A, B], needs="any").needs, linked([A], needs="any").needs) == (
        None,
        1,
        None,
    )
    assert (linked([A, B, C], needs=2).needs, linked([A, B], needs=2).needs) == (2, None)
    assert type(checked(depends_on=[])) is CheckedJob
    assert checked().simple
    assert not job.simple


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"depends_on": A}, r"\$\.depends_on: give a list"),
        ({"depends_on": {A}}, r"\$\.depends_on: give a list"),
        ({"depends_on": ["x"]}, r"\$\.depends_on\[0\]: not a job id"),
        ({"depends_on": [A, 7]}, r"\$\.depends_on\[1\]: not a job id"),
        ({"depends_on": [{"job_id": A, "when": "settled"}]}, r"\$\.depends_on\[0\]"),
        ({"depends_on": [{"job_id": A, "meets": "past"}]}, r"\$\.depends_on\[0\]\.meets: use one"),
        ({"depends_on": {"two words": A}}, r"\$\.depends_on\.two words: not a name"),
        ({"depends_on": [A, Dependency(A, "failed")]}, "job is given twice"),
        ({"depends_on": [Dependency(A, name="x"), Dependency(B, name="x")]}, "name is given twice"),
        ({"depends_on": [new_id()] * 10_001}, r"\$\.depends_on: 10001 jobs"),
        ({"depends_on": [A, B], "needs": 3}, r"\$\.needs"),
        ({"depends_on": [A, B], "needs": 0}, r"\$\.needs"),
        ({"depends_on": [A, B], "needs": True}, r"\$\.needs"),
        ({"depends_on": [A, B], "needs": "some"}, r"\$\.needs"),
        ({"needs": "any"}, r"\$\.needs"),
        ({"depends_on": new_ids(257), "needs": 2}, r"\$\.needs: with more than 256"),
    ],
)
def test_what_is_no_dependency_is_refused(options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput, match=path):
        checked(**options)


def test_a_dependency_is_no_state() -> None:
    """`if job.failed:` reads as if it asked whether the job has failed."""
    with pytest.raises(TypeError, match=r"compare job\.status"):
        bool(Dependency(A, "failed"))


def test_dependencies_are_part_of_what_an_idempotency_key_stands_for() -> None:
    marks = [
        linked(on, idempotency_key="k", **more).fingerprint
        for on, more in (
            ([A, B], {}),
            ([A, C], {}),
            ([A, Dependency(B, "failed")], {}),
            ([A, B], {"needs": 1}),
        )
    ]
    assert len({*marks, checked(idempotency_key="k").fingerprint}) == 5
    assert linked([A, B], idempotency_key="k", needs="all").fingerprint == marks[0]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_ending_meets_what_waits_for_it(status: str) -> None:
    met = {meets for meets in ("completed", "settled", "failed") if is_met(meets, status)}
    assert met == {"settled", "completed" if status == Status.COMPLETED else "failed"}


def outcomes(met: list[bool | None], *, gates: bool) -> dict[int | None, Tally]:
    tallies: dict[int | None, Tally] = {}
    for place, one in enumerate(met):
        gate = gate_of(place, 257 if gates else 1, None)
        tallies[gate] = tallies.get(gate, Tally()).plus(one)
    return tallies


def test_gates_say_what_one_count_says() -> None:
    """That a job is released, or can never be, however its parents are spread."""
    chance = random.Random(1)
    for _ in range(60):
        odds = chance.choice([(1, 0, 0), (0, 1, 0), (0, 0, 1), (8, 1, 1), (1, 1, 1), (1, 40, 40)])
        met = chance.choices([True, False, None], odds, k=chance.choice([257, 300, 2049, 4100]))
        for needs in (None, 1):
            plain = counted(outcomes(met, gates=False), needs)
            gated = counted(outcomes(met, gates=True), needs)
            assert (plain.need <= 0, plain.spare < 0) == (gated.need <= 0, gated.spare < 0)
    sizes = [tally.parents for tally in outcomes([None] * 10_000, gates=True).values()]
    assert (len(sizes), max(sizes)) == (79, 248)
    assert [gate_of(3, parents, None) for parents in (4, 5, 256)] == [None, 0, 0]
    assert [gate_of(3, parents, 1) for parents in (5, 256, 257)] == [None, None, 3]
    assert [gate_of(n, 257, None) for n in (0, 1, 16, 2047, 2048)] == [0, 1, 0, 15, 16]


def test_gates_open_one_after_the_other() -> None:
    """Each opening locks the job that waits, so those that end side by side open no two gates."""
    last = {gate_of(place, 10_000, None): place for place in range(10_000)}
    opened = sorted(place for place in last.values() if place < 10_000 - 16)
    assert min(after - before for before, after in pairwise(opened)) > 100


def test_an_order_has_parents_first_and_a_cycle_has_none() -> None:
    assert in_order("dcba", [("a", "b"), ("b", "c"), ("a", "d")]) == ["a", "b", "d", "c"]
    with pytest.raises(InvalidInput, match=r"a cycle: b -> c -> d -> b|c -> d -> b|d -> b -> c"):
        in_order("abcde", [("a", "b"), ("b", "c"), ("c", "d"), ("d", "b"), ("d", "e")])


def test_a_skip_goes_as_far_as_somebody_needed_it() -> None:
    links = [
        Edge(A, B, "completed"),
        Edge(A, C, "failed"),
        Edge(A, D, "completed"),
        Edge(B, D, "completed"),
    ]
    assert skipped_by([A], {A: -1, B: 0, C: 0, D: 1}, links) == {D: -1, B: -1, A: -1}
    assert list(skipped_by([A], {A: -1, B: 0, C: 0, D: 1}, links)) == [D, B, A]
    assert skipped_by([A], {A: -1, B: 0, C: 0, D: 2}, links) == {B: -1, A: -1}
    assert skipped_by([A], {A: 0, B: 0}, links[:1]) == {}


def test_what_waits_again_is_counted_anew() -> None:
    links = [Edge(A, B, "completed"), Edge(B, C, "completed"), Edge(B, D, "failed")]
    outside: Any = {A: {None: Tally(1, 0, 0)}, C: {None: Tally(2, 1, 0)}, D: {None: Tally(1, 0, 1)}}
    jobs = {D: None, C: None, B: None, A: None}
    assert restored_by(jobs, outside, links) == {
        A: Numbers(1, 0),
        B: Numbers(1, 0),
        C: Numbers(2, 0),
    }
    lost = outside | {A: {None: Tally(1, 0, 1)}}
    assert restored_by(jobs, lost, links) == {}  # D has missed one of its own
    assert restored_by({B: 1}, {B: {None: Tally(2, 1, 1)}}, []) == {B: Numbers(0, 0)}
