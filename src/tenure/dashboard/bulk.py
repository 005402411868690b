"""Actions on all jobs that match a filter: the preview, the start, the progress."""

from __future__ import annotations

import shlex

from starlette.responses import Response

from tenure.dashboard.format import exactly
from tenure.dashboard.jobs import given_filter
from tenure.dashboard.request import PageRequest
from tenure.jobs.queries import Filter


def preview(request: PageRequest) -> Response:
    """Show how many jobs an action would try; without an action, list the bulk actions."""
    action = request.field("action")
    if not action:
        return request.page("bulks.html", bulks=request.app.bulk.list(), describe=describe)
    given, wanted = given_filter(request)
    filters = {name: value for name, value in given.items() if value}
    options = [word for name, value in filters.items() for word in (f"--{name}", value)]
    return request.page(
        "bulk_preview.html",
        action=action,
        given=filters,
        filter=describe(wanted),
        matching=request.app.core.count(wanted, action=action),
        command=shlex.join(["tenure", "jobs", action, *options]),
        exact=filters.keys() <= {"status", "type", "queue"},
    )


def start(request: PageRequest) -> Response:
    """Start an action. The sweeper of any server carries it out."""
    _, wanted = given_filter(request)
    started = request.app.bulk.start(request.field("action"), wanted, actor=request.actor)
    return request.go(
        request.address(f"/ui/bulk/{started.id}"), "Started. It continues in the background."
    )


def show(request: PageRequest) -> Response:
    """Show the progress of an action."""
    one = request.app.bulk.get(request.path("id"))
    return request.page("bulk.html", bulk=one, filter=describe(one.filter))


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
