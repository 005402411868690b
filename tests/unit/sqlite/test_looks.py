"""How often the watch on a SQLite file looks, reckoned with made-up times: nothing waits here."""

from __future__ import annotations

import pytest

from tenure.store.sqlite.reader import HEARD, LOADED_SECONDS, MAX_SAVED, POLLED, REPORTED, Looks


class Day:
    """A watch on a made-up clock. Writes and commits happen when they are reported to."""

    def __init__(self, *, reported: bool = True) -> None:
        self.now = 1000.0
        self._told = reported
        self._looks = Looks(self.now)
        self.pauses: list[float] = []

    def look(self, *, written: bool = False, changed: bool = False, heard: bool = False) -> float:
        """One look now, then the pause after it; the pause."""
        pause = self._looks.pause(
            self.now, written=written, changed=changed, reported=self._told, heard=heard
        )
        self.now += pause
        self.pauses.append(pause)
        return pause

    def idle(self, seconds: float) -> int:
        """Nothing happens for so long; how many looks that cost."""
        until, before = self.now + seconds, len(self.pauses)
        while self.now < until:
            self.look()
        return len(self.pauses) - before


def test_an_idle_watch_looks_ten_times_a_second() -> None:
    day = Day()
    day.idle(2)
    assert day.idle(60) <= 601


def test_it_looks_less_often_while_the_kernel_reports_what_is_committed() -> None:
    day = Day()
    assert day.look(changed=True, heard=True) == HEARD.longest
    day.idle(2)
    assert day.look() == HEARD.longest
    assert day.look(changed=True, heard=False) == REPORTED.longest
    assert day.look() == REPORTED.longest


def test_a_commit_is_found_soon_after_it_can_be_seen_however_long_it_takes() -> None:
    for flush in (0.0003, 0.0015, 0.003, 0.02, 0.1):
        day = Day()
        day.idle(2)
        visible = day.now + flush
        day.look(written=True)
        while day.now < visible:
            day.look()
        assert day.now - visible <= max(REPORTED.shortest, flush / 7) + 1e-9


def test_a_commit_that_explains_all_writes_ends_the_search() -> None:
    day = Day()
    assert day.look(written=True) == REPORTED.shortest
    assert day.look() == REPORTED.shortest
    assert day.look(changed=True) == REPORTED.longest


def test_a_write_beside_a_commit_may_be_the_next_one() -> None:
    day = Day()
    assert day.look(written=True, changed=True) == REPORTED.shortest
    assert day.look() == REPORTED.shortest
    assert day.look(changed=True) == REPORTED.longest


def test_a_write_without_a_commit_costs_few_looks() -> None:
    day = Day()
    day.idle(2)
    without = day.idle(60)
    day.look(written=True)
    assert day.idle(60) <= without + 60


def test_endless_commits_cost_no_more_than_a_look_every_two_milliseconds() -> None:
    day = Day()
    start = day.now
    while day.now < start + 20:
        day.look(written=True, changed=True)
    assert len(day.pauses) <= 20 / LOADED_SECONDS + MAX_SAVED + 1


def test_a_burst_is_followed_closely_and_so_is_the_next_after_a_rest() -> None:
    day = Day()
    for _ in range(2):
        assert max(day.look(written=True, changed=True) for _ in range(400)) == REPORTED.shortest
        day.idle(2)


@pytest.mark.parametrize(("quiet", "pause"), [(0.1, 0.002), (0.5, 0.005), (5, 0.01)])
def test_where_nobody_tells_of_writes_looks_are_steady_and_more_rare_when_idle(
    quiet: float, pause: float
) -> None:
    day = Day(reported=False)
    day.idle(10)
    assert day.look(changed=True) == POLLED.shortest
    day.idle(quiet)
    assert day.look() == pytest.approx(pause, rel=0.1)
