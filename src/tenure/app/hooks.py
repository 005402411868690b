"""The verbs of `Tenure` that put something around handlers and workers, and call of failures."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, TypeVar

from tenure.errors import InvalidInput
from tenure.jobs.hooks import Around, Lifespan, OnFailure
from tenure.jobs.names import check_function

if TYPE_CHECKING:
    from tenure.app.app import Tenure

A = TypeVar("A", bound=Around)
L = TypeVar("L", bound=Lifespan)
F = TypeVar("F", bound=OnFailure)


def _check_manager(manager: object) -> None:
    check_function(manager, "a function that returns a context manager", "$.manager")
    if inspect.isgeneratorfunction(manager) or inspect.isasyncgenfunction(manager):
        how = "asynccontextmanager" if inspect.isasyncgenfunction(manager) else "contextmanager"
        said = f"a generator is no context manager: write @{how} of contextlib above it"
        raise InvalidInput(said, path="$.manager")


def around(app: Tenure, manager: A) -> A:
    """Run every handler inside a context manager: connections, application contexts, timers.

    - `manager`: a function that takes the `JobContext` of the attempt and returns a context
      manager, sync or async; use it as a decorator above `@contextmanager`. It is entered where the
      handler runs: in its thread, on its event loop or in its child process. A sync one around an
      `async def` must not block. Around a plain `def` an async one fails each attempt.

    Several nest in the order of registration, the first one outermost. The exception of the handler
    passes through them, also if they swallow it, and one that they raise fails the attempt. Returns
    the function.
    """
    _check_manager(manager)
    app.core.handlers.hooks.around.append(manager)
    return manager


def lifespan(app: Tenure, manager: L) -> L:
    """Keep a context manager open while a worker of this application runs: pools, clients.

    - `manager`: a function without arguments that returns a context manager, sync or async. Each
      worker enters it on its event loop before it asks for the first job, and leaves it after its
      last handler. A child process enters it only for a job that lost its lease. An exception
      in it ends the worker.

    Several nest in the order of registration. Returns the function.
    """
    _check_manager(manager)
    app.core.handlers.hooks.lifespans.append(manager)
    return manager


def on_failure(app: Tenure, function: F) -> F:
    """Call a function after each failed attempt, once the failure is recorded.

    - `function`: takes a `Failure`. An `async def` runs on the worker's event loop, a `def` on a
      thread, one call after the other. An exception in it is logged and changes nothing.

    It also learns of timeouts and of payloads that fit no handler. A lease that ran out is reported
    by the process whose sweep ended it, if that runs a worker with this application. Each failure
    is reported once at most; for what must not get lost, use webhooks or `events`. Returns the
    function.
    """
    check_function(function, "a function that takes a Failure", "$.function")
    app.core.handlers.hooks.on_failure.append(function)
    return function
