"""The list of jobs, one job, and what may be done to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starlette.responses import PlainTextResponse, Response

from tenure.app.queries import transitions_shown
from tenure.dashboard import format as words
from tenure.dashboard import timeline as life
from tenure.dashboard.request import HEADERS, PageRequest, inside
from tenure.errors import IllegalTransition, InvalidInput, JobNotFound
from tenure.jobs.filters import checked
from tenure.jobs.queries import Filter
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
DONE = {RETRY: "to run again", CANCEL: "cancelled"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a list was asked for: as it stands in the address, and as the application takes it."""

    given: dict[str, str]
    filter: Filter


def asked(read: Callable[[str], str], visit: PageRequest) -> Asked:
    """Read the filter fields of an address or a form; raises InvalidInput."""
    given = {name: value for name in FIELDS if (value := read(name))}
    after = _time(given.get("from"), "from")
    if "since" in given:
        if given["since"] not in SINCE:
            raise InvalidInput(f"one of {', '.join(SINCE)}", path="since")
        after = visit.now - SINCE[given["since"]][1]
    return Asked(
        given,
        checked(
            Filter(
                status=given.get("status"),
                type=given.get("type"),
                queue=given.get("queue"),
                created_after=after,
                created_before=_time(given.get("to"), "to"),
                error=given.get("error"),
                text=given.get("text"),
                hidden=visit.redaction.keys,
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


def listed(visit: PageRequest) -> Response:
    """Jobs, newest first."""
    wanted = asked(visit.query, visit)
    cursor = visit.query("before") or None
    page = visit.app.page(wanted.filter, limit=PAGE, before=cursor)
    counts = visit.site.glance.counts()
    by_status = dict.fromkeys(Status, 0)
    for count in counts:
        if wanted.filter.type in (None, count.type) and wanted.filter.queue in (None, count.queue):
            by_status[Status(count.status)] += count.jobs
    return visit.page(
        "jobs.html",
        jobs=[visit.redaction.job(job) if job.last_error else job for job in page.jobs],
        next=page.next,
        searched_all=page.searched_all,
        given={**dict.fromkeys(FIELDS, ""), **wanted.given},
        filtered=bool(wanted.given),
        cursor=cursor,
        by_status=by_status,
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
    """What can be done to jobs of a status."""
    legal = {event for each in Status if status in (None, each) for event in legal_events(each)}
    return tuple(a for a, event in ((RETRY, "retried"), (CANCEL, "cancelled")) if event in legal)


def act_on_selected(visit: PageRequest) -> Response:
    """Retry or cancel the jobs that were ticked."""
    action, ids = visit.field("action"), list(dict.fromkeys(visit.form.get("id", ())))
    if action not in DONE:
        raise InvalidInput("retry or cancel", path="action")
    back = inside(visit.field("back")) or visit.address("/ui/jobs")
    if not ids:
        return visit.go(back, "No job was selected: tick some first.", "bad")
    if len(ids) > MAX_SELECTED:
        raise InvalidInput(f"at most {MAX_SELECTED} at once", path="id")
    done, refused = 0, 0
    for job_id in ids:
        try:
            _act(visit, action, job_id)
            done += 1
        except (IllegalTransition, JobNotFound):
            refused += 1
    said = f"{words.count(done, 'job')} {DONE[action]}."
    if refused:
        said += f" {words.count(refused, 'job')} had moved on or cannot be: left as they are."
    return visit.go(back, said, "good" if done else "bad")


def _act(visit: PageRequest, action: str, job_id: str, more: int = 1) -> Job:
    if action == RETRY:
        return visit.app.retry(job_id, more_retries=more, actor=visit.actor)
    return visit.app.cancel(job_id, actor=visit.actor)


# --- one job --------------------------------------------------------------------------------------


def show(visit: PageRequest) -> Response:
    """Everything about a job."""
    job = visit.app.get(visit.path("id"))
    told = visit.app.explain(job.id)
    transitions = transitions_shown(visit.app.history(job.id), job, visit.redaction)
    shown = visit.shown(job)
    return visit.page(
        "job.html",
        job=shown,
        told=visit.redaction.text(told.text, job),
        reason=told.reason,
        legal=told.legal,
        steps=life.steps(transitions),
        attempts=life.attempts(transitions),
        stretches=life.stretches(transitions, visit.now),
        span=((job.finished_at or visit.now) - job.created_at).total_seconds(),
        payload=words.pretty(shown.payload),
        result=None if shown.result is None else words.pretty(shown.result),
        most=words.SHOWN_CHARACTERS,
    )


def whole(visit: PageRequest) -> Response:
    """All of a payload, a result or an error, as plain text."""
    job = visit.shown(visit.app.get(visit.path("id")))
    texts: dict[str, str | None] = {
        "payload": words.pretty(job.payload),
        "result": None if job.result is None else words.pretty(job.result),
        "error": job.last_error,
    }
    text = texts.get(visit.path("part"))
    if text is None:
        raise Refusal(404, "not_found", "Nothing there", "the job has nothing of this name")
    return PlainTextResponse(visible(text, keep="\n\t"), headers=HEADERS)


def retry(visit: PageRequest) -> Response:
    """Run a job that failed for good again."""
    asked = visit.field("more_retries") or "1"
    if not (asked.isascii() and asked.isdigit() and len(asked) <= 4):
        raise InvalidInput("give a whole number from 1", path="more attempts")
    return _done(visit, RETRY, int(asked))


def cancel(visit: PageRequest) -> Response:
    """Cancel a job that waits or runs."""
    return _done(visit, CANCEL)


def _done(visit: PageRequest, action: str, more: int = 1) -> Response:
    job_id = visit.path("id")
    where = visit.address(f"/ui/jobs/{job_id}")
    try:
        job = _act(visit, action, job_id, more)
    except IllegalTransition as refused:
        return visit.go(where, f"Not done: the job is {refused.status} by now.", "bad")
    said = {
        RETRY: f"The job is to run again: attempt {job.attempts + 1} of {job.max_retries}.",
        CANCEL: "The job is cancelled.",
    }
    return visit.go(where, said[action])
