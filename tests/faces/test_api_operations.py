"""What operators ask over HTTP: health, queues, workers, counts, metrics, the event stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.app import stats
from tenure.http import jobs as streams
from tenure.http import leases, waiting
from tenure.http import stats as http_stats
from tenure.rules.reports import ClaimRequest
from tenure.rules.stats import BUCKETS, Count, Total
from tenure.server import build
from tenure.wire.responses import MetricsBody
from tests.support.clock import Clock
from tests.support.http import HERE, Exchange, api_client, assert_problem, claim_jobs
from tests.support.store import claim_request, report_failed
from tests.support.waiting import WAIT_SECONDS, wait_until


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


# --- health ---------------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_not_waited_for(
    api: TestClient, app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs lets a read fail after a minute: probes have given up long before."""
    monkeypatch.setattr(streams, "READY_SECONDS", 0.1)
    answers = threading.Event()
    monkeypatch.setattr(app.core, "check_store", lambda: answers.wait(30))
    try:
        assert_problem(api.get("/ready"), 503, "store_unavailable")
        assert not answers.is_set()
    finally:
        answers.set()
    wait_until(lambda: api.get("/ready").status_code == 200)


def test_health_and_readiness(api: TestClient) -> None:
    assert api.get("/health").json() == {"status": "ok"}
    assert api.get("/ready").json() == {"status": "ready"}


def test_a_stopping_server_takes_nothing_new(app: Tenure) -> None:
    with api_client(app) as api:
        api.app.state.notifier.stop()  # type: ignore[attr-defined]
        for response in (
            api.get("/ready"),
            api.post("/jobs", json={"type": "a"}),
            api.post("/jobs/batch", json=[{"type": "a"}]),
            api.get("/events"),
        ):
            assert_problem(response, 503, "shutting_down")
            assert int(response.headers["retry-after"]) >= 1
        assert api.get("/health").json() == {"status": "ok"}
        assert api.get("/jobs").json() == []


@pytest.mark.requirement("C22")
def test_not_ready_without_a_database(tmp_path: Any) -> None:
    """The reason is said, the database's address and errors are not."""
    app = Tenure(f"sqlite:///{tmp_path}/secret-folder/jobs.db")
    client = TestClient(build(app), base_url="http://localhost", client=HERE)
    response = client.get("/ready")
    body = assert_problem(response, 503, "store_unavailable")
    assert "database" in body["detail"]
    assert "secret-folder" not in response.text
    assert client.get("/health").status_code == 200


# --- queues, workers, counts ----------------------------------------------------------------------


def test_a_paused_queue_hands_out_nothing(api: TestClient) -> None:
    api.post("/jobs", json={"type": "a", "queue": "mail"})
    paused = api.post("/queues/mail/pause")
    assert paused.status_code == 200
    assert paused.json()["paused_at"] is not None
    assert claim_jobs(api) == []
    assert api.get("/jobs?queue=mail").json()[0]["status"] == "pending"
    resumed = api.post("/queues/mail/resume").json()
    assert (resumed["name"], resumed["paused_at"], resumed["pending"]) == ("mail", None, 1)
    assert len(claim_jobs(api)) == 1
    (queue,) = api.get("/queues").json()
    assert (queue["pending"], queue["processing"]) == (0, 1)


def test_queues_that_have_no_jobs_can_be_set(api: TestClient) -> None:
    assert api.post("/queues/new/pause").json()["pending"] == 0
    assert api.put("/queues/other/limit", json={"max_pending": 3}).json()["max_pending"] == 3
    assert api.post("/queues/third/resume").status_code == 200
    for path in ("/queues/no%20good/pause", "/queues/a..b/resume"):
        assert_problem(api.post(path), 400, "invalid_input")
    for body in ({}, {"max_pending": -1}, {"max_pending": "many"}, {"max": 1}):
        assert_problem(api.put("/queues/q/limit", json=body), 400, "invalid_input")


def test_workers_are_listed(api: TestClient) -> None:
    assert api.get("/workers").json() == []
    api.post("/jobs", json={"type": "a"})
    claim_jobs(api, types=["a", "b"], label="host:17")
    (worker,) = api.get("/workers").json()
    assert (worker["id"], worker["label"], worker["leases"]) == ("http/w", "host:17", 1)
    assert (worker["queues"], sorted(worker["types"])) == (None, ["a", "b"])


def test_counts_add_up(api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}, {"type": "a"}, {"type": "b", "queue": "q"}])
    claim_jobs(api, types=["b"])
    stats = api.get("/stats").json()
    assert stats["total"] == 3
    assert stats["by_status"] == {
        "waiting": 0,
        "pending": 2,
        "processing": 1,
        "completed": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert {"status": "pending", "queue": "default", "type": "a", "jobs": 2} in stats["counts"]


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_in_both_forms_are_the_same(app: Tenure, api: TestClient) -> None:
    api.post("/jobs/batch", json=[{"type": "a"}, {"type": "a"}, {"type": "b", "queue": "q"}])
    api.post("/queues/q/pause")
    claim_jobs(api)
    wait_until(lambda: app.core.measure() == 0 and len(app.stats.totals()) == 3)
    text = api.get("/metrics", headers={"Accept": "text/plain"})
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.text)
        for sample in family.samples
    }
    form = api.get("/metrics", headers={"Accept": "application/json"}).json()
    for count in form["counts"]:
        labels = sorted((name, count[name]) for name in ("status", "queue", "type"))
        assert values["tenure_jobs", *labels] == count["jobs"]
    assert values["tenure_queue_pending", ("queue", "default")] == 1
    assert values["tenure_queue_processing", ("queue", "default")] == 1
    assert values["tenure_queue_paused", ("queue", "q")] == 1
    assert values["tenure_queue_oldest_due_seconds", ("queue", "default")] >= 0
    assert values["tenure_workers",] == form["workers"] == 1
    assert values["tenure_late_leases",] == form["late_leases"] == 0
    assert form["total"] == 3
    for total in form["totals"]:
        labels = sorted((name, total[name]) for name in ("event", "queue", "type"))
        assert values["tenure_transitions_total", *labels] == total["transitions"]
        if total["event"] == "claimed":
            assert values["tenure_wait_seconds_sum", ("type", "a")] == total["seconds"]
            assert values["tenure_wait_seconds_count", ("type", "a")] == sum(total["buckets"]) == 1
    assert len(form["bounds"]) == len(form["totals"][0]["buckets"])


@pytest.mark.each_engine
def test_metrics_show_halted_partitions_and_the_longest_attempt(
    app_on_each_engine: Tenure, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_on_each_engine
    app.queues.limit("q", ordered="halt")
    app.queues.limit("r", ordered="halt")
    jobs = [app.enqueue("a", queue="q", partition=part, max_retries=1) for part in "aab"]
    (first, other) = app.core.claim(claim_request(2)).leases
    assert {first.id, other.id} == {jobs[0].id, jobs[2].id}
    (failed,) = (lease for lease in (first, other) if lease.id == jobs[0].id)
    app.core.report([report_failed(failed)])
    clock.advance(90)
    with api_client(app) as api:
        form = api.get("/metrics", headers={"Accept": "application/json"}).json()
        text = api.get("/metrics").text.splitlines()
    assert form["halted_partitions"] == {"q": 1, "r": 0}
    assert [*form["oldest_running"]] == ["q"]
    assert 'tenure_queue_halted_partitions{queue="q"} 1.0' in text
    assert 'tenure_queue_oldest_running_seconds{queue="q"} 90.0' in text
    assert 'tenure_queue_oldest_running_seconds{queue="r"} 0.0' in text
    monkeypatch.setattr(stats, "MAX_HALTING", 0)
    assert app.stats.halted_partitions() == {"r": 0}, "what is not looked at"


def test_metrics_count_no_worker_that_only_delivers_webhooks(app: Tenure, api: TestClient) -> None:
    """Every server is one once there is a webhook: the alert on no worker never fired."""
    kinds = {"queues": ("tenure.webhooks.x",), "types": ("tenure.webhook",)}
    app.core.claim(ClaimRequest(worker="d", limit=1, lease_seconds=30, **kinds))
    assert len(api.get("/workers").json()) == 1
    assert api.get("/metrics", headers={"Accept": "application/json"}).json()["workers"] == 0


def test_histograms_add_up_queues_and_outcomes() -> None:
    """Each bucket holds the times up to its bound, as Prometheus wants it."""
    times = [
        Total("a", queue, event, 4, 2.5, (1, 0, 2, *[0] * (len(BUCKETS) - 4), 1))
        for queue, event in (("q", "completed"), ("r", "failed"), ("q", "claimed"))
    ]
    seen = MetricsBody(
        total=0,
        by_status={},
        counts=[],
        queues=[],
        oldest_running={},
        halted_partitions={},
        workers=0,
        late_leases=0,
        totals=times,
        bounds=[],
        measured_until=None,
        fires={},
        next_tick=None,
        refused={},
    )
    lines = http_stats.prometheus_text(seen, datetime.now(UTC)).decode().splitlines()
    assert 'tenure_run_seconds_sum{type="a"} 5.0' in lines
    jobs = {"0.01": 2, "0.03": 2, "0.1": 6, "0.3": 6, "3600.0": 6, "+Inf": 8}
    for bound, up_to in jobs.items():
        assert f'tenure_run_seconds_bucket{{le="{bound}",type="a"}} {up_to}.0' in lines


@pytest.mark.requirement("C15")
def test_series_are_bounded() -> None:
    counts = [Count("pending", "q", f"type{n}", n) for n in range(10_000)]
    few = http_stats.bounded(counts)
    assert len(few) <= http_stats.MAX_SERIES + 1
    assert sum(count.jobs for count in few) == sum(count.jobs for count in counts)
    assert few[0].type == "type9999", "the largest are kept"
    assert few[-1].type == http_stats.OTHER


def test_queues_are_listed_in_bounded_pages(api: TestClient) -> None:
    for name in ("mail", "e-mail", "other"):
        api.post("/jobs", json={"type": "a", "queue": name})
    pages = [api.get("/queues", params={"limit": 2, "after": after}) for after in ("", "mail")]
    assert [[q["name"] for q in page.json()] for page in pages] == [["e-mail", "mail"], ["other"]]
    assert [q["name"] for q in api.get("/queues?search=MAIL").json()] == ["e-mail", "mail"]
    for query in ("limit=0", "limit=1001", "search=%00", "search=%C3%A9", "after=" + "x" * 129):
        assert_problem(api.get(f"/queues?{query}"), 400, "invalid_input")


def test_metrics_have_the_queues_with_most_jobs(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stats, "MAX_QUEUES", 1)
    for name in ("few", "most", "most"):
        api.post("/jobs", json={"type": "a", "queue": name})
    text = api.get("/metrics").text
    assert 'tenure_queue_pending{queue="most"} 2.0' in text
    assert 'queue_pending{queue="few"}' not in text


# --- the event stream -----------------------------------------------------------------------------


def events_in(answered: bytes) -> list[dict[str, Any]]:
    """The complete events of a stream, each with its id."""
    events = []
    for block in answered.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            data = json.loads(fields["data"])
            assert data["position"] == fields["id"]
            assert data["event"] == fields["event"]
            events.append(data)
    return events


@pytest.mark.anyio
async def test_events_arrive_as_they_happen(app: Tenure) -> None:
    before = await app.enqueue_async("a")
    async with Exchange(build(app), "GET", "/events") as stream:
        await stream.wait_for(b"retry: ")
        job = await app.enqueue_async("b")
        await stream.wait_for(job.id.encode())
        await asyncio.to_thread(app.cancel, job.id)
        await stream.wait_for(b"event: cancelled")
        assert stream.status == 200
        events = events_in(stream.answered)
    assert before.id.encode() not in stream.answered, "it begins with what happens next"
    assert [(one["job_id"], one["event"]) for one in events] == [
        (job.id, "enqueued"),
        (job.id, "cancelled"),
    ]


@pytest.mark.anyio
async def test_an_outage_is_one_line_however_many_streams_there_are(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the tables were away, as during a restore, each stream logged four lines a second."""
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url, autocommit=True) as admin:
        built = build(app)
        async with (
            Exchange(built, "GET", "/events") as one,
            Exchange(built, "GET", "/events") as two,
            Exchange(built, "GET", "/ui/live") as page,
        ):
            for stream in (one, two, page):
                await stream.wait_for(b"retry: ")
            admin.execute("ALTER SCHEMA tenure RENAME TO away")
            said = ("event stream cannot", "dashboard cannot")
            await asyncio.to_thread(wait_until, lambda: all(what in caplog.text for what in said))
            await asyncio.sleep(1.5)  # meanwhile they look again
            assert [caplog.text.count(what) for what in said] == [1, 1]
            admin.execute("ALTER SCHEMA away RENAME TO tenure")
            job = await app.enqueue_async("a")
            await one.wait_for(job.id.encode())
            await page.wait_for(job.id.encode())


@pytest.mark.anyio
async def test_a_stream_resumes_without_gap_or_repetition(app: Tenure) -> None:
    jobs = await app.enqueue_many_async([])
    for _ in range(5):
        jobs.append(await app.enqueue_async("a"))
    async with Exchange(build(app), "GET", "/events", query="after=") as stream:
        await stream.wait_for(jobs[4].id.encode())
        all_of_them = events_in(stream.answered)
    assert [one["job_id"] for one in all_of_them] == [job.id for job in jobs]
    headers = {"Last-Event-ID": all_of_them[2]["position"]}
    async with Exchange(build(app), "GET", "/events", headers=headers, query="after=") as stream:
        await stream.wait_for(jobs[4].id.encode())
        rest = events_in(stream.answered)
    assert [one["job_id"] for one in rest] == [job.id for job in jobs[3:]]


@pytest.mark.anyio
async def test_a_stream_tells_its_position_before_any_event(app: Tenure) -> None:
    """A client that is cut off before the first event still misses nothing."""
    await app.enqueue_async("a")
    async with Exchange(build(app), "GET", "/events") as stream:
        await stream.wait_for(b"\n\n")
        position = stream.answered.decode().partition("id: ")[2].splitlines()[0]
    job = await app.enqueue_async("b")
    async with Exchange(build(app), "GET", "/events", query=f"after={position}") as stream:
        await stream.wait_for(job.id.encode())
        assert [one["job_id"] for one in events_in(stream.answered)] == [job.id]


@pytest.mark.anyio
async def test_a_long_ledger_is_streamed_whole(app: Tenure) -> None:
    from tenure import NewJob

    new_jobs = [NewJob("a", {}, {}) for _ in range(streams.MAX_AT_ONCE + 50)]
    jobs = await app.enqueue_many_async(new_jobs)
    async with Exchange(build(app), "GET", "/events", query="after=") as stream:
        await stream.wait_for(jobs[-1].id.encode())
        assert len(events_in(stream.answered)) == len(jobs)


@pytest.mark.anyio
async def test_a_stream_tells_only_what_is_wanted(app: Tenure) -> None:
    mail = await app.enqueue_async("mail", queue="out")
    report = await app.enqueue_async("report", queue="night")
    await asyncio.to_thread(app.cancel, mail.id)
    await asyncio.to_thread(app.cancel, report.id)
    for query, told in {
        "type=mail,other": [(mail.id, "enqueued"), (mail.id, "cancelled")],
        "queue=night&event=cancelled": [(report.id, "cancelled")],
        f"job={report.id}": [(report.id, "enqueued"), (report.id, "cancelled")],
    }.items():
        async with Exchange(build(app), "GET", "/events", query=f"after=&{query}") as stream:
            await stream.wait_for(b"event: cancelled")
            events = events_in(stream.answered)
        assert [(one["job_id"], one["event"]) for one in events] == told
        named = {mail.id: ("mail", "out"), report.id: ("report", "night")}
        assert all((one["type"], one["queue"]) == named[one["job_id"]] for one in events)


@pytest.mark.anyio
async def test_a_stream_tells_what_happens_later_only_if_it_is_wanted(app: Tenure) -> None:
    async with Exchange(build(app), "GET", "/events", query="type=mail") as stream:
        await stream.wait_for(b"retry: ")
        await app.enqueue_async("report")
        job = await app.enqueue_async("mail")
        await stream.wait_for(job.id.encode())
        assert [one["type"] for one in events_in(stream.answered)] == ["mail"]


@pytest.mark.anyio
async def test_a_stream_that_tells_nothing_says_how_far_it_is(
    app: Tenure, monkeypatch: Any
) -> None:
    """Who comes back after a quiet day does not have the server read that day's ledger again."""
    monkeypatch.setattr(waiting, "PING_SECONDS", 0.0)
    job = await app.enqueue_async("mail")
    end = app.events.read().position
    async with Exchange(build(app), "GET", "/events", query="after=&type=other") as stream:
        await stream.wait_for(f": still here\nid: {end}\n\n".encode())
        assert job.id.encode() not in stream.answered


def test_what_no_stream_can_tell_is_refused(api: TestClient, subtests: pytest.Subtests) -> None:
    for query in [
        "type=.",
        "type=a,,b",
        "queue=",
        "event=exploded",
        "job=1",
        "type=" + "a," * 100 + "a",
    ]:
        with subtests.test(f"{query:.60}"):
            assert_problem(api.get(f"/events?{query}"), 400, "invalid_input")


def test_a_position_that_is_none_is_named_where_it_was_given(api: TestClient) -> None:
    """The place was `$.after`, as if the call had a body."""
    for query, headers, place in (
        ("?after=x", {}, "query after"),
        ("?after=", {"Last-Event-ID": "x"}, "Last-Event-ID"),
    ):
        refused = api.get(f"/events{query}", headers=headers)
        assert assert_problem(refused, 400, "invalid_input")["path"] == place


@pytest.mark.anyio
async def test_a_quiet_stream_is_kept_alive(app: Tenure, monkeypatch: Any) -> None:
    monkeypatch.setattr(waiting, "PING_SECONDS", 0.0)
    async with Exchange(build(app), "GET", "/events") as stream:
        await stream.wait_for(b"\n: ")


@pytest.mark.anyio
async def test_streams_end_with_the_server_or_their_client(app: Tenure) -> None:
    built = build(app)
    notifier = built.state.notifier
    async with (
        Exchange(built, "GET", "/events") as left,
        Exchange(built, "GET", "/events") as stayed,
    ):
        await left.wait_for(b"retry")
        await stayed.wait_for(b"retry")
        assert len(notifier.streams) == 2
        await left.hang_up()
        await asyncio.wait_for(left.task, WAIT_SECONDS)
        assert len(notifier.streams) == 1
        notifier.stop()
        await asyncio.wait_for(stayed.task, WAIT_SECONDS)
        assert len(notifier.streams) == 0


@pytest.mark.anyio
async def test_streams_are_counted(app: Tenure, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 1)
    built = build(app)
    async with Exchange(built, "GET", "/events") as first:
        await first.wait_for(b"retry")
        async with Exchange(built, "GET", "/events") as second:
            assert (await second.end())["code"] == "too_many_streams"


@pytest.mark.anyio
async def test_a_token_for_some_queues_has_a_quarter_of_the_streams(
    app: Tenure, monkeypatch: Any
) -> None:
    """One tenant opened them all, and nobody else got one."""
    monkeypatch.setattr(streams, "MAX_STREAMS", 8)
    tokens = {
        name: {"Authorization": f"Bearer {app.tokens.create(name, ['read'], queues=queues)[0]}"}
        for name, queues in (("one", ["a*"]), ("two", ["b"]), ("all", None))
    }
    built = build(app)
    async with contextlib.AsyncExitStack() as crowd:

        async def asked(name: str) -> tuple[int, bytes]:
            one = Exchange(built, "GET", "/events", headers=tokens[name])
            await crowd.enter_async_context(one)
            await one.wait_for(b"t")
            return one.status, one.answered

        said = [await asked("one") for _ in range(3)]
        assert [status for status, _ in said] == [200, 200, 503]
        assert b"too_many_streams" in said[-1][1]
        assert b"2 event streams are open with this token" in said[-1][1]
        for name, statuses in (("two", [200] * 2), ("all", [200] * 4 + [503]), ("two", [503])):
            assert [(await asked(name))[0] for _ in statuses] == statuses


@pytest.mark.anyio
async def test_streams_of_workers_are_counted_apart(app: Tenure, monkeypatch: Any) -> None:
    monkeypatch.setattr(leases, "MAX_END_STREAMS", 1)
    built, query = build(app), "worker=w"
    async with (
        Exchange(built, "GET", "/events") as events,
        Exchange(built, "GET", "/leases/ended", query=query) as first,
    ):
        await events.wait_for(b"retry")
        await first.wait_for(b"ended")
        async with Exchange(built, "GET", "/leases/ended", query=query) as second:
            assert (await second.end())["code"] == "too_many_streams"
        await first.hang_up()
        await asyncio.wait_for(first.task, 5)
        async with Exchange(built, "GET", "/leases/ended", query=query) as third:
            await third.wait_for(b"ended")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/events", "/ui/live"])
async def test_the_head_of_a_stream_has_an_end(app: Tenure, path: str) -> None:
    async with Exchange(build(app), "HEAD", path) as asked:
        await asked.end()
    assert (asked.status, asked.answered) == (200, b"")


@pytest.mark.anyio
async def test_streams_that_come_at_once_are_counted(app: Tenure, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)
    built = build(app)
    async with contextlib.AsyncExitStack() as crowd:
        asked = [
            await crowd.enter_async_context(Exchange(built, "GET", "/events")) for _ in range(10)
        ]
        await asyncio.gather(*(one.wait_for(b"t") for one in asked))
        assert sorted(one.status for one in asked) == [200] * 3 + [503] * 7


def test_what_is_no_position_is_refused(api: TestClient, subtests: pytest.Subtests) -> None:
    for position in ["x", "-1", "1e3", "9" * 70, "é", "1; DROP TABLE", "1 2"]:
        with subtests.test(position):
            headers = [("Last-Event-ID", position.encode())]
            assert_problem(api.get("/events", headers=headers), 400, "invalid_input")
            assert_problem(api.get("/events", params={"after": position}), 400, "invalid_input")


# --- mounted in another application ---------------------------------------------------------------


def test_the_api_can_be_mounted(app: Tenure) -> None:
    outer = Starlette(routes=[Mount("/queue", build(app))])
    client = TestClient(
        outer, base_url="http://localhost", client=HERE
    )  # no lifespan reaches what is mounted
    created = client.post("/queue/jobs", json={"type": "a"})
    assert created.status_code == 201
    assert created.headers["location"] == f"/queue/jobs/{created.json()['id']}"
    assert client.get(created.headers["location"]).json() == created.json()
    link = client.get("/queue/jobs?limit=1").headers["link"]
    assert link.startswith("</queue/jobs?limit=1&cursor=")
    assert_problem(client.get("/queue/nothing"), 404, "not_found")
    assert client.post("/queue/leases", json={"worker": "w", "wait_seconds": 1}).json()


def test_limits_are_set_one_by_one(api: TestClient) -> None:
    def limit(**change: Any) -> Any:
        return api.put("/queues/sync/limit", json=change).json()

    set_first = limit(max_running=5, rate="900/1m", per_partition={"max_running": 2})
    assert set_first["running"] == 0
    per_partition = {"max_running": 2, "rate": None, "burst": None}
    limits = {"max_running": 5, "rate": "900/1m", "burst": 90, "ordered": None}
    assert set_first["limits"] == {**limits, "per_partition": per_partition}
    assert limit(max_running=None)["limits"]["max_running"] is None
    assert limit(ordered="halt", per_partition={})["limits"]["ordered"] == "halt"
    assert limit(rate=None, ordered=None, per_partition=None)["limits"] is None
    for body, path in (
        ({"max_running": -1}, "$.max_running"),
        ({"rate": "900"}, "$.rate"),
        ({"burst": 2}, "$.burst"),
        ({"per_partition": {"rate": "fast"}}, "$.per_partition.rate"),
        ({"ordered": "yes"}, "$.ordered"),
    ):
        refused = assert_problem(api.put("/queues/sync/limit", json=body), 400, "invalid_input")
        assert path in json.dumps(refused)


def test_partitions_are_listed_limited_and_paused(api: TestClient) -> None:
    api.put("/queues/sync/limit", json={"ordered": "halt"})
    for tenant in ("acme", "acme", "b/c"):
        job = {"type": "a", "queue": "sync", "partition": tenant, "max_retries": 1}
        assert api.post("/jobs", json=job).status_code == 201
    partition = {"partition": "b/c", "weight": 3, "paused": True, "reason": "they asked"}
    assert api.put("/queues/sync/partition", json=partition).status_code == 200
    (lease,) = claim_jobs(api, limit=10)
    report = {"lease_id": lease["lease_id"], "outcome": "failed", "error": "no"}
    api.post("/reports", json=[report])
    assert claim_jobs(api, limit=10) == []
    acme, other = api.get("/queues/sync/partitions").json()
    assert (acme["partition"], acme["pending"], acme["halted_by"]) == ("acme", 1, lease["id"])
    assert (other["weight"], other["pause_reason"], other["running"]) == (3, "they asked", 0)
    api.post("/queues/sync/pass-over", json={"partition": "acme"})
    api.put("/queues/sync/partition", json={"partition": "b/c", "paused": False})
    assert len(claim_jobs(api, limit=10)) == 2
    assert len(api.get("/queues/sync/partitions?limit=1").json()) == 1
    for given in ({"weight": 2}, {"paused": False}):  # it was dropped, and the answer was 200
        said = {"partition": "b/c", "reason": "they asked"} | given
        refused = api.put("/queues/sync/partition", json=said)
        assert refused.status_code == 400
        assert refused.json()["path"] == "$.reason"
        assert refused.json()["detail"] == "only a pause keeps a reason: give `paused`: true, too"
    assert api.get("/queues/sync/partitions").json()[0]["weight"] != 2
