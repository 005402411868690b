"""Arguments of another type: each public door says what to give, and raises InvalidInput."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenure import InvalidInput, NewJob, RetryPolicy, Tenure, testing
from tenure.client import Client
from tenure.contrib import flask, sentry, sqlalchemy
from tenure.rules.ledger import EventFilter
from tenure.rules.search import Filter
from tenure.server import build

LIST: Any = [5]
LOST = "http://127.0.0.1:1"
NONE: Any = None
APPLICATION = "give a Tenure application, not a value of type int"
FUNCTION = "give a function, not a value of type int"
MANAGER = "give a function that returns a context manager, not a value of type int"
NAMES = "give a list of names, not a value of type int"
NOT_NAMES = "give a list of names, not of values of type int"

WRONG_KINDS: dict[str, tuple[Callable[[Tenure, Any], Any], str]] = {
    "tags": (lambda app, wrong: app.enqueue("send", tags=wrong), f"$.tags: {NAMES}"),
    "tags once": (
        lambda app, wrong: app.enqueue("send", tags=(name for name in ["a"])),
        "$.tags: give a list of names, not an iterator",
    ),
    "tags by name": (
        lambda app, wrong: app.enqueue("send", tags={"customer": wrong}),
        "$.tags: give a list of names, not a dict",
    ),
    "one tag": (lambda app, wrong: app.enqueue("send", tags=[wrong]), f"$.tags: {NOT_NAMES}"),
    "type": (lambda app, wrong: app.enqueue(LIST), "$.type: give the name of a job type, not a"),
    "time": (
        lambda app, wrong: app.find(created_after=wrong),
        "$.created_after: give a time (datetime) with its zone, not a value of type int",
    ),
    "search": (
        lambda app, wrong: app.count(text=wrong),
        "$.text: give a text to search for, not a value of type int",
    ),
    "hidden": (lambda app, wrong: app.find(text="a", hidden=wrong), f"$.hidden: {NAMES}"),
    "filter": (
        lambda app, wrong: app.bulk.start("cancel", wrong),
        "give a Filter of tenure.rules.search, not a value of type int",
    ),
    "sample": (
        lambda app, wrong: app.bulk.sample(Filter(), "cancel", LIST),
        "$.limit: give a whole number from 1 to 500",
    ),
    "after": (
        lambda app, wrong: app.events.read(wrong),
        "$.after: give the position of a page, not a value of type int",
    ),
    "events": (
        lambda app, wrong: app.events.read(filter=wrong),
        "$.filter: give an EventFilter of tenure.rules.ledger, not a value of type int",
    ),
    "event types": (
        lambda app, wrong: app.events.read(filter=EventFilter(types=wrong)),
        f"$.types: {NAMES}",
    ),
    "schedule": (
        lambda app, wrong: app.schedules.get(wrong),
        "$.name: give the name of a schedule, not a value of type int",
    ),
    "extend": (
        lambda app, wrong: app.workflows.extend(wrong),
        "give an id, such as job.id, not a value of",
    ),
    "wait": (lambda app, wrong: app.wait(wrong), "give an id, such as job.id, not a value of"),
    "signal": (
        lambda app, wrong: app.signal(wrong, "go"),
        "give an id, such as job.id, not a value of type int",
    ),
    "step key": (
        lambda app, wrong: testing.context().step_key(wrong),
        "name: give the name of a step, not a value of type int",
    ),
    "handles": (
        lambda app, wrong: app.as_completed(wrong),
        "$.handles: give handles, as submit(...) returned them, not a value of type int",
    ),
    "one handle": (
        lambda app, wrong: app.as_completed([wrong]),
        "$.handles: give handles, as submit(...) returned them, not a value of type int",
    ),
    "jobs": (
        lambda app, wrong: app.enqueue_many(wrong),
        "$.new_jobs: give a list of jobs, not a value of type int",
    ),
    "redact": (lambda app, wrong: Tenure(redact=[wrong]), f"$.redact: {NOT_NAMES}"),
    "scopes": (lambda app, wrong: app.tokens.create("a", wrong), f"$.scopes: {NAMES}"),
    "queues": (
        lambda app, wrong: app.tokens.create("a", ["read"], queues=[wrong]),
        f"$.queues: {NOT_NAMES}",
    ),
    "webhook": (
        lambda app, wrong: app.webhooks.create("a", "https://example.com", [LIST]),
        "$.events: give a list of names, not of values of type list",
    ),
    "delays": (
        lambda app, wrong: RetryPolicy(delays=wrong),
        "$.backoff.delays: give a list of seconds, not a value of type int",
    ),
    "base": (lambda app, wrong: RetryPolicy(base=LIST), "$.backoff.base: out of range; use 0 to"),
    "url": (lambda app, wrong: Client(wrong), "url: give an address such as"),
    "timeout": (lambda app, wrong: Client(LOST, timeout=LIST), "timeout: a value of type list is"),
    "before": (lambda app, wrong: Client(LOST).find(before=wrong), "$.before: not a job id"),
    "limit": (lambda app, wrong: Client(LOST).find(limit=LIST), "$.limit: give a whole number"),
    "type in a list": (
        lambda app, wrong: app.enqueue_many([NewJob(LIST, {}, {})]),
        "$[0].type: give the name of a job type, not a value of type list",
    ),
    "options": (
        lambda app, wrong: app.enqueue_many([NewJob("a", {}, wrong)]),
        "$[0].options: give the options of a job by name, not a value of type int",
    ),
    "options in a workflow": (
        lambda app, wrong: app.workflow().__enter__().add(NewJob("a", {}, wrong)),
        "$[0].options: give the options of a job by name, not a value of type int",
    ),
    "options of a schedule": (
        lambda app, wrong: app.schedules.create("t", NewJob("a", {}, wrong), every=60),
        "$.job.options: give the options of a job by name, not a value of type int",
    ),
    "one option": (
        lambda app, wrong: app.enqueue_many([NewJob("a", {}, {wrong: wrong})]),  # type: ignore[misc]
        "$: no such option: 5; arguments go",
    ),
    "event names": (
        lambda app, wrong: app.events.read(filter=EventFilter(events=wrong)),
        f"$.events: {NAMES}",
    ),
    "event": (
        lambda app, wrong: app.events.read(filter=EventFilter(events=("complete",))),
        "$.events: no such event; give one of ",
    ),
    "event job": (
        lambda app, wrong: app.events.read(filter=EventFilter(job_id=wrong)),
        "$.job_id: not a job id",
    ),
    "action": (
        lambda app, wrong: app.bulk.start(NONE, Filter()),
        "$.action: no such action; one of",
    ),
    "new job": (
        lambda app, wrong: app.schedules.update("s", job=wrong),
        "$.job: give what new_job(...) returned, not a value of type int",
    ),
    "arguments": (
        lambda app, wrong: app.schedule(every=60, payload=wrong)(app.job(name="b")(lambda: None)),
        "$.payload: give the handler's arguments by name, not a value of type int",
    ),
    "parents": (
        lambda app, wrong: app.workflow().__enter__().add(NewJob("a", {}, {}), depends_on=wrong),
        "$.depends_on: give a list of jobs, or an object of them by name, not a value of type int",
    ),
    "keep": (
        lambda app, wrong: app.core.prune(wrong),
        "$.keep: give how long to keep jobs, by their status, not a value of type int",
    ),
    "progress": (lambda app, wrong: app.verify(progress=wrong), f"$.progress: {FUNCTION}"),
    "seen": (lambda app, wrong: app.verify(seen=wrong), f"$.seen: {FUNCTION}"),
    "migrate": (lambda app, wrong: app.migrate(progress=wrong), f"$.progress: {FUNCTION}"),
    "around": (lambda app, wrong: app.around(wrong), f"$.manager: {MANAGER}"),
    "lifespan": (lambda app, wrong: app.lifespan(wrong), f"$.manager: {MANAGER}"),
    "on failure": (
        lambda app, wrong: app.on_failure(wrong),
        "$.function: give a function that takes a Failure, not a value of type int",
    ),
    "mounted": (lambda app, wrong: build(wrong), f"$.app: {APPLICATION}"),
    "settings": (
        lambda app, wrong: build(app, settings=wrong),
        "$.settings: give Settings of tenure.settings, not a value of type int",
    ),
    "authorize": (
        lambda app, wrong: build(app, authorize=wrong),
        "$.authorize: give an async function that takes the ASGI scope, not a value of type int",
    ),
    "test": (lambda app, wrong: testing.Jobs(wrong), f"$.app: {APPLICATION}"),
    "test on": (lambda app, wrong: testing.on(wrong).__enter__(), f"$.app: {APPLICATION}"),
    "test payload": (
        lambda app, wrong: testing.Jobs(app).enqueued("a", wrong),
        "$.payload: give what the payload contains, by name, not a value of type int",
    ),
    "sentry": (lambda app, wrong: sentry.install(wrong), f"$.app: {APPLICATION}"),
    "flask": (
        lambda app, wrong: flask.Tenure(wrong),
        "$.app: give a Flask application, not a value of type int",
    ),
    "engine": (
        lambda app, wrong: sqlalchemy.tables(wrong),
        "$.engine: give an Engine, AsyncEngine or connection, not a value of type int",
    ),
}
"""Calls with a wrong value, a number, and how the error begins that says what to give."""


@pytest.mark.parametrize("what", WRONG_KINDS)
def test_a_value_of_another_type_is_refused_with_what_to_give(app: Tenure, what: str) -> None:
    """They ended with an AttributeError or a TypeError from deep inside."""
    call, said = WRONG_KINDS[what]
    app.schedules.create("s", NewJob("a", {}, {}), every=60)
    with pytest.raises(InvalidInput) as caught:
        call(app, 5)
    assert str(caught.value).startswith(said)
