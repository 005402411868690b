"""Traces by OpenTelemetry: a span for adding jobs, and one for each attempt, linked to it.

Only its API is used: which spans are kept, and where they go, is decided by whoever sets up the SDK
in this process. Attributes are those of its semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). What stands in payloads
and errors is told to nobody: of an error, a span has the first line, without what is redacted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tenure.errors import InvalidInput
from tenure.records import Added, Addition, Lease

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
        self, additions: Sequence[Addition], parent: str | None
    ) -> tuple[Sequence[Addition], Span]:
        """Jobs that know from which span they were added, and the span, to be ended by `added`.

        Its parent is `parent`, a `traceparent` as it came over HTTP, or whatever span is current.
        """
        first = additions[0]
        several = {a.type for a in additions} != {first.type}
        span = self._tracer.start_span(
            "enqueue" if several else f"enqueue {first.type}",
            context=None if parent is None else self._context(parent),
            kind=self._api.SpanKind.PRODUCER,
            attributes={
                **_attributes("create", first.queue),
                "messaging.batch.message_count": len(additions),
                **({"messaging.message.id": first.id} if len(additions) == 1 else {}),
            },
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._api.set_span_in_context(span))
        if "traceparent" in carrier:
            additions = [replace(a, traceparent=carrier["traceparent"]) for a in additions]
        return additions, span

    def added(self, span: Span, done: Future[list[Added]]) -> None:
        """The jobs are on disk, or were refused."""
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._fail(span, type(error).__name__)
        span.end()

    def attempt(self, lease: Lease, worker: str) -> tuple[Span, Context]:
        """The span of an attempt, and the context in which its handler is to run.

        It belongs to the trace of the span that added the job, and is linked to it.
        """
        context = self._context(lease.traceparent)
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

    @property
    def _tracer(self) -> Any:
        return self._api.get_tracer("tenure")

    def _context(self, traceparent: str | None) -> Context:
        from opentelemetry.context import Context

        carrier = {} if traceparent is None else {"traceparent": traceparent}
        return self._propagator.extract(carrier, Context())

    def _fail(self, span: Span, error: str) -> None:
        span.set_attribute("error.type", error.partition(":")[0][:200])
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, error[:1_000]))


def _attributes(operation: str, queue: str) -> Mapping[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
    }


def within(context: Context, function: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """`function`, so that the spans it makes belong to the span of `context`."""
    from opentelemetry.context import attach

    async def traced_async(**arguments: Any) -> Any:
        attach(context)  # for this task alone, and so for good
        return await function(**arguments)

    def traced(**arguments: Any) -> Any:
        attach(context)  # in the handler's own context, which ends with it
        return function(**arguments)

    return traced_async if is_async else traced
