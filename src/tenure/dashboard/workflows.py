"""The workflows, one of them with the picture of its graph, their buttons, and relatives of jobs.

The picture has the stacks of a workflow as boxes in layers, and its dependencies as lines. Parents
are above their children. A line that passes layers gets a place in each, so that it crosses no box.
Boxes are ordered by the places of the others that lines lead to, which makes crossings few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from starlette.responses import Response

from tenure.app.app import Tenure
from tenure.app.jobs import shape_shown, types_shown
from tenure.dashboard.request import PageRequest
from tenure.lifecycle import SETTLED
from tenure.rules.search import Bulk
from tenure.rules.workflows import RelativePage, Shape, Stack, Workflow, WorkflowStatus

LISTED = 50


def listed(request: PageRequest) -> Response:
    status, name, before = (request.field(field) for field in ("status", "name", "before"))
    page = request.app.workflows.list(
        status=status or None, name=name or None, limit=LISTED, before=before or None
    )
    return request.page(
        "workflows.html",
        page=page,
        given={"status": status, "name": name, "before": before},
        states=list(WorkflowStatus),
    )


def show(request: PageRequest) -> Response:
    id = request.path("id")
    workflow, picture, types = request.cache.once(f"workflow {id}", partial(_read, request.app, id))
    jobs = workflow.jobs or {}
    settled = sum(jobs.get(status, 0) for status in SETTLED)
    return request.page(
        "workflow.html", workflow=workflow, jobs=jobs, picture=picture, types=types, settled=settled
    )


def _read(
    app: Tenure, id: str
) -> tuple[Workflow, GraphPicture | None, Mapping[str, Mapping[str, int]]]:
    """Return a workflow with its picture, or with its types if they are too many to draw."""
    workflow = app.workflows.get(id)
    shape = shape_shown(app.core, workflow.id)
    if shape is None:
        return workflow, None, types_shown(app.core, workflow.id)
    return workflow, draw(shape) if shape.stacks else None, {}


def cancel(request: PageRequest) -> Response:
    """Cancel the jobs of a workflow; jobs that run after a failure only with `everything`."""
    everything = bool(request.field("everything"))
    return _started(request, request.app.workflows.cancel, everything=everything)


def retry(request: PageRequest) -> Response:
    return _started(request, request.app.workflows.retry)


def _started(request: PageRequest, act: Any, **options: Any) -> Response:
    workflow = request.path("id")
    started: Bulk = act(workflow, actor=request.actor, reason=request.field("reason"), **options)
    where = request.address(f"/ui/workflows/{workflow}")
    return request.go(where, f"Started: {started.action} continues in the background.")


def parents(request: PageRequest) -> Response:
    """Show what a job waits for."""
    return _relatives(request, request.app.workflows.parents, "parents")


def followers(request: PageRequest) -> Response:
    """Show what waits for a job."""
    return _relatives(request, request.app.workflows.followers, "followers")


def _relatives(request: PageRequest, read: Any, part: str) -> Response:
    job = request.app.get(request.path("id"))
    page: RelativePage = read(job.id, limit=LISTED, after=request.field("after") or None)
    return request.page("relatives.html", job=job, page=page, part=part)


# --- the picture of a graph -----------------------------------------------------------------------

BOX_WIDTH, LINE_WIDTH = 216, 12
BESIDE, BELOW, MARGIN = 28, 52, 12
HEAD, ROW, FOOT, BAR = 34, 20, 8, 10
"""Heights of a box: its name, each line below it, the space at its end, the bar of a stack."""
INNER = BOX_WIDTH - 24
ENTRANCES = {"completed": 0, "settled": 64, "failed": -64, "past": 96}
"""Where lines end at a box, from its middle, by what they need of the parent."""


class BarPart(NamedTuple):
    """A part of a stack's bar."""

    status: str
    x: float
    width: float


class Entrance(NamedTuple):
    """The end of lines at the upper side of a box."""

    x: int
    meets: str


@dataclass(frozen=True, slots=True)
class StackBox:
    """A stack with its corner."""

    stack: Stack
    x: int
    y: int
    height: int
    bar: Sequence[BarPart]  # none for one job
    entrances: Sequence[Entrance]
    width: int = BOX_WIDTH


class Line(NamedTuple):
    """The lines from a box to all whose jobs need the same of its jobs, as a path of SVG."""

    path: str
    parent: str  # the type
    meets: str


@dataclass(frozen=True, slots=True)
class GraphPicture:
    """A workflow as boxes and lines, and the size of the picture."""

    width: int
    height: int
    boxes: Sequence[StackBox]
    lines: Sequence[Line]


class _Spot(NamedTuple):
    """What has a place in a layer: a box, or the lines from a box that pass this layer."""

    layer: int
    stack: int
    passing: str = ""  # what these lines need of the parent; empty for a box


def draw(shape: Shape) -> GraphPicture:
    """Draw the stacks of a workflow and what ties them."""
    layers: list[list[_Spot]] = [[] for _ in range(1 + max(s.layer for s in shape.stacks))]
    for number, stack in enumerate(shape.stacks):
        layers[stack.layer].append(_Spot(stack.layer, number))
    hops = _hops(shape, layers)
    middles = _middles(layers, hops)
    least = min(middles[spot] - _width(spot) // 2 for spots in layers for spot in spots)
    middles = {spot: middle - least + MARGIN for spot, middle in middles.items()}
    heights = [_height(stack) for stack in shape.stacks]
    tops, bottoms = [], []
    y = MARGIN
    for spots in layers:
        tops.append(y)
        bottoms.append(y + max((heights[s.stack] for s in spots if not s.passing), default=ROW))
        y = bottoms[-1] + BELOW
    lines, meets_at = [], defaultdict[int, set[str]](set)
    for (parent, meets), steps in hops.items():
        path = []
        for source, target in steps:
            into = 0 if target.passing else ENTRANCES[meets]
            if not target.passing:
                meets_at[target.stack].add(meets)
            start = tops[source.layer] + (0 if source.passing else heights[source.stack])
            bottom, top = bottoms[source.layer], tops[target.layer]
            bend = (bottom + top) // 2
            x = middles[target] + into
            path.append(f"M{middles[source]} {start}V{bottom}C{middles[source]} {bend} {x} {bend}")
            path.append(f" {x} {top}")
        lines.append(Line("".join(path), shape.stacks[parent].type, meets))
    boxes = [
        StackBox(
            stack,
            middles[_Spot(stack.layer, number)] - BOX_WIDTH // 2,
            tops[stack.layer],
            heights[number],
            _bar(stack),
            [Entrance(BOX_WIDTH // 2 + ENTRANCES[m], m) for m in sorted(meets_at[number])],
        )
        for number, stack in enumerate(shape.stacks)
    ]
    right = max(middles[spot] + _width(spot) // 2 for spots in layers for spot in spots)
    return GraphPicture(right + MARGIN, y - BELOW + MARGIN, boxes, lines)


Hops = Mapping[tuple[int, str], Sequence[tuple[_Spot, _Spot]]]
"""By stack and what others need of it: the steps of the lines, each from a layer to the next."""


def _hops(shape: Shape, layers: Sequence[list[_Spot]]) -> Hops:
    """Return the steps of all lines. A line that passes a layer gets a place in it (`layers`)."""
    children = defaultdict[tuple[int, str], list[int]](list)
    for tie in shape.ties:
        children[tie.parent, tie.meets].append(tie.child)
    hops: dict[tuple[int, str], list[tuple[_Spot, _Spot]]] = {}
    for (parent, meets), some in children.items():
        steps = hops[parent, meets] = []
        last = max(shape.stacks[child].layer for child in some)
        above = _Spot(shape.stacks[parent].layer, parent)
        for layer in range(above.layer + 1, last + 1):
            steps += [
                (above, _Spot(layer, child)) for child in some if shape.stacks[child].layer == layer
            ]
            if layer < last:
                passing = _Spot(layer, parent, meets)
                layers[layer].append(passing)
                steps.append((above, passing))
                above = passing
    return hops


def _middles(layers: Sequence[list[_Spot]], hops: Hops) -> dict[_Spot, int]:
    """Order the layers, and return the middle of each place."""
    above, below = defaultdict[_Spot, list[_Spot]](list), defaultdict[_Spot, list[_Spot]](list)
    for steps in hops.values():
        for source, target in steps:
            above[target].append(source)
            below[source].append(target)
    middles: dict[_Spot, int] = {}
    for spots in layers:
        _put(spots, middles)
    for others, order in ((above, layers), (below, layers[::-1]), (above, layers)):
        for spots in order:
            wanted = {
                spot: sum(middles[one] for one in others[spot]) / len(others[spot])
                if others[spot]
                else middles[spot]
                for spot in spots
            }
            spots.sort(key=wanted.__getitem__)
            _put(spots, middles)
    return middles


def _put(spots: Sequence[_Spot], middles: dict[_Spot, int]) -> None:
    """Put spots side by side around zero."""
    x = -(sum(map(_width, spots)) + BESIDE * (len(spots) - 1)) // 2
    for spot in spots:
        middles[spot] = x + _width(spot) // 2
        x += _width(spot) + BESIDE


def _width(spot: _Spot) -> int:
    return LINE_WIDTH if spot.passing else BOX_WIDTH


def _height(stack: Stack) -> int:
    rows = len(stack.statuses) + (stack.needs is not None)
    return HEAD + BAR * (stack.jobs > 1) + ROW * rows + FOOT


def _bar(stack: Stack) -> list[BarPart]:
    if stack.jobs == 1:
        return []
    least = 4  # so that one job of ten thousand is seen
    free = INNER - least * len(stack.statuses)
    parts, x = [], 0.0
    for status, jobs in stack.statuses.items():
        width = round(least + free * jobs / stack.jobs, 1)
        parts.append(BarPart(status, round(x, 1), width))
        x += width
    return parts
