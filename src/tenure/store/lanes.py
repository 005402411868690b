"""Where a claim looks for jobs: in lanes, each one queue at one priority, and in bounded steps.

A lane begins with its *head*, the job that has been due longest or is due next. A `Claim` reads the
heads, one search in an index each, and takes jobs from the lanes whose head is due. It reads
`MAX_LANES` of them at most, or up to the end of the queue if it names its queues. Where there are
more, the next claim reads on from there, and the lanes with due jobs that were seen are remembered
here. Claims then take alternately from the queue whose turn it is and from the one that has waited
longest. So many new queues cannot shut out an old one.

A claim passes over jobs whose type its worker does not know, whose type is paused, or whose
`start_by` is past. One look goes over `MAX_SEEN` jobs at most. If it finds nothing, the next one
starts behind them.
"""

from __future__ import annotations

import math
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from tenure.rules.queues import Turn
from tenure.rules.reports import ClaimRequest, Lease, is_full
from tenure.store.refusals import TRY_AGAIN, TRY_ON, Floors, RefusedClaims
from tenure.telemetry.logs import Repeats
from tenure.values.ids import first_of
from tenure.values.names import serves

Lane = tuple[str, int]
"""A queue and a priority."""
Mark = tuple[Any, str]
"""A time, as the database has it, and an id: the place of a job in its lane."""
Limited = Literal["queue", "partitions"] | None
"""How a queue is limited: not at all, as a whole, or with partitions that take turns."""


class Head(NamedTuple):
    """The first job of a lane; its time as the database has it."""

    lane: Lane
    run_at: Any
    id: str
    limited: Limited = None


class Claim(Protocol):
    """One claim, as its engine executes it, in one transaction."""

    start: Mark
    """Before every job of a lane."""
    now: datetime
    """The store's clock; known after `search`."""
    refused: RefusedClaims
    """What the database did not let start, if this claim is wary of that."""

    def search(self, queues: Sequence[str] | None, after: Lane) -> tuple[list[Head], Lane | None]:
        """Read the heads of the lanes after one; return them, and where the search stopped.

        It stops once it has read `MAX_LANES`, with a whole queue if queues are named, and returns
        None if it came to the end. Left out: paused queues, and any that `serves` refuses.
        """

    def time(self, run_at: Any) -> datetime:
        """Return the time of a head."""

    def newest(self) -> Iterable[Lane]:
        """Return the lanes of some of the jobs that were added last."""

    def open(self, lanes: Sequence[Lane]) -> Mapping[Lane, Limited]:
        """Return those lanes that may have due jobs, without those of paused queues."""

    def take(self, lane: Lane, after: Mark, limit: int) -> list[Lease]:
        """Claim up to `limit` of the first `MAX_SEEN` due jobs of a lane after a mark."""

    def passed(self, lane: Lane, after: Mark) -> Mark | None:
        """Return the mark of the last of `MAX_SEEN` due jobs after one; None if there are fewer."""

    def room(self, queue: str, most: int) -> int | None:
        """Return how many jobs of a limited queue may start now, all partitions together.

        `most` at most, and 0 while the queue is closed. Where that has to be counted, the queue is
        locked until the end of the transaction; None if another transaction has locked it.
        """

    def take_in_turn(
        self, lane: Lane, turn: Turn, limit: int, wide: bool = False
    ) -> tuple[list[Lease], Turn, int]:
        """Claim up to `limit` due jobs of a lane with partitions.

        Returns them, the next turn, and what `effort` says of it.

        The partitions begin at the turn, and have what `queues.quotas` deals them. A look goes over
        a bounded number of them, and the turn that is returned is then behind the last one. So it
        is behind the last one that got jobs, if their payloads are as many bytes as a claim has.

        If `wide`, a look goes over as many of them as it may, however small the limit is.
        """

    def look_again(self, queue: str) -> float:
        """Return what `queues.look_again` says of a limited queue."""


# --- lanes ----------------------------------------------------------------------------------------
# A queue may have limits. Its lanes give no more jobs than the limits leave `room` for, and than
# there are handlers free. If it has none it is closed: the claim continues with the next lane. The
# partitions of a queue take turns, if it is divided by them.

MAX_LANES = 256
"""Heads that a search reads. One queue has fewer: its priorities are -100 to 100."""
MAX_KNOWN = 512
"""Lanes with due jobs that are remembered."""
MAX_PLACES = 10_000
"""Lanes, and partitions of lanes, of which is remembered behind which jobs to look, and lanes of
which it is that they were tried in vain. With more closed lanes some are never tried."""
MAX_SEEN = 2_000
"""Jobs of a lane that one look goes over."""
MAX_LOOKS = 128
"""Looks into lanes of one claim."""
LOOKS_OVER_MANY = 16
"""Looks that one over `MAX_SEEN` jobs counts as."""
LOOKS_OVER_PARTITIONS = 4
"""Looks that one at the partitions of a lane counts as, at least."""
PARTITIONS_IN_A_LOOK = 32
"""Closed partitions that take as long as one look into a lane."""
MAX_VIEWS = 100
MARGIN = timedelta(milliseconds=1)
"""What is added to the time until a job falls due: timers may be early by less."""
NO_TIME = timedelta()
NEWEST = "g"
"""After every id and time."""
WALK_AGAIN = timedelta(seconds=5)
"""How long after a walk over passed jobs the next one starts."""
IN_ORDER_AGAIN = timedelta(seconds=1)
"""How long lanes that were tried in vain come after others, if these fill each claim."""

MIN_STEP = timedelta(seconds=60)
"""Smaller steps back of the clock are waited for."""

BUSY_AGAIN_SECONDS = 0.02
"""How long a worker waits where another claim had locked a queue with limits."""
MAX_ROUNDS = 3
"""How often a claim asks the partitions of a lane: the first time some had fewer jobs than room."""

START: Lane = ("", 0)
"""Before every lane."""
PLACES = string.digits + string.ascii_letters
"""Where the turn of partitions begins, so that it is not the same in every process."""


@dataclass(slots=True)
class _Passed:
    """What was passed over in a lane: everything up to `upto`. New jobs come after it.

    Some jobs come back to an earlier place. An occasional walk from the start finds them.
    """

    upto: Mark
    next_walk: datetime  # or its next look
    walk: Mark | None = None  # where it is
    refuses: bool = False  # whether the walk has met jobs that the database does not let start


@dataclass(slots=True)
class LaneView:
    """What is known of the lanes for one kind of request."""

    after: Lane = START  # where the next search begins
    known: dict[Lane, str] = field(default_factory=dict)  # a lane with due jobs -> since when
    by_age: bool = False  # what the next claim goes by
    tried: set[Lane] = field(default_factory=set)  # in vain, by claims that could not try all
    in_order_at: datetime | None = None  # when a claim that was filled without them ends this
    passed: dict[Lane, _Passed] = field(default_factory=dict)
    floors: Floors = field(default_factory=lambda: Floors(MAX_PLACES))
    turns: dict[Lane, Turn] = field(default_factory=dict)
    busy: bool = False  # the last claim met a locked queue, or has left lanes to the next one
    seen_at: datetime | None = None  # by the last claim

    def see(self, now: datetime) -> None:
        """Forget places and times of a clock that was put back: new jobs come before them."""
        if self.seen_at is not None and now < self.seen_at - MIN_STEP:
            self.passed.clear()
            self.floors = Floors(MAX_PLACES)
            self.in_order_at = None
        self.seen_at = now

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
        self._repeats = Repeats()

    def view(self, request: ClaimRequest) -> V:
        """Return what is known for this kind of request."""
        if len(self._views) > MAX_VIEWS:
            self._views.clear()
        # By types as well: what one worker passes over is work for another.
        return self._views.setdefault((request.queues, request.types), self._new_view())

    def claim(self, request: ClaimRequest, claim: Claim) -> list[Lease]:
        """Lease due jobs: urgent ones first, queues of one priority in turn."""
        view = self.view(request)
        view.busy = False
        rooms = _Rooms(request, view, claim)
        leases: list[Lease] = []
        vain: list[Lane] = []
        closed: list[Lane] = []
        looks = 0
        due = self._due(request, view, claim)
        if due:  # else the time may not be known
            view.see(claim.now)
        for n, (lane, limited) in enumerate(due.items()):
            if looks >= MAX_LOOKS:
                left = {*due, *view.known}.difference([*due][:n])
                _leave_rest(view, claim, left, {*vain, *closed})
                break
            limit = request.limit - len(leases)
            if limited and (limit := rooms.of(lane[0], len(leases))) <= 0:
                closed.append(lane)
                looks += 1
                continue
            look = _look_in_turn if limited == "partitions" else _look
            found, cost = look(view, claim, lane, limit)
            looks += cost
            leases += found
            if limited:
                rooms.use(lane[0], len(found))
            if found and not view.by_age:
                self._last_queue = lane[0]
            elif not found and (limited == "partitions" or lane in view.passed):
                closed.append(lane)
            elif not found:
                vain.append(lane)
                view.known.pop(lane, None)
            if len(leases) >= request.limit or is_full(leases) or claim.refused.are_many:
                if view.in_order_at is None or claim.now >= view.in_order_at:
                    # Jobs that are more urgent than these may have come there.
                    view.tried = {other for other in view.tried if other[1] > lane[1]}
                break
        else:
            view.tried = _behind(view, due, {*vain, *closed})
        claim.refused.say(self._repeats)
        return leases

    def _due(self, request: ClaimRequest, view: LaneView, claim: Claim) -> Mapping[Lane, Limited]:
        """Return lanes with due jobs, in the order of this claim, and how they are limited."""
        begin, queues = view.after, request.queues
        if queues is not None and begin != START:
            queues = tuple(name for name in queues if name > begin[0])
        found, stopped = claim.search(queues, begin)
        heads = [head for head in found if claim.time(head.run_at) <= claim.now]
        view.after = stopped or START
        if begin == START and stopped is None:
            view.known.clear()
            view.by_age = False
            if len(heads) > 1:
                turn = self._turn(view)
                heads.sort(key=lambda head: turn(head.lane))
            return {head.lane: head.limited for head in heads}
        _remember(request, view, claim, heads)
        view.by_age = not view.by_age
        lanes = nsmallest(MAX_LOOKS, view.known, key=self._turn(view))
        due = claim.open(lanes)
        for lane in lanes:
            if lane not in due and lane not in view.passed:
                del view.known[lane]
        return {lane: due[lane] for lane in lanes if lane in due}

    def _turn(self, view: LaneView) -> Callable[[Lane], Any]:
        """Return what to sort lanes by: first those not tried, then by priority and turn or age."""
        tried, known, last = view.tried, view.known, self._last_queue
        if view.by_age:
            return lambda lane: (lane in tried, lane[1], known[lane])
        return lambda lane: (lane in tried, lane[1], lane[0] <= last, lane[0])


class _Rooms:
    """How many jobs of each limited queue a claim may still take."""

    def __init__(self, request: ClaimRequest, view: LaneView, claim: Claim) -> None:
        self._free = request.limit if request.free is None else min(request.free, request.limit)
        self._view = view
        self._claim = claim
        self._rooms: dict[str, int] = {}

    def of(self, queue: str, leased: int) -> int:
        """Return the room of a queue, where so many jobs of any queue are leased already."""
        free = self._free - leased
        if free > 0 and queue not in self._rooms:
            room = self._claim.room(queue, free)
            self._view.busy |= room is None
            self._rooms[queue] = room or 0
        return min(free, self._rooms.get(queue, 0))

    def use(self, queue: str, jobs: int) -> None:
        """Note that so many jobs of a queue were leased."""
        self._rooms[queue] -= jobs


def _leave_rest(view: LaneView, claim: Claim, left: set[Lane], vain: set[Lane]) -> None:
    """Note which lanes the next claim looks at last, after one that has `left` some.

    Once each was tried, only those of the last claim stay behind: so all have their turn again.
    """
    if not view.tried:
        view.in_order_at = claim.now + IN_ORDER_AGAIN
    tried = vain | view.tried
    are_left = not tried.issuperset(left)
    view.tried = tried if are_left and len(view.tried) < MAX_PLACES else vain
    view.busy |= are_left


def _behind(view: LaneView, due: Mapping[Lane, Any], vain: set[Lane]) -> set[Lane]:
    """Return the lanes that the next claim looks at last, after one that looked at all of `due`.

    Where others are known, those in vain must not stay in front of them.
    """
    if not vain or due.keys() >= view.known.keys():
        return set()
    keeps = view.tried.isdisjoint(due) and len(view.tried) < MAX_PLACES
    return {*vain, *(view.tried if keeps else ())}


def next_due(request: ClaimRequest, view: LaneView, claim: Claim) -> float | None:
    """Return the seconds until the first job of a lane is sure to be due, infinity without jobs.

    None if that does not say when the next one is to be claimed: there are too many lanes, or a job
    is due that this request does not get, before others. If its queue has limits, it may be closed:
    a notification comes when a job of it ends, so the wait is a second, or what `look_again` says.
    """
    heads, stopped = claim.search(request.queues, START)
    waits, closed = [math.inf], set[str]()
    for head in heads:
        due = claim.time(head.run_at)
        if due > claim.now:
            waits.append((due - claim.now + MARGIN).total_seconds())
        elif head.limited is None:
            return None
        else:
            closed.add(head.lane[0])
    if stopped is not None:
        return None
    if closed and view.busy:
        return BUSY_AGAIN_SECONDS
    return min([*waits, *map(claim.look_again, closed)])


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
        kept = nsmallest(
            MAX_KNOWN, view.known.items(), key=lambda it: (it[0] in view.tried, it[0][1], it[1])
        )
        view.known = dict(kept)


def _look(view: LaneView, claim: Claim, lane: Lane, limit: int) -> tuple[list[Lease], int]:
    """Claim jobs of a lane; return them, and how many looks it took."""
    passed = view.passed.get(lane)
    leases: list[Lease] = []
    looks = 1
    if passed is not None and claim.now >= passed.next_walk:
        leases = _walk(view, claim, lane, passed, limit)
        looks += LOOKS_OVER_MANY
    after = passed.upto if passed else claim.start
    if len(leases) < limit:
        found = claim.take(lane, after, limit - len(leases))
        leases += found
        pause, mark = TRY_AGAIN, claim.refused.upto
        if mark is None and not found and (mark := claim.passed(lane, after)):
            looks, pause = looks + LOOKS_OVER_MANY, WALK_AGAIN
        if mark is not None and passed is not None:
            passed.upto = mark
        elif mark is not None and len(view.passed) < MAX_PLACES:
            view.passed[lane] = _Passed(mark, claim.now + pause)
    return leases, looks


def _look_in_turn(view: LaneView, claim: Claim, lane: Lane, limit: int) -> tuple[list[Lease], int]:
    """Claim jobs of a lane with partitions; return them, and how many looks it took."""
    turn = view.turns.get(lane) or Turn(secrets.choice(PLACES))
    leases: list[Lease] = []
    looks, costs, wide = 0, 0, False
    while looks < MAX_ROUNDS:
        began = turn
        found, turn, cost = claim.take_in_turn(lane, turn, limit - len(leases), wide)
        leases += found
        looks += 1
        costs += cost
        # These partitions may be closed, or have only jobs of other types. Then ask many.
        if (not found and (wide or turn == began)) or len(leases) >= limit or is_full(leases):
            break
        wide = not found
    if len(view.turns) >= MAX_KNOWN:
        view.turns.clear()
    view.turns[lane] = turn
    return leases, looks if leases else min(costs, LOOKS_OVER_MANY)


def effort(looked: int, vain: int) -> int:
    """Return how many looks it counts as to look at partitions, and at the jobs of some in vain."""
    return LOOKS_OVER_PARTITIONS + looked // PARTITIONS_IN_A_LOOK + vain


def _walk(view: LaneView, claim: Claim, lane: Lane, passed: _Passed, limit: int) -> list[Lease]:
    """Claim what the next look of the walk over passed jobs finds."""
    began = passed.walk or claim.start
    passed.walk = began
    found = claim.take(lane, began, limit)
    refused = claim.refused.upto
    if refused is not None:
        passed.walk, passed.next_walk, passed.refuses = refused, claim.now + TRY_ON, True
    elif not found:
        passed.walk = claim.passed(lane, began)
        if passed.walk is None and began == claim.start:
            view.passed.pop(lane, None)  # so few are left that one look sees them all
            return found
    if passed.walk is None or passed.walk >= passed.upto:
        pause = TRY_AGAIN if passed.refuses else WALK_AGAIN
        passed.walk, passed.next_walk, passed.refuses = None, claim.now + pause, False
    return found
