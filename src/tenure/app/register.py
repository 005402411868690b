"""The decorator that `Tenure.job` returns. Internal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from tenure.jobs import handlers
from tenure.jobs.child_limits import child_limits
from tenure.jobs.context import JobContext
from tenure.jobs.enqueue import TypeOptions, defaults_of
from tenure.jobs.handlers import Errors, Handlers, JobType, OnInterrupt
from tenure.jobs.names import check_open
from tenure.jobs.producer import Producer

P = ParamSpec("P")
R = TypeVar("R")


class Register:
    """The decorator that `app.job(...)` returns: registers a function under its options."""

    def __init__(
        self,
        app: Producer,
        registry: Handlers,
        *,
        name: str | None = None,
        process: bool = False,
        max_jobs: int | None = None,
        max_memory: int | str | None = None,
        on_interrupt: OnInterrupt = "again",
        permanent: Errors = (),
        retry_on: Errors | None = None,
        **options: Any,
    ) -> None:
        self._app = app
        self._registry = registry
        self._name = name
        self._how: dict[str, Any] = {
            "in_process": process,
            "on_interrupt": on_interrupt,
            "permanent": permanent,
            "retry_on": retry_on,
        }
        self._limits = child_limits(max_jobs, max_memory, in_process=process)
        if unknown := options.keys() - set(TypeOptions.__struct_fields__):
            raise TypeError(f"@app.job has no option {', '.join(sorted(unknown))}")
        self._defaults = defaults_of(options, TypeOptions())

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R]) -> JobType[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> JobType[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        name = check_open(self._name or function.__name__, "job type", "$.name")
        handler = handlers.describe(function, name, self._defaults, **self._how)
        hooks = self._registry.hooks
        handler = replace(
            handler, limits=self._limits, around=hooks.around, lifespans=hooks.lifespans
        )
        self._registry.add(handler)
        return JobType[Any, Any](self._app, handler)
