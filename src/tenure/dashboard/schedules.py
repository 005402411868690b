"""The schedules, one of them with its fires, and their buttons."""

from __future__ import annotations

from datetime import datetime

import msgspec
from starlette.responses import Response

from tenure.app.jobs import fires_of, statuses_of
from tenure.dashboard.format import pretty
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.rules.times import in_words, preview, zone_of
from tenure.wire.requests import schedule_body

LISTED = FIRES = 50
AHEAD = 10


def listed(request: PageRequest) -> Response:
    """Show schedules: when each is due, and what became of its last ticks."""
    found = request.app.schedules.list(limit=LISTED, after=request.field("after"))
    fires = fires_of(request.app.core, [one.name for one in found], FIRES)
    more = found[-1].name if len(found) == LISTED else None
    return request.page(
        "schedules.html", schedules=found, fires=fires, in_words=in_words, more=more
    )


def show(request: PageRequest) -> Response:
    found = request.app.schedules.get(request.path("name"))
    zone, before = zone_of(found.when.zone), request.field("before")
    try:
        until = datetime.fromisoformat(before) if before else None
    except ValueError:
        raise InvalidInput("give a date, such as 2026-01-31", path="before") from None
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=zone)
    fires = request.app.schedules.fires(found.name, limit=FIRES, before=until)
    job = schedule_body(found, request.redaction).job
    return request.page(
        "schedule.html",
        schedule=found,
        ahead=preview(found.when, request.now, AHEAD),
        zone=zone,
        before=before,
        fires=fires,
        more=fires[-1].at.isoformat() if len(fires) >= FIRES else None,
        statuses=statuses_of(request.app.core, fires),
        job=pretty(msgspec.json.encode(job).decode()),
    )


def pause(request: PageRequest) -> Response:
    name, why = request.path("name"), request.field("reason")
    request.app.schedules.pause(name, actor=request.actor, reason=why)
    return _back(request, f"Schedule {name} is paused.")


def resume(request: PageRequest) -> Response:
    name = request.path("name")
    request.app.schedules.resume(name, actor=request.actor)
    return _back(request, f"Schedule {name} is resumed.")


def trigger(request: PageRequest) -> Response:
    name = request.path("name")
    fire = request.app.schedules.trigger(name, actor=request.actor)
    done = "has added a job" if fire.job_id else "has added no job: its last one is not settled"
    return _back(request, f"Schedule {name} {done}.")


def _back(request: PageRequest, message: str) -> Response:
    return request.go(request.address(f"/ui/schedules/{request.path('name')}"), message)
