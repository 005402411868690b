"""Traces by OpenTelemetry: a span for adding jobs, and one for each attempt, linked to it.

Only its API is used: which spans are kept, and where they go, is decided by whoever sets up the SDK
in this process. Attributes are those of its semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). What stands in payloads
and errors is told to nobody: of an error, a span has the first line, without what is redacted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenure.errors import InvalidInput
from tenure.jobs.work import Lease

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

SYSTEM = "tenure"


class Tracing:
    """The spans of one application. Raises InvalidInput where the API is not installed."""

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidInput(
                f"tracing needs opentelemetry-api, which cannot be imported ({error}): "
                "pip install 'tenure[otel]'"
            ) from error
        self._api = trace
        self._propagator = TraceContextTextMapPropagator()

    def adding(
        self, types: Sequence[str], queue: str | None, parent: str | None
    ) -> tuple[Span, str | None]:
        """The span of adding jobs of these types, to be ended by `added`, and its `traceparent`.

        Its parent is `parent`, a `traceparent` as it came over HTTP, or whatever span is current.
        """
        several = set(types) != {types[0]}
        span = self._tracer.start_span(
            "enqueue" if several else f"enqueue {types[0]}",
            context=None if parent is None else self.context(parent),
            kind=self._api.SpanKind.PRODUCER,
            attributes={
                **_attributes("create", queue),
                "messaging.batch.message_count": len(types),
            },
        )
        return span, self.carried(self._api.set_span_in_context(span))

    def added(self, span: Span, job_ids: Sequence[str], error: BaseException | None) -> None:
        """The jobs are on disk, or `error` says why not."""
        if len(job_ids) == 1:
            span.set_attribute("messaging.message.id", job_ids[0])
        if error is not None:
            self._fail(span, type(error).__name__)
        span.end()

    def attempt(self, lease: Lease, worker: str) -> tuple[Span, Context]:
        """The span of an attempt, and the context in which its handler is to run.

        It belongs to the trace of the span that added the job, and is linked to it.
        """
        context = self.context(lease.traceparent)
        came_from = self._api.get_current_span(context).get_span_context()
        span = self._tracer.start_span(
            f"process {lease.type}",
            context=context,
            kind=self._api.SpanKind.CONSUMER,
            links=[self._api.Link(came_from)] if came_from.is_valid else [],
            attributes={
                **_attributes("process", lease.queue),
                "messaging.message.id": lease.id,
                "messaging.client.id": worker,
                "tenure.job.type": lease.type,
                "tenure.job.attempt": lease.attempts,
            },
        )
        return span, self._api.set_span_in_context(span, context)

    def ended(self, span: Span, error: str | None) -> None:
        """An attempt has ended, with the first line of its error if it failed."""
        if error is not None:
            self._fail(span, error)
        span.end()

    def carried(self, context: Context) -> str | None:
        """What names the span of `context` to another process; None if it has none."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return carrier.get("traceparent")

    def context(self, traceparent: str | None) -> Context:
        """What `carried` named in another process, and nothing of this one."""
        from opentelemetry.context import Context

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        return self._propagator.extract(carrier, Context())

    @property
    def _tracer(self) -> Any:
        return self._api.get_tracer("tenure")

    def _fail(self, span: Span, error: str) -> None:
        span.set_attribute("error.type", error.partition(":")[0][:200])
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, error[:1_000]))


def _attributes(operation: str, queue: str | None) -> Mapping[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        **({} if queue is None else {"messaging.destination.name": queue}),
    }


def enter(context: Context) -> None:
    """Have spans belong to that of `context`, as long as this task or `contextvars.Context` is."""
    from opentelemetry.context import attach

    attach(context)


def given(headers: Sequence[str]) -> str | None:
    """The `traceparent` of a request, which may be anything, as the standard wants it taken.

    That is https://www.w3.org/TR/trace-context/: one that is not valid is as good as none.
    """
    return headers[0] if len(headers) == 1 and _is_traceparent(headers[0]) else None


_is_traceparent = re.compile(
    "(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
).fullmatch
