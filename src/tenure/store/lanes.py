"""Where a claim looks for jobs: in lanes, each one queue at one priority, and in bounded steps.

A lane begins with its *head*, the job that has been due longest or is due next. A claim reads the
heads, one search in an index each, and takes jobs from the lanes whose head is due. It reads
`MAX_LANES` of them at most, or up to the end of the queue if it names its queues. Where there are
more, the next claim reads on from there, and the lanes with due jobs that were seen are remembered
here. Claims then take alternately from the queue whose turn it is and from the one that has waited
longest. So nobody shuts out an old queue by making many new ones.

A claim passes over jobs of types that its worker does not know or that are paused, and over those
that had to start before now. One look goes over `MAX_SEEN`
jobs at most. If it finds nothing, the next one starts behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tenure.jobs.ids import first_of
from tenure.jobs.names import serves
from tenure.jobs.work import ClaimRequest, Lease, is_full

MAX_LANES = 256
"""Heads that a search reads. One queue has fewer: its priorities are -100 to 100."""
MAX_KNOWN = 512
"""Lanes with due jobs that are remembered."""
MAX_SEEN = 2_000
"""Jobs of a lane that one look goes over."""
MAX_LOOKS = 128
"""Looks into lanes of one claim."""
LOOKS_OVER_MANY = 16
"""Looks that one over `MAX_SEEN` jobs counts as."""
MAX_VIEWS = 100
MARGIN = timedelta(milliseconds=1)
"""What is added to the time until a job falls due: timers may be early by less."""
NO_TIME = timedelta()
NEWEST = "g"
"""After every id and time."""
WALK_AGAIN = timedelta(seconds=5)
"""How long after a walk over passed jobs the next one starts."""

Lane = tuple[str, int]
"""A queue and a priority."""
Mark = tuple[Any, str]
"""A time, as the database has it, and an id: the place of a job in its lane."""
START: Lane = ("", 0)
"""Before every lane."""


class Head(NamedTuple):
    """The first job of a lane; its time as the database has it."""

    lane: Lane
    run_at: Any
    id: str


class Claim(Protocol):
    """One claim, as its engine executes it, in one transaction."""

    start: Mark
    """Before every job of a lane."""
    now: datetime
    """The store's clock; known after `search`."""

    def search(self, queues: Sequence[str] | None, after: Lane) -> tuple[list[Head], Lane | None]:
        """Read the heads of the lanes after one; return them, and where the search stopped.

        It stops once it has read `MAX_LANES`, with a whole queue if queues are named, and returns
        None if it came to the end. Left out: paused queues, and any that `serves` refuses.
        """

    def time(self, run_at: Any) -> datetime:
        """Return the time of a head."""

    def newest(self) -> Iterable[Lane]:
        """Return the lanes of some of the jobs that were added last."""

    def open(self, lanes: Sequence[Lane]) -> Collection[Lane]:
        """Return those lanes that may have due jobs, without those of paused queues."""

    def take(self, lane: Lane, after: Mark, limit: int) -> list[Lease]:
        """Claim up to `limit` of the first `MAX_SEEN` due jobs of a lane after a mark."""

    def passed(self, lane: Lane, after: Mark) -> Mark | None:
        """Return the mark of the last of `MAX_SEEN` due jobs after one; None if there are fewer."""


@dataclass(slots=True)
class _Passed:
    """What was passed over in a lane: everything up to `upto`. New jobs come after it.

    Those that came back to an earlier place are found by a walk from the start, now and then.
    """

    upto: Mark
    next_walk: datetime
    walk: Mark | None = None  # where it is


@dataclass(slots=True)
class LaneView:
    """What is known of the lanes for one kind of request."""

    after: Lane = START  # where the next search begins
    known: dict[Lane, str] = field(default_factory=dict)  # a lane with due jobs -> since when
    by_age: bool = False  # what the next claim goes by
    tried: set[Lane] = field(default_factory=set)  # in vain, by claims that could not try all
    passed: dict[Lane, _Passed] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether the next search reads every lane from its start, for all that is known."""
        return self.after == START and not (self.known or self.tried or self.passed)


V = TypeVar("V", bound=LaneView)


class Lanes(Generic[V]):
    """The lanes of one store. Its writing threads share what they know; each step is atomic."""

    def __init__(self, new_view: Callable[[], V]) -> None:
        self._new_view = new_view
        self._views: dict[Any, V] = {}
        self._last_queue = ""  # of the last claim: queues of one priority take turns

    def view(self, request: ClaimRequest) -> V:
        """Return what is known for this kind of request."""
        if len(self._views) > MAX_VIEWS:
            self._views.clear()
        # By types as well: what one worker passes over is work for another.
        return self._views.setdefault((request.queues, request.types), self._new_view())

    def claim(self, request: ClaimRequest, claim: Claim) -> list[Lease]:
        """Lease due jobs: urgent ones first, queues of one priority in turn."""
        view = self.view(request)
        leases: list[Lease] = []
        vain: list[Lane] = []
        looks = 0
        for lane in self._due(request, view, claim):
            if looks >= MAX_LOOKS:
                view.tried = {*vain, *view.tried} if len(view.tried) < MAX_KNOWN else set(vain)
                break
            found, cost = _look(request, view, claim, lane, request.limit - len(leases))
            looks += cost
            leases += found
            if not found:
                vain.append(lane)
                if lane not in view.passed:
                    view.known.pop(lane, None)
            elif not view.by_age:
                self._last_queue = lane[0]
            if len(leases) >= request.limit or is_full(leases):
                break
        else:
            view.tried.clear()
        return leases

    def _due(self, request: ClaimRequest, view: LaneView, claim: Claim) -> list[Lane]:
        """Return lanes with due jobs, in the order of this claim."""
        begin, queues = view.after, request.queues
        if queues is not None and begin != START:
            queues = tuple(name for name in queues if name > begin[0])
        found, stopped = claim.search(queues, begin)
        heads = [head for head in found if claim.time(head.run_at) <= claim.now]
        view.after = stopped or START
        if begin == START and stopped is None:
            view.known.clear()
            view.by_age = False
            lanes = [head.lane for head in heads]
            return sorted(lanes, key=self._turn(view)) if len(lanes) > 1 else lanes
        _remember(request, view, claim, heads)
        view.by_age = not view.by_age
        lanes = nsmallest(MAX_LOOKS, view.known, key=self._turn(view))
        due = claim.open(lanes)
        for lane in lanes:
            if lane not in due and lane not in view.passed:
                del view.known[lane]
        return [lane for lane in lanes if lane in due]

    def _turn(self, view: LaneView) -> Callable[[Lane], Any]:
        """Return what to sort lanes by: first those not tried, then by priority and turn or age."""
        tried, known, last = view.tried, view.known, self._last_queue
        if view.by_age:
            return lambda lane: (lane in tried, lane[1], known[lane])
        return lambda lane: (lane in tried, lane[1], lane[0] <= last, lane[0])


def next_due(request: ClaimRequest, claim: Claim) -> float | None:
    """Return the seconds until the first job of a lane is sure to be due, infinity without jobs.

    None if that does not say when the next one is to be claimed: there are too many lanes, or a job
    is due that this request does not get, before others.
    """
    heads, stopped = claim.search(request.queues, START)
    due = min((claim.time(head.run_at) for head in heads), default=None)
    if stopped is not None or (due is not None and due <= claim.now):
        return None
    return math.inf if due is None else (due - claim.now + MARGIN).total_seconds()


def _remember(request: ClaimRequest, view: LaneView, claim: Claim, heads: Sequence[Head]) -> None:
    """Remember the lanes of a search, and those of the newest jobs, which it may not have reached.

    A job waits since it was due and added, the later of the two: its time alone can be chosen.
    """
    for head in heads:
        view.known[head.lane] = max(head.id, first_of(claim.time(head.run_at), NO_TIME))
    for lane in claim.newest():
        if serves(request.queues, lane[0]):
            view.known.setdefault(lane, NEWEST)
    if len(view.known) > MAX_KNOWN:
        kept = nsmallest(MAX_KNOWN, view.known.items(), key=lambda item: (item[0][1], item[1]))
        view.known = dict(kept)


def _look(
    request: ClaimRequest, view: LaneView, claim: Claim, lane: Lane, limit: int
) -> tuple[list[Lease], int]:
    """Claim jobs of a lane; return them, and how many looks it took."""
    passed = view.passed.get(lane)
    leases: list[Lease] = []
    looks = 1
    if passed is not None and (passed.walk or claim.now >= passed.next_walk):
        leases = _walk(view, claim, lane, passed, limit)
        looks += LOOKS_OVER_MANY
    after = passed.upto if passed else claim.start
    if len(leases) < limit:
        found = claim.take(lane, after, limit - len(leases))
        leases += found
        if not found and (mark := claim.passed(lane, after)):
            looks += LOOKS_OVER_MANY
            if passed is not None:
                passed.upto = mark
            elif len(view.passed) < MAX_KNOWN:
                view.passed[lane] = _Passed(mark, claim.now + WALK_AGAIN)
    return leases, looks


def _walk(view: LaneView, claim: Claim, lane: Lane, passed: _Passed, limit: int) -> list[Lease]:
    """Claim what the next look of the walk over passed jobs finds."""
    began = passed.walk or claim.start
    passed.walk = began
    found = claim.take(lane, began, limit)
    if not found:
        passed.walk = claim.passed(lane, began)
        if passed.walk is None and began == claim.start:
            view.passed.pop(lane, None)  # so few are left that one look sees them all
        elif passed.walk is None or passed.walk >= passed.upto:
            passed.walk, passed.next_walk = None, claim.now + WALK_AGAIN
    return found
