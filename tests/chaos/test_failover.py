"""A standby takes over: what may be lost is what the documentation says, and nobody is confused."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenure import JobNotFound, Status, Tenure
from tenure.rules.reports import Answer
from tests.chaos import checker
from tests.chaos.load import Load
from tests.support import fault_counts
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server, standby_of
from tests.support.proxy import Proxy
from tests.support.store import claim_request, report_completed, report_failed
from tests.support.waiting import RECOVERY_SECONDS, WAIT_SECONDS, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

FROZEN_SECONDS = 5.0
"""How long no server answers, as for a cluster that finds out that it has no primary."""

CAUGHT_UP = "SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication"


def promote(primary: PostgresServer, standby: PostgresServer) -> None:
    primary.stop("immediate")
    with psycopg.connect(standby.url(), autocommit=True) as admin:
        assert admin.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
    fault_counts.count("failovers")


@pytest.mark.scenario(59)
def test_a_failover_that_loses_commits_takes_no_report_from_before() -> None:
    with durable_server() as primary:
        url = primary.create_database("jobs")
        with standby_of(primary) as standby:
            with Tenure(url) as app:
                kept = app.enqueue("mail", max_retries=1)
                with psycopg.connect(primary.url(), autocommit=True) as admin:
                    wait_until(
                        lambda: admin.execute(CAUGHT_UP).fetchone() == (True,), "the standby"
                    )
                with psycopg.connect(standby.url(), autocommit=True) as admin:
                    admin.execute("ALTER SYSTEM SET primary_conninfo = ''")
                    admin.execute("SELECT pg_reload_conf()")
                    gone = "SELECT count(*) FROM pg_stat_wal_receiver"
                    wait_until(lambda: admin.execute(gone).fetchone() == (0,), "replication to end")
                # What follows is acknowledged and will be lost: the documented limit.
                (before,) = app.core.claim(claim_request(1, "before")).leases
                lost = app.enqueue("mail")
                assert (
                    app.core.report([report_completed(before)]).verdicts[0].answer
                    is Answer.RECORDED
                )
            promote(primary, standby)

            with Tenure(standby.url("jobs")) as app:
                with pytest.raises(JobNotFound):
                    app.get(lost.id)
                (after,) = app.core.claim(claim_request(1, "after")).leases
                assert (after.id, after.token) == (kept.id, before.token) == (kept.id, 1)
                assert after.lease_id != before.lease_id
                # The worker of before lives on, and asks again: same job, attempt and token.
                for report in (report_completed(before), report_failed(before)):
                    assert app.core.report([report]).verdicts[0].answer is Answer.LOST
                assert app.core.heartbeat([(before.id, before.lease_id)], 30) == {
                    before.lease_id: ""
                }
                assert app.get(kept.id).status is Status.PROCESSING
                assert (
                    app.core.report([report_completed(after)]).verdicts[0].answer is Answer.RECORDED
                )
                assert app.core.report([report_completed(before)]).verdicts[0].answer is Answer.LOST
                assert app.verify() == []


@pytest.mark.scenario(60)
@pytest.mark.slow
def test_a_synchronous_failover_loses_nothing_and_clients_follow(tmp_path: Path) -> None:
    with durable_server() as primary:
        primary.create_database("jobs")
        with standby_of(primary) as standby:
            with psycopg.connect(primary.url(), autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                admin.execute("SELECT pg_reload_conf()")
                sync = "SELECT sync_state FROM pg_stat_replication"
                wait_until(
                    lambda: admin.execute(sync).fetchone() == ("sync",), "a synchronous standby"
                )
            hosts = urllib.parse.quote(f"{primary.folder},{standby.folder}", safe="/,")
            with Load(f"postgresql://postgres@/jobs?host={hosts}", tmp_path) as load:
                load.goes_on(50)
                promote(primary, standby)
                load.flows_again()
            assert checker.check(tmp_path, standby.url("jobs")) == []


@pytest.mark.scenario(106)
@pytest.mark.slow
def test_a_frozen_primary_is_left_for_the_new_one(tmp_path: Path) -> None:
    """It accepts connections and answers nothing, so nothing fails by itself."""
    with durable_server() as primary:
        primary.create_database("jobs")
        with standby_of(primary) as standby:
            hosts = urllib.parse.quote(f"{primary.folder},{standby.folder}", safe="/,")
            url = f"postgresql://postgres@/jobs?host={hosts}"
            with (
                psycopg.connect(primary.url(), autocommit=True) as former,
                psycopg.connect(standby.url(), autocommit=True) as new,
                Load(url, tmp_path, lease=30) as load,
            ):
                wait_until(lambda: former.execute(CAUGHT_UP).fetchone() == (True,), "the standby")
                with frozen(primary, former):
                    time.sleep(FROZEN_SECONDS)
                    assert new.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
                    fault_counts.count("failovers")
                    began = time.monotonic()
                    load.goes_on(1)
                    assert time.monotonic() - began < RECOVERY_SECONDS
                    # The test reads what was run by connections that try the frozen one first, too.
                    load.flows_again(WAIT_SECONDS)
                    with Tenure(url) as producer:  # a new process, too
                        began = time.monotonic()
                        producer.enqueue("work", {"number": -1})
                        assert time.monotonic() - began < RECOVERY_SECONDS


@contextlib.contextmanager
def frozen(server: PostgresServer, admin: psycopg.Connection[Any]) -> Iterator[None]:
    """Stop every process of a server in the block, as if its machine stood still."""
    backends = [pid for (pid,) in admin.execute("SELECT pid FROM pg_stat_activity")]
    processes = [pid for pid in (server.pid, *backends) if pid is not None]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    fault_counts.count("processes frozen")
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.scenario(62)
@pytest.mark.slow
def test_a_former_primary_behind_the_same_address_is_left_though_it_lives(tmp_path: Path) -> None:
    """Read-only for good, its sessions kept open: new connections lead to the new primary."""
    with durable_server() as primary:
        url = primary.create_database("jobs")
        with standby_of(primary) as standby, Proxy(url) as proxy:
            with (
                psycopg.connect(primary.url(), autocommit=True) as former,
                psycopg.connect(standby.url(), autocommit=True) as new,
                Load(proxy.url_of(url), tmp_path) as load,
            ):
                former.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                former.execute("SELECT pg_reload_conf()")
                assert load.app.find(limit=1)  # readers have open sessions, too
                refused = load.outages + 10
                wait_until(lambda: load.outages >= refused, "every producer to be refused")
                wait_until(lambda: former.execute(CAUGHT_UP).fetchone() == (True,), "the standby")
                assert new.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
                fault_counts.count("failovers")
                proxy.lead_to(standby.url("jobs"))
                load.flows_again()
                with Tenure(standby.url("jobs")) as app:
                    (newest,) = app.find(limit=1)
                for _ in range(20):  # on every session there is
                    assert load.app.get(newest.id).id == newest.id
            assert checker.check(tmp_path, standby.url("jobs")) == []
