"""`tenure explain` names the command that helps, and that command does."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from msgspec.structs import replace

from tenure import PerPartition, Tenure, Unique
from tenure.cli.jobs import REMEDIES, advice
from tenure.rules.explain import Explanation
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Pause, Report, Wait
from tenure.webhooks.deliveries import WEBHOOK
from tests.support.cli import cli_json, output_of

HTTP = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
ODD = "-o'neill & co"
"""A partition that a shell would take apart, and that begins as an option."""


@pytest.fixture
def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    monkeypatch.setenv("TENURE_DATABASE", database_url)
    with Tenure(database_url) as app:
        yield app


def take(app: Tenure, limit: int, *queues: str) -> list[Lease]:
    request = ClaimRequest(worker="w", limit=limit, lease_seconds=60, queues=queues or None)
    return app.core.exchange([], request).result().leases


def remedy(id: str, reason: str) -> str:
    """The first command that `explain` names, for a job that does not run because of `reason`."""
    assert cli_json("explain", id)["reason"] == reason
    line = next(line for line in output_of("explain", id).splitlines() if line.startswith("You "))
    return line.partition(": tenure ")[2]


@pytest.mark.parametrize("paused", ["queue", "type", "partition"])
def test_what_is_paused_is_resumed_by_the_command_that_it_names(app: Tenure, paused: str) -> None:
    app.queues.limit("sync", per_partition=PerPartition())
    take(app, 1)
    job = app.enqueue("mail", queue="sync", partition=ODD)
    if paused == "partition":
        app.queues.pause_partition("sync", ODD)
    elif paused == "queue":
        app.queues.pause("sync")
    else:
        app.types.pause("mail")
    output_of(*shlex.split(remedy(job.id, f"{paused}_paused")))
    assert cli_json("explain", job.id)["reason"] == "next"


def test_a_halted_partition_continues_by_the_command_that_it_names(app: Tenure) -> None:
    app.queues.limit("sync", ordered="halt")
    app.enqueue("mail", queue="sync", partition=ODD, max_retries=1)
    job = app.enqueue("mail", queue="sync", partition=ODD)
    (lease,) = take(app, 1)
    app.core.exchange([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")], None).result()
    output_of(*shlex.split(remedy(job.id, "halted")))
    assert cli_json("explain", job.id)["reason"] == "next"


@pytest.mark.parametrize("full", ["queue_full", "partition_full"])
def test_a_limit_is_raised_by_the_command_that_it_names(app: Tenure, full: str) -> None:
    if full == "queue_full":
        app.queues.limit("sync", max_running=0)
    else:
        app.queues.limit("sync", per_partition=PerPartition(max_running=0))
    take(app, 1)
    job = app.enqueue("mail", queue="sync", partition=ODD)
    output_of(*shlex.split(remedy(job.id, full).replace(" N", " 2")))
    assert cli_json("explain", job.id)["reason"] == "next"


def test_a_rate_is_changed_by_the_command_that_it_names(app: Tenure) -> None:
    app.queues.limit("sync", rate="1/1h", burst=1)
    app.enqueue("mail", queue="sync")
    take(app, 1)
    job = app.enqueue("mail", queue="sync")
    output_of(*shlex.split(remedy(job.id, "queue_rate").replace("N/TIME", "2/1s")))
    (queue,) = cli_json("queues", "list")
    assert queue["limits"]["rate"] == "2/1s"


@pytest.mark.parametrize("missing", ["no_worker", "no_worker_for_queue", "no_worker_for_type"])
def test_who_has_no_worker_is_told_how_to_start_one(app: Tenure, missing: str) -> None:
    job = app.enqueue("mail", queue="sync")
    if missing == "no_worker_for_queue":
        take(app, 1, "other")
    if missing == "no_worker_for_type":
        request = ClaimRequest(worker="w", limit=1, lease_seconds=60, types=("other",))
        app.core.exchange([], request).result()
    command = remedy(job.id, missing)
    assert command.startswith("worker --app MODULE:NAME")
    assert ("--queue sync" in command) is (missing != "no_worker")


def remedies(id: str, reason: str) -> list[str]:
    """All commands that `explain` names."""
    assert cli_json("explain", id)["reason"] == reason
    lines = output_of("explain", id).splitlines()
    return [line.partition(": tenure ")[2] for line in lines if line.startswith("You can ")]


def test_the_jobs_that_one_waits_for_are_named_in_commands(app: Tenure) -> None:
    parents = [app.enqueue("mail") for _ in range(4)]
    job = app.enqueue("mail", depends_on=parents)
    looks = [f"explain {parent.id}" for parent in parents[:3]]
    changes = [f"jobs {verb} {job.id}" for verb in ("unblock", "cancel")]
    assert remedies(job.id, "blocked") == looks + changes
    assert cli_json("explain", job.id)["jobs"] == [parent.id for parent in parents[:3]]
    output_of("jobs", "unblock", job.id)
    assert app.get(job.id).status == "pending"


def test_what_was_skipped_names_the_job_that_ended_otherwise(app: Tenure) -> None:
    good, bad = app.enqueue("mail"), app.enqueue("mail")
    job = app.enqueue("mail", depends_on=[good, bad])
    app.cancel(bad.id)
    app.core.follow()
    assert remedies(job.id, "skipped") == [f"explain {bad.id}"]


@pytest.mark.parametrize("key", ["queue", "partition"])
def test_who_has_the_place_of_a_job_is_named_in_a_command(app: Tenure, key: str) -> None:
    most = {"max_running": 1} if key == "queue" else {"per_partition": PerPartition(max_running=1)}
    app.queues.limit("sync", **most)
    first, job = (app.enqueue("mail", queue="sync", partition=ODD) for _ in range(2))
    take(app, 1)
    change, look, *_ = remedies(job.id, f"{key}_full")
    assert "--max-running N" in change
    assert look == f"explain {first.id}"


@pytest.mark.parametrize("key", ["queue", "partition"])
def test_a_wait_for_a_rate_limit_outside_is_ended_by_the_command_that_it_names(
    app: Tenure, key: Pause
) -> None:
    app.queues.limit("sync", per_partition=PerPartition())
    first, job = (app.enqueue("mail", queue="sync", partition=ODD) for _ in range(2))
    (lease,) = take(app, 1)
    report = Report(lease.id, lease.lease_id, Outcome.SNOOZED, delay=600.0, pause=key)
    app.core.exchange([report], None).result()
    resume, look, *_ = remedies(job.id, f"{key}_waits")
    assert look == f"explain {first.id}"
    output_of(*shlex.split(resume))
    assert cli_json("explain", job.id)["reason"] == "next"


def test_the_job_before_another_in_order_is_named_in_a_command(app: Tenure) -> None:
    app.queues.limit("sync", ordered="halt")
    first = app.enqueue("mail", queue="sync", partition=ODD, max_retries=1)
    job = app.enqueue("mail", queue="sync", partition=ODD)
    (lease,) = take(app, 1)
    assert remedies(job.id, "behind_in_order")[0] == f"explain {first.id}"
    app.core.exchange([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")], None).result()
    assert remedies(job.id, "halted")[1] == f"explain {first.id}"


def test_a_signal_is_sent_by_the_command_that_explain_names(app: Tenure) -> None:
    job = app.enqueue("mail")
    (lease,) = take(app, 1)
    wait = Wait("approved", 1)
    app.core.exchange(
        [Report(lease.id, lease.lease_id, Outcome.SUSPENDED, wait=wait)], None
    ).result()
    send = remedies(job.id, "suspended")[0]
    assert cli_json("explain", job.id)["signal"] == wait.name
    output_of(*shlex.split(send))
    assert app.get(job.id).status == "pending"


def test_what_expired_or_was_cancelled_is_added_again_by_a_command(app: Tenure) -> None:
    job = app.enqueue("mail")
    app.cancel(job.id)
    (again,) = remedies(job.id, "cancelled")
    assert app.get(output_of(*shlex.split(again)).strip()).again_of == job.id


def test_more_workers_are_advised_where_others_go_first(app: Tenure) -> None:
    app.core.claim(ClaimRequest(worker="w", limit=0, lease_seconds=60))
    _, job = app.enqueue("mail", queue="sync"), app.enqueue("mail", queue="sync")
    assert remedies(job.id, "behind_others")[0] == "worker --app MODULE:NAME --queue sync"


def test_who_holds_the_unique_key_is_named_in_a_command(app: Tenure) -> None:
    unique = {"unique": Unique(by=("n",)), "payload": {"n": 1}}
    job = app.enqueue("mail", max_retries=1, **unique)
    (lease,) = take(app, 1)
    app.core.exchange([Report(lease.id, lease.lease_id, Outcome.FAILED, error="no")], None).result()
    holder = app.enqueue("mail", **unique)
    assert remedies(job.id, "failed") == [f"explain {holder.id}"]


def test_no_command_ends_the_wait_for_a_receiver_of_deliveries(app: Tenure) -> None:
    delivery = replace(app.enqueue("mail"), type=WEBHOOK)
    told = Explanation("queue_waits", "", ())
    with click.Context(click.Command("tenure")):
        assert [*advice(delivery, told)] == ["You can see the webhooks: tenure webhooks list"]
    output_of("webhooks", "list")


def test_every_reason_that_waits_for_an_operator_has_a_command() -> None:
    own = {
        "running",
        "next",
        "lease_ran_out",
        "will_expire",
        "completed",
        "failed",
        "not_due",
        "sleeping",
    }
    by_jobs = {"blocked", "will_be_skipped", "skipped", "behind_in_order"}
    rows = HTTP.read_text("utf-8").split("### Reasons")[1].split("### ")[0].splitlines()
    first = [row.split("|")[1] for row in rows if row.startswith("| `")]
    reasons = {name for cell in first for name in re.findall("`([a-z_]+)`", cell)}
    assert REMEDIES.keys() <= reasons
    assert reasons - REMEDIES.keys() <= own | by_jobs
