"""The checker is code too: it finds what is broken by hand, and nothing in an honest record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.errors import StoreUnavailable, TenureError
from tenure.rules.jobs import NewJob
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tests.chaos import checker
from tests.chaos.checker import Call, Records, Rule, Run
from tests.chaos.history import History, Recorded, record_handlers
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_all_settled, wait_until_failed


def claim(app: Recorded, limit: int = 10) -> list[Lease]:
    request = ClaimRequest(worker="by hand", limit=limit, lease_seconds=30)
    return list(app.claim(request).leases)


def record_a_life(folder: Path, url: str) -> None:
    """Jobs that succeed, fail, are handed back, cancelled, retried by hand, and asked for twice."""
    history = History(folder, "main")
    with Tenure(url) as tenure:
        record_handlers(tenure, history)
        app = Recorded(tenure, history)

        @tenure.job(backoff=0)
        def fail_every_third(number: int) -> int:
            if number % 3 == 0:
                raise ValueError(number)
            return number

        @tenure.job
        async def do_nothing(number: int) -> None:
            return None

        (released,) = [app.enqueue("do_nothing", {"number": -1})]
        (lease,) = claim(app)
        app.heartbeat([(lease.id, lease.lease_id), (lease.id, "0" * 32)], 30)
        report = Report(lease.id, lease.lease_id, Outcome.RELEASED)
        app.report([report])
        app.report([report])
        app.report([replace_outcome(report, Outcome.COMPLETED)])
        cancelled = app.enqueue("do_nothing", {"number": -2})
        app.cancel(cancelled.id)
        with pytest.raises(TenureError):
            app.cancel(cancelled.id)
        with pytest.raises(TenureError):
            app.enqueue("do_nothing", {"number": float("nan")})
        once = [app.enqueue("do_nothing", {"number": 1}, idempotency_key="one") for _ in range(2)]
        jobs = [app.enqueue("fail_every_third", {"number": n}, max_retries=n) for n in range(4)]
        jobs += app.enqueue_many([NewJob("do_nothing", {"number": n}, {}) for n in range(2, 6)])
        with running_worker(tenure, app):
            wait_until_all_settled(tenure, [released, *once, *jobs])
            wait_until_failed(tenure, app.retry(jobs[0].id))


def replace_outcome(report: Report, outcome: Outcome) -> Report:
    return Report(report.job_id, report.lease_id, outcome)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("life")
    url = f"sqlite:///{folder}/jobs.db"
    record_a_life(folder / "record", url)
    return folder / "record", url


@pytest.fixture
def records(life: tuple[Path, str]) -> Records:
    """An honest record, to be broken."""
    return checker.read(*life)


def test_an_honest_record_is_clean(database_url: str, tmp_path: Path) -> None:
    record_a_life(tmp_path / "record", database_url)
    assert checker.check(tmp_path / "record", database_url) == []
    records = checker.read(tmp_path / "record", database_url)
    assert len(records.accepted) == len(records.jobs) == 11
    assert len(records.runs) == 13  # 8 jobs succeed at once, two fail: 1 + 1 and 3 attempts
    assert all(run.end is not None for run in records.runs)
    assert {call.op for call in records.calls} == {
        *("enqueue", "claim", "report", "heartbeat", "cancel", "retry")
    }


# --- one way to break each rule, at least -------------------------------------------------------


def first(records: Records, op: str, *kinds: str) -> Call:
    return records.of(op, *kinds)[0]


def some_job(records: Records, status: str = "completed") -> str:
    return next(id for id, job in records.jobs.items() if job["status"] == status)


def lose_a_job(records: Records) -> None:
    id = some_job(records)
    del records.jobs[id], records.ledger[id]


def leave_a_job_behind(records: Records) -> None:
    records.jobs[some_job(records)]["status"] = "pending"


def change_a_payload(records: Records) -> None:
    records.jobs[some_job(records)]["payload"] = '{"number": 77}'


def lower_a_limit(records: Records) -> None:
    first(records, "enqueue", "ok").asked["options"]["max_retries"] = 11


def invent_a_job(records: Records) -> None:
    records.jobs["invented"] = dict(records.jobs[some_job(records)])


def store_what_was_refused(records: Records) -> None:
    id = some_job(records)
    for call in records.of("enqueue", "ok"):
        if call.answer["job"] == id:
            call.kind, call.answer = "refused", {}
    vars(records).pop("accepted", None)  # it was worked out before


def forget_a_key(records: Records) -> None:
    (job,) = (job for job in records.jobs.values() if job["idempotency_key"])
    job["idempotency_key"] = None


def make_two_jobs_of_a_key(records: Records) -> None:
    calls = [c for c in records.of("enqueue", "ok") if "idempotency_key" in c.asked["options"]]
    calls[0].answer["job"] = some_job(records, "cancelled")


def run_once_more(records: Records) -> None:
    records.runs.append(replace(records.runs[0], token=7))


def claim_beyond_the_limit(records: Records) -> None:
    id = some_job(records, "failed")
    tokens = range(20, 25)
    records.ledger[id] += [claimed(token) for token in tokens]


def claimed(token: int) -> Rule:
    return Rule("pending", "processing", "claimed", token, token, f"lease {token}", "w")


def raise_the_limit_in_the_row_too(records: Records) -> None:
    claim_beyond_the_limit(records)
    records.jobs[some_job(records, "failed")]["max_retries"] = 119


def run_a_lease_twice(records: Records) -> None:
    records.runs.append(records.runs[0])


def run_without_a_claim(records: Records) -> None:
    id = some_job(records, "cancelled")
    records.runs.append(Run(id, 1, 1, 0.0, 1.0))


def run_as_another_attempt(records: Records) -> None:
    records.runs[0] = replace(records.runs[0], attempt=records.runs[0].attempt + 1)


def overlap_without_an_end(records: Records) -> None:
    id = next(id for id, transitions in records.ledger.items() if transitions[-1].token > 2)
    older = min((run for run in records.runs if run.job == id), key=lambda run: run.token)
    records.runs[records.runs.index(older)] = replace(older, end=None)
    transitions = records.ledger[id]
    transitions[:] = [m for m in transitions if m.token != older.token or m.event == "claimed"]


def hand_a_lease_to_two(records: Records) -> None:
    call = next(c for c in records.of("claim", "ok") if c.answer["leases"])
    records.calls.append(replace(call, who="another"))


def hand_out_what_is_not_on_record(records: Records) -> None:
    call = next(c for c in records.of("claim", "ok") if c.answer["leases"])
    call.answer["leases"][0]["token"] += 1


def hand_out_too_many(records: Records) -> None:
    call = next(c for c in records.of("claim", "ok") if c.answer["leases"])
    call.asked["limit"] = 0


def claim_what_is_held(records: Records) -> None:
    transitions = records.ledger[some_job(records)]
    at = next(n for n, transition in enumerate(transitions) if transition.event == "claimed")
    transitions.insert(at + 1, claimed(9))


def end_another_lease(records: Records) -> None:
    transitions = records.ledger[some_job(records)]
    transitions[-1] = replace(transitions[-1], lease="another")


def settle_a_lease_twice(records: Records) -> None:
    transitions = records.ledger[some_job(records)]
    transitions.append(transitions[-1])


def acknowledge_twice(records: Records) -> None:
    call = first(records, "report", "ok")
    records.calls.append(replace(call))


def acknowledge_what_is_not_on_record(records: Records) -> None:
    first(records, "report", "ok").asked["outcome"] = "completed"


def refuse_what_is_on_record(records: Records) -> None:
    call = first(records, "report", "ok")
    call.kind, call.answer = "refused", {"answer": "lost", "recorded": ""}


def name_a_wrong_outcome(records: Records) -> None:
    (call,) = records.of("report", "refused")
    call.answer["recorded"] = "failed"


def settle_what_nobody_reported(records: Records) -> None:
    id = some_job(records, "failed")
    records.calls[:] = [c for c in records.calls if (c.op, c.asked.get("job")) != ("report", id)]


def call_a_held_lease_lost(records: Records) -> None:
    lease = first(records, "heartbeat", "ok").asked["leases"][0]
    first(records, "heartbeat", "ok").answer["held"] = []
    records.ledger[lease[0]] = [m for m in records.ledger[lease[0]] if m.event == "claimed"]


def call_an_unknown_lease_held(records: Records) -> None:
    first(records, "heartbeat", "ok").answer["held"] = ["0" * 32]


def forget_a_cancellation(records: Records) -> None:
    records.ledger[some_job(records, "cancelled")].pop()


def retry_unasked(records: Records) -> None:
    (call,) = records.of("retry")
    records.calls.remove(call)


def change_a_job_twice_in_bulk(records: Records) -> None:
    transitions = records.ledger[some_job(records, "cancelled")]
    transitions[-2:] = [
        replace(transition, actor="mia (bulk 17)") for transition in transitions[-2:]
    ]


BROKEN: list[tuple[str, Callable[[Records], None]]] = [
    ("lost", lose_a_job),
    ("lost", leave_a_job_behind),
    ("changed", change_a_payload),
    ("changed", lower_a_limit),
    ("unexpected", invent_a_job),
    ("unexpected", store_what_was_refused),
    ("key", forget_a_key),
    ("key", make_two_jobs_of_a_key),
    ("beyond", claim_beyond_the_limit),
    ("beyond", raise_the_limit_in_the_row_too),
    ("beyond", run_a_lease_twice),
    ("unclaimed", run_once_more),
    ("unclaimed", run_without_a_claim),
    ("unclaimed", run_as_another_attempt),
    ("overlap", overlap_without_an_end),
    ("overlap", claim_what_is_held),
    ("overlap", end_another_lease),
    ("claim", hand_a_lease_to_two),
    ("claim", hand_out_what_is_not_on_record),
    ("claim", hand_out_too_many),
    ("twice", settle_a_lease_twice),
    ("twice", acknowledge_twice),
    ("untrue", acknowledge_what_is_not_on_record),
    ("untrue", refuse_what_is_on_record),
    ("untrue", name_a_wrong_outcome),
    ("unexpected", settle_what_nobody_reported),
    ("untrue", call_a_held_lease_lost),
    ("untrue", call_an_unknown_lease_held),
    ("untrue", forget_a_cancellation),
    ("untrue", retry_unasked),
    ("bulk", change_a_job_twice_in_bulk),
]


@pytest.mark.parametrize(("rule", "breaks"), BROKEN, ids=[how.__name__ for _, how in BROKEN])
def test_what_is_broken_is_found(
    records: Records, rule: str, breaks: Callable[[Records], None]
) -> None:
    assert checker.examine(records) == []
    breaks(records)
    assert rule in {finding.rule for finding in checker.examine(records)}


def test_every_rule_finds_something(life: tuple[Path, str]) -> None:
    """None of the rules is there in vain."""
    for rule in checker.RULES:
        noticed = False
        for _, breaks in BROKEN:
            records = checker.read(*life)
            breaks(records)
            noticed |= bool(list(rule(records)))
        assert noticed, rule.__name__


def test_the_figures_say_what_was_found(records: Records) -> None:
    for breaks in (leave_a_job_behind, run_a_lease_twice, acknowledge_twice):
        breaks(records)
    assert checker.figures(records, checker.examine(records)) == {
        "jobs accepted": 11,
        "jobs lost": 1,
        "jobs run beyond their limit": 1,
        "attempts settled twice": 1,
    }


# --- what may be, and what nobody wrote down ----------------------------------------------------


class Cut:
    """A source whose answers are lost: what was asked for happens, or it does not."""

    def __init__(self, app: Tenure, *, happens: bool) -> None:
        self._app = app
        self._happens = happens

    def enqueue(self, type: str, payload: dict[str, int]) -> None:
        if self._happens:
            self._app.enqueue(type, payload)
        raise StoreUnavailable("no answer")


@pytest.mark.parametrize("happens", [False, True])
def test_an_unknown_outcome_may_be_either(sqlite_url: str, tmp_path: Path, happens: bool) -> None:
    with Tenure(sqlite_url) as app:
        cut = Recorded(Cut(app, happens=happens), History(tmp_path / "record", "cut"))
        with pytest.raises(StoreUnavailable):
            cut.enqueue("any", {"number": 1})
        assert checker.check(tmp_path / "record", sqlite_url, drained=False) == []
        app.enqueue("any", {"number": 1})  # once more than anybody may have asked for
        found = checker.check(tmp_path / "record", sqlite_url, drained=False)
        assert len(found) == (1 if happens else 0)


def test_what_was_pruned_is_not_lost(sqlite_url: str, tmp_path: Path) -> None:
    with Tenure(sqlite_url) as tenure:
        app = Recorded(tenure, History(tmp_path / "record", "main"))
        for job in [app.enqueue("any") for _ in range(3)]:
            app.cancel(job.id)
        wait_until(lambda: app.core.prune({"cancelled": 0}), "the clock to move on")
        assert checker.check(tmp_path / "record", sqlite_url) == []
        records = checker.read(tmp_path / "record", sqlite_url)
        assert records.jobs == {}
        prune = next(call for call in records.of("prune") if call.answer["count"])
        prune.answer["count"] -= 1
        assert [finding.rule for finding in checker.examine(records)] == ["lost"] * 3


def test_a_killed_process_leaves_an_unknown_outcome(sqlite_url: str, tmp_path: Path) -> None:
    with Tenure(sqlite_url) as tenure:
        history = History(tmp_path / "record", "killed")
        history.invoke("enqueue", type="any", payload={}, options={}, batch="1")
        (path,) = (tmp_path / "record").iterdir()
        with path.open("a") as file:
            file.write('{"kind": "ok", "n": 1, "jo')  # the rest was never written
        tenure.enqueue("any")
        assert checker.check(tmp_path / "record", sqlite_url, drained=False) == []


def test_what_tenure_verify_finds_is_a_finding(sqlite_url: str, tmp_path: Path) -> None:
    record_a_life(tmp_path / "record", sqlite_url)
    raw = RawSql(sqlite_url)
    raw.drop_triggers()
    raw.drop_checks()
    raw.run("UPDATE {job} SET finished_at = NULL")
    raw.close()
    assert any(
        line.startswith("verify: ") for line in checker.check(tmp_path / "record", sqlite_url)
    )
