"""The state machine as a picture, drawn from the lifecycle's table. Pure.

Success runs from left to right, failures go down and retries come back round, cancellations go up.
The place of each status is chosen here. The rules between two statuses become one arrow. `waiting`
is left out while no job uses it. Points and vectors are complex numbers, x + yj.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenure.lifecycle import TRANSITIONS, Rule, Status


@dataclass(frozen=True, slots=True)
class Sheet:
    """A format: its size, the size of boxes, the centre of each status, how far arrows bend."""

    name: str
    width: int
    height: int
    box_width: int
    box_height: int
    places: Mapping[Status, complex]
    bend: float  # of two arrows between the same two boxes
    swing: float  # of an arrow round a corner, per unit of its length


WIDE = Sheet(
    "wide",
    1080,
    580,
    196,
    92,
    {
        Status.WAITING: 140 + 120j,
        Status.PENDING: 140 + 290j,
        Status.PROCESSING: 540 + 290j,
        Status.COMPLETED: 940 + 290j,
        Status.FAILED: 540 + 526j,
        Status.CANCELLED: 540 + 54j,
    },
    bend=84,
    swing=0.21,
)
TALL = Sheet(
    "tall",
    440,
    774,
    136,
    78,
    {
        Status.WAITING: 358 + 156j,
        Status.PENDING: 206 + 60j,
        Status.PROCESSING: 206 + 360j,
        Status.COMPLETED: 206 + 730j,
        Status.FAILED: 74 + 500j,
        Status.CANCELLED: 370 + 500j,
    },
    bend=60,
    swing=0.31,
)
GAP = 7.0
"""Between a box and the arrows at it."""
ICON, LETTER = 22.0, 8.6
"""Approximate widths of an icon with its gap and of a letter of a status."""


@dataclass(frozen=True, slots=True)
class Box:
    """A status: its corner, and how many jobs have it."""

    status: Status
    x: float
    y: float
    jobs: int
    mark: float  # x of its icon; its name follows


@dataclass(frozen=True, slots=True)
class Arrow:
    """Rules: their curve, the place of the label, how often they happen, the width of the line."""

    rules: Sequence[Rule]
    lines: Sequence[str]  # the events that happen, or the usual one
    path: str
    x: float
    y: float
    label: str  # `across` the line, to its `left` or `right`, or `on` it
    per_minute: float
    strength: float  # width of the line, in units of the sheet


@dataclass(frozen=True, slots=True)
class Picture:
    """The state machine on one sheet."""

    sheet: Sheet
    boxes: Sequence[Box]
    arrows: Sequence[Arrow]
    entrance: str  # the curve of jobs that are enqueued


def draw(sheet: Sheet, jobs: Mapping[str, int], per_minute: Mapping[Rule, float]) -> Picture:
    """Draw the machine with its numbers: jobs by status, transitions per minute by rule."""
    half_width, half_height = sheet.box_width / 2, sheet.box_height / 2
    used = jobs.get(Status.WAITING) or any(
        per_minute.get(rule) for rule in TRANSITIONS if Status.WAITING in (rule.source, rule.target)
    )
    shown = {s: place for s, place in sheet.places.items() if used or s is not Status.WAITING}
    boxes = [
        Box(
            status,
            centre.real - half_width,
            centre.imag - half_height,
            jobs.get(status, 0),
            round(half_width - (ICON + len(status) * LETTER) / 2, 1),
        )
        for status, centre in shown.items()
    ]
    between: dict[tuple[Status, Status], list[Rule]] = {}
    for rule in TRANSITIONS:
        if {rule.source, rule.target} <= shown.keys() and rule.source is not rule.target:
            between.setdefault((rule.source, rule.target), []).append(rule)
    arrows = [
        _arrow(sheet, rules, None if (target, source) not in between else sheet.bend, per_minute)
        for (source, target), rules in between.items()
    ]
    first = sheet.places[Status.PENDING]
    left, top = first.real - half_width, first.imag - half_height
    entrance = (
        f"M{left - 34:g} {first.imag:g}H{left - GAP:g}"
        if sheet is WIDE
        else f"M{first.real:g} {top - 18:g}V{top - GAP:g}"
    )
    return Picture(sheet, boxes, arrows, entrance)


def _arrow(
    sheet: Sheet, rules: Sequence[Rule], bend: float | None, rates: Mapping[Rule, float]
) -> Arrow:
    """Draw rules; without `bend` not along an axis, but outwards round a corner."""
    source, target = sheet.places[rules[0].source], sheet.places[rules[0].target]
    happen = [rule.event for rule in rules if rates.get(rule)] or [rules[0].event]
    per_minute = sum(rates.get(rule, 0.0) for rule in rules)
    middle, across = (source + target) / 2, (target - source) / abs(target - source) * -1j
    upright, level = source.real == target.real, source.imag == target.imag
    if bend is None:
        outwards = ((middle - sheet.places[Status.PROCESSING]) * across.conjugate()).real
        straight = upright or level
        bend = 0.0 if straight else math.copysign(sheet.swing * abs(target - source), outwards)
    control = middle + across * bend
    start, end = _edge(sheet, source, control), _edge(sheet, target, control)
    points = [f"{point.real:.1f} {point.imag:.1f}" for point in (start, control, end)]
    label = start / 4 + control / 2 + end / 4
    side = "left" if bend * across.real < 0 else "right"
    return Arrow(
        rules,
        [event.replace("_", " ") for event in happen],
        f"M{points[0]}Q{points[1]} {points[2]}",
        round(label.real, 1),
        round(label.imag, 1),
        "across" if level else side if upright else "on",  # where it hides no line
        per_minute,
        round(1.5 + min(math.log10(1 + per_minute), 4.0) * 0.9, 2),
    )


def _edge(sheet: Sheet, centre: complex, toward: complex) -> complex:
    """Return where the line from a box's centre toward a point leaves the box and its gap."""
    way = toward - centre
    wide = (sheet.box_width / 2 + GAP) / abs(way.real) if way.real else math.inf
    high = (sheet.box_height / 2 + GAP) / abs(way.imag) if way.imag else math.inf
    return centre + way * min(wide, high)
