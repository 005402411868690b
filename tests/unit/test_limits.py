"""Whose turn it is, how many may start, and what limits may be."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tenure.errors import InvalidInput
from tenure.rules.queues import (
    NEXT,
    Open,
    PerPartition,
    Rate,
    Turn,
    has_enough,
    look_again,
    parse_rate,
    quotas,
)

names = some.lists(some.text("abc", min_size=1, max_size=3), min_size=1, max_size=8, unique=True)


def starts_left(every: int, burst: int, tat: int, now: int) -> int:
    """How many jobs a rate lets start, as both databases compute it."""
    return burst - -(-max(tat - now, 0) // every)


def around(parts: list[Open], turn: Turn) -> list[Open]:
    """The parts from the turn on, as engines walk."""
    behind = [part for part in parts if part.partition >= turn.partition]
    return behind + [part for part in parts if part.partition < turn.partition]


def claim(parts: list[Open], turn: Turn, space: int) -> tuple[dict[str, int], Turn]:
    """Walk as far as an engine does, and deal."""
    walked: list[Open] = []
    for part in around(parts, turn):
        if has_enough(walked, turn, space):
            break
        walked.append(part)
    shares, after = quotas(walked, turn, space)
    assert sum(shares) == min(space, sum(part.room for part in walked))
    assert all(0 <= share <= part.room for share, part in zip(shares, walked, strict=True))
    return {part.partition: n for part, n in zip(walked, shares, strict=True)}, after


@pytest.mark.parametrize("space", range(1, 51))
@pytest.mark.parametrize("weights", [(1, 4, 1), (1,) * 7, (9, 1, 3)])
def test_shares_are_as_the_weights_for_claims_of_any_size(
    space: int, weights: tuple[int, ...]
) -> None:
    parts = [Open(f"t{n}", 10**9, weight) for n, weight in enumerate(weights)]
    turn, got = Turn("m"), dict.fromkeys((part.partition for part in parts), 0)
    claims = -(-50 * sum(weights) // space)
    for _ in range(claims):
        shares, turn = claim(parts, turn, space)
        for partition, share in shares.items():
            got[partition] += share
    total = sum(got.values())
    for part in parts:
        assert abs(got[part.partition] / total - part.weight / sum(weights)) < 0.02


@given(names, some.data())
def test_no_open_partition_waits_longer_than_one_round(
    names: list[str], data: some.DataObject
) -> None:
    weights = {name: data.draw(some.integers(1, 5)) for name in names}
    parts = [Open(name, 10**9, weights[name]) for name in sorted(names)]
    turn = Turn(data.draw(some.text("abcd", max_size=2)))
    since = dict.fromkeys(names, 0)  # jobs of others since its last
    for _ in range(40):
        shares, turn = claim(parts, turn, data.draw(some.integers(1, 12)))
        total = sum(shares.values())
        for name in names:
            since[name] = total if shares.get(name) else since[name] + total
            assert since[name] <= sum(weights.values()) + 12


@given(some.randoms(use_true_random=True))
def test_partitions_that_come_and_go_each_get_their_turn(chance: Random) -> None:
    """One that stays open gets at least a turn while another one gets two."""
    turn, got = Turn("b"), dict.fromkeys("abcdef", 0)
    steady = chance.choice("abcdef")
    for _ in range(60):
        there = {steady, *chance.sample("abcdef", chance.randint(0, 6))}
        rooms = {name: chance.randint(1, 3) for name in sorted(there)}
        rooms[steady] += 1  # for a whole turn: with less, it would get less of each
        parts = [Open(name, room, 2) for name, room in rooms.items()]
        shares, turn = claim(parts, turn, chance.randint(1, 4))
        for name, share in shares.items():
            got[name] += share
            assert got[name] <= 2 * got[steady] + 4


def test_a_turn_that_was_cut_goes_on_and_is_not_a_weight() -> None:
    parts = [Open("a", 99, 1), Open("b", 99, 4), Open("c", 99, 1)]
    assert claim(parts, Turn("b"), 3) == ({"b": 3}, Turn("b", 1))
    assert claim(parts, Turn("b", 1), 2) == ({"b": 1, "c": 1}, Turn("c" + NEXT))
    shares, turn = claim(parts, Turn("b", 1), 62)  # 1, then 10 rounds but for one job
    assert shares == {"b": 41, "c": 11, "a": 10}
    assert turn == Turn("c" + NEXT)


def test_what_one_has_no_room_for_is_dealt_to_the_others() -> None:
    parts = [Open("a", 2, 1), Open("b", 99, 4), Open("c", 0, 1)]
    assert claim(parts, Turn(), 20) == ({"a": 2, "b": 18, "c": 0}, Turn("b", 2))


def test_a_turn_is_never_longer_than_the_weight_that_holds_now() -> None:
    parts = [Open("a", 99, 2), Open("b", 99, 1)]
    assert claim(parts, Turn("a", 5), 3) == ({"a": 2, "b": 1}, Turn("b" + NEXT))


def test_a_claim_may_end_behind_the_last_partition_and_goes_on_at_the_first() -> None:
    parts = [Open("a", 9, 1), Open("b", 9, 1)]
    shares, turn = claim(parts, Turn(), 2)
    assert shares == {"a": 1, "b": 1}
    assert turn == Turn("b" + NEXT)
    assert claim(parts, turn, 1) == ({"a": 1}, Turn("a" + NEXT))


def test_without_open_partitions_the_turn_stays() -> None:
    assert quotas([], Turn("b", 2), 5) == ([], Turn("b", 2))
    assert quotas([Open("c", 0, 1)], Turn("b", 2), 5) == ([0], Turn("b", 2))


@given(some.integers(1, 1000), some.integers(1, 10_000_000), some.data())
def test_no_window_has_more_starts_than_the_rate(
    starts: int, micros: int, data: some.DataObject
) -> None:
    micros = max(micros, 1_000)
    rate = Rate(starts, micros / 1e6, data.draw(some.integers(1, starts)))
    steps = data.draw(
        some.lists(some.tuples(some.integers(0, micros), some.integers(1, 50)), max_size=60)
    )
    tat, started = 0, list[int]()
    for now, (_, wanted) in zip(accumulate(step for step, _ in steps), steps, strict=True):
        jobs = min(wanted, starts_left(rate.every, rate.burst, tat, now))
        if jobs > 0:
            tat = max(tat, now) + jobs * rate.every
            started += [now] * jobs
        assert starts_left(rate.every, rate.burst, tat, now) >= 0
    for first in range(len(started) - starts):
        assert started[first + starts] - started[first] >= micros


def test_a_rate_is_read_with_its_burst() -> None:
    assert parse_rate("900/1m", None, "$") == Rate(900, 60.0, 90)
    assert parse_rate("10/s", 3, "$") == Rate(10, 1.0, 3)
    assert parse_rate("5/PT1H", None, "$") == Rate(5, 3600.0, 1)
    assert parse_rate(None, None, "$") is None
    assert Rate(90, 10.0, 9).every == -(-10_000_000 // 82)


def test_a_rate_whose_time_is_none_is_refused_as_a_rate() -> None:
    with pytest.raises(InvalidInput, match="not a rate; use"):
        parse_rate("9/fast", None, "$")


@pytest.mark.parametrize("rate", [(900, 60.0), (10, 1.0), (5, 3600.0), (7, 0.25), (1, 86400.0)])
def test_a_rate_is_shown_as_it_can_be_given(rate: tuple[int, float]) -> None:
    made = Rate(*rate, max(1, rate[0] // 10))
    assert parse_rate(str(made), None, "$") == made


@pytest.mark.parametrize(
    ("rate", "burst", "path"),
    [
        ("900", None, "$.rate"),
        ("/1m", None, "$.rate"),
        ("9/", None, "$.rate"),
        ("0/1m", None, "$.rate"),
        ("-1/1m", None, "$.rate"),
        ("1.5/1m", None, "$.rate"),
        ("٣/1m", None, "$.rate"),
        ("1000001/1m", None, "$.rate"),
        ("9" * 5000 + "/1m", None, "$.rate"),
        ("9/32d", None, "$.rate"),
        ("9/0s", None, "$.rate"),
        ("9/inf", None, "$.rate"),
        (90, None, "$.rate"),
        ("9/1m", 0, "$.burst"),
        ("9/1m", 10, "$.burst"),
        ("9/1m", True, "$.burst"),
        (None, 3, "$.burst"),
    ],
)
def test_what_is_no_rate_is_refused(rate: object, burst: object, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_rate(rate, burst, "$")
    assert caught.value.path == path


def test_limits_of_partitions_are_checked_when_they_are_made() -> None:
    assert PerPartition(rate="10/1s", burst=10).burst == 10
    for wrong in ({"max_running": -1}, {"max_running": 2**31}, {"rate": "x"}, {"burst": 1}):
        with pytest.raises(InvalidInput):
            PerPartition(**wrong)  # type: ignore[arg-type]


def test_a_closed_queue_is_looked_at_when_it_may_open() -> None:
    now = 10**15
    assert look_again(now, None, None, 0, None, None) == 1.0
    assert look_again(now, 250_000, 1, now + 250_000, None, None) == 0.25
    assert look_again(now, 1000, 5, now + 4_000, None, None) == 1.0  # open: something else is full
    assert look_again(now, None, None, 0, now + 30_000_000, None) == 30.0
    assert look_again(now, None, None, 0, None, 1_500) == 0.002


def test_a_rate_can_be_used_up_exactly() -> None:
    rate = Rate(10, 1.0, 4)
    assert starts_left(rate.every, rate.burst, 0, 100) == 4
    assert starts_left(rate.every, rate.burst, 100 + 3 * rate.every, 100) == 1
    assert starts_left(rate.every, rate.burst, 101 + 3 * rate.every, 100) == 0
    assert Fraction(rate.every * 7, 10**6) >= 1
