"""Traces by OpenTelemetry: a span for adding jobs, and a span for each attempt, linked to it.

Only the API of OpenTelemetry is used. The SDK that the program sets up decides which spans are kept
and where they go. Attributes follow the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). Spans have no payload, and
of an error only the first line, redacted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenure.errors import InvalidInput
from tenure.rules.reports import Lease

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

SYSTEM = "tenure"


class Tracing:
    """The spans of one application. Raises InvalidInput if the API is not installed."""

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
        """Start the span of adding jobs of these types; returns it and its `traceparent`.

        Its parent is `parent`, a `traceparent` from a request, or else the current span. End it
        with `added`.
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
        """End the span of adding jobs; `error` says why they were not added."""
        if len(job_ids) == 1:
            span.set_attribute("messaging.message.id", job_ids[0])
        self.ended(span, None if error is None else type(error).__name__)

    def attempt(self, lease: Lease, worker: str) -> tuple[Span, Context]:
        """Start the span of an attempt; returns it and the context for the handler.

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
        """End the span of an attempt; `error` is the first line of its error."""
        if error is not None:
            span.set_attribute("error.type", error.partition(":")[0][:200])
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, error[:1_000]))
        span.end()

    def carried(self, context: Context) -> str | None:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        return carrier.get("traceparent")

    def context(self, traceparent: str | None) -> Context:
        """Return the context of a `traceparent`, without the current context of this process."""
        from opentelemetry.context import Context

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        return self._propagator.extract(carrier, Context())

    @property
    def _tracer(self) -> Any:
        return self._api.get_tracer("tenure")


def _attributes(operation: str, queue: str | None) -> Mapping[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        **({} if queue is None else {"messaging.destination.name": queue}),
    }


def enter(context: Context) -> None:
    """Make `context` current for the rest of this task or `contextvars.Context`."""
    from opentelemetry.context import attach

    attach(context)


def given(headers: Sequence[str]) -> str | None:
    """Return the `traceparent` of a request; None if it is missing or not valid.

    See https://www.w3.org/TR/trace-context/.
    """
    return headers[0] if len(headers) == 1 and _is_traceparent(headers[0]) else None


_is_traceparent = re.compile(
    "(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
).fullmatch
