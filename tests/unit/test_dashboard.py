"""What the dashboard computes before it shows it: health, life of a job, series, the picture."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from tenure.dashboard import format, machine
from tenure.dashboard.jobs import attempts, periods
from tenure.dashboard.overview import health
from tenure.lifecycle import TRANSITIONS, Rule, Status
from tenure.rules.ledger import Transition
from tenure.rules.queues import Limits
from tenure.rules.stats import BUCKETS, Activity, QueueState, TypeState, WorkerState
from tenure.values.text import length

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORKER = WorkerState("w", "host:1", ("mail",), None, NOW, 0, NOW)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def queue(name: str = "mail", waits: float | None = None, **more: object) -> QueueState:
    state = {"paused_at": None, "max_pending": None, "pending": 1, "processing": 0, **more}
    since = None if waits is None else ago(waits)
    return QueueState(name, oldest_due_at=since, **state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queues", "workers", "level", "text"),
    [
        ([], [], "well", "All is well: nothing is waiting. No worker is alive just now."),
        ([queue(waits=59)], [WORKER], "well", "All is well: nothing is late, and 1 worker"),
        ([queue(waits=60)], [WORKER], "late", "Queue mail is late: a job has been due for 1m."),
        ([queue("x", 252)], [WORKER], "late", "for 4m 12s, and no live worker takes from it"),
        (
            [queue(waits=90, resume_at=ago(-30))],
            [WORKER],
            "late",
            "for 1m 30s, and none starts for 30s: one has met a rate limit outside",
        ),
        ([queue(waits=90, resume_at=ago(30))], [WORKER], "late", "has been due for 1m 30s."),
        (
            [queue(waits=90, limits=Limits(max_running=0), running=0)],
            [WORKER],
            "late",
            "has been due for 1m 30s, and its limit lets none run.",
        ),
        ([queue(waits=5)], [], "watch", "Jobs are due and no worker is alive"),
        ([queue(waits=900, paused_at=ago(60))], [WORKER], "watch", "paused for 1m; 1 job waits"),
        ([queue(max_pending=1)], [WORKER], "watch", "Queue mail is full at 1"),
    ],
)
def test_the_health_line_says_the_worst(
    queues: list[QueueState], workers: list[WorkerState], level: str, text: str
) -> None:
    found = health(NOW, 1, 0, queues, workers)
    assert found.level == level
    assert text in found.text


def test_all_is_not_well_while_most_attempts_fail() -> None:
    """Against a service that is away, no job had failed for good yet, and all was well."""
    found = health(NOW, 1, 2, [queue(max_pending=1)], [WORKER], attempts=(0, 1_301))
    assert (found.level, found.text) == (
        "watch",
        "1,301 of 1,301 attempts in the last 10 minutes failed.",
    )
    assert len(found.also) == 2
    for few in ((10, 10), (0, 9)):
        assert health(NOW, 1, 0, [], [WORKER], attempts=few).level == "well"


def test_a_worker_that_fell_silent_takes_nothing() -> None:
    silent = WorkerState("w", "host:1", None, None, ago(61), 0, NOW)
    assert "no live worker" in health(NOW, 1, 0, [queue(waits=90)], [silent]).text


def test_what_delivers_webhooks_alone_is_no_worker_for_other_jobs() -> None:
    """With one webhook, every server delivers, and nobody ran the jobs while all seemed well."""
    delivers = replace(WORKER, queues=("tenure.webhooks.shop",), types=("tenure.webhook",))
    assert health(NOW, 0, 0, [], [delivers]).text == "Nothing here yet. No worker yet."
    assert health(NOW, 1, 0, [], [delivers]).text.endswith("No worker is alive just now.")
    assert "no worker is alive" in health(NOW, 1, 0, [queue(waits=5)], [delivers]).text
    late = queue("tenure.webhooks.shop", waits=90)
    assert "no live worker" not in health(NOW, 1, 0, [late], [delivers]).text


def test_a_type_that_was_paused_and_forgotten_is_named() -> None:
    paused = TypeState(name="report", seen_at=NOW, paused_at=ago(7200))
    found = health(NOW, 1, 0, [queue(waits=90)], [WORKER], paused=[(paused, 2)])
    assert found.also == ["Type report has been paused for 2h; 2 jobs wait."]
    assert health(NOW, 1, 0, [], [WORKER], paused=[(paused, 0)]).level == "well"


LETTER_WIDTH = 7.6
"""Of a label, in units of a sheet, measured in Chromium."""


@pytest.mark.parametrize("sheet", [machine.WIDE, machine.TALL], ids=lambda sheet: sheet.name)
def test_the_picture_has_every_status_and_every_move_and_stays_on_its_sheet(
    sheet: machine.Sheet,
) -> None:
    picture = machine.draw(sheet, {"waiting": 1, "pending": 3}, {TRANSITIONS[0]: 12.0})
    first, *others = picture.arrows
    assert (first.lines, first.per_minute) == (["claimed"], 12.0)
    assert not any(arrow.per_minute for arrow in others)
    assert {box.status for box in picture.boxes} == set(Status)
    drawn = [rule for arrow in picture.arrows for rule in arrow.rules]
    assert set(drawn) == {rule for rule in TRANSITIONS if rule.source is not rule.target}
    assert len({arrow.path for arrow in picture.arrows}) == len(picture.arrows)
    for arrow in picture.arrows:
        numbers = [float(number) for number in re.findall(r"-?[0-9.]+", arrow.path)]
        assert all(0 <= x <= sheet.width for x in numbers[::2])
        assert all(0 <= y <= sheet.height for y in numbers[1::2])


@pytest.mark.parametrize("sheet", [machine.WIDE, machine.TALL], ids=lambda sheet: sheet.name)
@pytest.mark.parametrize("rates", [{}, dict.fromkeys(TRANSITIONS, 12.0)], ids=["still", "busy"])
def test_no_label_lies_under_a_box_or_reaches_over_the_edge(
    sheet: machine.Sheet, rates: dict[Rule, float]
) -> None:
    """`released, interrupted, snoozed` was wider than the room between its two boxes."""
    picture = machine.draw(sheet, {"waiting": 1, "pending": 3}, rates)
    boxes = [(b.x, b.y, b.x + sheet.box_width, b.y + sheet.box_height) for b in picture.boxes]
    for arrow in picture.arrows:
        width = LETTER_WIDTH * max(map(len, arrow.lines))
        start = {"left": -11 - width, "right": 11}.get(arrow.label, -width / 2) + arrow.x
        end = start + width
        assert start > 0, arrow.lines
        assert end < sheet.width, arrow.lines
        assert not any(
            x < end and start < right and y < arrow.y < low for x, y, right, low in boxes
        ), arrow.lines


def test_waiting_is_drawn_once_it_is_used_and_an_arrow_names_what_happens() -> None:
    plain = machine.draw(machine.WIDE, {"pending": 3}, {})
    assert "waiting" not in {box.status for box in plain.boxes}
    failing = {rule: 1.0 for rule in TRANSITIONS if rule.target is Status.FAILED}
    (arrow,) = (
        arrow
        for arrow in machine.draw(machine.WIDE, {}, failing).arrows
        if arrow.rules[0].target is Status.FAILED
    )
    assert (arrow.lines, arrow.per_minute) == (["failed", "gave up", "lease expired"], 3.0)


def transition(
    seconds: float, event: str, source: str | None, target: str, number: int
) -> Transition:
    at = ago(100 - seconds)
    detail = "boom" if event == "failed" else None
    return Transition(str(seconds), "id", at, source, target, event, number, number, "w", detail)


MOVED = [
    transition(0, "enqueued", None, "pending", 0),
    transition(10, "claimed", "pending", "processing", 1),
    transition(11, "failed", "processing", "failed", 1),
    transition(11, "retried", "failed", "pending", 1),
    transition(40, "claimed", "pending", "processing", 2),
]


def test_the_life_of_a_job_is_told_by_attempts_and_time() -> None:
    assert attempts(MOVED) == [(MOVED[4], None), (MOVED[1], MOVED[2])]  # the newest first
    drawn = periods(MOVED, NOW)
    assert [(part.status, part.seconds) for part in drawn] == [
        ("pending", 10.0),
        ("processing", 1.0),
        ("pending", 29.0),
        ("processing", 60.0),
    ]
    assert drawn[-1].x + drawn[-1].width == pytest.approx(1000, abs=0.1)


def test_rates_and_times_are_of_what_was_counted() -> None:
    buckets = tuple(10 if bound == 1.0 else 0 for bound in BUCKETS)  # ten of 0.3 to 1 second
    minute = NOW.replace(second=0)
    activity = [
        Activity("email", "mail", "claimed", 10, 5.0, buckets, minute),
        Activity("email", "mail", "completed", 9, 5.0, buckets, minute),
        Activity("email", "mail", "completed", 99, 5.0, buckets, minute - timedelta(hours=2)),
    ]
    rates = {
        transition.event: rate for transition, rate in format.rates(activity, NOW).items() if rate
    }
    assert rates == {"claimed": 2.0, "completed": 1.8}
    assert format.throughput(activity, NOW).lines["completed"][-1] == 9
    assert format.latency(activity, NOW).lines["waited"][-1] == pytest.approx(0.965)
    assert format.quantile((), 0.95) is None


def test_each_line_has_the_jobs_that_went_along_it() -> None:
    """Two lines are called cancelled; jobs that were running had run for some time."""
    ran = (2, *(0 for _ in BUCKETS[2:]), 1)
    none = (0,) * len(BUCKETS)
    minute = NOW.replace(second=0)
    counts = format.transition_counts(
        [
            Activity("a", "q", "enqueued", 9, 0.0, none, minute),
            Activity("a", "q", "cancelled", 7, 0.0, ran, minute),
            Activity("b", "q", "cancelled", 1, 0.0, none, minute),
            Activity("b", "q", "retried", 5, 0.0, none, minute),
        ]
    )
    assert list(counts) == list(TRANSITIONS)
    assert {
        (m.event, m.source, transitions) for m, transitions in counts.items() if transitions
    } == {("cancelled", "processing", 3), ("cancelled", "pending", 5), ("retried", "failed", 5)}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.35, "350ms"),
        (5.25, "5.2s"),
        (59, "59s"),
        (252, "4m 12s"),
        (3_659, "1h"),
        (90_061, "1d 1h"),
    ],
)
def test_lengths_are_told_in_two_units(seconds: float, text: str) -> None:
    assert length(seconds) == text
