"""Traces: a span for adding a job, one for each attempt; nothing where nobody asked for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tenure import Tenure
from tenure.records import ClaimRequest
from tenure.redaction import Redaction
from tests.faces.http import api_of
from tests.raw import Raw
from tests.worker.running import completed, failed, working
from tests.worker.waiting import until

exporter = InMemorySpanExporter()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    if not isinstance(trace.get_tracer_provider(), TracerProvider):  # may be set once a process
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    exporter.clear()
    yield exporter
    exporter.clear()


def named(spans: InMemorySpanExporter, name: str, count: int) -> list[ReadableSpan]:
    """The spans of a name, once there are `count`."""

    def look() -> list[ReadableSpan]:
        found = [span for span in spans.get_finished_spans() if span.name == name]
        return found if len(found) == count else []

    return until(look, f"{count} spans {name}")


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_attempts_belong_to_the_span_that_added_their_job(
    database_url: str, spans: InMemorySpanExporter, kind: str
) -> None:
    with Tenure(database_url, tracing=True) as app:
        tracer = trace.get_tracer("shop")
        tries: list[int] = []

        def handle(password: str) -> None:
            with tracer.start_as_current_span("inside"):
                tries.append(1)
                if len(tries) == 1:
                    raise ValueError(f"no {password}")

        if kind == "thread":
            app.job(name="pay", queue="money", backoff=0)(handle)
        else:

            @app.job(name="pay", queue="money", backoff=0)
            async def on_loop(password: str) -> None:
                handle(password)

        with tracer.start_as_current_span("request") as request:
            job = app.enqueue("pay", {"password": "hunter2"})
        with working(app, tracing=app.tracing, redaction=Redaction(["password"])) as worker:
            completed(app, job)
            first, second = named(spans, "process pay", 2)
        (added,) = named(spans, "enqueue pay", 1)
    assert added.kind is trace.SpanKind.PRODUCER
    assert added.parent is not None
    assert added.parent.span_id == request.get_span_context().span_id
    for number, span in enumerate((first, second), start=1):
        assert span.kind is trace.SpanKind.CONSUMER
        assert span.context.trace_id == added.context.trace_id
        assert [link.context.span_id for link in span.links] == [added.context.span_id]
        assert span.attributes is not None
        assert span.attributes["messaging.system"] == "tenure"
        assert span.attributes["messaging.destination.name"] == "money"
        assert span.attributes["messaging.message.id"] == job.id
        assert span.attributes["messaging.client.id"] == worker.id
        assert span.attributes["tenure.job.attempt"] == number
    assert first.status.status_code is trace.StatusCode.ERROR
    assert first.status.description == "ValueError: no [redacted]"
    assert second.status.status_code is trace.StatusCode.UNSET
    inside = {span.parent.span_id for span in named(spans, "inside", 2) if span.parent}
    assert inside == {first.context.span_id, second.context.span_id}


def test_a_request_names_its_span(database_url: str, spans: InMemorySpanExporter) -> None:
    with Tenure(database_url, tracing=True) as app, api_of(app) as api:
        for header in (PARENT, "nonsense"):
            assert api.post("/jobs", json={"type": "a"}, headers={"traceparent": header}).is_success
        api.post(
            "/jobs/batch", json=[{"type": "b"}, {"type": "c"}], headers={"traceparent": PARENT}
        )
        named(spans, "enqueue a", 2)
        named(spans, "enqueue", 1)
        leases = app.claim(ClaimRequest(worker="w", limit=9, lease_seconds=9, traces=True)).leases
        kept = {lease.type: (lease.traceparent or "").split("-")[1] for lease in leases}
        assert kept["b"] == kept["c"] == PARENT.split("-")[1]
        assert [lease.type for lease in leases if lease.type == "a"] == ["a", "a"]


def test_traces_go_with_their_jobs_and_cost_nothing_unasked(
    database_url: str, spans: InMemorySpanExporter
) -> None:
    table = "tenure_trace" if database_url.startswith("sqlite") else "tenure.trace"
    with Tenure(database_url) as plain:
        plain.enqueue("a")
        assert not spans.get_finished_spans()
    with Tenure(database_url, tracing=True) as app:
        again = [app.enqueue("a", idempotency_key="k") for _ in range(2)]
        assert again[0].id == again[1].id
        raw = Raw(database_url)
        try:
            assert raw.value(f"SELECT count(*) FROM {table}") == 1
            for job in app.find():
                app.cancel(job.id)
            until(lambda: app.measure() == 0)
            until(lambda: app.prune({"cancelled": 0}) == 0 and not app.find())
            assert raw.value(f"SELECT count(*) FROM {table}") == 0
        finally:
            raw.close()


def test_a_failure_is_on_the_span(sqlite_url: str, spans: InMemorySpanExporter) -> None:
    with Tenure(sqlite_url, tracing=True) as app:

        @app.job(max_retries=1, timeout=0.05)
        async def sleep() -> None:
            import asyncio

            await asyncio.sleep(60)

        job = sleep.enqueue()
        with working(app, tracing=app.tracing):
            failed(app, job)
            (span,) = named(spans, "process sleep", 1)
    assert span.status.description == "timed out after 0.05 s"
