"""Which jobs a test means, and what it is shown if there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tenure.app.types import JobType
from tenure.handlers.arguments import plain
from tenure.lifecycle import Job
from tenure.rules.search import MAX_LISTED, Fields
from tenure.values.names import check_kind

if TYPE_CHECKING:
    from tenure.app.app import Tenure


class HasJobType(Protocol):
    """Something else than a `JobType` that jobs run, such as a task of Django."""

    @property
    def job_type(self) -> str:
        """The name of their type."""


Named: TypeAlias = JobType[..., Any] | HasJobType | str
Type: TypeAlias = Named | None
MAX_SHOWN = 10
TO_RUN = ("waiting", "pending")
BY_NAME = "; with the name of a type, give its arguments as a dictionary"
BOTH = (
    "{0!r} is a filter of find() and an argument of {1}: give the argument in a dictionary, "
    "{{{0!r}: …}}, or the filter with the name of the type, {1!r}"
)


def name_of(type: Named) -> str:
    """Return the name of a job type; raises TypeError for what is none, such as a function."""
    name = type if isinstance(type, str) else getattr(type, "job_type", None)
    if isinstance(name, str):
        return name
    if isinstance(type, JobType):
        return type.name
    raise TypeError(f"{type!r} is no job type: give what @app.job made, or the name of a type")


class Wanted:
    """The jobs that a test means: of a type, with a payload, by the filters of `find`."""

    def __init__(
        self, type: Type, payload: Mapping[str, Any] | None, filter: Mapping[str, Any]
    ) -> None:
        arguments = {name: filter[name] for name in filter if name not in Fields.__annotations__}
        handler = type.handler if isinstance(type, JobType) else None
        takes_more = handler is not None and handler.others is not None
        fields = handler.fields if handler is not None else ()
        for name in filter:
            if handler is not None and name in fields and name not in arguments:
                raise TypeError(BOTH.format(name, handler.name))
            if name in arguments and not takes_more and name not in fields:
                of = "" if handler is None else f", and no argument of {handler.name}"
                how = BY_NAME if isinstance(type, str) else ""
                raise TypeError(f"{name!r} is no filter of find(){of}{how}")
        check_kind(payload, Mapping | None, "what the payload contains, by name", "$.payload")
        self.type = None if type is None else name_of(type)
        self.payload = {n: _plain(value) for n, value in {**(payload or {}), **arguments}.items()}
        self.filter = {name: filter[name] for name in filter if name not in arguments}

    def __str__(self) -> str:
        payload = f" with the payload {self.payload}" if self.payload else ""
        filter = "".join(f", {name}={value!r}" for name, value in self.filter.items())
        return f"{self.type or 'any type'}{payload}{filter} is enqueued"

    def candidates(self, app: Tenure, *, any_type: bool = False) -> list[Job]:
        """Return the jobs of the filters, oldest first, whatever their payloads."""
        filter = {} if any_type else {**self.filter, "type": self.type}
        if not filter.keys() & {"status", "state"}:
            found = [job for status in TO_RUN for job in _all(app, {**filter, "status": status})]
        else:
            found = _all(app, filter)
        return sorted(found, key=lambda job: job.id)

    def misses(self, job: Job) -> list[str]:
        """Return in what the payload of a job differs from what is wanted."""
        return list(_misses(self.payload, job.payload, ""))

    def report(self, app: Tenure) -> str:
        """Return what is there instead: the nearest job first, then all that are enqueued."""
        lines = []
        near = [(self.misses(job), job) for job in self.candidates(app)]
        if missed := [pair for pair in near if pair[0]]:
            wrong, job = min(missed, key=lambda pair: len(pair[0]))
            lines.append(f"nearest: {_shown(job)}: {'; '.join(wrong)}")
        return "\n".join([*lines, listed(self.candidates(app, any_type=True))])


def _all(app: Tenure, filter: dict[str, Any]) -> list[Job]:
    found: list[Job] = []
    while True:
        before = found[-1].id if found else None
        page = app.find(limit=MAX_LISTED, before=before, **filter)
        found += page
        if len(page) < MAX_LISTED:
            return found


def listed(jobs: Sequence[Job]) -> str:
    """Return a line for each of some jobs."""
    if not jobs:
        return "nothing is enqueued"
    lines = [f"  {_shown(job)}" for job in jobs[-MAX_SHOWN:]]
    more = [f"  and {len(jobs) - MAX_SHOWN} older"] if len(jobs) > MAX_SHOWN else []
    return "\n".join(["enqueued:", *lines, *more])


def _shown(job: Job) -> str:
    return f"{job.type} {job.payload_json[:200]} in {job.queue}, {job.status}, {job.run_at:%F %T}"


def _plain(value: Any) -> Any:
    """Return a value's form in JSON. A value without one, such as `mock.ANY`, is unchanged."""
    try:
        return plain(value, keys_to_text=True)
    except (TypeError, ValueError):
        return value


def _misses(wanted: Any, found: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name, value in wanted.items():
            at = f"{path}.{name}".lstrip(".")
            if name in found:
                yield from _misses(value, found[name], at)
            else:
                yield f"{at} is missing, not {value!r}"
    elif wanted != found:
        yield f"{path} is {found!r}, not {wanted!r}"
