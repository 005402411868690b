"""Processes stopped at one exact place while others go on, and then thawed or killed there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import NewJob, Status, Tenure, failpoints
from tenure.client import Client
from tenure.errors import StoreUnavailable, TenureError
from tenure.rules.reports import Answer, ClaimRequest, Lease, Outcome, Report
from tenure.store.sqlite import connection as sqlite_connection
from tests.chaos import checker
from tests.chaos.history import History, Recorded
from tests.support import fault_counts
from tests.support.effort import on_either_engine
from tests.support.http import ServerProcess
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS, wait_until
from tests.support.worker_scripts import is_stopped
from tests.support.workers import transitions

pytestmark = pytest.mark.chaos

SWEEP = "app.core.sweep()"


class Armed:
    """A process that runs `code` with an application `app`, stopped where it is armed."""

    def __init__(self, url: str, code: str, failpoint: str) -> None:
        imports = ("tenure", "tenure.rules.jobs", "tenure.rules.reports")
        head = "".join(f"from {module} import *\n" for module in imports)
        head += f"app = Tenure({url!r})\n"
        self.process = Program(
            [sys.executable, "-c", head + code + "\napp.close()"],
            env={**os.environ, failpoints.ENVIRONMENT: f"{failpoint}=freeze"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Armed:
        wait_until(lambda: is_stopped(self.process.pid), "the process to stop at its place")
        fault_counts.count("processes frozen")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def thaw(self) -> str:
        """Let it go on; what it printed by its end."""
        os.kill(self.process.pid, signal.SIGCONT)
        output, _ = self.process.communicate(timeout=WAIT_SECONDS)
        assert self.process.returncode == 0
        return output

    def kill(self) -> None:
        """Kill it where it stands."""
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        fault_counts.count("processes killed")

    def end(self, how: str) -> None:
        """`thaw` or `kill`."""
        self.thaw() if how == "thaw" else self.kill()


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def app(database_url: str, record: Path) -> Iterator[Recorded]:
    """An application on record, on each engine."""
    with Tenure(database_url) as tenure:
        yield Recorded(tenure, History(record, "test"))


def claim(app: Recorded, lease_seconds: float = 60, limit: int = 1) -> list[Lease]:
    request = ClaimRequest(worker="test", limit=limit, lease_seconds=lease_seconds)
    return list(app.claim(request).leases)


def expired(app: Recorded) -> Lease:
    """A lease that has run out, and that nobody has ended."""
    app.enqueue("work", max_retries=2, backoff=0)
    (lease,) = claim(app, lease_seconds=0.001)
    wait_until(lambda: app.core.clock() > lease.lease_expires_at, "the lease to run out")
    return lease


def runs(app: Recorded, lease: Lease) -> bool:
    """Whether the lease, which is held, ends later than now."""
    until_when = app.get(lease.id).lease_expires_at
    return bool(until_when and until_when > app.core.clock())


def completion(lease: Lease) -> Report:
    return Report(lease.id, lease.lease_id, Outcome.COMPLETED)


@pytest.mark.scenario(22)
@pytest.mark.parametrize("how", ["thaw", "kill"])
def test_a_completion_between_the_sweep_s_read_and_write(
    app: Recorded, record: Path, how: str
) -> None:
    """It waits for the sweep: then it is lost, or it counts if the sweeper died. Never both."""
    lease = expired(app)
    with Armed(app.database, SWEEP, "sweep.between_read_and_write") as sweeper:
        future = app.exchange([completion(lease)], None)
        sweeper.end(how)
        (verdict,) = future.result(WAIT_SECONDS).verdicts
    if how == "kill":
        assert verdict.answer is Answer.RECORDED
        assert transitions(app.source, lease.id) == ["enqueued", "claimed", "completed"]
    else:
        assert (verdict.answer, verdict.recorded) == (Answer.LOST, "lease_expired")
        assert transitions(app.source, lease.id) == [
            "enqueued",
            "claimed",
            "lease_expired",
            "retried",
        ]
    assert checker.check(record, app.database, drained=False) == []


@pytest.mark.scenario(23)
@pytest.mark.parametrize("how", ["thaw", "kill"])
def test_a_heartbeat_between_the_sweep_s_read_and_write(
    app: Recorded, record: Path, how: str
) -> None:
    """Renewed before the sweep or ended by it; a lease that was renewed is not ended."""
    lease = expired(app)
    name = (lease.id, lease.lease_id)
    with Armed(app.database, SWEEP, "sweep.between_read_and_write") as sweeper:
        if app.database.startswith("postgres"):  # it waits for nobody
            app.heartbeat([name], 60)
        sweeper.end(how)
        if how == "kill":  # its session may live a moment longer, and keep the row
            wait_until(
                lambda: not app.heartbeat([name], 60) and runs(app, lease),
                "the lease to be renewed",
            )
        else:
            assert app.heartbeat([name], 60) == {name[1]: "lease_expired"}
    app.core.sweep()
    ended = ["lease_expired", "retried"] if how == "thaw" else []
    assert transitions(app.source, lease.id) == ["enqueued", "claimed", *ended]
    if how == "kill":
        assert app.report([completion(lease)]).verdicts[0].answer is Answer.RECORDED
    assert checker.check(record, app.database, drained=False) == []


@pytest.mark.scenario(24)
@pytest.mark.parametrize("how", ["thaw", "kill"])
@pytest.mark.each_engine
def test_a_whole_new_attempt_between_the_sweep_s_read_and_write(
    app: Recorded, record: Path, how: str
) -> None:
    """Another sweep, a retry and a new claim leave the new attempt to its holder."""
    lease = expired(app)
    with Armed(app.database, SWEEP, "sweep.between_read_and_write") as sweeper:
        another = app.source.core.store.sweep()
        sweeper.end(how)
        ended = another.result(WAIT_SECONDS)
    assert len(ended) <= (0 if how == "thaw" else 1)
    is_over = lambda: app.get(lease.id).status is Status.PENDING  # noqa: E731
    wait_until(
        lambda: is_over() or app.core.sweep(), "the dead sweeper's session to let go of the job"
    )
    (again,) = claim(app)
    assert (again.id, again.token) == (lease.id, lease.token + 1)
    app.core.sweep()
    assert app.report([completion(lease)]).verdicts[0].answer is Answer.LOST
    assert app.report([completion(again)]).verdicts[0].answer is Answer.RECORDED
    assert transitions(app.source, lease.id) == [
        *("enqueued", "claimed", "lease_expired", "retried"),
        *("claimed", "completed"),
    ]
    assert checker.check(record, app.database) == []


@pytest.mark.scenario(25)
def test_four_sweepers_end_each_of_a_thousand_leases_once(app: Recorded, record: Path) -> None:
    app.enqueue_many(
        [NewJob("work", {"n": n}, {"max_retries": 1 + n % 2, "backoff": 60}) for n in range(1000)]
    )
    leases = claim(app, lease_seconds=0.001, limit=1000)
    assert len(leases) == 1000
    code = "while app.find(status='processing', limit=1): app.core.sweep()"
    head = f"from tenure import *\napp = Tenure({app.database!r})\n"
    sweepers = [Program([sys.executable, "-c", f"{head}{code}"]) for _ in range(4)]
    assert [sweeper.wait(WAIT_SECONDS) for sweeper in sweepers] == [0] * 4
    events = [
        m.event
        for transitions in checker.read(record, app.database).ledger.values()
        for m in transitions
    ]
    assert events.count("lease_expired") == 1000
    assert events.count("retried") == 500
    assert checker.check(record, app.database, drained=False) == []


@pytest.mark.scenario(8)
def test_frozen_after_its_report_while_an_operator_retries_the_job(
    app: Recorded, record: Path
) -> None:
    """The same report, sent again when the job has long moved on, is still on record."""
    job = app.enqueue("work", max_retries=1)
    (lease,) = claim(app)
    report = f"Report({lease.id!r}, {lease.lease_id!r}, Outcome.FAILED, error='first')"
    app.record.invoke("report", job=lease.id, lease=lease.lease_id, outcome="failed")
    code = f"for _ in '12': print(app.core.report([{report}]).verdicts[0].answer)"
    with Armed(app.database, code, "report.after_commit") as reporter:
        app.retry(job.id)
        (again,) = claim(app)
        assert reporter.thaw().split() == ["recorded", "already_recorded"]
    assert app.get(job.id).status is Status.PROCESSING
    assert app.report([completion(again)]).verdicts[0].answer is Answer.RECORDED
    assert transitions(app.source, job.id) == [
        *("enqueued", "claimed", "failed", "retried"),
        *("claimed", "completed"),
    ]
    assert checker.check(record, app.database) == []


@pytest.mark.each_engine
def test_a_process_frozen_inside_a_transaction(
    app: Recorded, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL others go on; on SQLite they are refused in time, and go on after it."""
    monkeypatch.setattr(sqlite_connection, "BUSY_TIMEOUT_MS", 200)
    app.record.invoke("enqueue", type="frozen", payload={}, options={})
    code = "app.enqueue_many([NewJob('frozen', {}, {})])\napp.queues.pause('elsewhere')"
    with Armed(app.database, code, "queue.before_commit") as frozen:
        if app.database.startswith("sqlite"):
            with pytest.raises(StoreUnavailable):
                app.enqueue("work")
        else:
            app.enqueue("work")
        assert app.find(limit=1)  # readers wait for nobody
        frozen.thaw()
        app.enqueue("work")
    assert checker.check(record, app.database, drained=False) == []


@pytest.mark.scenario(5)
@on_either_engine("action", *([action] for action in failpoints.ACTIONS))
def test_a_server_that_does_not_come_to_answer_a_report(
    database_url: str, tmp_path: Path, action: str
) -> None:
    """What it recorded stays recorded: the job is done, once, and the same report is known."""
    record = tmp_path / "record"
    history = History(record, "client")
    armed = {failpoints.ENVIRONMENT: f"http.before_answer={action}@3"}
    with ServerProcess(database_url, **armed) as server, Client(server.url, timeout=2) as client:
        app = Recorded(client, history)
        job = app.enqueue("work")
        (lease,) = claim(app)
        with pytest.raises(TenureError):
            app.report([completion(lease)])
        if action == "freeze":
            wait_until(lambda: is_stopped(server.process.pid), "the server to stop")
            os.kill(server.process.pid, signal.SIGCONT)
        if action != "kill":
            again = app.report([completion(lease)])
            assert again.verdicts[0].answer is Answer.ALREADY_RECORDED
    with ServerProcess(database_url) as server, Client(server.url) as client:
        app = Recorded(client, history)
        assert app.report([completion(lease)]).verdicts[0].answer is Answer.ALREADY_RECORDED
        assert claim(app) == []
        assert [transition.event for transition in app.history(job.id)] == [
            "enqueued",
            "claimed",
            "completed",
        ]
    assert checker.check(record, database_url) == []
