"""The simulation: worlds of bad luck in which nothing breaks, the same from the same seed."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tenure import lifecycle, simulator
from tenure.cli import upkeep
from tenure.events import LeaseExpired
from tenure.simulator import simulate
from tests.support.cli import run_cli, run_program

pytestmark = pytest.mark.chaos

WORLDS = 8
HOURS = 6.0

HAPPENINGS = (
    *("jobs", "claimed", "completed", "failed", "lease_expired", "retried", "released"),
    *("cancelled while pending", "cancelled while processing"),
    *("requests lost", "answers lost", "requests doubled"),
    *("messages delayed", "server crashes", "failed commits", "worker crashes", "worker freezes"),
    *("late reports", "old reports repeated or contradicted", "reports under forged leases"),
    *("clock steps", "sweepers away", "reports recorded", "reports already recorded"),
    *("reports conflict", "reports lost", "commits", "idle polls and sweeps left out"),
)


def test_nothing_breaks_whatever_happens(effort: int) -> None:
    figures: Counter[str] = Counter()
    for seed in range(WORLDS * effort):
        played = simulate(seed, HOURS)
        assert played.violation is None
        figures += Counter(played.figures)

    assert [what for what in HAPPENINGS if not figures[what]] == []


def test_the_same_seed_plays_the_same_world_in_every_process() -> None:
    told = [
        json.loads(
            run_program(
                *("simulate", "--seed", "5", "--hours", "1", "--json"), PYTHONHASHSEED=hash_seed
            ).stdout
        )
        for hash_seed in ("1", "2")
    ]

    assert told[0] == told[1]
    assert told[0]["trace"] != simulate(6, 1).trace
    assert told[0]["violation"] is None


def test_a_violation_tells_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    follow = lifecycle.follow

    def forgetful(job, event, now):  # type: ignore[no-untyped-def]
        path = follow(job, event, now)
        return path[:1] if isinstance(event, LeaseExpired) else path

    monkeypatch.setattr(lifecycle, "follow", forgetful)
    seed, found = next(
        (seed, played.violation)
        for seed in range(20)
        if (played := simulate(seed, HOURS)).violation is not None
    )
    told = run_cli("simulate", "--seed", str(seed), "--hours", str(HOURS))

    assert told.exit_code == 1
    assert "its transitions are lease_expired; they must be lease_expired, retried" in found.what
    assert f"VIOLATION after {found.at}: {found.what}" in told.stdout
    assert "lease_expired, attempt" in told.stdout
    assert f"tenure simulate --seed {seed} --hours {HOURS:g}" in told.stdout


def test_a_batch_that_contradicts_itself_is_no_violation() -> None:
    assert simulate(4, 0.5).violation is None


def test_the_command_says_what_it_played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "SEEDS", 1)  # its choice is among one
    told = run_cli("simulate", "--hours", "0.1")

    assert told.exit_code == 0
    assert "from seed 0 " in told.stdout
    assert "No violation" in told.stdout
    assert run_cli("simulate", "--hours", "0").exit_code == 2


def test_time_is_virtual_and_worlds_are_days() -> None:
    assert simulator.HOURS_OF_A_WORLD == 24
    played = simulate(11, 0.5)
    assert (played.hours, played.worlds) == (0.5, 1)
