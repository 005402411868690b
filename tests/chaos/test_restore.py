"""A backup is restored: what happened since is forgotten, and nobody from before can change it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tenure import JobNotFound, Status, Tenure
from tenure.rules.reports import Answer
from tests.support.postgres import PostgresServer
from tests.support.store import claim_request as asking
from tests.support.store import report_completed, report_failed

pytestmark = pytest.mark.chaos


def copied(url: str, to: Path, name: str, request: pytest.FixtureRequest) -> str:
    """A copy of a database as it is now, and its URL; nobody is connected to it."""
    if url.startswith("sqlite:"):
        source = sqlite3.connect(url.removeprefix("sqlite:///"))
        target = sqlite3.connect(to / f"{name}.db")
        with target:
            source.backup(target)
        source.close()
        target.close()
        return f"sqlite:///{to}/{name}.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    database = url.partition("?")[0].rpartition("/")[2]
    copy = f"{database}_{name}"
    request.addfinalizer(lambda: server.drop_database(copy))
    return server.create_database(copy, template=database)


@pytest.mark.scenario(86)
def test_workers_of_before_a_restore_are_fenced_and_queues_can_start_paused(
    database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with Tenure(database_url) as app:
        kept = [app.enqueue("mail", max_retries=1) for _ in range(3)]
        (held,) = app.core.claim(asking(1, "before")).leases  # its lease is in the backup
    backup = copied(database_url, tmp_path, "backup", request)
    with Tenure(database_url) as app:
        since = app.core.claim(asking(2, "before")).leases
        assert app.core.report([report_completed(since[0])]).verdicts[0].answer is Answer.RECORDED
        lost = app.enqueue("mail")

    with Tenure(backup) as app:
        app.queues.pause("default")  # before any worker starts
        assert app.core.claim(asking(10, "after")).leases == []
        with pytest.raises(JobNotFound):
            app.get(lost.id)
        # Workers of before: claims that the backup does not know are lost, the one it knows holds.
        for lease in since:
            for report in (report_completed(lease), report_failed(lease)):
                assert app.core.report([report]).verdicts[0].answer is Answer.LOST
        names = [(lease.id, lease.lease_id) for lease in since]
        assert app.core.heartbeat(names, 30) == {lease.lease_id: "" for lease in since}
        assert app.core.report([report_completed(held)]).verdicts[0].answer is Answer.RECORDED

        app.queues.resume("default")
        again = app.core.claim(asking(10, "after")).leases
        assert {lease.id for lease in again} == {lease.id for lease in since}
        # Same job, same token as before the restore: only the lease tells them apart.
        assert {lease.token for lease in again} == {lease.token for lease in since} == {1}
        assert app.core.report([report_completed(since[0])]).verdicts[0].answer is Answer.LOST
        for verdict in app.core.report([report_completed(lease) for lease in again]).verdicts:
            assert verdict.answer is Answer.RECORDED
        assert {app.get(job.id).status for job in kept} == {Status.COMPLETED}
        assert app.verify() == []
