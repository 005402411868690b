"""What became of a call of a handler: it returned, or it raised."""

from __future__ import annotations

from types import CoroutineType
from typing import TypeAlias

import msgspec

from tenure.errors import PermanentFailure
from tenure.jobs.handlers import BadArguments
from tenure.jobs.results import describe_exception, result_text


class Success(msgspec.Struct, frozen=True, gc=False):
    """The handler returned; `result` is its return value as JSON text."""

    result: str | None


class Failure(msgspec.Struct, frozen=True, gc=False):
    """The handler did not return; `error` says why, for people."""

    error: str
    retryable: bool = True


Ending: TypeAlias = Success | Failure


def success(value: object) -> Success:
    """Return the ending of a handler that returned `value`."""
    return Success(None if value is None else result_text(value))


def success_of_function(value: object) -> Success:
    """Return the ending of a plain function; raises TypeError if it returned a coroutine."""
    if isinstance(value, CoroutineType):
        value.close()
        raise TypeError("the handler returned a coroutine, which is not run: make it `async def`")
    return success(value)


def failure(error: BaseException) -> Failure:
    """Return the ending of a handler that raised; the traceback begins in the handler.

    Never raises, whatever the class of the error defines, because the job must settle.
    """
    try:
        ours = _traceback_of(error)
        if ours is not None and ours.tb_next is not None:
            _cut_traceback(error, ours.tb_next)
        if issubclass(type(error), BadArguments):
            return Failure(str(error), retryable=False)
        return Failure(describe_exception(error), retryable=not _is_permanent(error))
    except BaseException:
        return Failure(f"{type.__repr__(type(error))} was raised, and cannot be read")


# The definitions of BaseException, because those of a handler's own class may raise.
_traceback_of = vars(BaseException)["__traceback__"].__get__
_cut_traceback = BaseException.with_traceback
_parts_of = vars(BaseExceptionGroup)["exceptions"].__get__


def _is_permanent(error: BaseException) -> bool:
    """Whether the error, or a part of the group that it is, is a PermanentFailure.

    A task group raises a group even if only one task failed. One permanent part is enough: the next
    attempt would meet it again.
    """
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if issubclass(type(one), PermanentFailure):
            return True
        if issubclass(type(one), BaseExceptionGroup):
            waiting += _parts_of(one)
    return False
