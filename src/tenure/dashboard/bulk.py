"""Actions on all jobs that match a filter: the preview, the start, the progress."""

from __future__ import annotations

from starlette.responses import Response

from tenure.dashboard import format as words
from tenure.dashboard.jobs import CANCEL, FIELDS, RETRY, Asked, asked
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.jobs.queries import Filter

VERBS = {RETRY: "Retry", CANCEL: "Cancel"}


def preview(visit: PageRequest) -> Response:
    """How many jobs an action would try; without one, the list of actions."""
    action = visit.query("action")
    if not action:
        return visit.page("bulks.html", bulks=visit.app.bulks(), verbs=VERBS, told=told)
    wanted = _checked(action, asked(visit.query, visit))
    return visit.page(
        "bulk_preview.html",
        action=action,
        verb=VERBS[action],
        given=wanted.given,
        filter=told(wanted.filter),
        matching=visit.app.count_matching(wanted.filter, action=action),
        command=words.command("tenure", "jobs", action, *_options(wanted.given)),
        exact=not any(name in wanted.given for name in ("since", "from", "to", "error", "text")),
    )


def start(visit: PageRequest) -> Response:
    """Begin; the sweeper of any server carries it on."""
    action = visit.field("action")
    wanted = _checked(action, asked(visit.field, visit))
    begun = visit.app.start_bulk(action, wanted.filter, actor=visit.actor)
    return visit.go(visit.address(f"/ui/bulk/{begun.id}"), "Begun. It goes on by itself.")


def show(visit: PageRequest) -> Response:
    """How far it is."""
    one = visit.app.bulk(visit.path("id"))
    return visit.page("bulk.html", bulk=one, verb=VERBS[one.action], filter=told(one.filter))


def stop(visit: PageRequest) -> Response:
    """End it where it is; what is done stays done."""
    one = visit.app.stop_bulk(visit.path("id"), actor=visit.actor)
    return visit.go(visit.address(f"/ui/bulk/{one.id}"), "Stopped. What is done stays done.")


def told(filter: Filter) -> list[tuple[str, str]]:
    """What a filter asks for, as names and values."""
    pairs = [
        ("status", filter.status),
        ("type", filter.type),
        ("queue", filter.queue),
        ("added after", filter.created_after and words.exactly(filter.created_after)),
        ("added before", filter.created_before and words.exactly(filter.created_before)),
        ("error has", filter.error),
        ("payload has", filter.text),
    ]
    return [(name, value) for name, value in pairs if value]


def _checked(action: str, wanted: Asked) -> Asked:
    if action not in VERBS:
        raise InvalidInput("retry or cancel", path="action")
    return wanted


def _options(given: dict[str, str]) -> list[str]:
    """The filter as the command line takes it."""
    return [
        word
        for name in FIELDS
        if name in given and name in ("status", "type", "queue")
        for word in (f"--{name}", given[name])
    ]
