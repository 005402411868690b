"""The state machine as a picture, drawn from the lifecycle's table. Pure.

Success runs from left to right, failures go down and retries come back round, cancellations go up.
The place of each status is chosen here. Every rule of the table becomes an arrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenure.lifecycle import TRANSITIONS, Rule, Status

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A format: its size, the size of boxes, the place of each status, how far arrows bend."""

    name: str
    width: int
    height: int
    box: Point
    places: Mapping[Status, Point]
    bend: float  # of two arrows between the same two boxes
    swing: float  # of an arrow round a corner, per unit of its length


WIDE = Sheet(
    "wide",
    1080,
    580,
    (196, 92),
    {
        Status.PENDING: (140, 290),
        Status.PROCESSING: (540, 290),
        Status.COMPLETED: (940, 290),
        Status.FAILED: (540, 526),
        Status.CANCELLED: (540, 54),
    },
    bend=84,
    swing=0.21,
)
TALL = Sheet(
    "tall",
    440,
    740,
    (136, 78),
    {
        Status.PENDING: (220, 60),
        Status.PROCESSING: (220, 280),
        Status.COMPLETED: (220, 696),
        Status.FAILED: (76, 436),
        Status.CANCELLED: (364, 436),
    },
    bend=72,
    swing=0.31,
)
GAP = 7.0
"""Between a box and the arrows at it."""
ICON, LETTER = 22.0, 8.6
"""Approximate widths of an icon with its gap and of a letter of a status."""


@dataclass(frozen=True, slots=True)
class Box:
    """A status: its place, its size and how many jobs have it."""

    status: Status
    x: float
    y: float
    width: float
    height: float
    jobs: int
    mark: float  # x of its icon; its name follows


@dataclass(frozen=True, slots=True)
class Arrow:
    """A rule: its curve, the place of its label, how often it happens, the width of the line."""

    rule: Rule
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
    width, height = sheet.box
    boxes = [
        Box(
            status,
            x - width / 2,
            y - height / 2,
            width,
            height,
            jobs.get(status, 0),
            round(width / 2 - (ICON + len(status) * LETTER) / 2, 1),
        )
        for status, (x, y) in sheet.places.items()
    ]
    pairs = Counter(frozenset((rule.source, rule.target)) for rule in TRANSITIONS)
    drawn: Counter[tuple[Status, Status]] = Counter()
    arrows = []
    for rule in TRANSITIONS:
        beside = pairs[frozenset((rule.source, rule.target))] > 1
        same_way = drawn[rule.source, rule.target]
        drawn[rule.source, rule.target] += 1
        bend = sheet.bend * (-1 if same_way else 1) if beside else _swing(sheet, rule)
        arrows.append(_arrow(sheet, rule, bend, per_minute.get(rule, 0.0)))
    x, y = sheet.places[Status.PENDING]
    entrance = (
        f"M{x - width / 2 - 34:g} {y:g}H{x - width / 2 - GAP:g}"
        if sheet is WIDE
        else f"M{x:g} {y - height / 2 - 18:g}V{y - height / 2 - GAP:g}"
    )
    return Picture(sheet, boxes, arrows, entrance)


def _swing(sheet: Sheet, rule: Rule) -> float:
    """Return how far a single arrow bends: not along an axis, outwards round a corner."""
    (ax, ay), (bx, by) = sheet.places[rule.source], sheet.places[rule.target]
    if ax == bx or ay == by:
        return 0.0
    middle_x, middle_y = sheet.places[Status.PROCESSING]
    nx, ny = _normal((ax, ay), (bx, by))
    long = math.hypot(bx - ax, by - ay)
    outwards = ((ax + bx) / 2 - middle_x) * nx + ((ay + by) / 2 - middle_y) * ny
    return math.copysign(sheet.swing * long, outwards)


def _arrow(sheet: Sheet, rule: Rule, bend: float, per_minute: float) -> Arrow:
    source, target = sheet.places[rule.source], sheet.places[rule.target]
    nx, ny = _normal(source, target)
    control = (
        (source[0] + target[0]) / 2 + nx * bend,
        (source[1] + target[1]) / 2 + ny * bend,
    )
    start, end = _edge(sheet, source, control), _edge(sheet, target, control)
    points = [f"{x:.1f} {y:.1f}" for x, y in (start, control, end)]
    path = f"M{points[0]}Q{points[1]} {points[2]}"
    x, y = (start[axis] / 4 + control[axis] / 2 + end[axis] / 4 for axis in (0, 1))
    strength = 1.5 + min(math.log10(1 + per_minute), 4.0) * 0.9
    return Arrow(
        rule,
        path,
        round(x, 1),
        round(y, 1),
        _side(source, target, bend, nx),
        per_minute,
        round(strength, 2),
    )


def _side(source: Point, target: Point, bend: float, nx: float) -> str:
    """Return where a label hides no line."""
    if source[1] == target[1]:
        return "across"
    if source[0] == target[0]:
        return "left" if bend * nx < 0 else "right"
    return "on"


def _normal(a: Point, b: Point) -> Point:
    """Return a unit vector perpendicular to the line from `a` to `b`."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    long = math.hypot(dx, dy)
    return dy / long, -dx / long


def _edge(sheet: Sheet, centre: Point, toward: Point) -> Point:
    """Return where the line from a box's centre toward a point leaves the box and its gap."""
    half_width, half_height = sheet.box[0] / 2 + GAP, sheet.box[1] / 2 + GAP
    dx, dy = toward[0] - centre[0], toward[1] - centre[1]
    reach = min(half_width / abs(dx) if dx else math.inf, half_height / abs(dy) if dy else math.inf)
    return centre[0] + dx * reach, centre[1] + dy * reach
