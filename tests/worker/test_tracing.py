"""Traces: a span for adding a job, one for each attempt; nothing where nobody asked for them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tenure import JobNotFound, NewJob, Snooze, Tenure, testing
from tenure.client import Client
from tenure.errors import StoreUnavailable
from tenure.rules.reports import ClaimRequest
from tenure.values.ids import new_id
from tenure.values.redaction import Redaction
from tests.support.cli import PROGRAM, clean_environment
from tests.support.http import ServerProcess, api_client, claim_jobs
from tests.support.lenders import POSTGRES, SQLITE, lent
from tests.support.programs import Program
from tests.support.raw_sql import RawSql
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed

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

    return wait_until(look, f"{count} spans {name}")


def test_a_transaction_that_cannot_add_a_job_ends_its_span(
    sqlite_url: str, spans: InMemorySpanExporter
) -> None:
    """It ended once Python forgot the exception, as if somebody had closed a generator."""
    with Tenure(sqlite_url, tracing=True) as app:
        app.open()
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
            connection.execute("PRAGMA query_only = ON")
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                app.within(connection).enqueue("pay")
            (span,) = named(spans, "enqueue pay", 1)
    assert span.status.description == "OperationalError"


@pytest.mark.parametrize("how", ["run", "drain", "inline"])
def test_what_a_test_runs_belongs_to_the_span_that_added_it(
    sqlite_url: str, spans: InMemorySpanExporter, how: str
) -> None:
    """As in a worker. The attempts of tests had spans without any link."""
    with Tenure(sqlite_url, tracing=True) as app, testing.on(app) as jobs:
        pay = app.job(name="pay")(lambda: None)
        with testing.inline(app) if how == "inline" else nullcontext():
            made = [pay.enqueue(), pay.enqueue()]
        if how == "run":
            for one in made:
                jobs.run(one)
        elif how == "drain":
            jobs.drain()
        added = named(spans, "enqueue pay", 2)
        links = [link for span in named(spans, "process pay", 2) for link in span.links]
    assert [one.context.span_id for one in links] == [one.context.span_id for one in added]


@pytest.mark.each_engine
def test_jobs_of_a_callers_transaction_belong_to_its_span(
    database_url: str, spans: InMemorySpanExporter
) -> None:
    name = "tenure.sqlite" if database_url.startswith("sqlite") else "psycopg"
    (kind,) = (kind for kind in (*SQLITE, *POSTGRES) if kind.name == name)
    with Tenure(database_url, tracing=True) as app, lent(kind, database_url) as lender:
        known = lender.call(app, "enqueue", "pay", {}, idempotency_key="k")
        lender.commit()
        with trace.get_tracer("shop").start_as_current_span("request"):
            jobs = lender.call(app, "enqueue_many", [NewJob("pay", {}, {})] * 3)
            assert lender.call(app, "enqueue", "pay", {}, idempotency_key="k") == known
        lender.commit()
        sql = RawSql(database_url)
        table = "tenure_trace" if sql.engine == "sqlite" else "tenure.trace"
        rows = sql.run(f"SELECT CAST(job_id AS text), traceparent FROM {table}")
        sql.close()
    (sent,) = {parent for job_id, parent in rows if job_id != known.id}
    assert {job_id for job_id, parent in rows if parent == sent} == {job.id for job in jobs}


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
        with running_worker(
            app, tracing=app.core.tracing, redaction=Redaction(["password"])
        ) as worker:
            wait_until_completed(app, job)
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
    with Tenure(database_url, tracing=True) as app, api_client(app) as api:
        for header in (PARENT, "nonsense"):
            assert api.post("/jobs", json={"type": "a"}, headers={"traceparent": header}).is_success
        api.post(
            "/jobs/batch", json=[{"type": "b"}, {"type": "c"}], headers={"traceparent": PARENT}
        )
        named(spans, "enqueue a", 2)
        named(spans, "enqueue", 1)
        leases = app.core.claim(
            ClaimRequest(worker="w", limit=9, lease_seconds=9, traces=True)
        ).leases
        kept = {lease.type: (lease.traceparent or "").split("-")[1] for lease in leases}
        assert kept["b"] == kept["c"] == PARENT.split("-")[1]
        assert [lease.type for lease in leases if lease.type == "a"] == ["a", "a"]


@pytest.mark.parametrize("tracing", [False, True], ids=["a server without", "a server that traces"])
def test_a_lease_tells_who_asks_where_its_job_came_from(
    database_url: str, spans: InMemorySpanExporter, tracing: bool
) -> None:
    """As W3C Trace Context wants it: what is not valid, or there twice, is as good as none."""
    trace_id = PARENT.split("-")[1]
    with Tenure(database_url, tracing=tracing) as app, api_client(app) as api:
        for type, headers in {
            "traced": [("traceparent", PARENT)],
            "nonsense": [("traceparent", "nonsense")],
            "zero": [("traceparent", PARENT.replace(trace_id, "0" * 32))],
            "twice": [("traceparent", PARENT), ("traceparent", PARENT)],
        }.items():
            assert api.post("/jobs", json={"type": type}, headers=headers).status_code == 201
        leases = claim_jobs(api, 9, traces=True)
    found = {lease["type"]: lease.get("traceparent", "").split("-") for lease in leases}
    assert len(found) == 4
    assert found["traced"][1] == trace_id
    if not tracing:
        assert found["traced"] == PARENT.split("-")
        assert found["nonsense"] == found["zero"] == found["twice"] == [""]
    else:  # spans of its own, without a parent
        assert trace_id not in {found[type][1] for type in ("nonsense", "zero", "twice")}


def test_a_lease_does_not_tell_who_did_not_ask(app: Tenure) -> None:
    with api_client(app) as api:
        api.post("/jobs", json={"type": "a"}, headers={"traceparent": PARENT})
        (lease,) = claim_jobs(api)
    assert "traceparent" not in lease


def test_a_trace_goes_through_a_server_that_knows_nothing_of_it(
    database_url: str, spans: InMemorySpanExporter
) -> None:
    with (
        Tenure(database_url) as app,
        ServerProcess(database_url) as server,
        Client(server.url, tracing=True) as client,
    ):
        tracer = trace.get_tracer("shop")

        @app.job
        async def pay() -> None:
            with tracer.start_as_current_span("inside"):
                pass

        with tracer.start_as_current_span("request") as request:
            job = client.enqueue("pay", queue="money")
            several = client.enqueue_many([NewJob("pay", {}, {}), NewJob("pay", {}, {})])
        with pytest.raises(JobNotFound):
            client.enqueue("pay", depends_on=[new_id()])
        with running_worker(app, client, tracing=client.tracing):
            for one in (job, *several):
                wait_until_completed(app, one)
            attempts = named(spans, "process pay", 3)
            insides = named(spans, "inside", 3)
        added, batch, refused = named(spans, "enqueue pay", 3)
    assert added.kind is trace.SpanKind.PRODUCER
    assert added.parent is not None
    assert added.parent.span_id == request.get_span_context().span_id
    assert added.attributes is not None
    assert added.attributes["messaging.message.id"] == job.id
    assert added.attributes["messaging.destination.name"] == "money"
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 2
    assert refused.status.status_code is trace.StatusCode.ERROR
    origins = {job.id: added, **{one.id: batch for one in several}}
    for attempt in attempts:
        assert attempt.attributes is not None
        origin = origins[str(attempt.attributes["messaging.message.id"])]
        assert attempt.context.trace_id == origin.context.trace_id
        assert [link.context.span_id for link in attempt.links] == [origin.context.span_id]
    parents = {inside.parent.span_id for inside in insides if inside.parent}
    assert parents == {attempt.context.span_id for attempt in attempts}


SPANS_OF_PROCESSES = """
import logging, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from tenure import Tenure

out = open(f"{os.getpid()}.spans", "w")
write = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + chr(10))
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(write, schedule_delay_millis=600_000))
trace.set_tracer_provider(provider)
app = Tenure(tracing=True)

@app.job(process=True)
def pay() -> int:
    with trace.get_tracer("shop").start_as_current_span("inside"):
        logging.getLogger("shop").warning("paying")
    return os.getpid()
"""


def test_a_trace_goes_on_in_a_worker_elsewhere_and_in_its_child_processes(
    app: Tenure, tmp_path: Path
) -> None:
    """The spans of the child wait to be sent: it gets to do that when its worker ends."""
    (tmp_path / "shop.py").write_text(SPANS_OF_PROCESSES)
    with ServerProcess(app.database) as server:
        for _ in range(2):
            httpx2.post(
                f"{server.url}/jobs", json={"type": "pay"}, headers={"traceparent": PARENT}
            ).raise_for_status()
        jobs = app.find()
        worker = Program(
            [*PROGRAM, "worker", "--server", server.url, "--app", "shop:app", "--concurrency", "1"],
            cwd=tmp_path,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            pids = {wait_until_completed(app, job).result_json for job in jobs}
            worker.terminate()
            _, log = worker.communicate(timeout=WAIT_SECONDS)
        finally:
            worker.kill()
            worker.wait()
    assert len(pids) == 1
    (child,) = pids
    inside, attempts = (
        [json.loads(line) for line in (tmp_path / f"{pid}.spans").read_text().splitlines()]
        for pid in (child, worker.pid)
    )
    assert [span["name"] for span in inside + attempts] == 2 * ["inside"] + 2 * ["process pay"]
    assert {span["context"]["trace_id"] for span in inside + attempts} == {
        f"0x{PARENT.split('-')[1]}"
    }
    assert [span["parent_id"] for span in inside] == [
        span["context"]["span_id"] for span in attempts
    ]
    lines = [line for line in log.splitlines() if "paying" in line]
    assert all(f"job={job.id}" in "".join(lines) for job in jobs), log


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
        raw = RawSql(database_url)
        try:
            assert raw.value(f"SELECT count(*) FROM {table}") == 1
            for job in app.find():
                app.cancel(job.id)
            wait_until(lambda: app.core.measure() == 0)
            wait_until(lambda: app.core.prune({"cancelled": 0}) == 0 and not app.find())
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
        with running_worker(app, tracing=app.core.tracing):
            wait_until_failed(app, job)
            (span,) = named(spans, "process sleep", 1)
    assert span.status.description == "timed out after 0.05 s"


def test_the_span_of_jobs_that_cannot_be_added_ends(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    """Spans that have not ended are told to nobody."""
    app = Tenure(f"sqlite:///{tmp_path}/no/such/folder/jobs.db", tracing=True)
    app.job(name="lost")(lambda: None)
    with pytest.raises(StoreUnavailable):
        app.enqueue("lost")
    (span,) = named(spans, "enqueue lost", 1)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "StoreUnavailable"


class RaisingProcessor(SpanProcessor):
    """A processor of the program that raises when the span of an attempt ends."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.name == "process unlucky":
            raise RuntimeError("the processor of spans is broken")


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_jobs_are_reported_where_spans_cannot_be_ended(
    database_url: str, spans: InMemorySpanExporter, kind: str
) -> None:
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(RaisingProcessor())
    with Tenure(database_url, tracing=True) as app:
        if kind == "thread":
            app.job(name="unlucky")(lambda: None)
        else:

            @app.job(name="unlucky")
            async def on_loop() -> None:
                pass

        jobs = [app.enqueue("unlucky") for _ in range(2)]
        with running_worker(app, tracing=app.core.tracing, concurrency=1):
            for job in jobs:  # the second gets the only slot after the first
                wait_until_completed(app, job)


def test_a_snooze_is_no_error(app: Tenure, spans: InMemorySpanExporter) -> None:
    with Tenure(app.database, tracing=True) as app:

        @app.job
        def later() -> None:
            raise Snooze(60)

        with running_worker(app, tracing=app.core.tracing):
            later.enqueue()
            (span,) = named(spans, "process later", 1)
    assert span.status.status_code is trace.StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})
