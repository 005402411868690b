"""The list of jobs, the page of a job, and their actions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starlette.responses import PlainTextResponse, Response

from tenure.app.shown import transitions_shown
from tenure.dashboard import charts, timeline
from tenure.dashboard import format as fmt
from tenure.dashboard.request import HEADERS, PageRequest, inside
from tenure.errors import IllegalTransition, InvalidInput, JobNotFound
from tenure.jobs.queries import Filter, check_filter
from tenure.jobs.text import visible
from tenure.lifecycle import Job, Status, legal_events
from tenure.wire.problems import Refusal

PAGE = 50
MAX_SELECTED = 500
MAX_TYPES = 200
SINCE = {
    "15m": ("last 15 minutes", timedelta(minutes=15)),
    "1h": ("last hour", timedelta(hours=1)),
    "24h": ("last 24 hours", timedelta(days=1)),
    "7d": ("last 7 days", timedelta(days=7)),
}
FIELDS = ("status", "type", "queue", "since", "from", "to", "error", "text")
RETRY, CANCEL = "retry", "cancel"
RESULT = {RETRY: "to run again", CANCEL: "cancelled"}


@dataclass(frozen=True, slots=True)
class GivenFilter:
    """The fields of a filter in the address or form, and the filter for the application."""

    given: dict[str, str]
    filter: Filter


def given_filter(request: PageRequest) -> GivenFilter:
    """Read the filter from the fields of an address or a form; raises InvalidInput."""
    given = {name: value for name in FIELDS if (value := request.field(name))}
    after = _time(given.get("from"), "from")
    if "since" in given:
        if given["since"] not in SINCE:
            raise InvalidInput(f"one of {', '.join(SINCE)}", path="since")
        after = request.now - SINCE[given["since"]][1]
    return GivenFilter(
        given,
        check_filter(
            Filter(
                status=given.get("status"),
                type=given.get("type"),
                queue=given.get("queue"),
                created_after=after,
                created_before=_time(given.get("to"), "to"),
                error=given.get("error"),
                text=given.get("text"),
                hidden=request.redaction.keys,
            ),
            at="",
        ),
    )


def _time(text: str | None, name: str) -> datetime | None:
    if text is None:
        return None
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for the first and the last day there is
        raise InvalidInput("write a time like 2026-11-24T15:30, in UTC", path=name) from None


# --- the list -------------------------------------------------------------------------------------


def listed(request: PageRequest) -> Response:
    """Show jobs, newest first."""
    wanted = given_filter(request)
    cursor = request.field("before") or None
    page = request.app.core.page(wanted.filter, limit=PAGE, before=cursor)
    counts = request.site.cache.counts()
    shown = [
        count
        for count in counts
        if wanted.filter.type in (None, count.type) and wanted.filter.queue in (None, count.queue)
    ]
    return request.page(
        "jobs.html",
        jobs=[request.redaction.job(job) if job.last_error else job for job in page.jobs],
        next=page.next,
        searched_all=page.searched_all,
        given={**dict.fromkeys(FIELDS, ""), **wanted.given},
        filtered=bool(wanted.given),
        cursor=cursor,
        by_status=charts.by_status(shown),
        types=sorted({count.type for count in counts})[:MAX_TYPES],
        queue_names=sorted({count.queue for count in counts})[:MAX_TYPES],
        since=SINCE,
        searching=bool(wanted.filter.error or wanted.filter.text),
        any_jobs=bool(counts),
        actions=_actions_on(wanted.filter.status),
        retryable=lambda job: "retried" in legal_events(job.status),
        cancellable=lambda job: "cancelled" in legal_events(job.status),
    )


def _actions_on(status: str | None) -> tuple[str, ...]:
    """Return what can be done to jobs of a status."""
    legal = {event for each in Status if status in (None, each) for event in legal_events(each)}
    return tuple(a for a, event in ((RETRY, "retried"), (CANCEL, "cancelled")) if event in legal)


def act_on_selected(request: PageRequest) -> Response:
    """Retry or cancel the selected jobs."""
    action, ids = request.field("action"), list(dict.fromkeys(request.fields.getlist("id")))
    if action not in RESULT:
        raise InvalidInput("retry or cancel", path="action")
    back = inside(request.field("back")) or request.address("/ui/jobs")
    if not ids:
        return request.go(back, "Select some jobs first.", "bad")
    if len(ids) > MAX_SELECTED:
        raise InvalidInput(f"at most {MAX_SELECTED} at once", path="id")
    done, refused = 0, 0
    for job_id in ids:
        try:
            _act(request, action, job_id)
            done += 1
        except (IllegalTransition, JobNotFound):
            refused += 1
    message = f"{fmt.count(done, 'job')} {RESULT[action]}."
    if refused:
        message += f" {fmt.count(refused, 'job')} could not be, because the status had changed."
    return request.go(back, message, "good" if done else "bad")


def _act(request: PageRequest, action: str, job_id: str, more: int = 1) -> Job:
    if action == RETRY:
        return request.app.retry(job_id, more_retries=more, actor=request.actor)
    return request.app.cancel(job_id, actor=request.actor)


# --- one job --------------------------------------------------------------------------------------


def show(request: PageRequest) -> Response:
    """Show everything about a job."""
    job = request.app.get(request.path("id"))
    explanation = request.app.explain(job.id)
    transitions = transitions_shown(request.app.history(job.id), job, request.redaction)
    shown = request.redaction.job(job)
    return request.page(
        "job.html",
        job=shown,
        explanation=request.redaction.text(explanation.text, job),
        legal=explanation.legal_events,
        transitions=transitions,
        titles=timeline.TITLES,
        caused_by=timeline.caused_by,
        attempts=timeline.attempts(transitions),
        periods=timeline.periods(transitions, request.now),
        span=((job.finished_at or request.now) - job.created_at).total_seconds(),
        payload=fmt.pretty(shown.payload),
        result=None if shown.result is None else fmt.pretty(shown.result),
        most=fmt.SHOWN_CHARACTERS,
    )


def whole(request: PageRequest) -> Response:
    """Show all of a payload, a result or an error, as plain text."""
    job = request.redaction.job(request.app.get(request.path("id")))
    texts: dict[str, str | None] = {
        "payload": fmt.pretty(job.payload),
        "result": None if job.result is None else fmt.pretty(job.result),
        "error": job.last_error,
    }
    text = texts.get(request.path("part"))
    if text is None:
        raise Refusal(404, "not_found", "Nothing there", "the job has nothing of this name")
    return PlainTextResponse(visible(text, keep="\n\t"), headers=HEADERS)


def retry(request: PageRequest) -> Response:
    """Retry a job that failed for good."""
    given = request.field("more_retries") or "1"
    if not (given.isascii() and given.isdigit() and len(given) <= 4):
        raise InvalidInput("give a whole number from 1", path="more attempts")
    return _done(request, RETRY, int(given))


def cancel(request: PageRequest) -> Response:
    """Cancel a job that is pending or processing."""
    return _done(request, CANCEL)


def _done(request: PageRequest, action: str, more: int = 1) -> Response:
    job_id = request.path("id")
    where = request.address(f"/ui/jobs/{job_id}")
    try:
        job = _act(request, action, job_id, more)
    except IllegalTransition as refused:
        return request.go(where, f"Not done: the job is {refused.status} now.", "bad")
    messages = {
        RETRY: f"The job is to run again: attempt {job.attempts + 1} of {job.max_retries}.",
        CANCEL: "The job is cancelled.",
    }
    return request.go(where, messages[action])
