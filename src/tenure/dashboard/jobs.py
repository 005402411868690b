"""The list of jobs, the page of a job with its history, actions on one, some and all that match."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate
from typing import Any, cast

from msgspec.structs import replace
from starlette.responses import PlainTextResponse, Response

from tenure.app import signals
from tenure.app.jobs import progress_shown, run_again_as, steps_shown, transitions_shown
from tenure.dashboard import format as fmt
from tenure.dashboard.request import HEADERS, PageRequest, inside
from tenure.errors import IllegalTransition, InvalidInput, JobNotFound, StoreUnavailable
from tenure.lifecycle import FIRST_EVENT, SETTLED, Job, Status
from tenure.rules import search
from tenure.rules.ledger import Transition
from tenure.rules.signals import MAX_SIGNAL_BYTES, Signal
from tenure.rules.stats import jobs_by_status, used
from tenure.rules.tokens import Scope
from tenure.values.payload import parse
from tenure.values.text import length, quantity, visible
from tenure.wire.problems import Refusal

PAGE = 50
MAX_SELECTED = 500
MAX_LOCKED = 5
"""Locked jobs that an action waits for, each for ten seconds."""
MAX_TYPES = 200
MAX_SIGNALS = 50
MAX_TRANSITIONS = 200
MAX_RELATIVES = 20
"""Parents and followers on the page of a job; a link leads to all of them."""
SINCE = {
    "15m": ("last 15 minutes", timedelta(minutes=15)),
    "1h": ("last hour", timedelta(hours=1)),
    "24h": ("last 24 hours", timedelta(days=1)),
    "7d": ("last 7 days", timedelta(days=7)),
}
PLAIN = ("status", "state", "running_longer_than", "type", "queue", "tag", "partition", "workflow")
TIMES = ("since", "from", "to", "settled")
FIELDS = (*PLAIN, *TIMES, "error", "text")


def given_filter(request: PageRequest) -> tuple[dict[str, str], search.Filter]:
    """Return the fields of a filter as they were given, and the filter; raises InvalidInput."""
    given = {name: request.field(name) for name in FIELDS}
    plain: Any = {name: value or None for name, value in given.items() if name not in TIMES}
    wanted = search.Filter(
        **plain,
        created_after=_since(request, "since") or _time(given["from"], "from"),
        created_before=_time(given["to"], "to"),
        finished_after=_since(request, "settled"),
        hidden=request.redaction.keys,
    )
    return given, search.check_filter(wanted, at="")


def _since(request: PageRequest, name: str) -> datetime | None:
    """Return the beginning of a chosen period, or the one that the page of a bulk action named."""
    chosen = request.field(name)
    return request.now - SINCE[chosen][1] if chosen in SINCE else _time(chosen, name)


def _time(text: str, name: str) -> datetime | None:
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for the first and the last day there is
        raise InvalidInput("write a time like 2026-11-24T15:30, in UTC", path=name) from None


# --- the list -------------------------------------------------------------------------------------


def listed(request: PageRequest) -> Response:
    """Show jobs, newest first or oldest first."""
    given, wanted = given_filter(request)
    cursor, order = request.field("cursor") or None, request.field("order") or "newest"
    counts = request.cache.counts()
    shown = [
        count
        for count in counts
        if wanted.type in (None, count.type) and wanted.queue in (None, count.queue)
    ]
    page = request.app.core.page(wanted, PAGE, cursor, cast("search.Order", order))
    running = [job for job in page.jobs if job.status is Status.PROCESSING]
    return request.page(
        "jobs.html",
        jobs=[request.redaction.job(job) if job.last_error else job for job in page.jobs],
        page=page,
        progress=progress_shown(request.app.core, running, request.redaction),
        given=given,
        filtered=any(given.values()),
        order=order,
        cursor=cursor,
        states=list(search.State),
        by_status=used(jobs_by_status(shown)),
        types=sorted({count.type for count in counts})[:MAX_TYPES],
        queue_names=sorted({count.queue for count in counts})[:MAX_TYPES],
        since=SINCE,
        actions=[
            one
            for one in search.Action
            if not wanted.status or wanted.status in search.sources(one)
        ],
    )


def act_on_selected(request: PageRequest) -> Response:
    """Retry or cancel the selected jobs."""
    action = search.action_of(request.field("action"))
    ids = dict.fromkeys(request.fields.getlist("id"))
    back = inside(request.field("back")) or request.address("/ui/jobs")
    if not ids:
        return request.go(back, "Select some jobs first.", "bad")
    if len(ids) > MAX_SELECTED:
        raise InvalidInput(f"at most {MAX_SELECTED} at once", path="id")
    verbs = {search.Action.RETRY: request.app.retry, search.Action.CANCEL: request.app.cancel}
    change: Any = verbs.get(action, partial(request.app.amend, delay=0))
    done, refused, locked = 0, 0, list[str]()
    for job_id in ids:
        try:
            change(job_id, actor=request.actor, reason=request.field("reason"))
            done += 1
        except (IllegalTransition, JobNotFound):
            refused += 1
        except StoreUnavailable as error:
            if not error._is_locked:
                raise
            locked.append(job_id)
            if len(locked) == MAX_LOCKED:
                break
    what = "cancelled" if action is search.Action.CANCEL else "to run"
    message = f"{quantity(done, 'job')} {what}."
    if refused:
        message += f" {quantity(refused, 'job')} could not be, because the status had changed."
    if locked:
        message += f" Another transaction has locked {', '.join(locked)}."
    if left := len(ids) - done - refused - len(locked):
        message += f" {quantity(left, 'job')} not tried."
    return request.go(back, message, "good" if done else "bad")


# --- actions on all jobs of a filter --------------------------------------------------------------


def preview_bulk(request: PageRequest) -> Response:
    """Show how many jobs an action would try; without an action, list the bulk actions."""
    action = request.field("action")
    if not action:
        bulks = [_shown(request, bulk) for bulk in request.app.bulk.list()]
        return request.page("bulks.html", bulks=bulks, describe=describe)
    given, wanted = given_filter(request)
    filters = {name: value for name, value in given.items() if value}
    options = [
        word for name, value in filters.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    # A period that ends now would be another one by the time that a person confirms.
    times = {"since": wanted.created_after, "settled": wanted.finished_after}
    fixed = {name: str(times[name]) for name in times if name in filters}
    snoozed = None
    if search.leaves_snoozed(search.action_of(action), wanted):
        snoozed = request.app.core.count(replace(wanted, state=search.State.SNOOZED), action=action)
    return request.page(
        "bulk_preview.html",
        action=action,
        given=filters,
        sent={**filters, **fixed},
        filter=describe(wanted),
        matching=request.app.core.count(wanted, action=action),
        snoozed=snoozed,
        command=shlex.join(["tenure", "jobs", action.replace("_", "-"), *options]),
        exact=filters.keys().isdisjoint((*TIMES, "error", "text")),
    )


def start_bulk(request: PageRequest) -> Response:
    """Start an action. The sweeper of any server carries it out."""
    given, wanted = given_filter(request)
    if not any(given.values()):  # every job, as the preview has said
        wanted = replace(wanted, created_before=request.now)
    action, why = request.field("action"), request.field("reason")
    started = request.app.bulk.start(action, wanted, actor=request.actor, reason=why)
    return request.go(
        request.address(f"/ui/bulk/{started.id}"), "Started. It continues in the background."
    )


def show_bulk(request: PageRequest) -> Response:
    """Show the progress of an action."""
    one = _shown(request, request.app.bulk.get(request.path("id")))
    return request.page("bulk.html", bulk=one, filter=describe(one.filter))


def _shown(request: PageRequest, bulk: search.Bulk) -> search.Bulk:
    return bulk if request.may(Scope.ADMIN) else bulk.without_searches


def stop_bulk(request: PageRequest) -> Response:
    """Stop an action; jobs that it has changed stay changed."""
    one = request.app.bulk.stop(request.path("id"), actor=request.actor)
    return request.go(
        request.address(f"/ui/bulk/{one.id}"), "Stopped. Jobs that it changed stay changed."
    )


def describe(filter: search.Filter) -> list[tuple[str, str]]:
    """Return the conditions of a filter as names and values."""
    plain = {name.replace("_", " "): getattr(filter, name) for name in PLAIN}
    if (least := filter.running_longer_than) is not None:
        plain["running longer than"] = length(least)
    pairs = [
        *plain.items(),
        ("enqueued after", filter.created_after and fmt.exactly(filter.created_after)),
        ("enqueued before", filter.created_before and fmt.exactly(filter.created_before)),
        ("settled after", filter.finished_after and fmt.exactly(filter.finished_after)),
        ("settled before", filter.finished_before and fmt.exactly(filter.finished_before)),
        ("error contains", filter.error),
        ("payload contains", filter.text),
    ]
    return [(name, value) for name, value in pairs if value]


# --- one job --------------------------------------------------------------------------------------


def show(request: PageRequest) -> Response:
    """Show everything about a job."""
    job = request.app.get(request.path("id"))
    explanation = request.app.explain(job.id)
    history = request.app.history(job.id, last=MAX_TRANSITIONS + 1)
    transitions = transitions_shown(history[-MAX_TRANSITIONS:], job, request.redaction)
    shown = request.redaction.job(job)
    return request.page(
        "job.html",
        job=shown,
        parents=request.app.workflows.parents(job.id, limit=MAX_RELATIVES),
        followers=request.app.workflows.followers(job.id, limit=MAX_RELATIVES),
        again=run_again_as(request.app.core, job.id),
        progress=progress_shown(request.app.core, [job], request.redaction).get(job.id),
        explanation=request.redaction.text(explanation.text, job),
        kept=steps_shown(request.app.core, job, request.redaction),
        legal=explanation.legal_events,
        asleep=explanation.reason == "sleeping",
        transitions=transitions,
        has_older=len(history) > len(transitions),
        titles=TITLES,
        attempts=attempts(transitions),
        periods=periods(transitions, request.now),
        span=((job.finished_at or request.now) - job.created_at).total_seconds(),
        signals=_signals(request, job),
        wait=signals.waited_for(request.app.core, job),
        texts=_texts(shown),
        most=fmt.SHOWN_CHARACTERS,
    )


def _signals(request: PageRequest, job: Job) -> list[tuple[Signal, str]]:
    """Return the last signals of a job, and what they say."""
    sent = request.app.signals.list(job.id)[-MAX_SIGNALS:]
    return [(one, request.redaction.document(one.payload_json)) for one in sent]


def signal(request: PageRequest) -> Response:
    job_id, typed = request.app.get(request.path("id")).id, request.field("payload")
    where = request.address(f"/ui/jobs/{job_id}")
    says = parse(typed.encode(), limit=MAX_SIGNAL_BYTES) if typed else None
    try:
        sent = request.app.signal(job_id, request.field("name"), says, actor=request.actor)
    except IllegalTransition as refused:
        return request.go(where, f"Not sent: the job is {refused.status} now.", "bad")
    return request.go(where, f"The signal {sent.name} is sent.")


def _texts(job: Job) -> dict[str, str | None]:
    """Return the texts of a job, of which the page shows the beginnings."""
    return {
        "payload": fmt.pretty(job.payload_json),
        "result": None if job.result_json is None else fmt.pretty(job.result_json),
        "error": job.last_error,
    }


def whole(request: PageRequest) -> Response:
    """Show all of a payload, a result or an error, as plain text."""
    job = request.redaction.job(request.app.get(request.path("id")))
    text = _texts(job).get(request.path("part"))
    if text is None:
        raise Refusal(404, "not_found", "Nothing there", "the job has nothing of this name")
    return PlainTextResponse(visible(text, keep=fmt.KEPT), headers=HEADERS)


def retry(request: PageRequest) -> Response:
    """Retry a job that failed for good."""
    given = request.field("more_retries") or "1"
    if not (given.isascii() and given.isdigit() and len(given) <= 4):
        raise InvalidInput("give a whole number from 1", path="more attempts")
    retry = partial(request.app.retry, more_retries=int(given), reason=request.field("reason"))
    return _changed(request, retry)


def run_now(request: PageRequest) -> Response:
    """Run a pending job at once."""
    return _changed(request, partial(request.app.amend, delay=0, reason=request.field("reason")))


def cancel(request: PageRequest) -> Response:
    """Cancel a job that is pending or processing."""
    return _changed(request, partial(request.app.cancel, reason=request.field("reason")))


def _changed(request: PageRequest, change: Callable[..., Job]) -> Response:
    job_id = request.path("id")
    where = request.address(f"/ui/jobs/{job_id}")
    try:
        job = change(job_id, actor=request.actor)
    except IllegalTransition as refused:
        return request.go(where, f"Not done: the job is {refused.status} now.", "bad")
    if job.status is Status.CANCELLED:
        return request.go(where, "The job is cancelled.")
    left = f"attempt {job.attempts + 1} of {job.max_retries}"
    return request.go(where, f"The job is to run again: {left}.")


# --- history --------------------------------------------------------------------------------------

WIDTH = 1000.0
MIN_WIDTH = 3.0
"""Width of the shortest period, so that it can be seen."""

TITLES: Mapping[str, str] = {
    FIRST_EVENT: "enqueued",
    "claimed": "claimed by a worker",
    "completed": "completed",
    "failed": "attempt failed",
    "lease_expired": "worker lost: its lease expired",
    "retried": "to be retried",
    "gave_up": "attempt failed for good",
    "released": "released before it started",
    "interrupted": "interrupted: its worker stopped",
    "snoozed": "snoozed",
    "suspended": "suspended until a signal comes",
    "unblocked": "no longer waiting",
    "skipped": "skipped: what it waited for cannot come",
    "restored": "waiting again",
    "amended": "amended",
    "expired": "expired before it could start",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class Period:
    """Time in one status, as a part of a bar."""

    status: str
    x: float
    width: float
    seconds: float


def attempts(transitions: Sequence[Transition]) -> list[tuple[Transition, Transition | None]]:
    """Return every claim and what ended it, newest first: people look for the last."""
    pairs = zip(transitions, [*transitions[1:], None], strict=True)
    return [(claim, end) for claim, end in pairs if claim.event == "claimed"][::-1]


def periods(transitions: Sequence[Transition], now: datetime) -> list[Period]:
    """Return how long the job was in which status, until it settled or until `now`.

    Short periods are widened to `MIN_WIDTH`. Then all are scaled to the width of the bar.
    """
    ends = [*(transition.at for transition in transitions[1:]), now]
    spans = [
        (one.target, (end - one.at).total_seconds())
        for one, end in zip(transitions, ends, strict=True)
        if end > one.at and (one.target not in SETTLED or one is not transitions[-1])
    ]
    if not spans:
        return []
    whole = sum(seconds for _, seconds in spans)
    widths = [max(seconds / whole * WIDTH, MIN_WIDTH) for _, seconds in spans]
    scale = WIDTH / sum(widths)
    starts = accumulate(widths, initial=0.0)
    return [
        Period(status, round(x * scale, 2), round(width * scale, 2), seconds)
        for (status, seconds), width, x in zip(spans, widths, starts, strict=False)
    ]
