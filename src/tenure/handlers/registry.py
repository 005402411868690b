"""Handlers: the functions that run jobs, how arguments become payloads, and hooks around them.

A handler's payload is its keyword arguments as a JSON object. Arguments are converted as the
parameters are annotated: dataclasses, msgspec structs, datetime, UUID, Decimal and enums. A payload
that does not fit is refused, with the place where it does not.

Hooks are what an application puts around its handlers and workers, and who is called of failures.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import Struct

from tenure.errors import InvalidInput
from tenure.handlers.arguments import (
    By,
    decoded,
    decoder_of,
    has_numbers,
    known,
    partitioner,
    plain,
    said_and_place,
)
from tenure.handlers.context import JobContext, meant_context
from tenure.rules.jobs import PLAIN_OPTIONS, HandlerOptions, Options, PartitionBy, TypeOptions
from tenure.rules.retention import DeclaredType
from tenure.rules.schedules import Rules
from tenure.rules.unique_keys import Unique, checked_for
from tenure.values import payload as payloads
from tenure.values.numbers import size_in_bytes, whole

# --- hooks ----------------------------------------------------------------------------------------

Manager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Around = Callable[[JobContext], Manager]
Lifespan = Callable[[], Manager]


class Failure(Struct, frozen=True):
    """A failed attempt, as the functions of `Tenure.on_failure` get it.

    - `id`, `type`, `queue`: of the job.
    - `attempt`: the number of the attempt; 1 for the first.
    - `max_retries`: how many attempts the job gets in all.
    - `error`: what the store has recorded, as text; redacted values are cut out.
    - `exception`: what the handler raised. None if it raised nothing here: the attempt timed out,
      its lease ran out, it ran in a child process, or its worker stopped.
    - `final`: whether the job has failed for good. False also in the rare case that the worker had
      to report twice and cannot know.
    - `retry_in`: seconds until the next attempt; None if there is none, or if that is not known.
    """

    id: str
    type: str
    queue: str
    attempt: int
    max_retries: int
    error: str
    exception: BaseException | None
    final: bool
    retry_in: float | None


OnFailure = Callable[[Failure], Awaitable[object] | object]


class Hooks(Struct):
    """What the functions of an application are called for beside its jobs, in their order."""

    around: list[Around] = []
    lifespans: list[Lifespan] = []
    on_failure: list[OnFailure] = []


def bound(handler: Handler, context: JobContext) -> Callable[..., Any]:
    """Return the function of a handler for one attempt, inside what the application puts around."""
    function = partial(handler.function, context) if handler.wants_context else handler.function
    if not handler.around:
        return function
    call = _await_within if handler.is_async else _call_within
    return partial(call, handler.around, context, function)


def _call_within(
    around: Sequence[Around], context: JobContext, function: Callable[..., Any], /, **arguments: Any
) -> Any:
    with ExitStack() as stack:
        for make in around:
            stack.enter_context(Passing(make(context)))  # type: ignore[arg-type]
        return function(**arguments)


async def _await_within(
    around: Sequence[Around], context: JobContext, function: Callable[..., Any], /, **arguments: Any
) -> Any:
    async with AsyncExitStack() as stack:
        for make in around:
            await enter(stack, passing(make(context)))
        return await function(**arguments)


class Passing(AbstractContextManager[Any]):
    """A context manager through which exceptions pass, even if it is written to swallow them.

    Else a handler that failed would be one that returned None, and its job would be completed.
    """

    def __init__(self, manager: AbstractContextManager[Any]) -> None:
        self._manager = manager

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._manager.__exit__(kind, error, trace) and error is not None:
            BaseException.with_traceback(error, trace)  # without the frames of the manager


class AsyncPassing(AbstractAsyncContextManager[Any]):
    """The same for one that is entered on an event loop."""

    def __init__(self, manager: AbstractAsyncContextManager[Any]) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await self._manager.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if await self._manager.__aexit__(kind, error, trace) and error is not None:
            BaseException.with_traceback(error, trace)


WITHIN = (_call_within.__code__, _await_within.__code__)
"""Frames between a worker and a handler, which no traceback shows."""


def passing(manager: Manager) -> Manager:
    """Return a context manager that swallows no exception, of the kind of `manager`."""
    if isinstance(manager, AbstractAsyncContextManager):
        return AsyncPassing(manager)
    return Passing(manager)


async def enter(stack: AsyncExitStack, manager: Manager) -> None:
    """Enter a context manager of either kind."""
    if isinstance(manager, AbstractAsyncContextManager):
        await stack.enter_async_context(manager)
    else:
        stack.enter_context(manager)


# --- handlers -------------------------------------------------------------------------------------

Errors = tuple[type[BaseException], ...]
OnInterrupt = Literal["again", "fail"]
"""What becomes of a job whose handler still runs when its worker has to stop."""

_PLAIN = frozenset({str, int, float, bool, type(None)})
_BY_PLACE = inspect.Parameter.POSITIONAL_ONLY
_BY_PLACE_OR_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD


class PlainFailure(Exception):
    """A failed attempt whose text says all: no traceback is kept or logged."""

    retryable = True
    delay: float | None = None
    """Seconds until the next attempt, in place of what the policy says."""


class BadArguments(PlainFailure):
    """The stored payload does not fit the handler's signature; trying again cannot help."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function: how to call it with a stored payload."""

    name: str
    function: Callable[..., Any]
    defaults: TypeOptions = PLAIN_OPTIONS
    in_process: bool = False  # run in a child process
    on_interrupt: OnInterrupt = "again"
    permanent: Errors = ()
    retry_on: Errors | None = None  # None: all others
    max_jobs: int | None = None  # of one child process
    max_memory: int | None = None  # bytes of a child process after a job
    keep: Mapping[str, float] = field(default_factory=dict)  # seconds, by status
    lifespans: Sequence[Lifespan] = ()  # of its application, which may add to it
    around: Sequence[Around] = ()  # likewise
    is_async: bool = False
    wants_context: bool = False
    signature: inspect.Signature = field(default_factory=inspect.Signature)
    decoder: msgspec.json.Decoder[Any] | None = None  # None: any object is a payload
    fields: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()  # those of `fields` without a default
    others: Any = None  # what `**` may hold, if there are `fields` beside it
    numbered: frozenset[str] = frozenset()  # fields with dictionaries whose keys are numbers
    returns: Any = Any

    def is_found_by_name(self) -> bool:
        """Whether another process that imports the module of the function finds this handler."""
        module = sys.modules.get(getattr(self.function, "__module__", None) or "")
        try:
            return found_in(module, getattr(self.function, "__qualname__", ""), self.name) is self
        except AttributeError:
            return False

    def payload_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the payload of a call; raises TypeError if the arguments do not fit.

        Raises InvalidInput for a value that this handler would refuse when the job runs.
        """
        payload = None if args else self._plain_payload(kwargs)
        if payload is None:
            payload = self._written(args, kwargs)
        self._check_fit(payload)
        return payload

    def _written(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self.wants_context:
            args = (None, *args)
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            advice = self._advice(kwargs) or meant_context(self.signature, error)
            raise TypeError(f"{self.name}: {error}{advice}") from None
        if self.wants_context:
            del bound[next(iter(self.signature.parameters))]
        arguments: dict[str, Any] = {}
        for name, value in bound.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        written: dict[str, Any] = {}
        try:
            for name, value in arguments.items():
                numbers = name in self.numbered
                written[name] = value if type(value) in _PLAIN else plain(value, numbers)
            return written
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(
                f"an argument of {self.name} cannot be written as JSON ({error}); "
                "pass an id or a value of a JSON type instead",
                path=f"$.payload.{name}",
            ) from error

    def _check_fit(self, payload: dict[str, Any]) -> None:
        """Refuse now what the worker would refuse, by the decoder that it would use."""
        if self.decoder is None:
            return
        try:
            self.decoder.decode(msgspec.json.encode(payload))
            if self.others is not None:
                self._other_arguments(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            payloads.check(payload, path="$.payload")  # JSON may have no such value: it says why
            said, place = said_and_place(error)
            raise InvalidInput(said, path=f"$.payload{place}") from None

    def _advice(self, kwargs: Mapping[str, Any]) -> str:
        """Return what to write for options that a call passes among the arguments."""
        options = sorted(kwargs.keys() & Options.__annotations__.keys() - set(self.fields))
        given = ", ".join(f"{option}=…" for option in options)
        return f"; write {self.function.__name__}.options({given}).enqueue(…)" if given else ""

    def _plain_payload(self, kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """`payload_of` for the usual call, four times as fast; None for any other call.

        The usual call passes the right keywords, with values of plain JSON types.
        """
        if not _PLAIN.issuperset(map(type, kwargs.values())):
            return None
        payload = {name: kwargs[name] for name in self.fields if name in kwargs}
        usual = len(payload) == len(kwargs) and self.required <= payload.keys()
        return payload if usual else None

    def arguments(self, text: str) -> dict[str, Any]:
        """The keyword arguments for a stored payload; raises BadArguments naming the field."""
        if self.decoder is None:
            return payloads.load(text)
        try:
            values = self.decoder.decode(text)
            others = {} if self.others is None else self._other_arguments(payloads.load(text))
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            said = f"{error}{meant_context(self.signature, error)}"
            raise BadArguments(f"the payload does not fit {self.name}: {said}") from error
        arguments = msgspec.structs.asdict(values)
        if len(self.required) < len(self.fields):
            arguments = {n: value for n, value in arguments.items() if value is not msgspec.UNSET}
        return arguments | others

    def _other_arguments(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields for `**`, those without a parameter, converted by its annotation."""
        others: dict[str, Any] = {}
        first = next(iter(self.signature.parameters.values()))
        for name in payload.keys() - set(self.fields):
            try:
                if self.wants_context and name == first.name and first.kind is not _BY_PLACE:
                    raise msgspec.ValidationError("Object contains the context's name")
                others[name] = msgspec.convert(payload[name], self.others, dec_hook=decoded)
            except msgspec.ValidationError as error:
                said, place = said_and_place(error)
                raise msgspec.ValidationError(f"{said} - at `$.{name}{place}`") from error
        return others


def found_in(module: Any, name: str, type: str) -> Any:
    """Return what runs jobs of a type, of the thing with this name in a module; None if nothing.

    A thing that has several handlers says which by `handler_of(type)`.
    """
    found = functools.reduce(getattr, name.split("."), module)
    handler_of = getattr(found, "handler_of", None)
    return getattr(found, "handler", None) if handler_of is None else handler_of(type)


def describe(
    function: Callable[..., Any],
    name: str,
    defaults: TypeOptions = PLAIN_OPTIONS,
    *,
    hooks: Hooks | None = None,
    process: bool = False,
    max_jobs: Any = None,
    max_memory: Any = None,
    on_interrupt: OnInterrupt = "again",
    permanent: Errors = (),
    retry_on: Errors | None = None,
    partition_by: By | None = None,
    unique: Unique | None = None,
) -> Handler:
    """Read a function's signature into a Handler; raises InvalidInput if no payload could fit."""
    _check_errors(permanent=permanent, retry_on=retry_on)
    if on_interrupt not in typing.get_args(OnInterrupt):
        raise InvalidInput("give 'again' or 'fail'", path="$.on_interrupt")
    _check_kind(function, name, in_process=process)
    if not process and (max_jobs, max_memory) != (None, None):
        raise InvalidInput("max_jobs and max_memory are limits of child processes: process=True")
    hints = _hints(function, name)  # first: from Python 3.14 on, the signature evaluates them too
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    wants_context = bool(parameters) and hints.get(parameters[0].name) is JobContext
    named_context = wants_context and _own_context(name, parameters)
    others: Any = None
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        others = hints.get(parameters.pop().name, Any)
    annotated = {parameter.name: hints.get(parameter.name, Any) for parameter in parameters}
    fields = [_field(name, each, annotated[each.name]) for each in parameters]
    names = annotated if others is None else None
    if partition_by is not None:
        defaults = _with(defaults, partition_by=_partitioner(name, partition_by, parameters, names))
    if unique is not None:
        defaults = _with(defaults, unique=checked_for(name, unique, names))
    takes_any = not fields and others in (Any, object) and not named_context
    return Handler(
        name=name,
        function=function,
        defaults=defaults,
        in_process=process,
        on_interrupt=on_interrupt,
        permanent=permanent,
        retry_on=retry_on,
        max_jobs=None if max_jobs is None else whole(max_jobs, 1, 10**9, "$.max_jobs"),
        max_memory=None if max_memory is None else size_in_bytes(max_memory, "$.max_memory"),
        lifespans=() if hooks is None else hooks.lifespans,
        around=() if hooks is None else hooks.around,
        is_async=inspect.iscoroutinefunction(function),
        wants_context=wants_context,
        signature=signature,
        decoder=None if takes_any else decoder_of(name, fields, others),
        fields=tuple(field[0] for field in fields),
        required=frozenset(field[0] for field in fields if len(field) == 2),
        others=others,
        numbered=frozenset(n for n, hint in annotated.items() if has_numbers(hint)),
        returns=hints.get("return", Any),
    )


def _partitioner(
    name: str, by: By, parameters: Sequence[inspect.Parameter], names: Mapping[str, Any] | None
) -> PartitionBy:
    usual = {p.name: p.default for p in parameters if p.default is not p.empty}
    return partitioner(name, by, names, usual)


def _with(defaults: TypeOptions, **rules: Any) -> HandlerOptions:
    return HandlerOptions(**{**msgspec.structs.asdict(defaults), **rules})


def _own_context(name: str, parameters: list[inspect.Parameter]) -> bool:
    """Take the context out of a handler's parameters; return whether it could go by name."""
    context = parameters.pop(0)
    if context.kind not in (_BY_PLACE, _BY_PLACE_OR_NAME):
        raise InvalidInput(f"{name}({context}): the context must be positional")
    return context.kind is not _BY_PLACE


def _check_errors(**options: Any) -> None:
    for option, kinds in options.items():
        if not _are_errors(kinds):
            raise InvalidInput(f"{option} is a tuple of exception classes, not {kinds!r}")


def _are_errors(kinds: Any) -> bool:
    return kinds is None or (
        isinstance(kinds, tuple)
        and all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    )


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are expressions: they can raise anything
        hint = "; its module must have it, outside of functions and `if TYPE_CHECKING`"
        said = f"{type(error).__name__}: {error}{hint if isinstance(error, NameError) else ''}"
        raise InvalidInput(f"an annotation of {name} cannot be resolved: {said}") from error


def _check_kind(function: Callable[..., Any], name: str, *, in_process: bool) -> None:
    """Refuse functions that cannot run as a handler, or not in a child process."""
    if inspect.isclass(function):
        raise InvalidInput(f"a handler is a function, as def makes it, not the class {name}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidInput(f"{name} is a generator, calling it runs nothing: make it without yield")
    if in_process and "<" in function.__qualname__:
        raise InvalidInput(f"{name} runs in a process, which must find it: define it in a module")


def _field(name: str, parameter: inspect.Parameter, hint: Any) -> tuple[Any, ...]:
    """Return a parameter as a field of the struct that decodes payloads."""
    if parameter.kind in (_BY_PLACE, inspect.Parameter.VAR_POSITIONAL):
        raise InvalidInput(f"{name}({parameter}): a payload has names, use named parameters")
    if parameter.name == "self":
        raise InvalidInput(
            f"{name}(self): a method is no handler; for the context write self: JobContext"
        )
    if parameter.default is inspect.Parameter.empty:
        return (parameter.name, hint)
    # Defaults may be mutable; the struct only notes that the argument may be absent.
    optional: Any = hint | msgspec.UnsetType
    return (parameter.name, optional, msgspec.UNSET)


def _typed_again(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a cell of a notebook, or lines at a prompt, define the same function once more."""
    typed = old.__module__ == new.__module__ == "__main__" and old.__qualname__ == new.__qualname__
    return typed and not hasattr(sys.modules["__main__"], "__file__")


class Handlers:
    """The handlers of an application. Only these can run, whatever a job's type says."""

    def __init__(self) -> None:
        self.hooks = Hooks()
        self.schedules: dict[str, Rules] = {}
        """The schedules that the application declares, by name."""
        self._by_name: dict[str, Handler] = {}
        self._for_any: Callable[[str], Handler] | None = None

    def add(self, handler: Handler) -> None:
        other = self._by_name.get(handler.name)
        if other is not None and not _typed_again(other.function, handler.function):
            raise InvalidInput(
                f"{handler.name!r} has a handler already, in {other.function.__module__}; give "
                "another name=, or import its module only once and under one name"
            )
        self._by_name[handler.name] = handler

    def add_schedule(self, name: str, rules: Rules) -> None:
        if self.schedules.setdefault(name, rules) != rules:
            raise InvalidInput(f"there is a schedule called {name} already; name= another")

    def take_over(self, other: Handlers) -> None:
        """Add what another application handles, declares and is called for."""
        for handler in other._by_name.values():
            self.add(handler)
        for name, rules in other.schedules.items():
            self.add_schedule(name, rules)
        self.hooks.lifespans += other.hooks.lifespans
        called = self.hooks.on_failure
        called += [one for one in other.hooks.on_failure if one not in called]

    def add_for_any(self, make: Callable[[str], Handler]) -> None:
        """Handle every type that has no handler with what `make(type)` returns."""
        self._for_any = make

    def find(self, type: str) -> Handler | None:
        handler = self._by_name.get(type)
        if handler is None and self._for_any is not None:
            handler = self._for_any(type)
        return handler

    def defaults(self, type: str) -> TypeOptions | None:
        """Return what an enqueue of a type need not say; None if its handler is not here."""
        handler = self._by_name.get(type)
        return None if handler is None else handler.defaults

    def options(self) -> Mapping[str, DeclaredType]:
        """Return what is known of every type whose handler is here, by name."""
        return {
            name: known(one.defaults, one.decoder, one.keep)
            for name, one in self._by_name.copy().items()  # other threads may add
        }

    def types(self) -> tuple[str, ...] | None:
        """Return the types that can be run; None for any."""
        return None if self._for_any is not None else tuple(sorted(self._by_name))
