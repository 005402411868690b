"""The commands about jobs and queues, on both engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tenure import Job, PerPartition, StoreUnavailable, Tenure
from tenure.rules.queues import Limits
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tenure.store import transitions
from tenure.wire import responses
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.clock import Clock

NOBODY = "0190163d-8694-739b-aea5-966c26f8ad90"


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """The application; commands find its database in the environment."""
    for name in ("TENURE_CONFIG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    with Tenure(database_url, actor="test") as made:
        yield made


def settle(app: Tenure, outcome: Outcome, **said: Any) -> None:
    """Have a worker claim one job and say how it ended."""
    request = ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")
    (lease,) = app.core.claim(request).leases
    app.core.report([Report(lease.id, lease.lease_id, outcome, **said)])


def as_json(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


# --- enqueue ----------------------------------------------------------------------------------


def test_enqueue_prints_the_id_of_a_job_on_disk(app: Tenure) -> None:
    job = app.get(output_of("enqueue", "email", '{"to": "a@example.com"}'))

    assert (job.type, job.payload_json, job.queue) == ("email", '{"to":"a@example.com"}', "default")
    assert job.status == "pending"
    assert job.actor is not None
    assert job.actor.startswith("cli:")


def test_enqueue_without_a_payload_has_an_empty_one(app: Tenure) -> None:
    assert app.get(output_of("enqueue", "email")).payload_json == "{}"


def test_enqueue_reads_the_payload_from_standard_input(app: Tenure) -> None:
    result = run_cli("enqueue", "email", "-", stdin='{"text": "grüße"}')

    assert app.get(result.stdout.strip()).payload_json == '{"text":"grüße"}'


def test_enqueue_takes_every_option(app: Tenure) -> None:
    options = (
        *("--queue", "mail", "--priority", "-7", "--max-retries", "5", "--timeout", "30s"),
        *(
            "--backoff",
            '{"base": "2s", "factor": 3, "cap": 60}',
            "--run-at",
            "2026-02-03T04:05:06Z",
        ),
    )

    job = app.get(output_of("enqueue", "email", "{}", *options))

    assert (job.queue, job.priority, job.max_retries, job.timeout) == ("mail", -7, 5, 30.0)
    assert (job.backoff.base, job.backoff.factor, job.backoff.cap) == (2.0, 3.0, 60.0)
    assert job.run_at.isoformat() == "2026-02-03T04:05:06+00:00"


def test_enqueue_with_a_delay_and_a_plain_backoff(app: Tenure) -> None:
    job = app.get(output_of("enqueue", "email", "--delay", "1h30m", "--backoff", "5s"))

    assert (job.run_at - job.created_at).total_seconds() == 5400
    assert job.backoff.base == 5.0


def test_enqueue_with_a_list_of_delays(app: Tenure) -> None:
    job = app.get(output_of("enqueue", "email", "--backoff", "10s,1m,10m"))

    assert job.backoff.delays == (10.0, 60.0, 600.0)


def test_a_key_names_the_same_job_again_and_refuses_another(app: Tenure) -> None:
    first = output_of("enqueue", "email", "--key", "order-17")
    again = output_of("enqueue", "email", "--key", "order-17")
    other = run_cli("enqueue", "sms", "--key", "order-17")

    assert again == first
    assert other.exit_code == 1
    assert first in other.stderr


def test_enqueue_as_json_is_the_job_as_the_api_shows_it(app: Tenure) -> None:
    shown = cli_json("enqueue", "email", '{"n": 1}')

    assert shown == as_json(responses.job_body(app.get(shown["id"])))


def test_a_full_queue_refuses(app: Tenure) -> None:
    output_of("queues", "limit", "mail", "--max-pending", "1")
    output_of("enqueue", "email", "--queue", "mail")

    result = run_cli("enqueue", "email", "--queue", "mail")

    assert result.exit_code == 1
    assert "mail" in result.stderr


# --- list, show, explain ----------------------------------------------------------------------


def test_list_shows_the_newest_first_and_filters(app: Tenure) -> None:
    email = app.enqueue("email", queue="mail")
    report = app.enqueue("report")
    app.cancel(report.id)

    assert [job["id"] for job in cli_json("jobs", "list")] == [report.id, email.id]
    assert [job["id"] for job in cli_json("jobs", "list", "--status", "cancelled")] == [report.id]
    assert [job["id"] for job in cli_json("jobs", "list", "--type", "email")] == [email.id]
    assert [job["id"] for job in cli_json("jobs", "list", "--queue", "mail")] == [email.id]
    assert cli_json("jobs", "list", "--queue", "none") == []


def test_list_as_json_is_what_the_api_shows(app: Tenure) -> None:
    job = app.enqueue("email", {"a": [1, None]})

    assert cli_json("jobs", "list") == [as_json(responses.job_body(app.get(job.id)))]


def test_list_goes_on_before_the_last_one(app: Tenure) -> None:
    ids = [app.enqueue("email").id for _ in range(5)][::-1]

    first = run_cli("jobs", "list", "--limit", "2")
    seen = [line.split()[0] for line in first.stdout.splitlines()[1:]]
    rest = cli_json("jobs", "list", "--before", seen[-1])

    assert f"--before {seen[-1]}" in first.stderr
    assert seen + [job["id"] for job in rest] == ids


def test_list_in_a_table(app: Tenure) -> None:
    job = app.enqueue("email", max_retries=1)
    settle(app, Outcome.FAILED, error="shop.Refused: no such address\nTraceback")

    head, line = output_of("jobs", "list").splitlines()

    assert head.split() == ["ID", "TYPE", "QUEUE", "STATUS", "TRIES", "CREATED", "LAST", "ERROR"]
    assert line.split()[:5] == [job.id, "email", "default", "failed", "1/1"]
    assert line.endswith("ago   Refused: no such address")


def test_show_tells_the_job_its_moves_and_why(app: Tenure) -> None:
    job = app.enqueue("email", {"to": "a"}, max_retries=1, idempotency_key="order-17")
    settle(app, Outcome.FAILED, error="Refused: no\nTraceback (most recent call last):")

    shown = output_of("jobs", "show", job.id)

    for part in (job.id, '{"to":"a"}', "order-17", "1/1", "    Traceback (most recent call last):"):
        assert part in shown
    transitions = [
        line.split()[3:] for line in shown.splitlines() if line.endswith("  w") and "Z" in line
    ]
    assert transitions == [
        ["claimed", "pending", "processing", "1", "w"],
        ["failed", "processing", "failed", "1", "w"],
    ]
    assert "  w\n    Refused: no\n" in shown
    assert "It failed for good" in shown


def test_long_texts_of_a_job_are_cut_on_a_terminal_only(app: Tenure) -> None:
    job = app.enqueue("email", {"text": "x" * 9_000}, max_retries=1)
    settle(app, Outcome.FAILED, error="\n".join(["Refused: no", *("line" * 50 for _ in range(60))]))

    narrow = output_of("jobs", "show", job.id, COLUMNS="80")
    wide = output_of("jobs", "show", job.id, "--wide", COLUMNS="80")

    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count("more characters: --wide shows all") == 1
    assert "x" * 9_000 in wide
    assert wide.count("line" * 50) == 60
    assert "--wide" not in wide


def test_show_as_json_is_what_the_api_shows(app: Tenure) -> None:
    job = app.enqueue("email")
    settle(app, Outcome.COMPLETED, result='{"sent":true}')

    shown = cli_json("jobs", "show", job.id)

    assert shown["job"] == as_json(responses.job_body(app.get(job.id)))
    assert shown["job"]["result"] == {"sent": True}
    assert shown["history"] == as_json(
        [responses.TransitionBody.of(t) for t in app.history(job.id)]
    )
    assert shown["explanation"] == cli_json("explain", job.id)


def test_explain_says_why_and_what_may_be_done(app: Tenure) -> None:
    job = app.enqueue("email", delay="1h")

    assert cli_json("explain", job.id)["reason"] == "not_due"
    told = output_of("explain", job.id)
    assert "not due before" in told
    assert f"\nYou can cancel it: tenure jobs cancel {job.id}\n" in told
    assert told.endswith(f"\nYou can run it now: tenure jobs run-now {job.id}")


@pytest.mark.parametrize("command", [["jobs", "show"], ["explain"], ["jobs", "cancel"]])
@pytest.mark.parametrize("id", [NOBODY, "17", "'; DROP TABLE tenure_job; --"])
def test_no_such_job(app: Tenure, command: list[str], id: str) -> None:
    result = run_cli(*command, id)

    assert result.exit_code == 3
    assert result.stdout == ""
    assert id in result.stderr


# --- retry, cancel ----------------------------------------------------------------------------


def test_retry_gives_failed_jobs_more_attempts(app: Tenure) -> None:
    jobs = [app.enqueue("email", max_retries=1) for _ in range(2)]
    for _ in jobs:
        settle(app, Outcome.FAILED, error="no")

    told = output_of("jobs", "retry", *(job.id for job in jobs), "--more", "2")

    assert told.splitlines() == [f"{job.id}  pending" for job in jobs]
    assert [app.get(job.id).max_retries for job in jobs] == [3, 3]
    assert (app.history(jobs[0].id)[-1].actor or "").startswith("cli:")


def test_retry_names_the_moves_that_are_legal(app: Tenure) -> None:
    job = app.enqueue("email")

    result = run_cli("jobs", "retry", job.id)

    assert result.exit_code == 1
    assert "is pending" in result.stderr
    assert "legal from here: claimed, amended, cancelled, expired" in result.stderr


def test_cancel_as_json_is_the_jobs_that_changed(app: Tenure) -> None:
    job = app.enqueue("email")

    assert cli_json("jobs", "cancel", job.id) == [as_json(responses.job_body(app.get(job.id)))]
    assert app.get(job.id).status == "cancelled"


def test_an_outage_hides_no_job_that_was_changed_before(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = app.enqueue("email"), app.enqueue("email")
    apply = transitions.apply

    def fails(db: Any, job_id: str, event: Any) -> Job:
        if job_id == second.id:
            raise StoreUnavailable("the connection was lost")
        return apply(db, job_id, event)

    monkeypatch.setattr(transitions, "apply", fails)
    result = run_cli("jobs", "cancel", first.id, second.id, "--json")
    assert result.exit_code == 4
    assert "the connection was lost" in result.stderr
    assert [job["id"] for job in json.loads(result.stdout)] == [first.id]


def test_one_refusal_stops_no_other_and_the_first_sets_the_code(app: Tenure) -> None:
    done, last = app.enqueue("email"), app.enqueue("email")
    app.cancel(done.id)

    result = run_cli("jobs", "cancel", NOBODY, done.id, last.id)

    assert result.exit_code == 3
    assert result.stdout == f"{last.id}  cancelled\n"
    assert len(result.stderr.splitlines()) == 2
    assert run_cli("jobs", "cancel", done.id, NOBODY).exit_code == 1


# --- queues, stats ----------------------------------------------------------------------------


def test_what_was_not_paused_is_not_called_resumed(app: Tenure) -> None:
    """A misspelt name left the real queue paused, and the answer said that it was resumed."""
    app.enqueue("send", queue="billing")
    assert output_of("queues", "pause", "billing") == "queue billing is paused"
    doubt = "; no job, type or worker names this queue yet, the nearest is billing"
    for again in (True, False):  # its settings make it no better known
        assert output_of("queues", "pause", "biling") == f"queue biling is paused{doubt}", again
    assert output_of("queues", "resume", "bling") == f"queue bling was not paused{doubt}"
    for said in ("is resumed", "was not paused"):
        assert output_of("queues", "resume", "billing") == f"queue billing {said}"
    app.types.pause("send")
    doubt = "; no job, handler or worker has this type yet, the nearest is send"
    assert output_of("types", "resume", "sned") == f"type sned was not paused{doubt}"
    for said in ("is resumed", "was not paused"):
        assert output_of("types", "resume", "send") == f"type send {said}"


def test_a_setting_of_a_name_that_is_not_known_is_doubted(app: Tenure) -> None:
    """It was taken in silence, and the queue that was meant kept its limits."""
    app.queues.limit("billing", per_partition=PerPartition())
    app.enqueue("send", queue="billing", partition="acme")
    near, none = ", the nearest is billing", ""
    doubt = "; no job, type or worker names this queue yet"
    for name, said in (("biling", doubt + near), ("x", doubt + none), ("billing", "")):
        limited = output_of("queues", "limit", name, "--max-running", "3")
        assert limited == f"queue {name}: max running 3{said}"
        assert output_of("retention", "set", "--queue", name, "--failed", "1d").endswith(
            f" {name} is changed{said}"
        )
    doubt = "; no job, handler or worker has this type yet, the nearest is send"
    assert output_of("types", "pause", "sendd") == f"type sendd is paused{doubt}"
    for name, said in (("sedn", doubt), ("send", "")):
        kept = output_of("retention", "set", "--type", name, "--failed", "1d")
        assert kept == f"type {name} is changed{said}"
    doubt = "; no job of the queue has this partition yet, the nearest is acme"
    for name, said in (("akme", doubt), ("acme", ""), ("", "")):
        for change in ("--pause", "--resume"):
            changed = output_of("queues", "partition", "billing", name, change)
            assert changed == f"partition {name} of queue billing is changed{said}"
    unknown = output_of("queues", "partition", "biling", "acme", "--resume")
    assert unknown.endswith("; no job, type or worker names this queue yet, the nearest is billing")


def test_a_name_that_a_program_has_is_known_before_its_first_job(app: Tenure) -> None:
    @app.job(queue="of-type")
    def report() -> None: ...

    app.core.declare(app.core.handlers.options())
    request = ClaimRequest(
        worker="w", limit=0, lease_seconds=60, queues=("of-worker", "many*"), types=("claimed",)
    )
    app.core.claim(request)
    for queue in ("of-type", "of-worker", "many-1"):
        assert output_of("queues", "pause", queue) == f"queue {queue} is paused"
    for type in ("report", "claimed"):
        assert output_of("types", "pause", type) == f"type {type} is paused"
    settled = app.enqueue("other", queue="done")
    app.cancel(settled.id)
    assert output_of("queues", "pause", "done") == "queue done is paused"


def test_a_queue_that_met_a_rate_limit_outside_is_resumed(app: Tenure) -> None:
    app.enqueue("send", queue="mail")
    (lease,) = app.core.claim(ClaimRequest(worker="w", limit=1, lease_seconds=60)).leases
    limited = Report(lease.id, lease.lease_id, Outcome.SNOOZED, delay=60, pause="queue")
    app.core.exchange([limited], None).result()
    assert output_of("queues", "resume", "mail") == "queue mail is resumed"
    assert output_of("queues", "resume", "mail") == "queue mail was not paused"


def test_an_id_is_taken_as_it_was_copied(app: Tenure) -> None:
    job = app.enqueue("send")
    for copied in (f" {job.id} ", f"{job.id.upper()},", f'"{job.id}"\n'):
        assert job.id in output_of("jobs", "show", copied)
    output_of("jobs", "cancel", f"{job.id},")
    assert app.get(job.id).status == "cancelled"


def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(app: Tenure) -> None:
    app.enqueue("email", queue="mail")
    request = ClaimRequest(worker="w", limit=1, lease_seconds=30, label="w")

    output_of("queues", "pause", "mail")
    assert app.core.claim(request).leases == []
    output_of("queues", "resume", "mail")
    assert len(app.core.claim(request).leases) == 1


def test_queues_are_listed_as_the_api_shows_them(app: Tenure) -> None:
    with closing(Clock(app.database)) as clock:
        app.enqueue("email", queue="mail")
        clock.advance(5)
        output_of("queues", "limit", "mail", "--max-pending", "10")

        assert cli_json("queues", "list") == as_json(app.queues.list())
        head, line = output_of("queues", "list").splitlines()
    assert head.split()[:6] == ["QUEUE", "PENDING", "PROCESSING", "OLDEST", "DUE", "PAUSED"]
    assert head.split()[6:] == ["MAX", "PENDING", "LIMITS"]
    assert line.split() == ["mail", "1", "0", "5s", "ago", "-", "10", "-"]


def test_a_limit_is_lifted_by_none(app: Tenure) -> None:
    output_of("queues", "limit", "mail", "--max-pending", "0")
    assert run_cli("enqueue", "email", "--queue", "mail").exit_code == 1
    output_of("queues", "limit", "mail", "--max-pending", "none")
    assert run_cli("enqueue", "email", "--queue", "mail").exit_code == 0


@pytest.mark.parametrize("number", ["-1", "1.5", "many", "9" * 30, "\u0661"])
def test_a_limit_is_a_whole_number(app: Tenure, number: str) -> None:
    assert run_cli("queues", "limit", "--", "mail", number).exit_code == 2


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_queue_must_have_a_name(app: Tenure, command: str) -> None:
    for name in ("no name", "café"):
        refused = run_cli("queues", command, name)
        assert (refused.exit_code, "$.queue: not a name" in refused.stderr) == (2, True)


def test_stats_count_by_queue_type_and_status(app: Tenure) -> None:
    for type in ("email", "email", "report"):
        app.enqueue(type)
    settle(app, Outcome.COMPLETED)

    assert cli_json("stats") == as_json(responses.stats_body(app.stats.counts()))
    head, *lines, total = (line.split() for line in output_of("stats").splitlines())
    assert head[:3] == ["QUEUE", "TYPE", "PENDING"]
    assert sorted(lines) == [
        ["default", "email", "1", "0", "1", "0", "0", "2"],
        ["default", "report", "1", "0", "0", "0", "0", "1"],
    ]
    assert total == ["total", "-", "2", "0", "1", "0", "0", "3"]


def test_an_empty_database_has_nothing_to_show(app: Tenure) -> None:
    assert cli_json("jobs", "list") == cli_json("queues", "list") == []
    assert cli_json("stats")["total"] == 0


# --- where the database is --------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_the_database_may_be_named_before_or_after_the_command(
    app: Tenure, database_url: str, first: bool
) -> None:
    job = app.enqueue("email")
    chosen = ("--database", database_url)
    arguments = (*chosen, "jobs", "list") if first else ("jobs", "list", *chosen)

    result = run_cli(*arguments, TENURE_DATABASE="sqlite:////no/such/folder/jobs.db")

    assert job.id in result.stdout


# --- options that only the handler's application knows --------------------------------------------


def test_a_job_in_a_queue_that_no_worker_of_its_type_takes_from_is_warned_of(app: Tenure) -> None:
    def ask(worker: str, **what: Any) -> None:
        app.core.claim(ClaimRequest(worker=worker, limit=1, lease_seconds=30, **what))

    def warning(*arguments: str) -> str:
        added = run_cli("enqueue", *arguments)
        assert app.get(added.stdout.strip()).status == "pending"
        return added.stderr

    assert warning("email") == ""  # nothing is known of the type
    ask("w-1", queues=("mail", "post"), types=("email",))
    assert "run email from queue mail, post only, and this job is in default" in warning("email")
    assert warning("email", "--queue", "mail") == ""
    assert warning("other") == ""
    ask("w-2", types=("email", "other"))
    assert warning("email") == ""


def test_limits_and_partitions_are_set_and_listed(app: Tenure) -> None:
    per = "max_running=2,rate=10/1s"
    output_of("queues", "limit", "sync", "--max-running", "5", "--rate", "900/1m")
    output_of("queues", "limit", "sync", "--per-partition", per, "--ordered", "halt")
    (queue,) = [queue for queue in app.queues.list() if queue.name == "sync"]
    per_partition = PerPartition(max_running=2, rate="10/1s", burst=1)
    assert queue.limits == Limits(5, "900/1m", 90, per_partition, "halt")
    assert "0 of 5 run, starts 900/1m, per partition 2" in output_of("queues", "list", "--wide")
    app.enqueue("a", queue="sync", partition="acme")
    output_of("queues", "partition", "sync", "acme", "--weight", "3", "--pause", "--reason", "no")
    (part,) = app.queues.partitions("sync")
    assert (part.weight, part.pause_reason, part.pending) == (3, "no", 1)
    head, line, note = output_of("queues", "partitions", "sync").splitlines()
    assert (head.split()[0], line.split()[:2], note.strip()) == ("PARTITION", ["acme", "1"], "no")
    assert cli_json("queues", "partitions", "sync") == as_json([part])
    assert "no failed job" in output_of("queues", "partition", "sync", "acme", "--pass-over")
    output_of("queues", "partition", "sync", "acme", "--resume", "--weight", "none")
    output_of("queues", "limit", "sync", "--per-partition", "turns", "--rate", "none")
    for words in (
        ("limit", "sync"),
        ("limit", "sync", "--max-running", "many"),
        ("limit", "sync", "--per-partition", "speed=1"),
        ("partition", "sync", "acme"),
        ("partition", "sync", "acme", "--pause", "--resume"),
        ("partition", "sync", "acme", "--weight", "3", "--reason", "no"),
    ):
        assert run_cli("queues", *words).exit_code == 2, words


def test_verify_says_the_largest_number_that_ran_at_once(app: Tenure) -> None:
    app.queues.limit("mail", max_running=2)
    for _ in range(3):
        app.enqueue("email", queue="mail")
    app.core.claim(ClaimRequest(worker="w", limit=5, lease_seconds=30))
    assert output_of("verify").splitlines()[1:] == ["largest seen: queue mail: 2 of 2 at once"]
    assert cli_json("verify") == []


def test_a_filter_takes_how_long_ago_a_job_was_added(app: Tenure) -> None:
    """By the clock of the store, which added them."""
    now = datetime.now(UTC).replace(microsecond=0)  # ids have the time of this machine
    with closing(Clock(app.database, now)) as clock:
        old = app.enqueue("mail")
        clock.advance(60)
        new = app.enqueue("mail")

        def found(*options: str) -> set[str]:
            return {job["id"] for job in cli_json("jobs", "list", *options)}

        assert found("--created-after", "30s") == {new.id}
        assert found("--created-after", "1m") == found("--created-after", "P1D") == {old.id, new.id}
        assert found("--created-before", "30s") == {old.id}
        assert found("--created-after", "1s", "--created-before", "now") == set(), "not now"
        assert found("--created-after", f"{new.created_at:%Y-%m-%dT%H:%M:%SZ}") == {new.id}
        for command in ("retry", "cancel", "run-now"):
            looked = run_cli("jobs", command, "--created-before", "30s", "--dry-run")
            assert looked.exit_code == 0, looked.stderr
        output_of("jobs", "cancel", "--created-before", "30s", "--yes")
        assert (app.get(old.id).status, app.get(new.id).status) == ("cancelled", "pending")
