"""Write docs/reference/python.md from code and docstrings: `python tools/python_page.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import tenure
import tenure.sqlite
import tenure.testing
from tenure import (
    Dependency,
    Failure,
    Handle,
    Job,
    JobContext,
    JobType,
    NewJob,
    NewWorkflow,
    Node,
    PerPartition,
    RetryPolicy,
    Signal,
    Status,
    Tenure,
    Unique,
)
from tenure.app.bulk import BulkActions
from tenure.app.queues import Queues, Types, Workers
from tenure.app.retention import Retention
from tenure.app.schedules import Schedules
from tenure.app.signals import Signals
from tenure.app.stats import Events, Statistics
from tenure.app.tokens import Tokens
from tenure.app.types import JobOptions
from tenure.app.webhooks import Webhooks
from tenure.app.within import Within
from tenure.app.workflows import Workflows
from tenure.client import AsyncClient, Client
from tenure.contrib import django, fastapi, flask, sentry, sqlalchemy
from tenure.errors import TenureError
from tenure.handlers.context import JobTransaction
from tenure.rules.explain import Explanation
from tenure.rules.jobs import Options
from tenure.rules.ledger import EventFilter, LedgerEvent, LedgerPage, Transition, Webhook
from tenure.rules.queues import Limits
from tenure.rules.retention import RetentionRule
from tenure.rules.schedules import Fire, Schedule, Template
from tenure.rules.search import Bulk, Counted, Filter, Page
from tenure.rules.stats import (
    Activity,
    Count,
    FailureGroup,
    PartitionState,
    QueueState,
    Total,
    TypeState,
    WorkerState,
)
from tenure.rules.steps import JobProgress, ParentJob
from tenure.rules.times import Preview, When
from tenure.rules.tokens import AccessToken
from tenure.rules.workflows import (
    GraphDependency,
    GraphJob,
    GraphPage,
    Relative,
    RelativePage,
    Workflow,
    WorkflowPage,
)
from tenure.testing import Drained, Jobs, Run, databases
from tenure.values.findings import Check, Violation

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "python.md"

HEAD = """\
# Python

`tools/python_page.py` writes this page from the code and its docstrings. A test fails if the page
is not current. Everything has type annotations.

These names are public: what `tenure` exports, the methods and nouns of `Tenure` on this page,
`tenure.errors`, `Client` and `AsyncClient` of `tenure.client` with their methods on this page,
`tenure.sqlite.connect`, `build` and `serve` in `tenure.server`, and those of
[`tenure.testing`](#tenuretesting) and [`tenure.contrib`](#tenurecontrib), with the values that they
take and return. Every other name is internal and may change in any release.

A duration is a number of seconds, a `timedelta`, or text such as `30s`, `1h30m` or `PT5M`. A
backoff is a `RetryPolicy`, a duration (the `base`), or an object with `base`, `factor` and `cap`.
[Errors](errors.md) has the exceptions. If a signature names a type that this page does not
describe, the type is in a module of `tenure.values`, `tenure.rules` or `tenure.handlers`.
"""

MAX_LINE = 96

# Every public member has its place; `page` refuses to leave one out.
APP: Mapping[str, Sequence[str]] = {
    "Opening": ("open", "close", "migrate", "database", "actor"),
    "Handlers": ("job", "schedule", "around", "lifespan", "on_failure", "run_worker", "running"),
    "Adding jobs": ("enqueue", "enqueue_async", "enqueue_many", "enqueue_many_async", "run_again"),
    "Waiting for jobs": ("wait", "wait_async", "as_completed"),
    "In your transaction": ("within", "wake"),
    "Jobs": (
        *("get", "progress", "steps", "find", "count", "history", "explain"),
        *("cancel", "retry", "amend", "unblock"),
    ),
    "Workflows": ("workflow", "chain", "group", "batch"),
    "Signals": ("signal",),
    "Checking": ("verify", "check"),
}
INTERNAL: Mapping[type, Set[str]] = {
    Tenure: {"core"},
    Client: {
        *("declare", "exchange", "heartbeat", "record_progress", "ask"),
        *("waits", "exchanges", "database", "on_work", "on_end"),
    },
}
NOUNS: Mapping[str, tuple[type, Sequence[str]]] = {
    "queues": (
        Queues,
        (
            *("list", "pause", "resume", "limit"),
            *("limit_partition", "pause_partition", "resume_partition", "partitions", "pass_over"),
        ),
    ),
    "types": (Types, ("list", "pause", "resume")),
    "workers": (Workers, ("list",)),
    "retention": (Retention, ("set", "list")),
    "stats": (
        Statistics,
        (
            "counts",
            "activity",
            "totals",
            "failures",
            "measured_until",
            "late_leases",
            "oldest_running",
            "halted_partitions",
            "next_tick",
            "recount",
        ),
    ),
    "bulk": (BulkActions, ("start", "get", "list", "stop", "step", "sample")),
    "events": (Events, ("read", "end")),
    "tokens": (Tokens, ("create", "list", "revoke")),
    "schedules": (
        Schedules,
        (
            *("create", "update", "get", "list", "pause", "resume", "trigger", "backfill"),
            *("delete", "fires", "next", "preview"),
        ),
    ),
    "signals": (Signals, ("list",)),
    "webhooks": (Webhooks, ("create", "list", "remove")),
    "workflows": (
        Workflows,
        (
            *("get", "list", "graph", "wait", "wait_async", "cancel", "retry", "extend"),
            *("parents", "followers"),
        ),
    ),
}
VALUES: Mapping[type, Sequence[str]] = {
    Job: ("payload", "result", "settled", "failed"),
    JobContext: (
        *("enqueue", "enqueued", "progress"),
        *("complete", "complete_async", "hold", "hold_async", "transaction"),
        *("wait_for_signal", "wait_for_signal_async", "signal_token", "signal_token_async"),
        *("step", "step_async", "step_key", "step_within", "step_within_async"),
        *("sleep", "sleep_async", "state", "state_async", "checkpoint", "checkpoint_async"),
        *("results", "results_async", "result_async", "parents", "parents_async"),
    ),
}
HANDLE = ("id", "result", "result_async", "progress", "progress_async", "settled", "failed")
JOB_TYPE = (
    "enqueue",
    "enqueue_async",
    "submit",
    "submit_async",
    "options",
    "within",
    "new_job",
    "name",
)
WITHIN = (
    *("enqueue", "enqueue_async", "enqueue_many", "enqueue_many_async"),
    *("get", "get_async", "cancel", "cancel_async", "retry", "retry_async"),
    *("signal", "signal_async", "workflow", "chain", "chain_async"),
    *("group", "group_async", "batch", "batch_async"),
)
JOBS = (
    *("enqueued", "assert_enqueued", "assert_none_enqueued"),
    *("run", "run_async", "drain", "drain_async", "travel", "clear"),
)
CONTRIB: Mapping[ModuleType, Sequence[str]] = {
    sentry: ("install",),
    sqlalchemy: ("tables", "include_name"),
    fastapi: ("with_dependencies", "enqueuer"),
    flask: ("Tenure",),
    django: ("TenureBackend", "TenureTask", "TenureContext", "TaskCancelled", "WorkerLost"),
}
NEW_WORKFLOW = ("add", "status", "status_async", "wait", "wait_async")
CLIENT_VERBS = (
    *("enqueue", "enqueue_many", "get", "wait", "find", "history", "explain", "cancel", "retry"),
    *("unblock", "signal", "stats", "close"),
)
CLIENT: Mapping[str, Sequence[str]] = {
    "As in `Tenure`": CLIENT_VERBS,
}
ANSWERS = (
    *(Page, Counted, Bulk),
    *(
        Transition,
        LedgerPage,
        LedgerEvent,
        EventFilter,
        Explanation,
        Count,
        Activity,
        Total,
        FailureGroup,
    ),
    *(
        JobProgress,
        Signal,
        QueueState,
        PartitionState,
        TypeState,
        WorkerState,
        RetentionRule,
        Violation,
        Check,
        AccessToken,
        Webhook,
    ),
    *(Schedule, When, Template, Fire, Preview),
    *(Workflow, WorkflowPage, GraphPage, GraphJob, GraphDependency, Relative, RelativePage),
    *(ParentJob,),
)


def page() -> str:
    """The whole page."""
    parts = [HEAD, *_the_class(Tenure, "What an application holds.", APP), _the_twins(Tenure)]
    parts += ["### Options\n", "What `enqueue`, `options` and a `NewJob` take, all optional:\n"]
    parts.append(_table(_annotated(Options)))
    parts += ["## JobType\n", _text(JobType)]
    _check_complete(JobType, JOB_TYPE)
    parts += [_member(JobType, name) for name in JOB_TYPE]
    parts += ["## Handle\n", _text(Handle)]
    _check_complete(Handle, HANDLE)
    parts += [_member(Handle, name) for name in HANDLE]
    parts += ["## NewWorkflow\n", _text(NewWorkflow)]
    _check_complete(NewWorkflow, NEW_WORKFLOW)
    parts += [_member(NewWorkflow, name) for name in NEW_WORKFLOW]
    parts += ["## Node\n", _text(Node)]
    parts += ["## Within\n", "What `Tenure.within` returns.\n", _text(Within)]
    _check_complete(Within, WITHIN)
    parts += [_member(Within, name) for name in WITHIN]
    parts += ["## tenure.sqlite\n", _member(tenure.sqlite, "connect")]
    parts += ["## tenure.testing\n", _text(tenure.testing)]
    parts += [_member(databases, name) for name in ("on", "within", "inline")]
    parts.append(
        _signature("context", tenure.testing.context, 0) + f"\n{_text(tenure.testing.context)}"
    )
    parts += ["### Jobs\n", _text(Jobs), *(_member(Jobs, name) for name in JOBS)]
    _check_complete(Jobs, JOBS)
    for said in (Drained, Run):
        parts += [f"### {said.__name__}\n", _text(said), _table(_annotated(said))]
    parts.append("## tenure.contrib\n")
    for module, names in CONTRIB.items():
        parts += [f"### {module.__name__}\n", _text(module)]
        for name in names:
            value = getattr(module, name)  # first: modules import such names late
            parts += [f"#### {name}\n"] if len(names) > 1 and inspect.isclass(value) else []
            parts.append(_member(module, name))
        if module is not flask:
            continue
        made = inspect.getattr_static(flask.Tenure, "__init__")
        parts += [_signature("Tenure", made), _text(made), _member(flask.Tenure, "init_app")]
    for noun, (cls, names) in NOUNS.items():
        parts += [f"## app.{noun}\n", _text(cls)]
        _check_complete(cls, names)
        parts += [_member(cls, name) for name in names]
        if twins := _twins(cls):
            parts.append(f"In coroutines: {', '.join(f'`{name}`' for name in twins)}.\n")
    for value in (
        NewJob,
        JobContext,
        JobTransaction,
        Failure,
        Job,
        RetryPolicy,
        PerPartition,
        Limits,
        Unique,
        Dependency,
    ):
        parts += [f"## {value.__name__}\n", _text(value), _table(_annotated(value))]
        parts += [_member(value, name) for name in VALUES.get(value, ())]
    fields = [name for name, _, _ in _annotated(JobContext)]
    _check_complete(JobContext, [*fields, *VALUES[JobContext]])
    parts += ["## Status\n", _text(Status), f"{', '.join(f'`{status}`' for status in Status)}.\n"]
    parts += [
        "## Filter\n",
        "From `tenure.rules.search`.\n",
        _text(Filter),
        _table(_annotated(Filter)),
    ]
    parts += ["## Answers\n", "What `Tenure` and `Client` answer beside jobs.\n"]
    for answer in ANSWERS:
        parts += [f"### {answer.__name__}\n", _text(answer), _table(_annotated(answer))]
    parts += ["## Errors\n", _errors()]
    parts += _the_class(
        Client, "From `tenure.client`; needs `pip install 'tenure[client]'`.", CLIENT
    )
    _check_complete(AsyncClient, CLIENT_VERBS)
    awaited = ", ".join(f"`{name}`" for name in CLIENT_VERBS)
    parts += [f"## AsyncClient\n\n{_text(AsyncClient)}\nTo await, as in `Client`: {awaited}.\n"]
    return "\n".join(parts)


def _the_class(cls: type, about: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    _check_complete(cls, [name for names in groups.values() for name in names])
    yield f"## {cls.__name__}\n"
    yield f"{about}\n"
    make = inspect.getattr_static(cls, "__init__")
    yield _signature(cls.__name__, make)
    yield _text(cls)
    yield _text(make)
    for group, names in groups.items():
        yield f"### {cls.__name__}: {_lowered(group)}\n"
        yield from (_member(cls, name) for name in names)


def _lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def _check_complete(cls: type, names: Sequence[str]) -> None:
    own = [part for part in cls.__mro__ if part.__module__.startswith("tenure.")]
    public = {name for part in own for name in vars(part) if not name.startswith("_")}
    public -= INTERNAL.get(cls, set())
    public -= set(_twins(cls)) if cls in (Tenure, Workflows) else set()
    if public != set(names):
        raise SystemExit(f"{cls.__name__}: put {sorted(public ^ set(names))} in or out of the page")


def _twins(cls: type) -> list[str]:
    """The names of coroutine functions that do what the verb of the same name does."""
    verbs = vars(cls)
    return [name for name in verbs if hasattr(verbs[name], "__wrapped__") and name != "job"]


def _the_twins(cls: type) -> str:
    names = ", ".join(f"`{name}`" for name in _twins(cls))
    text = f"""\
{names} take, return and raise what the verbs of their names do. They run it in a thread, so that
the event loop is not blocked.
"""
    return f"### {cls.__name__}: in coroutines\n\n{textwrap.fill(text, 100)}\n"


def _member(cls: Any, name: str) -> str:
    value = inspect.getattr_static(cls, name)
    if isinstance(value, property | cached_property):
        return f"`{name}`: {_text(value)}"
    if not callable(value):
        return f"`{name}`: {_described(cls, name)}\n"
    if (cls, name) == (Tenure, "job"):  # overloaded; what it takes is what the decorator takes
        options = "".join(f"    {name}: {type},\n" for name, type, _ in _annotated(JobOptions))
        return f"```text\n@app.job(\n{options})\n```\n\n{_text(value)}"
    if inspect.isclass(value):
        return _text(value)
    return f"{_signature(name, value, skipped=int(inspect.isclass(cls)))}\n{_text(value)}"


def _described(cls: Any, name: str) -> str:
    """The text under an attribute of a class."""
    found = re.search(rf'\n    {name} = [^\n]*\n    """(.+?)"""', inspect.getsource(cls), re.DOTALL)
    return " ".join(found[1].split()) if found else ""


class _Written(str):
    """An annotation, shown as the source writes it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, function: Callable[..., Any], skipped: int = 1) -> str:
    """How a function is called, as a block; of a method without `self` or the application."""
    signature = inspect.signature(function)
    kept = [
        parameter.replace(annotation=_Written(parameter.annotation))
        for parameter in list(signature.parameters.values())[skipped:]
    ]
    answer = "" if signature.return_annotation == "None" else f" -> {signature.return_annotation}"
    written = f"{inspect.Signature(kept)}{answer}"
    if len(name + written) > MAX_LINE:
        lines = "".join(f"    {part},\n" for part in _parameters(kept))
        written = f"(\n{lines}){answer}"
    return f"```text\n{'async ' * inspect.iscoroutinefunction(function)}{name}{written}\n```\n"


def _parameters(parameters: Sequence[inspect.Parameter]) -> Iterator[str]:
    by_name_only = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not by_name_only:
            by_name_only = True
            yield "*"
        yield str(parameter)


def _text(value: Any) -> str:
    return f"{inspect.getdoc(value) or ''}\n"


def _annotated(cls: type) -> list[tuple[str, str, str]]:
    """Name, annotation with its default, and comment of each field of a dataclass or TypedDict."""
    own = [part for part in cls.__mro__ if part.__module__.startswith("tenure.")]
    source = "".join(map(inspect.getsource, own or [cls]))
    rows = []
    names = (
        [f.name for f in dataclasses.fields(cls) if f.name[0] != "_"]
        if dataclasses.is_dataclass(cls)
        else None
    )
    for name in names or getattr(cls, "__struct_fields__", cls.__annotations__):
        found = re.search(rf"^    {name}: (.+?)(?:  # (.+))?$", source, re.MULTILINE)
        assert found is not None, f"{cls.__name__}.{name}"
        annotation = re.sub(r" = field\(.*\)$", "", found[1])
        annotation = re.sub(r"\b(Event|Reason|Status)Name\b", "str", annotation)  # one of a list
        rows.append((name, annotation, found[2] or ""))
    return rows


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    commented = any(comment for _, _, comment in rows)
    lines = (
        ["| field | type | |", "|---|---|---|"] if commented else ["| field | type |", "|---|---|"]
    )
    for name, annotation, comment in rows:
        escaped = annotation.replace("|", "\\|")
        lines.append(f"| `{name}` | `{escaped}` |" + f" {comment} |" * commented)
    return "\n".join(lines) + "\n"


def _errors() -> str:
    values = [getattr(tenure, name) for name in tenure.__all__]
    errors = [v for v in values if isinstance(v, type) and issubclass(v, TenureError)]
    lines = [f"- `{e.__name__}`: {_first_line(e)}" for e in errors]
    return "\n".join(lines) + "\n\nThe whole tree is in `tenure.errors`, and [here](errors.md).\n"


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
