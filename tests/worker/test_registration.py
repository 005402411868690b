"""What `@app.job` accepts and refuses, and what `enqueue` says to wrong arguments."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from inspect import signature
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import pytest

from tenure import InvalidInput, JobContext, KeyConflict, Tenure, Unique
from tenure.handlers import registry
from tests.support.workers import running_worker

Anything = TypeVar("Anything")


class Plain:
    """No JSON value is one of these."""


@dataclass
class Nested:
    name: str
    inside: list[Plain]


@dataclass
class Dangling:
    to: NotThere  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Tree:
    """A type that names itself."""

    value: int
    branches: list[Tree]


def refused(app: Tenure, function: Callable[..., Any], **options: Any) -> str:
    with pytest.raises(InvalidInput) as refusal:
        app.job(**options)(function)
    assert app.core.handlers.types() == ()
    return str(refusal.value)


def test_an_annotation_that_cannot_be_resolved_is_refused(app: Tenure) -> None:
    def unknown_name(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def unknown_attribute(x: uuid.Missing) -> None: ...  # type: ignore[name-defined]
    def no_type(x: int) -> None: ...
    def no_syntax(x: int) -> None: ...

    no_type.__annotations__["x"] = "int | 'Missing'"
    no_syntax.__annotations__["x"] = "not a type"

    assert refused(app, unknown_name).endswith("outside of functions and `if TYPE_CHECKING`")
    assert "Missing" in refused(app, unknown_attribute)
    assert "an annotation of no_type" in refused(app, no_type)
    assert "SyntaxError" in refused(app, no_syntax)


def test_a_unique_rule_names_parameters(app: Tenure) -> None:
    def sync(context: JobContext, customer: int) -> None: ...
    def anything(**others: object) -> None: ...

    for by in ("customer", ("custmer",), ("context",)):
        assert "$.unique.by" in refused(app, sync, unique=Unique(by=by))
    app.job(unique=Unique(by=("customer",)))(sync)
    app.job(unique=Unique(by=("other",)))(anything)


def test_a_handler_can_have_two_names(app: Tenure) -> None:
    """As after a renaming: a coroutine was returned to the worker, and not run."""

    @app.job(queue="mail")
    async def send_email(to: str) -> str:
        return to

    old = app.job(name="email")(send_email)
    assert (old.name, send_email.name, old.handler.is_async) == ("email", "send_email", True)
    with running_worker(app):
        assert [each.submit("a").result("20s") for each in (old, send_email)] == ["a", "a"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="Python evaluates annotations at once")
def test_so_is_an_annotation_that_is_evaluated_late(app: Tenure) -> None:
    names: dict[str, Any] = {}
    exec(compile("def late(x: Missing): ...", "late.py", "exec", dont_inherit=True), names)  # noqa: S102
    assert refused(app, names["late"]).endswith("outside of functions and `if TYPE_CHECKING`")


def a_class(x: Plain) -> None: ...
def inside_a_list(x: list[Plain]) -> None: ...
def inside_a_union(x: int | Plain | None = None) -> None: ...
def inside_a_dataclass(x: dict[str, Nested]) -> None: ...
def as_other_arguments(**x: Plain) -> None: ...
def beside_others(a: Plain, **x: Any) -> None: ...
def a_function(x: Callable[[int], int]) -> None: ...
def a_lock(x: threading.Lock) -> None: ...
def a_complex_number(x: complex) -> None: ...
def a_union_of_classes(x: Tree | Nested) -> None: ...
def dangling(x: Dangling) -> None: ...
def keys_of_two_parts(x: dict[tuple[int, int], str]) -> None: ...
def keys_that_are_bool(x: list[dict[bool, str]]) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        a_class,
        inside_a_list,
        inside_a_union,
        inside_a_dataclass,
        as_other_arguments,
        beside_others,
        a_function,
        a_lock,
        a_complex_number,
        a_union_of_classes,
        dangling,
        keys_of_two_parts,
        keys_that_are_bool,
    ],
)
def test_a_type_without_a_json_form_is_refused(app: Tenure, function: Callable[..., Any]) -> None:
    message = refused(app, function)

    assert f"an annotation of {function.__name__} has no JSON form" in message


def test_a_class_or_union_without_a_json_form_says_what_to_write(app: Tenure) -> None:
    def a_path(x: list[Path]) -> None: ...
    def a_path_or_text(x: Path | str) -> None: ...
    def a_time_or_text(x: datetime | str) -> None: ...

    assert refused(app, a_path).endswith("such as a text or an id, and make it in the handler")
    assert "only models of Pydantic have a JSON form" in refused(app, a_path_or_text)
    for function in (a_time_or_text, a_union_of_classes):
        assert refused(app, function).endswith("that have tag=True, or annotate it Any")


def test_parameters_without_a_name_are_refused(app: Tenure) -> None:
    def star(*things: int) -> None: ...
    def by_place(a: int, /) -> None: ...

    assert "*things" in refused(app, star)
    assert "use named parameters" in refused(app, by_place)


def test_a_context_belongs_to_the_first_parameter_alone(app: Tenure) -> None:
    def second(a: int, context: JobContext) -> None: ...
    def both(context: JobContext, other: JobContext) -> None: ...
    def maybe(context: JobContext | None = None) -> None: ...
    def keyword(*, context: JobContext) -> None: ...
    def many(*contexts: JobContext) -> None: ...
    def others(**contexts: JobContext) -> None: ...

    functions: list[Callable[..., Any]] = [second, both, maybe]
    for function in functions:
        assert "only the first parameter" in refused(app, function)
    functions = [keyword, many, others]
    for function in functions:
        assert "must be positional" in refused(app, function)


def test_generators_are_refused_because_calling_them_runs_nothing(app: Tenure) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    assert "generator" in refused(app, generator)
    assert "generator" in refused(app, async_generator)


def top_level() -> None: ...


def test_a_process_runs_functions_that_a_child_can_find(app: Tenure) -> None:
    def local() -> None: ...

    assert "define it in a module" in refused(app, local, process=True)
    assert "define it in a module" in refused(app, lambda: None, process=True, name="nameless")
    assert app.job(process=True)(top_level).name == "top_level"


@pytest.mark.parametrize(
    ("size", "read"),
    [
        (1, 1),
        ("64 kB", 64_000),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("10B", 10),
    ],
)
def test_sizes_are_bytes_or_text(app: Tenure, size: int | str, read: int) -> None:
    assert app.job(process=True, max_memory=size)(top_level).handler.max_memory == read


@pytest.mark.parametrize(
    "options",
    [
        {"max_jobs": 0},
        {"max_jobs": True},
        {"max_memory": 0},
        {"max_memory": "0MB"},
        {"max_memory": "512"},
        {"max_memory": "512 megs"},
        {"max_memory": "9999999999GB"},
        {"max_memory": 1.5},
        {"max_jobs": 5, "process": False},
        {"max_memory": 5, "process": False},
    ],
)
def test_limits_of_children_are_checked(app: Tenure, options: Any) -> None:
    assert refused(app, top_level, **{"process": True, **options})


def test_a_schema_that_no_server_takes_is_left_out(app: Tenure) -> None:
    def choose(word: str) -> None: ...

    choose.__annotations__["word"] = Literal[tuple(f"word-{n}" for n in range(3_000))]
    app.job(choose)
    assert app.core.handlers.options()["choose"].schema is None


def test_a_handler_may_come_while_a_worker_declares_the_types(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django adds one when a view uses a task at another backend; the worker has its own thread."""
    app.job(name="first")(lambda: None)
    handlers, known = app.core.handlers, registry.known

    def meanwhile(*described: Any) -> Any:
        if handlers.find("second") is None:
            app.job(name="second")(lambda: None)
        return known(*described)

    monkeypatch.setattr(registry, "known", meanwhile)
    assert list(handlers.options()) == ["first"]
    assert handlers.types() == ("first", "second")


def test_a_type_has_one_handler(app: Tenure) -> None:
    app.job(name="mail")(top_level)

    with pytest.raises(InvalidInput, match="'mail' has a handler already"):
        app.job(name="mail")(lambda: None)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "no spaces"},
        {"name": "nul\0"},
        {"queue": ""},
        {"priority": 40_000},
        {"max_retries": -1},
        {"max_retries": True},
        {"timeout": 0},
        {"timeout": "soon"},
        {"backoff": {"base": 1, "speed": 2}},
        {"backoff": {"factor": 0.5}},
        {"backoff": {"delays": 5}},
        {"backoff": {"delays": "30"}},
        {"on_interrupt": "never"},
    ],
)
def test_options_out_of_range_are_refused(app: Tenure, options: dict[str, Any]) -> None:
    refused(app, top_level, **options)


def test_an_option_that_does_not_exist_is_a_type_error(app: Tenure) -> None:
    register: Any = app.job
    with pytest.raises(TypeError, match="retries"):
        register(retries=3)


def test_what_may_be_registered(app: Tenure) -> None:
    def anything(a, b=None): ...  # type: ignore[no-untyped-def]
    def generic(x: Anything) -> Anything:
        return x

    def bounded(x: Annotated[int, msgspec.Meta(ge=1)], y: object = None) -> None: ...
    def recursive(tree: Tree) -> None: ...

    for function in (anything, generic, bounded, recursive):
        app.job(function)

    assert app.core.handlers.types() == ("anything", "bounded", "generic", "recursive")


def test_a_registered_function_is_still_the_function(app: Tenure) -> None:
    @app.job
    def double(x: int) -> int:
        """Twice as much."""
        return 2 * x

    assert double(4) == 8
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice as much."


def test_a_function_that_wants_a_context_gets_one_when_called(app: Tenure) -> None:
    @app.job(queue="mail", max_retries=7)
    def send(context: JobContext, to: str) -> tuple[str, JobContext]:
        return to, context

    own = JobContext("id", "type", "queue", 3, 5, 4, None)
    call: Any = send

    stand_in = JobContext("", "send", "mail", 1, 7, 1, None)
    assert send("a") == send(to="a") == ("a", stand_in)
    assert call(own, "a") == ("a", own)


def test_arguments_that_do_not_fit_the_signature_are_type_errors(app: Tenure) -> None:
    def send(to: str, subject: str = "") -> None: ...
    def with_context(context: JobContext, to: str) -> None: ...

    enqueue: Any = app.job(send).enqueue
    with_context_enqueue: Any = app.job(with_context).enqueue

    with pytest.raises(TypeError, match="'to'"):
        enqueue()
    with pytest.raises(TypeError, match="'copy'"):
        enqueue("a", copy="b")
    with pytest.raises(TypeError, match="too many"):
        enqueue("a", "b", "c")
    with pytest.raises(TypeError, match="multiple values"):
        enqueue("a", to="b")
    with pytest.raises(TypeError, match="context"):
        with_context_enqueue("a", context=None)
    assert app.find() == []


def test_however_a_call_is_written_the_payload_is_as_python_binds_it(app: Tenure) -> None:
    def both(to: str, subject: str) -> None: ...
    def optional(to: str, copy: str = "", *, note: str = "") -> None: ...
    def with_context(context: JobContext, to: str, copy: str = "") -> None: ...
    def open_ended(to: str, **rest: object) -> None: ...
    def nothing() -> None: ...

    def outcome_of(call: Callable[..., Any], **arguments: Any) -> str | list[tuple[str, Any]]:
        try:
            given: dict[str, Any] = call(**arguments)
        except TypeError as refusal:
            return str(refusal).removeprefix(f"{function.__name__}: ")
        return list(given.items())

    names = ("to", "subject", "copy", "note", "context", "extra")
    calls = [chosen for count in range(4) for chosen in permutations(names, count)]
    for function in (both, optional, with_context, open_ended, nothing):
        job_type: Any = app.job(function)
        context = (None,) if function is with_context else ()

        def bind(**arguments: Any) -> dict[str, Any]:
            bound = signature(function).bind(*context, **arguments).arguments  # noqa: B023
            bound.pop("context", None)
            rest: dict[str, Any] = bound.pop("rest", {})
            return {**bound, **rest}

        def new_job(**arguments: Any) -> dict[str, Any]:
            payload: dict[str, Any] = job_type.new_job(**arguments).payload  # noqa: B023
            return payload

        outcomes = set()
        for chosen in calls:
            arguments = {name: name.upper() for name in chosen}
            expected = outcome_of(bind, **arguments)
            assert outcome_of(new_job, **arguments) == expected
            outcomes.add(type(expected))
        assert outcomes == {str, list}  # some were refused, some taken


def test_an_argument_without_a_json_form_is_refused_before_anything_is_written(app: Tenure) -> None:
    @app.job
    def take(x: Any) -> None: ...

    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for value in (Plain(), object, float("nan"), 2**70, "\0", "\ud800", [Plain()], cyclic):
        with pytest.raises(InvalidInput, match=r"\$\.payload"):
            take.enqueue(value)
    assert app.find() == []


def test_arguments_are_written_as_json_says_them(app: Tenure) -> None:
    @app.job
    def take(tree: Tree, price: Decimal, ids: set[uuid.UUID]) -> None: ...

    id = uuid.UUID(int=7)
    job = take.enqueue(Tree(1, [Tree(2, [])]), price=Decimal("1.10"), ids={id})

    assert job.payload == {
        "tree": {"value": 1, "branches": [{"value": 2, "branches": []}]},
        "price": "1.10",
        "ids": [str(id)],
    }


def test_options_of_one_enqueue_stand_over_those_of_the_handler(app: Tenure) -> None:
    @app.job(queue="mail", priority=5, max_retries=7, timeout="30s")
    def send() -> None: ...

    plain = send.enqueue()
    other = send.options(queue="bulk", priority=9).options(priority=1).enqueue()

    assert (plain.queue, plain.priority, plain.max_retries, plain.timeout) == ("mail", 5, 7, 30)
    assert (other.queue, other.priority, other.max_retries, other.timeout) == ("bulk", 1, 7, 30)


@pytest.mark.parametrize(
    "use",
    [
        lambda app: Tenure(app.database, redact="password"),
        lambda app: app.run_worker("mail"),
        lambda app: app.run_worker(queues=["not ok"]),
        lambda app: app.webhooks.create("a", "https://example.com", "failed"),
        lambda app: app.webhooks.create("a", "https://example.com", ["failed"], types="mail"),
        lambda app: app.webhooks.create("a", "https://example.com", ["failed"], queues="mail"),
        lambda app: app.tokens.create("a", "read"),
    ],
)
def test_one_text_is_no_list_of_names(app: Tenure, use: Callable[[Tenure], object]) -> None:
    """Else its letters would be taken for names, and nothing hidden, run or told, in silence."""
    with pytest.raises(InvalidInput):
        use(app)


def test_a_key_stands_for_the_options_of_the_call_and_not_for_defaults(
    app: Tenure, sqlite_url: str
) -> None:
    def send(to: str) -> None: ...

    before = app.job(max_retries=7, queue="mail", timeout="30s", backoff="1s", priority=3)(send)
    first = before.options(idempotency_key="k", delay="1h").enqueue("a")
    with Tenure(sqlite_url) as deployed:
        after = deployed.job(max_retries=2)(send).options(idempotency_key="k")
        assert after.options(delay=3600).enqueue("a") == first
        with pytest.raises(KeyConflict):
            after.enqueue("a")
        with pytest.raises(KeyConflict):
            after.options(delay="1h", max_retries=7).enqueue("a")
        with pytest.raises(KeyConflict):
            after.options(delay="1h").enqueue("b")


@pytest.mark.parametrize("actor", ["", "two\nlines", "\0", "x" * 256, 5])
def test_who_acts_is_a_line_of_text(app: Tenure, actor: Any) -> None:
    with app:
        job = app.enqueue("work")
        calls: list[Callable[..., object]] = [
            *(partial(app.enqueue, "work"), partial(app.cancel, job.id)),
            *(partial(app.amend, job.id), partial(app.retry, job.id)),
            *(partial(app.cancel, tag="t"), partial(app.queues.pause, "work")),
            *(partial(app.types.pause, "work"), partial(app.tokens.create, "t", ["read"])),
        ]
        for call in calls:
            with pytest.raises(InvalidInput) as refusal:
                call(actor=actor)
            assert refusal.value.path == "$.actor"


def test_a_transaction_notifies_workers_in_one_of_two_ways(app: Tenure) -> None:
    within: Any = app.within
    with pytest.raises(InvalidInput, match=r"\$\.wake"):
        within(None, wake="now")
