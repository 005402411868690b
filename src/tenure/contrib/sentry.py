"""Failures and traces of jobs in Sentry; needs `pip install 'tenure[sentry]'`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.scope import Scope, use_isolation_scope, use_scope
from sentry_sdk.utils import event_from_exception

from tenure import Failure, JobContext, Snooze, Tenure
from tenure.rules.reports import Parked
from tenure.values.names import check_kind

NO_FAILURE = (Snooze, Parked)
SCOPES = "_tenure_sentry_scopes"
"""The attribute of an exception that keeps what was collected until the failure is recorded."""


def install(app: Tenure) -> None:
    """Report the failed attempts of an application to Sentry, and trace its handlers.

    - `app`: the application whose workers report. Call this in the module that makes it, after
      `sentry_sdk.init(...)`, which says where events go and how many traces are kept.

    Each failed attempt is one event: of level `error` if the job has failed for good, else
    `warning`, with the breadcrumbs of the handler and the tags `tenure.job`, `tenure.type`,
    `tenure.queue` and `tenure.attempt`. Timeouts, lost leases and failures in child processes
    have no exception here, so they are messages. Payloads are not sent.
    """
    check_kind(app, Tenure, "a Tenure application", "$.app")
    ignore_logger("tenure.worker.log")  # it logs the same failures
    app.around(_traced)
    app.on_failure(_report)


@contextmanager
def _traced(context: JobContext) -> Iterator[None]:
    again: BaseException | None = None
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_tags(_tags(context.id, context.type, context.queue, context.attempt))
        with sentry_sdk.start_transaction(op="queue.process", name=context.type, source="task"):
            try:
                yield
            except BaseException as error:
                if not _runs_again(error):
                    with suppress(Exception):  # its class may refuse attributes
                        setattr(error, SCOPES, (scope, sentry_sdk.get_current_scope().fork()))
                    raise
                again = error  # nothing has failed: the transaction must not see it
        if again is not None:
            try:
                raise again
            finally:
                del again  # its traceback has this frame


def _runs_again(error: BaseException) -> bool:
    failed = error.split(NO_FAILURE)[1] if isinstance(error, BaseExceptionGroup) else error
    return failed is None or isinstance(failed, NO_FAILURE)


def _report(failure: Failure) -> None:
    error = failure.exception
    isolation, current = getattr(error, SCOPES, None) or (Scope(), Scope())
    with use_isolation_scope(isolation), use_scope(current):
        current.set_level("error" if failure.final else "warning")
        current.set_tags(_tags(failure.id, failure.type, failure.queue, failure.attempt))
        current.set_extra("max_retries", failure.max_retries)
        current.set_extra("retry_in", failure.retry_in)
        if error is None:
            current.set_extra("error", failure.error)
            sentry_sdk.capture_message(f"{failure.type}: {failure.error.partition(chr(10))[0]}")
        else:
            options = sentry_sdk.get_client().options
            event, hint = event_from_exception(
                error, options, mechanism={"type": "tenure", "handled": False}
            )
            event.pop("level", None)  # or it would win over that of the scope
            sentry_sdk.capture_event(event, hint=hint)


def _tags(job: str, type: str, queue: str, attempt: int) -> dict[str, str]:
    tags = {"job": job, "type": type, "queue": queue, "attempt": str(attempt)}
    return {f"tenure.{name}": value for name, value in tags.items()}
