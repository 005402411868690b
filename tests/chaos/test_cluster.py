"""A real cluster whose primary fails in every way: clients follow it, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tenure import StoreUnavailable, Tenure
from tests.chaos import clustering
from tests.support.cluster import FAULTS, MEMBERS, PATIENCE, Cluster
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.chaos,
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

HANGING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = 'quiet'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.mark.scenario(120)
def test_clients_follow_the_primary(
    cluster: Cluster, tmp_path: Path, chance: random.Random
) -> None:
    kinds = chance.sample([*FAULTS], len(FAULTS))
    seen = list(clustering.play_round(cluster, tmp_path, kinds, "test"))
    assert [one for one in seen if isinstance(one, str)] == []
    assert [one.kind for one in seen if isinstance(one, clustering.Recovery)] == kinds


@pytest.mark.scenario(61)
def test_what_a_failover_loses_was_not_acknowledged(cluster: Cluster) -> None:
    """The role hears no warnings, so a plain session takes for committed what no standby has."""
    cluster.create_database("quiet")
    with psycopg.connect(cluster.writer_url("quiet"), autocommit=True) as admin:
        admin.execute("ALTER DATABASE quiet SET client_min_messages = error")
        admin.execute("CREATE TABLE canary (number integer)")
    with Tenure(cluster.writer_url("quiet")) as app:
        app.enqueue("kept")
    with cluster.cut_primary() as candidates:
        (former,) = set(MEMBERS) - set(candidates)
        url = cluster.inner_url("quiet", [former])
        with (
            ThreadPoolExecutor() as pool,
            psycopg.connect(url, autocommit=True) as plain,
            cluster.admin(former) as admin,
            Tenure(url) as app,
        ):
            assert len(app.find()) == 1
            inserted = pool.submit(plain.execute, "INSERT INTO canary VALUES (1)")
            enqueued = pool.submit(app.enqueue, "lost")
            wait_until(lambda: len(admin.execute(HANGING).fetchall()) == 2, "both to hang")

            def cut_short() -> bool:
                for (pid,) in admin.execute(HANGING).fetchall():
                    admin.execute("SELECT pg_cancel_backend(%s)", (pid,))
                return inserted.done() and enqueued.done()

            wait_until(cut_short, "both to be answered")
            assert inserted.result().statusmessage == "INSERT 0 1"
            with pytest.raises(StoreUnavailable):
                enqueued.result()
        cluster.wait_for_primary(candidates)
    cluster.wait_until_whole()
    with psycopg.connect(cluster.writer_url("quiet")) as after:
        assert after.execute("SELECT count(*) FROM canary").fetchone() == (0,)
    with Tenure(cluster.writer_url("quiet")) as app:
        assert [job.type for job in app.find()] == ["kept"]


@pytest.mark.scenario(63)
def test_nobody_listens_through_pgbouncer(cluster: Cluster, tmp_path: Path) -> None:
    cluster.create_database("pooled")
    with psycopg.connect(cluster.writer_url("pooled"), autocommit=True) as admin:
        admin.execute("ALTER DATABASE pooled SET log_statement = 'all'")

    def listens(*ways: str) -> int:
        """How many LISTEN the servers log while a crew works by these ways."""
        before = cluster.logged("LISTEN ")
        folder = tmp_path / ways[0]
        folder.mkdir()
        crew = clustering.Crew(cluster, "pooled", folder, "1", ways)
        meter = clustering.Meter(folder)
        wait_until(lambda: all(meter.look().claims[way] for way in ways), "work", PATIENCE)
        assert [*crew.dismiss("producer"), *crew.dismiss("worker")] == []
        return cluster.logged("LISTEN ") - before

    assert listens("pooler", "preparing-pooler") == 0
    assert listens("haproxy") >= 1
