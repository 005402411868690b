"""The bench itself: what it counts, whom it measures, how it judges, and what it says of it."""

from __future__ import annotations

import ast
import dataclasses
import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from bench import chart, plan, report, targets
from bench.catalogue import SUBJECTS, Subject
from bench.results import Measured, Result, Run, load, number, rival_of, shown, times
from bench.scaling import scaling
from bench.workload import PAYLOAD_BYTES, FirstAttempt, Tally, payload
from tests.bench.runs import BY_NAME, run_of

PEERS = [subject for subject in SUBJECTS if not subject.ours]


# --- the workload


@pytest.mark.parametrize("n", [0, 9, 10, 12_345, 999_999, 1_050_000])
def test_a_payload_has_150_bytes_whatever_its_number(n: int) -> None:
    text = json.dumps(payload(n), separators=(",", ":"))
    assert len(text) == PAYLOAD_BYTES
    assert json.loads(text)["n"] == n


def test_a_tally_tells_lost_and_doubled_jobs(tmp_path: Path) -> None:
    tally = Tally.create(tmp_path / "tally", 10)
    for n in (0, 1, 1, 2):
        tally.run(n)
    assert tally.missing(5) == 2
    assert tally.doubled(5) == 1
    assert 0 < tally.ended[0] <= tally.ended[2]


def test_a_tally_of_jobs_that_fail_once_counts_two_starts(tmp_path: Path) -> None:
    tally = Tally.create(tmp_path / "tally", 8)
    with pytest.raises(FirstAttempt):
        tally.run_at_second_start(3)
    assert tally.missing(4, starts=2) == 4
    tally.run_at_second_start(3)
    assert tally.missing(4, starts=2) == 3
    assert tally.doubled(4, starts=2) == 0
    tally.run_at_second_start(3)
    assert tally.doubled(4, starts=2) == 1
    assert 0 < tally.began[3] <= tally.ended[3]


def test_jobs_beyond_a_tally_are_not_noted(tmp_path: Path) -> None:
    tally = Tally.create(tmp_path / "tally", 8)
    tally.run(8)
    tally.run_at_second_start(1_000)
    assert tally.missing(8) == 8


def test_processes_share_a_tally(tmp_path: Path) -> None:
    writer = Tally.create(tmp_path / "tally", 8)
    reader = Tally(tmp_path / "tally")
    writer.run(5)
    assert reader.missing(8) == 7
    assert Tally.create(tmp_path / "tally", 8).missing(8) == 8


# --- the peers


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_queue_has_an_adapter_that_says_its_settings(subject: Subject) -> None:
    file = Path(plan.__file__).with_name("peers") / f"{subject.program}.py"
    module = ast.parse(file.read_text())
    assert len(ast.get_docstring(module) or "") > 60
    functions = {
        node.name: isinstance(node, ast.AsyncFunctionDef)
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {"open_sender", "work"} <= functions.keys()
    (sender,) = (node for node in module.body if getattr(node, "name", "") == "Sender")
    assert isinstance(sender, ast.ClassDef)
    methods = {
        node.name: isinstance(node, ast.AsyncFunctionDef)
        for node in sender.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert methods["one"] == functions["open_sender"], "all plain, or all async def"
    assert ("many" in methods) == subject.bulk


@pytest.mark.parametrize("subject", PEERS, ids=lambda subject: subject.name)
def test_every_peer_is_pinned(subject: Subject) -> None:
    for requirement in subject.requirements:
        name, _, version = requirement.partition("==")
        assert name
        assert version[:1].isdigit(), requirement
        assert "/" not in requirement


def test_a_peer_is_compared_with_tenure_on_its_engine() -> None:
    assert rival_of(BY_NAME["huey"]).name == "tenure-sqlite"
    assert rival_of(BY_NAME["pgqueuer"]).name == "tenure-postgres"
    assert rival_of(BY_NAME["celery"]).name == "tenure-postgres"


def test_the_quick_run_has_the_two_strongest_peers_of_each_engine() -> None:
    chosen = [subject for subject in plan.subjects("quick", [], []) if not subject.ours]
    assert sorted(subject.engine for subject in chosen) == [
        *("postgres", "postgres", "redis", "redis", "sqlite", "sqlite")
    ]


def test_the_quick_run_leaves_out_what_takes_long_and_says_little() -> None:
    quick = plan.workloads("quick", [])
    assert {w.name for w in plan.WORKLOADS if w not in quick} == {
        *("enqueue-16", "drain-8", "fleet-10ms", "fleet-200ms", "fleet-20", "limit", "rate"),
        *("workflows", "schedules", "threads", "history", "http-1", "http-16", "cancel-remote"),
    }
    (idle,) = (workload for workload in quick if workload.name == "idle")
    assert [s.name for s in SUBJECTS if idle.takes(s, quick=True)] == [
        "tenure-postgres",
        "tenure-sqlite",
    ]
    assert all(idle.takes(subject, quick=False) for subject in SUBJECTS if not subject.aside)


def test_a_slow_queue_is_given_fewer_jobs_and_in_a_quick_run_fewer_still() -> None:
    huey, ours = BY_NAME["huey"], BY_NAME["tenure-sqlite"]
    assert plan.FULL.jobs_drained(ours) == 200_000
    assert plan.FULL.jobs_drained_beside(ours) == 50_000
    assert plan.FULL.jobs_drained(huey) == 10_000
    assert plan.QUICK.jobs_drained(ours) == 15_000
    assert plan.QUICK.jobs_drained(huey) == 3_000
    assert plan.QUICK.jobs_retried(huey) == 600
    assert dataclasses.replace(plan.FULL, drained=500).jobs_drained(huey) == 500


def test_the_strongest_peers_are_measured_as_often_as_tenure_and_the_others_less_often() -> None:
    names = ("tenure-sqlite", "honker", "litequeue", "ardiq")
    assert [plan.FULL.repeats_of(BY_NAME[name]) for name in names] == [7, 7, 3, 3]
    assert plan.QUICK.repeats_of(BY_NAME["litequeue"]) == 1


def test_naming_a_peer_keeps_tenure_beside_it() -> None:
    chosen = plan.subjects("quick", ["huey"], ["sqlite"])
    assert [subject.name for subject in chosen] == ["tenure-sqlite", "huey"]


@pytest.mark.parametrize(
    "ask", [lambda: plan.workloads("quick", ["drian-1"]), lambda: plan.subjects("full", ["x"], [])]
)
def test_unknown_names_are_refused_with_the_known_ones(ask: object) -> None:
    with pytest.raises(ValueError, match="there are"):
        ask()  # type: ignore[operator]


# --- what is made of the numbers


def test_a_result_is_its_median_and_its_quartiles() -> None:
    result = Result("drain-1", "huey", [{"rate": r} for r in (90.0, 100.0, 120.0, 130.0, 150.0)])
    assert result.median("rate") == 120
    assert result.quartiles("rate") == (100, 130)
    assert shown(result, "rate") == "120 (100 to 130)"
    assert result.median("p50_ms") is None
    assert shown(result, "p50_ms") == "-"
    assert Result("drain-1", "huey", [{"rate": 90.0}] * 2).quartiles("rate") is None


def test_a_ratio_above_one_means_that_tenure_leads() -> None:
    run = run_of(tenure_postgres=[3000.0], pgqueuer=[2000.0])
    drain = next(w for w in plan.WORKLOADS if w.name == "drain-1")
    assert run.ratio(drain, BY_NAME["pgqueuer"]) == 1.5
    pickup = next(w for w in plan.WORKLOADS if w.name == "pickup")
    run.results = [
        Result("pickup", "tenure-postgres", [{"p50_ms": 2.0}]),
        Result("pickup", "pgqueuer", [{"p50_ms": 3.0}]),
    ]
    assert run.ratio(pickup, BY_NAME["pgqueuer"]) == 1.5
    assert run.ratio(pickup, BY_NAME["awa"]) is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (14422.6, "14,423"), (100.0, "100"), (5.672, "5.67"), (0.226, "0.226")],
)
def test_numbers_are_shown_with_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_a_ratio_is_shown_with_two_digits() -> None:
    assert (times(1.5), times(0.226), times(21.4), times(None)) == ("1.5x", "0.23x", "21x", "")


def test_targets_are_judged_by_the_run() -> None:
    run = run_of(tenure_postgres=[3000.0], pgqueuer=[2000.0], oban=[3001.0], tenure_sqlite=[1.0])
    judged = {(v.target, v.engine): v.met for v in targets.verdicts(run)}
    assert judged["drain, 1 worker: the best peer", "postgres"] is False
    assert judged["drain, 2 workers: the best peer", "postgres"] is None
    assert judged["drain, 1 worker: the best peer that keeps jobs", "sqlite"] is None


def test_a_fleet_is_judged_by_its_rate_and_by_a_third_of_the_cpu_of_every_peer() -> None:
    run = run_of()
    run.results = [
        Result("fleet-20", name, [{"rate": rate, "server_us_per_job": cost}])
        for name, rate, cost in (
            ("tenure-postgres", 150.0, 340.0),
            ("pgqueuer", 149.0, 1021.0),
            ("oban", 100.0, 1020.0),
        )
    ]
    fleet = "fleet of 20 x 1, 100 ms"
    cpu = f"{fleet}: a third of every peer's server CPU, µs a job"
    assert met(run)[f"{fleet}: the best peer", "postgres"] is True
    assert met(run)[cpu, "postgres"] is True
    assert met(run)[f"{fleet}: at most 350 µs of server CPU a job", "postgres"] is True
    run.results[2].repeats[0]["server_us_per_job"] = 1019.0
    assert met(run)[cpu, "postgres"] is False


def test_on_sqlite_tenure_is_judged_by_peers_that_keep_a_job_whose_worker_dies() -> None:
    run = run_of(tenure_sqlite=[100.0], huey=[200.0], litequeue=[200.0], honker=[99.0])
    drain = ("drain, 1 worker: the best peer that keeps jobs", "sqlite")
    assert met(run)[drain] is True
    run.result("drain-1", "honker").repeats[0]["rate"] = 101.0
    assert met(run)[drain] is False


def test_workloads_of_two_runs_are_not_set_side_by_side() -> None:
    run = run_of()
    run.results = [
        Result(name, "tenure-postgres", [{"rate": rate}])
        for name, rate in (("drain-1", 100.0), ("drain-8", 90.0))
    ]
    target = ("drain: 8 workers, 0.9 of 1 worker", "postgres")
    now, then = Measured("now", 7, 200_000), Measured("then", 7, 200_000)
    run.measured = {"drain-1": now, "drain-8": now}
    assert met(run)[target] is True
    run.measured["drain-1"] = then
    assert met(run)[target] is None


def met(run: Run) -> dict[tuple[str, str], bool | None]:
    return {(verdict.target, verdict.engine): verdict.met for verdict in targets.verdicts(run)}


def test_a_peer_without_its_durable_setting_sets_no_mark() -> None:
    run = run_of()
    run.results = [
        Result(workload, name, [{"rate": rate}])
        for workload in ("enqueue-1", "bulk", "retry")
        for name, rate in (
            ("tenure-sqlite", 6000.0),
            ("honker-normal", 14000.0),
            ("honker", 4000.0),
        )
    ]
    marks = (
        ("enqueue, 1 caller: 0.7 of the best durable peer", "sqlite"),
        ("bulk: 0.7 of the best durable peer", "sqlite"),
        ("fail once, retry: the best peer that keeps jobs", "sqlite"),
    )
    assert [met(run)[mark] for mark in marks] == [True, True, True]
    for result in run.results:
        if result.subject == "honker":
            result.repeats[0]["rate"] = 8600.0
    assert [met(run)[mark] for mark in marks] == [False, False, False]


def test_what_is_judged_nowhere_is_shown_on_few_workloads_and_says_what_it_loses() -> None:
    (aside,) = (subject for subject in SUBJECTS if subject.aside)
    assert "lost" in aside.durable
    assert aside not in plan.subjects("quick", [], [])
    taken = [workload.name for workload in plan.WORKLOADS if workload.takes(aside, quick=False)]
    assert taken == ["enqueue-1", "enqueue-16", "bulk", "drain-1", "retry"]


def test_every_queue_on_sqlite_is_durable_but_the_one_that_stands_aside() -> None:
    on_sqlite = [subject for subject in SUBJECTS if subject.engine == "sqlite"]
    assert {s.durable for s in on_sqlite if not s.aside} == {"each commit on disk"}


def test_the_page_shows_rates_ratios_doubles_failures_and_what_peers_keep() -> None:
    run = run_of(tenure_postgres=[3000.0, 3300.0, 3400.0], pgqueuer=[2000.0, 2000.0])
    run.results.append(Result("drain-1", "saq", [{"rate": 50.0, "doubled": 2.0}]))
    run.results.append(Result("drain-1", "oban", failures=["needs Python 3.12"]))
    page = report.page(run, "chart.svg")
    assert "| **Tenure** | PostgreSQL | 3,300 (3,150 to 3,350) |" in page
    assert "| PgQueuer | PostgreSQL | 2,000 | 1.6x |" in page
    assert "50.0, 2 ran twice" in page
    assert "log rows, the job is deleted" in page
    assert "- drain-1, oban: needs Python 3.12" in page
    assert "drain, 1 worker: the best peer" in page
    assert "{" not in page


def scaled(rates: dict[int, float], cores: float = 1.9) -> Run:
    """Drains on PostgreSQL by so many worker processes at these rates, 30 + 10 µs CPU a job."""
    run = run_of()
    run.results = [
        Result(
            f"drain-{workers}",
            "tenure-postgres",
            [
                {
                    "rate": rate,
                    "machine_cores": cores,
                    "server_us_per_job": 30.0 + workers,
                    "cpu_us_per_job": 10.0,
                    "wal_bytes_per_job": 2_000.0,
                }
            ],
        )
        for workers, rate in rates.items()
    ]
    return run


def test_the_prediction_is_reckoned_from_the_row_with_the_highest_rate_and_says_what_it_is() -> (
    None
):
    said = " ".join(scaling(scaled({1: 20_000.0, 2: 25_000.0, 8: 24_000.0})).split())
    assert "highest with 2 processes, where 1.90 of the 2 cores are busy" in said
    assert "0.80 with PostgreSQL, 0.25 with the workers and 0.85 with anything else" in said
    assert "With 95 % in use the processors are the limit" in said
    assert "costs PostgreSQL 31.0 µs with 1 process and 38.0 µs with 8 processes" in said
    assert "PostgreSQL takes more of them than the workers do" in said
    assert "**A prediction, not a measurement**" in said
    assert "1,000,000 / 32.0 = 31,200 jobs/s" in said
    assert "16 x 31,200 = 499,200 jobs/s **if it scaled perfectly**" in said
    assert "499,200 x 10.0 µs = 5.0 cores" in said
    assert "50.0 MB/s at the rate measured here and 998 MB/s at the ceiling" in said
    assert said.count("{") == 0


def test_processors_that_idle_are_not_called_the_bottleneck() -> None:
    said = " ".join(scaling(scaled({1: 20_000.0, 2: 21_000.0}, cores=1.2)).split())
    assert "leaves 40 % of them idle" in said
    assert "the processors are the limit" not in said


def test_nothing_is_predicted_from_one_number_of_processes() -> None:
    assert scaling(scaled({1: 20_000.0})) == ""


def test_the_chart_is_well_formed_and_sets_tenure_apart() -> None:
    picture = chart.chart(run_of(tenure_postgres=[3000.0], pgqueuer=[2000.0]))
    root = xml.etree.ElementTree.fromstring(picture)  # noqa: S314 - our own
    bars = {
        bar.get("class"): float(bar.get("width", 0)) for bar in root.iter() if "rect" in bar.tag
    }
    assert bars["bar ours"] == pytest.approx(bars["bar"] * 1.5, rel=0.01)


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    run = run_of(tenure_postgres=[3000.0], pgqueuer=[2000.0])
    run.save(tmp_path / "run.json")
    assert load(tmp_path / "run.json") == run


def test_the_page_in_the_documentation_is_made_from_the_run_that_is_kept() -> None:
    root = Path(plan.__file__).parent.parent
    kept = root / "bench" / "results" / "full.json"
    if not kept.exists():
        pytest.skip("no full run is kept: `python bench/run.py full` makes one")
    page = (root / "docs" / "benchmarks.md").read_text()
    assert page == report.page(load(kept), "benchmarks.svg"), "`python bench/run.py report`"
