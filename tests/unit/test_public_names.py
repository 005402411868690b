"""The public names of the package. A name that is not listed here is internal and may change."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from types import FunctionType

import pytest

import tenure
import tenure.sqlite
import tenure.testing
from tenure import JobType, Tenure, client, errors, server
from tenure.app.bulk import BulkActions
from tenure.app.queues import Queues, Types, Workers
from tenure.app.retention import Retention
from tenure.app.schedules import Schedules
from tenure.app.signals import Signals
from tenure.app.stats import Events, Statistics
from tenure.app.tokens import Tokens
from tenure.app.webhooks import Webhooks
from tenure.app.within import Within
from tenure.app.workflows import Workflows
from tenure.contrib import django, fastapi, flask, sentry, sqlalchemy

SOURCES = Path(tenure.__file__).parent

PACKAGE = """
    Dependency DuplicateJob Failure Handle IllegalTransition InvalidInput Job JobCancelled
    JobContext JobFailed
    JobNotFound JobType JobUnsettled KeyConflict LeaseLost NewJob NewWorkflow Node PerPartition
    PermanentFailure QueueFull
    RateLimited ResultGone ResultTruncated RetryAfter RetryPolicy Snooze Status StoreUnavailable
    Signal SignalTimeout Tenure TenureError Unique
"""
ERRORS = """
    BulkNotFound DuplicateJob DuplicateStep Forbidden IllegalEdition IllegalTransition InvalidInput
    JobCancelled JobFailed
    JobNotFound JobUnsettled KeyConflict LeaseLost LimitConflict MoveRefused PayloadTooLarge
    PermanentFailure QueueFull StoreMoved
    ResultGone ResultTruncated ScheduleNotFound SchemaMismatch StoreUnavailable TenureError
    SignalTimeout SignalTokenNotFound Unauthorized WorkflowNotFound WriteRefused
"""
VERBS = """
    actor amend amend_async around as_completed batch batch_async cancel cancel_async chain
    chain_async check check_async close
    close_async count count_async database enqueue enqueue_async enqueue_many enqueue_many_async
    explain explain_async find find_async get get_async group group_async
    history history_async job lifespan migrate
    on_failure open open_async progress progress_async retry retry_async run_again run_again_async
    run_worker running schedule signal signal_async steps steps_async unblock unblock_async verify
    verify_async wait wait_async wake within workflow
"""
NOUNS = {
    "bulk": (BulkActions, "get list sample start step stop"),
    "events": (Events, "end read"),
    "queues": (
        Queues,
        """limit limit_partition list partitions pass_over pause pause_partition resume
        resume_partition""",
    ),
    "schedules": (
        Schedules,
        "backfill create delete fires get list next pause preview resume trigger update",
    ),
    "stats": (
        Statistics,
        """activity counts failures halted_partitions late_leases measured_until next_tick
        oldest_running recount totals""",
    ),
    "tokens": (Tokens, "create list revoke"),
    "types": (Types, "list pause resume"),
    "signals": (Signals, "list"),
    "webhooks": (Webhooks, "create list remove"),
    "workers": (Workers, "list"),
    "retention": (Retention, "set list"),
    "workflows": (
        Workflows,
        """cancel cancel_async extend followers followers_async get get_async graph graph_async list
        list_async parents parents_async retry retry_async wait wait_async""",
    ),
}
INTERNAL = {"core"}
JOB_TYPE = "enqueue enqueue_async handler name new_job options submit submit_async within"
WITHIN = """
    batch batch_async cancel cancel_async chain chain_async enqueue enqueue_async enqueue_many
    enqueue_many_async get get_async group group_async retry retry_async
    signal signal_async workflow
"""


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def defined(module: object) -> set[str]:
    """The public classes and functions that a module defines itself."""
    name = getattr(module, "__name__", "")
    return {
        each
        for each, value in vars(module).items()
        if not each.startswith("_")
        and isinstance(value, type | FunctionType)
        and value.__module__ == name
    }


def test_the_package() -> None:
    assert set(tenure.__all__) == set(PACKAGE.split())
    for name in tenure.__all__:
        assert getattr(tenure, name).__name__ == name


def test_errors() -> None:
    assert defined(errors) == set(ERRORS.split())


def test_client_and_server() -> None:
    assert defined(client) == {"AsyncClient", "Client"}
    assert defined(server) == {"Application", "build", "serve"}
    assert defined(tenure.sqlite) == {"connect"}


def test_testing() -> None:
    names = {"Drained", "Jobs", "Run", "context", "inline", "on", "within"}
    assert set(tenure.testing.__all__) == names
    verbs = "enqueued assert_enqueued assert_none_enqueued run run_async drain drain_async"
    assert public(tenure.testing.Jobs) == {*verbs.split(), "travel", "clear"}


def test_contrib() -> None:
    assert defined(sentry) == {"install"}
    assert defined(sqlalchemy) == {"include_name", "tables"}
    assert defined(fastapi) == {"enqueuer", "with_dependencies"}
    assert defined(flask) == {"Tenure"}
    assert defined(django) == {"TaskCancelled", "WorkerLost"}
    imported = {"TenureBackend", "TenureContext", "TenureTask", "app", "asgi"}
    assert set(django.__all__) == defined(django) | imported
    assert public(flask.Tenure) - public(Tenure) == {"init_app"}


def test_the_application() -> None:
    app = Tenure("sqlite:///never-opened.db")
    assert public(app) == set(VERBS.split()) | set(NOUNS) | INTERNAL


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun(noun: str) -> None:
    cls, names = NOUNS[noun]
    assert type(getattr(Tenure("sqlite:///never-opened.db"), noun)) is cls
    assert public(cls) == set(names.split())


def test_job_types() -> None:
    app = Tenure("sqlite:///never-opened.db")

    @app.job
    def work() -> None: ...

    assert isinstance(work, JobType)
    assert public(work) == set(JOB_TYPE.split())
    assert public(Within) == set(WITHIN.split())


def test_every_public_thing_says_what_it_is() -> None:
    """A docstring for each name; help() is enough to use it."""
    app = Tenure("sqlite:///never-opened.db")
    things = [getattr(tenure, name) for name in tenure.__all__]
    things += [getattr(Tenure, name) for name in VERBS.split()]
    things += [tenure.sqlite.connect, *(getattr(Within, name) for name in WITHIN.split())]
    for noun, (cls, names) in NOUNS.items():
        things += [getattr(app, noun), *(getattr(cls, name) for name in names.split())]
    assert [thing for thing in things if not (thing.__doc__ or "").strip()] == []


@pytest.mark.parametrize(
    ("thing", "arguments"),
    [
        (Tenure.enqueue, tenure.rules.jobs.Options.__annotations__),
        (Tenure.job, ("name", "process", *tenure.rules.jobs.TypeOptions.__annotations__)),
        (Tenure.find, ("limit", "before", *tenure.rules.search.Fields.__annotations__)),
        (Tenure.within, ("connection", "wake")),
        (Tenure.run_worker, set(Tenure.run_worker.__annotations__) - {"app", "return"}),
        (tenure.RetryPolicy, tenure.RetryPolicy.__annotations__),
        (tenure.Unique, tenure.Unique.__annotations__),
        (tenure.JobContext, {n for n in tenure.JobContext.__annotations__ if n[0] != "_"}),
        (JobType.options, tenure.rules.jobs.Options.__annotations__),
    ],
)
def test_help_names_every_argument(thing: object, arguments: set[str]) -> None:
    text = thing.__doc__ or ""
    assert [name for name in arguments if f"`{name}`" not in text] == []


def test_no_two_classes_have_one_name() -> None:
    found = defaultdict(list)
    for path in SOURCES.rglob("*.py"):
        if path.name == "models.py":  # of Django, named as what they show
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "class " in text else ():
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(SOURCES)))
    found["Tenure"].remove("contrib/flask.py")  # it takes the place of the other
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
