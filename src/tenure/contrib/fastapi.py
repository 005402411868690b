"""FastAPI's `Depends` in handlers of jobs, and jobs in the transaction of a request."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, cast

from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.params import Body, Depends, Param

from tenure import InvalidInput, Tenure
from tenure.app.within import Within
from tenure.handlers.registry import AsyncPassing, Passing
from tenure.rules.jobs import Wake

__all__ = ["Within", "enqueuer", "with_dependencies"]

P = ParamSpec("P")
R = TypeVar("R")
FromRequest = (Body, Param)
ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Values = dict[Callable[..., Any], Any]
"""What dependencies returned in one attempt: each runs once."""


def enqueuer(app: Tenure, connection: Any, *, wake: Wake = "later") -> Callable[..., Any]:
    """Return a dependency that is `app.within(…)` of the session of the request.

    - `connection`: the annotation of your sessions, such as
      `Annotated[AsyncSession, Depends(get_session)]`. A path function with that annotation and
      `Annotated[Within, Depends(enqueuer(queue, Session))]` gets the same session in both.
    - `wake`: that of `Tenure.within`.
    """

    async def within(connection: Any) -> Within:
        return app.within(connection, wake=wake)

    within.__annotations__["connection"] = connection
    return within


def with_dependencies(function: Callable[P, R]) -> Callable[P, R]:
    """Give a handler the parameters that are marked with `Depends`; write it below `@app.job`.

    - `function`: the handler. `session: Session = Depends(get_session)` and
      `session: Annotated[Session, Depends(get_session)]` are no part of the payload. In the first
      form type checkers know that an enqueue does not pass them.

    Dependencies are functions, classes and generators, that can have dependencies too. They are
    made for each attempt, one after the other, and each runs once unless it says
    `use_cache=False`. What follows a `yield` runs after the handler and before its outcome is
    recorded, so a commit that fails there fails the attempt. It cannot swallow the exception of the
    handler. A handler that is a `def` can only have dependencies that are. Tests may pass the
    arguments themselves.

    Raises InvalidInput if a dependency needs what only a request has, or an event loop that the
    handler has not.
    """
    signature = inspect.signature(function)
    wanted = _dependencies_of(function)
    others = [each for each in signature.parameters.values() if each.name not in wanted]
    call = _within_loop(function, wanted) if _is_coroutine(function) else _plain(function, wanted)
    call.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    call.__annotations__ = {n: v for n, v in function.__annotations__.items() if n not in wanted}
    return cast(Callable[P, R], call)


@dataclass(frozen=True, slots=True)
class _Dependency:
    call: Callable[..., Any]
    needs: Mapping[str, _Dependency]
    once: bool


def _dependencies_of(function: Callable[..., Any]) -> dict[str, _Dependency]:
    described = function.__init__ if inspect.isclass(function) else _function_of(function)
    hints = typing.get_type_hints(described, include_extras=True)
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name)
        kind, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else [hint]
        for mark in (*marks, parameter.default):
            if isinstance(mark, Depends):
                found[parameter.name] = _dependency(mark.dependency or kind, mark.use_cache)
    return found


def _dependency(call: Any, once: bool) -> _Dependency:
    needs = _dependencies_of(call)
    for parameter in inspect.signature(call).parameters.values():
        is_left = parameter.default is parameter.empty or isinstance(parameter.default, FromRequest)
        if is_left and parameter.name not in needs and parameter.kind not in ANY_NUMBER:
            raise InvalidInput(
                f"the dependency {_name(call)} needs {parameter.name!r}, and a job has no request "
                "to take it from: give it a default or a dependency"
            )
    return _Dependency(call, needs, once)


def _within_loop(
    function: Callable[..., Any], wanted: Mapping[str, _Dependency]
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with AsyncExitStack() as stack:
            values: Values = {}
            for name in _missing(function, wanted, args, kwargs):
                kwargs[name] = await _value(wanted[name], stack, values)
            return await function(*args, **kwargs)

    return call


def _plain(function: Callable[..., Any], wanted: Mapping[str, _Dependency]) -> Callable[..., Any]:
    for each in wanted.values():
        _check_plain(each)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            values: Values = {}
            for name in _missing(function, wanted, args, kwargs):
                kwargs[name] = _plain_value(wanted[name], stack, values)
            return function(*args, **kwargs)

    return call


def _check_plain(one: _Dependency) -> None:
    if _is_coroutine(one.call) or inspect.isasyncgenfunction(_function_of(one.call)):
        raise InvalidInput(f"{_name(one.call)} needs an event loop: make the handler async def")
    for each in one.needs.values():
        _check_plain(each)


def _missing(
    function: Callable[..., Any], wanted: Mapping[str, Any], args: Any, kwargs: Any
) -> list[str]:
    given = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    return [name for name in wanted if name not in given]


# FastAPI's own way to resolve dependencies is internal, and needs a request.
async def _value(one: _Dependency, stack: AsyncExitStack, values: Values) -> Any:
    if one.once and one.call in values:
        return values[one.call]
    given = {name: await _value(each, stack, values) for name, each in one.needs.items()}
    function = _function_of(one.call)
    if inspect.isasyncgenfunction(function):
        opened = asynccontextmanager(one.call)(**given)
        made = await stack.enter_async_context(AsyncPassing(opened))
    elif inspect.isgeneratorfunction(function):
        opened = contextmanager_in_threadpool(contextmanager(one.call)(**given))
        made = await stack.enter_async_context(AsyncPassing(opened))
    elif inspect.iscoroutinefunction(function):
        made = await one.call(**given)
    else:
        made = await run_in_threadpool(one.call, **given)
    values.setdefault(one.call, made)
    return made


def _plain_value(one: _Dependency, stack: ExitStack, values: Values) -> Any:
    if one.once and one.call in values:
        return values[one.call]
    given = {name: _plain_value(each, stack, values) for name, each in one.needs.items()}
    if inspect.isgeneratorfunction(_function_of(one.call)):
        made = stack.enter_context(Passing(contextmanager(one.call)(**given)))
    else:
        made = one.call(**given)
    values.setdefault(one.call, made)
    return made


def _function_of(call: Any) -> Any:
    """Return what runs when something is called: of an object, its `__call__`."""
    if isinstance(call, functools.partial):
        return call.func
    return call if inspect.isclass(call) or inspect.isroutine(call) else call.__call__


def _is_coroutine(call: Any) -> bool:
    return inspect.iscoroutinefunction(_function_of(call))


def _name(call: Any) -> str:
    return getattr(call, "__name__", repr(call))
