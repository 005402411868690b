"""The part of `JobContext` that reads what the jobs have left that a job depends on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tenure.errors import JobCancelled, JobFailed, JobUnsettled, ResultTruncated
from tenure.jobs.steps import ParentJob, Parents, ReadParents, Waiting, awaited, waited
from tenure.jobs.text import UNSTORABLE
from tenure.lifecycle import Status

if TYPE_CHECKING:
    from tenure.jobs.step_book import StepBook

T = TypeVar("T")


class ParentsContext:
    """What a handler can know of the jobs that its job depends on, in the order of their adding."""

    __slots__ = ()

    @property
    def parents(self) -> list[ParentJob]:
        """The jobs that this job depends on: `id`, `type`, `name`, `meets`, `status`, `error`.

        Each use reads them. Raises LeaseLost and StoreUnavailable.
        """
        return [one for page in self._pages() for one in page]

    async def parents_async(self) -> list[ParentJob]:
        """Return the `parents`, without blocking the event loop."""
        return [one async for page in self._pages_async() for one in page]

    @property
    def results(self) -> Results:
        """The results of the jobs that this job depends on.

        `context.results(int)` iterates over those of the jobs that have completed, as values of a
        type (default: as JSON), some hundred at a time, in the order in which the jobs were added.
        Jobs that have not completed, which only a dependency other than on the completion lets
        through, are left out: `parents` has them.

        `context.results["total"]` is the result of the job that is called so, as JSON. It raises
        JobFailed, JobCancelled or JobUnsettled if that job has not completed, and KeyError if there
        is no such name.

        Both raise LeaseLost and StoreUnavailable, and for a result InvalidInput if it does not fit
        the type, or ResultTruncated if it was not stored whole. They block; a coroutine uses
        `results_async` and `result_async`.
        """
        return Results(self)

    @overload
    def results_async(self, type: type[T]) -> AsyncIterator[T]: ...
    @overload
    def results_async(self, type: Any = Any) -> AsyncIterator[Any]: ...
    async def results_async(self, type: Any = Any) -> AsyncIterator[Any]:
        """Iterate like `results(type)`, for `async for`."""
        async for page in self._pages_async():
            for one in page:
                if one.status == Status.COMPLETED:
                    yield value_of(one, type)

    @overload
    async def result_async(self, name: str, type: type[T]) -> T: ...
    @overload
    async def result_async(self, name: str, type: Any = Any) -> Any: ...
    async def result_async(self, name: str, type: Any = Any) -> Any:
        """Return the result of the job that is called so, like `results[name]`, as a type."""
        return _only(await awaited(self._ask(ReadParents(name=name))), name, type)

    def _pages(self) -> Iterator[list[ParentJob]]:
        after: str | None = ""
        while after is not None:
            page = waited(self._ask(ReadParents(after=after)))
            yield [*page.jobs]
            after = page.jobs[-1].id if page.more else None

    async def _pages_async(self) -> AsyncIterator[list[ParentJob]]:
        after: str | None = ""
        while after is not None:
            page = await awaited(self._ask(ReadParents(after=after)))
            yield [*page.jobs]
            after = page.jobs[-1].id if page.more else None

    def _ask(self, call: ReadParents) -> Waiting[Parents]:
        return (yield from self._steps().ask(call)) or Parents()

    if TYPE_CHECKING:

        def _steps(self) -> StepBook: ...


class Results:
    """Results of the jobs that a job depends on, as `JobContext.results` says."""

    def __init__(self, context: ParentsContext) -> None:
        self._context = context

    @overload
    def __call__(self, type: type[T]) -> Iterator[T]: ...
    @overload
    def __call__(self, type: Any = Any) -> Iterator[Any]: ...
    def __call__(self, type: Any = Any) -> Iterator[Any]:
        for page in self._context._pages():
            for one in page:
                if one.status == Status.COMPLETED:
                    yield value_of(one, type)

    def __getitem__(self, name: str) -> Any:
        return _only(waited(self._context._ask(ReadParents(name=name))), name, Any)


def _only(page: Parents, name: str, type: Any) -> Any:
    if not page.jobs:
        raise KeyError(f"this job depends on no job named {name}")
    return value_of(page.jobs[0], type)


def value_of(parent: ParentJob, type: Any) -> Any:
    """Return the result of a job as a type says; raises what `JobContext.results` says."""
    from tenure.jobs.results import read_result  # it knows handlers, which know contexts

    if parent.status == Status.FAILED:
        raise JobFailed(parent.id, parent.error)
    if parent.status == Status.CANCELLED:
        raise JobCancelled(parent.id, parent.event, parent.actor)
    if parent.status != Status.COMPLETED:
        raise JobUnsettled(parent.id, parent.status)
    if (parent.result_json or "").startswith(f'{{"{UNSTORABLE}":'):
        raise ResultTruncated(parent.id, parent.result["reason"])
    return read_result(parent.result_json, type, f"the result of job {parent.id}")
