"""One call that adds jobs: its checks and its span. Internal."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.jobs.enqueue import (
    MAX_JOBS_AT_ONCE,
    CheckedJob,
    Enqueued,
    LinkedJob,
    NewJob,
    TypeOptions,
    check_jobs,
    with_own_key,
    with_unique_key,
)
from tenure.jobs.follow_ups import FollowUp
from tenure.jobs.queue_rights import Patterns, own_key, require
from tenure.lifecycle import FIRST_EVENT
from tenure.telemetry import logs

if TYPE_CHECKING:
    from tenure.app.core import Core

log = logging.getLogger(__name__)


def add(
    core: Core,
    new_jobs: Sequence[NewJob],
    *,
    batch: bool = False,
    own_keys: bool = False,
    traceparent: str | None = None,
    waits: bool = False,
    looked_up: bool = False,
) -> Future[list[Enqueued]]:
    """Check jobs and hand them to the store; the future also says which are new.

    In a batch, errors name the job they mean even if it is the only one. `own_keys` is that of
    `check_jobs`. `traceparent` is the span of the caller. Attempts are linked to that span. If the
    application traces, the call gets a child span, and attempts are linked to the child. `waits` is
    that of `Store.add`. With `looked_up`, the options of the types were awaited: an event loop must
    not wait for them here. Raises InvalidInput or Forbidden.
    """
    find = core.defaults.known if looked_up else core.defaults.of
    adding = Adding(core, new_jobs, find, batch=batch, own_keys=own_keys, traceparent=traceparent)
    try:
        added = core.limited_store.add(adding.checked_jobs, waits=waits)
    except BaseException as error:
        adding.end(error=error)
        raise
    if adding.is_traced:
        added.add_done_callback(adding.end_with)
    if log.isEnabledFor(logging.DEBUG):
        added.add_done_callback(_log_added)
    return added


def _log_added(added: Future[list[Enqueued]]) -> None:
    if not added.cancelled() and added.exception() is None:
        for one in added.result():
            if one.created:
                logs.log_transition(log, FIRST_EVENT, logs.fields_of(one.job), logging.DEBUG)


class Adding:
    """Jobs that one call adds, checked; with a span of the call if the application traces."""

    def __init__(
        self,
        core: Core,
        new_jobs: Sequence[NewJob],
        defaults: Callable[[str], TypeOptions],
        *,
        batch: bool = False,
        own_keys: bool = False,
        traceparent: str | None = None,
        known_ids: Sequence[str] = (),
        workflow: str | None = None,
    ) -> None:
        """The arguments are those of `add` and `check_jobs`. Raises InvalidInput or Forbidden."""
        if len(new_jobs) > MAX_JOBS_AT_ONCE:
            raise InvalidInput(f"add at most {MAX_JOBS_AT_ONCE:,} jobs at once")
        checked_jobs: Sequence[CheckedJob] = check_jobs(
            new_jobs,
            defaults=defaults,
            actor=core.actor,
            several=batch or len(new_jobs) > 1,
            own_keys=own_keys,
            known_ids=known_ids,
            workflow=workflow,
        )
        if core.queues is not None:
            checked_jobs = [_limited_to(core.queues, job) for job in checked_jobs]
        self._tracing = core.tracing
        self._span: Any = None
        if self._tracing is not None and checked_jobs:
            types = [checked_job.type for checked_job in checked_jobs]
            self._span, traceparent = self._tracing.adding(
                types, checked_jobs[0].queue, traceparent
            )
        if traceparent is not None:
            checked_jobs = [replace(job, traceparent=traceparent) for job in checked_jobs]
        self.checked_jobs = checked_jobs

    @property
    def is_traced(self) -> bool:
        """Whether there is a span to end."""
        return self._span is not None

    def end(self, added: Sequence[Enqueued] = (), error: BaseException | None = None) -> None:
        """End the span; `error` says why nothing was added."""
        if self._tracing is not None and self._span is not None:
            self._tracing.added(self._span, [one.job.id for one in added], error)

    def end_with(self, added: Future[list[Enqueued]]) -> None:
        """End the span as the store has answered."""
        error = None if added.cancelled() else added.exception()
        self.end([] if error or added.cancelled() else added.result(), error)


def allowed(core: Core, follow_ups: Sequence[FollowUp], *, own_keys: bool) -> list[FollowUp]:
    """Return the jobs of a report as its sender may add them; raises Forbidden."""
    made = []
    for one in follow_ups:
        job = with_own_key(one.checked) if own_keys else one.checked
        if core.queues is not None:
            job = _limited_to(core.queues, job)
        made.append(replace(one, checked=job))
    return made


def _limited_to(queues: Patterns, job: CheckedJob) -> CheckedJob:
    require(queues, [job.queue])
    if job.unique and job.unique.rule.across_queues:  # it may not know of jobs of other queues
        job = with_unique_key(job, dataclasses.replace(job.unique.rule, across_queues=False))
    if type(job) is LinkedJob:
        job = replace(job, within=queues)
    key = job.idempotency_key
    return job if key is None else replace(job, idempotency_key=own_key(job.queue, key))
