"""Small measurements by the bench: a lost job is not a fast one, and nothing measured is lost."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.run
from bench import (
    cancelling,
    drains,
    features,
    fleets,
    gate,
    plan,
    processes,
    raw,
    report,
    sending,
    stage,
    waiting,
)
from bench.catalogue import Subject
from bench.environments import Unavailable
from bench.http_load import request, take_answer
from bench.processes import Failed, Program, Setting, cpu_seconds_with_children
from bench.results import Measured, Result, load
from bench.stage import Size, Stage
from bench.workload import payload
from tests.bench.runs import BY_NAME, run_of
from tests.support import programs

SMALL = Size(
    seconds=0.05,
    drained=200,
    drained_beside=200,
    retried=100,
    share=1.0,
    samples=3,
    pause=0.01,
    idle_seconds=0.1,
    behind=300,
    repeats=2,
    fleet_seconds=0.2,
)


# --- the HTTP client


def test_a_request_says_its_length() -> None:
    for n in (0, 1_000_000):
        head, _, body = request("localhost", n).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert json.loads(body) == {"type": "send", "payload": payload(n)}


def test_answers_are_taken_whole_and_one_at_a_time() -> None:
    answer = b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\nX: y\r\n\r\nbody"
    received = bytearray()
    for place in range(len(answer) - 1):
        received += answer[place : place + 1]
        assert take_answer(received) is None
    received += answer[-1:] + b"HTTP/1.1 503 No\r\ncontent-length:0\r\n\r\n"
    assert take_answer(received) == b"201"
    assert take_answer(received) == b"503"
    assert not received


def test_an_answer_without_a_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        take_answer(bytearray(b"HTTP/1.1 200 OK\r\n\r\n"))


# --- small measurements on SQLite

linux = pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc: needs Linux")


@pytest.fixture
def small_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage whose programs are forked off; that they start anew is in tests without it."""
    forking = {**vars(subprocess), "Popen": programs.Program, "run": programs.run}
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(**forking))
    monkeypatch.setattr(processes, "END_WITH_PARENT", ())
    with Stage(SMALL) as small:
        yield small


@linux
def test_a_drain_a_retry_and_an_enqueue_are_measured(small_stage: Stage) -> None:
    ours = BY_NAME["tenure-sqlite"]
    drained = drains.drain(small_stage, ours)
    assert drained["jobs"] == 200
    assert drained["rate"] > 0
    assert drained["memory_mb"] > 1
    assert drains.retry(small_stage, ours)["jobs"] == 100
    enqueued = sending.enqueue(small_stage, ours, callers=2)
    assert enqueued["jobs"] > 2
    assert sending.enqueue_in_bulk(small_stage, ours)["jobs"] >= 1_000


@linux
def test_a_drain_begins_when_the_gate_opens_for_workers_at_rest(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = BY_NAME["tenure-sqlite"]
    rested: list[int] = []
    wait = gate.wait_until_at_rest

    def waited(programs: list[Program]) -> None:
        wait(programs)
        rested.append(len(programs))

    monkeypatch.setattr(gate, "wait_until_at_rest", waited)
    assert drains.drain(small_stage, ours, workers=2)["jobs"] == 200
    assert rested == [2]
    monkeypatch.setattr(gate, "closed", lambda *_: nullcontext(lambda: None))
    with pytest.raises(Failed, match="before the gate was opened"):
        drains.drain(small_stage, ours)


@linux
def test_what_holds_the_workers_of_peers_back_keeps_writers_of_the_file_waiting(
    small_stage: Stage,
) -> None:
    peer = BY_NAME["huey"]
    setting = Setting(peer, small_stage.engine(peer).fresh(peer), small_stage.folder / "tally")
    with closing(sqlite3.connect(setting.place)) as connection:
        connection.execute("CREATE TABLE task (n)")
    writer = sqlite3.connect(setting.place, timeout=0)
    with gate.closed(small_stage, setting) as opened:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("INSERT INTO task VALUES (1)")
        opened()
        writer.execute("INSERT INTO task VALUES (1)")
    writer.close()


@linux
def test_a_fleet_is_measured_by_the_ideal(small_stage: Stage) -> None:
    ours = BY_NAME["tenure-sqlite"]
    figures = fleets.fleet(small_stage, ours, workers=2, slots=3, job_seconds=0.05)
    assert figures["jobs"] == 24, "0.2 seconds of 2 workers with 3 slots"
    assert 0 < figures["of_ideal"] <= 1
    assert figures["rate"] == pytest.approx(figures["of_ideal"] * 2 * 3 / 0.05)


@linux
@pytest.mark.parametrize("command", ["slowly", "committing"])
def test_a_pickup_is_measured_beside_idle_workers(small_stage: Stage, command: str) -> None:
    figures = waiting.pickup(small_stage, BY_NAME["tenure-sqlite"], workers=2, command=command)
    assert figures["jobs"] == SMALL.samples
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["call_p50_ms"] > 0


@linux
def test_limits_and_workflows_are_drained_and_schedules_fire(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = BY_NAME["tenure-sqlite"]
    monkeypatch.setattr(features, "FAN", 8)
    assert features.drain_workflows(small_stage, ours)["jobs"] == 100
    assert features.drain_limited(small_stage, ours)["jobs"] == 100
    monkeypatch.setattr(features, "RATE", 200)
    rated = features.drain_rated(small_stage, ours)
    assert rated["jobs"] == 100
    assert rated["of_ideal"] == pytest.approx(rated["rate"] / 200)
    fired = features.fire_schedules(small_stage, ours)
    assert fired["jobs"] == 30
    assert 0 < fired["p50_ms"] <= fired["p99_ms"]


@linux
def test_a_result_is_waited_for(small_stage: Stage) -> None:
    figures = waiting.result(small_stage, BY_NAME["tenure-sqlite"])
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


@linux
@pytest.mark.parametrize("remotely", [False, True])
def test_a_cancel_is_measured(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch, remotely: bool
) -> None:
    monkeypatch.setattr(cancelling, "WORKERS", 2)
    figures = cancelling.cancel(small_stage, BY_NAME["tenure-sqlite"], remotely=remotely)
    assert figures["jobs"] == 2
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


@linux
def test_the_cpu_of_a_server_counts_what_its_ended_children_used() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    before = cpu_seconds_with_children(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert cpu_seconds_with_children(os.getpid()) - before >= 0.15  # clock ticks


@linux
def test_workloads_measured_again_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    run = run_of(tenure_sqlite=[1.0], huey=[2.0])
    first = Measured("2026-01-01", 3, 50_000)
    run.measured = {"drain-1": first, "import": first}
    run.results.append(Result("import", "tenure-sqlite", [{"import_ms": 70.0}]))
    kept = tmp_path / "full.json"
    workloads = plan.workloads("full", ["drain-1"])
    bench.run.measure(run, SMALL, workloads, [BY_NAME["tenure-sqlite"]], kept)
    assert load(kept) == run
    assert len(run.result("drain-1", "tenure-sqlite").repeats) == SMALL.repeats
    assert not run.result("drain-1", "huey").repeats, "its ratio would be of another run"
    assert run.median("import", "tenure-sqlite", "import_ms") == 70
    assert run.measured["import"] == first
    assert run.measured["drain-1"].repeats == SMALL.repeats
    assert not run.are_of_one_run("drain-1", "import")
    page = report.page(run, "chart.svg")
    assert "- 2026-01-01, repeats: 3, jobs in a drain: 50,000: import." in page
    assert f"UTC, repeats: {SMALL.repeats}, jobs in a drain: 200: drain-1." in page


@linux
def test_one_command_measures_again_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "IMPORTS", 2)
    monkeypatch.setattr(bench.run, "RESULTS", tmp_path)
    monkeypatch.setattr(bench.run, "DOCS", tmp_path)
    run_of(tenure_sqlite=[1.0]).save(tmp_path / "full.json")
    asked = argparse.Namespace(
        only=["import"], peers=["tenure-sqlite"], engine=[], jobs=None, repeats=1
    )
    assert bench.run.measure_again(asked) == 0
    run = load(tmp_path / "full.json")
    assert run.median("import", "tenure-sqlite", "import_ms")
    assert run.median("drain-1", "tenure-sqlite") == 1
    assert (tmp_path / "benchmarks.md").read_text() == report.page(run, "benchmarks.svg")
    asked.engine = ["sqlite"]
    with pytest.raises(plan.Refused, match="--only, --peers and --repeats"):
        bench.run.measure_again(asked)


@linux
def test_a_queue_that_fails_costs_nobody_else_the_measurement(tmp_path: Path) -> None:
    def measure(_: Stage, subject: Subject) -> dict[str, float]:
        if not subject.ours:
            raise ZeroDivisionError("division by zero")
        return {"rate": 5.0}

    run = run_of()
    subjects = [BY_NAME["huey"], BY_NAME["tenure-sqlite"]]
    workload = plan.Workload("drain-1", "Drain", measure)
    bench.run.measure(run, SMALL, [workload], subjects, tmp_path / "run.json")
    assert run.result("drain-1", "huey").failures == ["ZeroDivisionError: division by zero"]
    assert run.result("drain-1", "tenure-sqlite").values("rate") == [5.0, 5.0]


@linux
def test_a_prepared_database_is_made_once_and_copied_after(small_stage: Stage) -> None:
    ours = BY_NAME["tenure-sqlite"]
    assert drains.drain_with_history(small_stage, ours)["jobs"] == 200
    made = {"again": 0}

    def make(_: object) -> None:
        made["again"] += 1

    setting = small_stage.kept(ours, "history", make)
    assert made == {"again": 0}
    assert small_stage.left(setting) == 0
    database = raw.open_database(setting.place)
    try:
        assert raw.settle_all(database)[0] == 0
    finally:
        database.close()


@linux
def test_the_raw_loop_settles_everything_within_the_rules(small_stage: Stage) -> None:
    ours = BY_NAME["tenure-sqlite"]
    setting = small_stage.fresh(ours)
    stage.fill(setting, 120)
    database = raw.open_database(setting.place)
    try:
        assert raw.settle_all(database, 50)[0] == 120
    finally:
        database.close()
    assert small_stage.left(setting) == 0
    stage.check_integrity(setting)


@linux
def test_jobs_that_run_too_slowly_fail_the_measurement(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "MAX_SECONDS", 0.01)
    with pytest.raises(Failed, match="3 of 3 jobs had not run after"):
        stage.wait_for(small_stage.tally(3), 3, [])


@linux
def test_jobs_that_never_run_fail_the_measurement(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "STALLED_SECONDS", 0.01)
    tally = small_stage.tally(3)
    tally.run(0)
    tally.run(2)
    with pytest.raises(Failed, match="1 of 3 jobs never ran"):
        stage.wait_for(tally, 3, [])


@linux
def test_an_engine_that_is_missing_is_told_with_the_reason(
    small_stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="redis-server"):
        small_stage.fresh(BY_NAME["rq"])
