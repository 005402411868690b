"""`tenure explain` names the command that helps, and that command does."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tenure import PerPartition, Tenure
from tenure.jobs.work import ClaimRequest, Lease, Outcome, Report
from tests.support.cli import cli_json, output_of

ODD = "o'neill & co"
"""A partition that a shell would take apart."""


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
