"""Actions on all jobs that match a filter: the preview, the start, the progress."""

from __future__ import annotations

from starlette.responses import Response

from tenure.dashboard.format import command, exactly
from tenure.dashboard.jobs import CANCEL, FIELDS, RETRY, GivenFilter, given_filter
from tenure.dashboard.request import PageRequest
from tenure.errors import InvalidInput
from tenure.jobs.queries import Filter

VERBS = {RETRY: "Retry", CANCEL: "Cancel"}


def preview(request: PageRequest) -> Response:
    """Show how many jobs an action would try; without an action, list the bulk actions."""
    action = request.field("action")
    if not action:
        return request.page(
            "bulks.html", bulks=request.app.bulk.list(), verbs=VERBS, describe=describe
        )
    wanted = _checked(action, given_filter(request))
    return request.page(
        "bulk_preview.html",
        action=action,
        verb=VERBS[action],
        given=wanted.given,
        filter=describe(wanted.filter),
        matching=request.app.core.count(wanted.filter, action=action),
        command=command("tenure", "jobs", action, *_options(wanted.given)),
        exact=not any(name in wanted.given for name in ("since", "from", "to", "error", "text")),
    )


def start(request: PageRequest) -> Response:
    """Start an action. The sweeper of any server carries it out."""
    action = request.field("action")
    wanted = _checked(action, given_filter(request))
    started = request.app.bulk.start(action, wanted.filter, actor=request.actor)
    return request.go(
        request.address(f"/ui/bulk/{started.id}"), "Started. It continues in the background."
    )


def show(request: PageRequest) -> Response:
    """Show the progress of an action."""
    one = request.app.bulk.get(request.path("id"))
    return request.page("bulk.html", bulk=one, verb=VERBS[one.action], filter=describe(one.filter))


def stop(request: PageRequest) -> Response:
    """Stop an action; jobs that it has changed stay changed."""
    one = request.app.bulk.stop(request.path("id"), actor=request.actor)
    return request.go(
        request.address(f"/ui/bulk/{one.id}"), "Stopped. Jobs that it changed stay changed."
    )


def describe(filter: Filter) -> list[tuple[str, str]]:
    """Return the conditions of a filter as names and values."""
    pairs = [
        ("status", filter.status),
        ("type", filter.type),
        ("queue", filter.queue),
        ("enqueued after", filter.created_after and exactly(filter.created_after)),
        ("enqueued before", filter.created_before and exactly(filter.created_before)),
        ("error contains", filter.error),
        ("payload contains", filter.text),
    ]
    return [(name, value) for name, value in pairs if value]


def _checked(action: str, wanted: GivenFilter) -> GivenFilter:
    if action not in VERBS:
        raise InvalidInput("retry or cancel", path="action")
    return wanted


def _options(given: dict[str, str]) -> list[str]:
    """Return the filter as options of the command line."""
    return [
        word
        for name in FIELDS
        if name in given and name in ("status", "type", "queue")
        for word in (f"--{name}", given[name])
    ]
