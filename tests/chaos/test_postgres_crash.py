"""PostgreSQL crashes, loses sessions, refuses at random: nothing is lost, and all comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tenure import Tenure
from tenure.rules.jobs import NewJob, Options
from tests.chaos import checker
from tests.chaos.load import Load
from tests.support import fault_counts
from tests.support.postgres import PostgresServer
from tests.support.postgres_servers import durable_server
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with durable_server({"wal_writer_delay": "10s", "autovacuum": "off"}) as started:
        yield started


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    if server.pid is None:  # a test before this one has failed
        server.start()
    name = f"crash_{abs(hash(request.node.name))}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.mark.scenario(57)
@pytest.mark.slow
def test_a_server_that_crashes_has_all_it_acknowledged_and_everybody_comes_back(
    server: PostgresServer, url: str, tmp_path: Path, effort: int
) -> None:
    with Load(url, tmp_path) as load:
        for _ in range(2 * effort):
            load.goes_on()
            server.stop("immediate")
            fault_counts.count("database crashes")
            seen = load.outages
            wait_until(lambda seen=seen: load.outages > seen, "a producer to notice")
            server.start()
            load.flows_again()
        rung = load.app.core.on_work(lambda: None)  # somebody listens, as before
        rung()
    assert checker.check(tmp_path, url) == []


@pytest.mark.scenario(56)
def test_sessions_killed_at_random_lose_nothing(
    server: PostgresServer, url: str, tmp_path: Path, effort: int, chance: random.Random
) -> None:
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(server.url(), autocommit=True) as admin, Load(url, tmp_path) as load:
        for _ in range(10 * effort):
            load.goes_on(chance.randint(1, 40))
            sessions = admin.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = %s ORDER BY pid", (name,)
            ).fetchall()
            for (pid,) in chance.sample(sessions, k=min(len(sessions), chance.randint(1, 4))):
                admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                fault_counts.count("connections cut")
        load.flows_again()
    assert checker.check(tmp_path, url) == []


@pytest.mark.scenario(62)
def test_a_server_that_is_read_only_for_a_while_is_left_and_found_again(
    server: PostgresServer, url: str, tmp_path: Path
) -> None:
    """As behind an address that still leads to the former primary."""
    with psycopg.connect(server.url(), autocommit=True) as admin, Load(url, tmp_path) as load:
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
        seen = load.outages
        wait_until(lambda: load.outages > seen, "a producer to be refused")
        admin.execute("SET default_transaction_read_only = off")
        admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        admin.execute("SELECT pg_reload_conf()")
        load.flows_again()
    assert checker.check(tmp_path, url) == []


STATES = ("40001", "40P01", "55P03", "57014", "53300", "57P01", "53100", "08006")


@pytest.mark.scenario(66)
def test_errors_at_random_are_tried_again_and_no_completion_is_dropped(
    server: PostgresServer, url: str, tmp_path: Path, effort: int
) -> None:
    with Load(url, tmp_path, lease=600) as load, psycopg.connect(url, autocommit=True) as owner:
        owner.execute(
            f"""
            CREATE SEQUENCE public.raised;
            CREATE FUNCTION public.fail_at_random() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF random() < 0.05 THEN
                    PERFORM nextval('public.raised');
                    RAISE EXCEPTION USING MESSAGE = 'at random', ERRCODE =
                        ('{{{",".join(STATES)}}}'::text[])[1 + floor(random() * {len(STATES)})];
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER fail AFTER INSERT OR UPDATE ON tenure.job
                FOR EACH STATEMENT EXECUTE FUNCTION public.fail_at_random();
            """
        )
        load.goes_on(300 * effort)
        ((raised,),) = owner.execute("SELECT last_value FROM public.raised").fetchall()
        assert raised > 5
        owner.execute("DROP TRIGGER fail ON tenure.job")
        load.flows_again()
    # Nothing was committed where an error was raised, so no lease was left to run out.
    with psycopg.connect(url) as owner:
        expired = "SELECT count(*) FROM tenure.transition WHERE event = 'lease_expired'"
        assert owner.execute(expired).fetchone() == (0,)
    assert checker.check(tmp_path, url) == []


LEFT_OPEN = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"


@pytest.mark.scenario(67)
def test_a_task_that_is_cancelled_leaves_no_transaction_open(
    server: PostgresServer, url: str
) -> None:
    async def cancel_after(app: Tenure, key: str, steps: int) -> bool:
        task = asyncio.ensure_future(app.enqueue_async("mail", idempotency_key=key))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    async def cancel_all(app: Tenure) -> int:
        cancelled = [await cancel_after(app, f"k{steps}", steps) for steps in range(60)]
        return sum(cancelled)

    with Tenure(url) as app, psycopg.connect(server.url(), autocommit=True) as admin:
        app.enqueue("mail")
        assert asyncio.run(cancel_all(app)) > 0
        app.enqueue("mail")
        wait_until(lambda: admin.execute(LEFT_OPEN).fetchone() == (0,), "no transaction to be open")
        # What became of a cancelled call is unknown; asked again, there is one job per key.
        ids = {app.enqueue("mail", idempotency_key=f"k{steps}").id for steps in range(60)}
        assert len(ids) == 60
        assert sum(count.jobs for count in app.stats.counts()) == 62
        assert app.verify() == []


@pytest.mark.scenario(58)
def test_a_role_that_does_not_wait_for_the_disk_loses_nothing_through_tenure(
    server: PostgresServer, url: str
) -> None:
    """The control, plain SQL under the same role, does lose what it was told is committed."""
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with Tenure(url) as app:
        assert {c.name: c.health for c in app.check()}["synchronous_commit"] == "problem"
        alone = [app.enqueue("mail").id for _ in range(5)]
        batch = [
            job.id for job in app.enqueue_many([NewJob("mail", {}, Options()) for _ in range(5)])
        ]
        with psycopg.connect(url, autocommit=True) as plain:
            plain.execute("CREATE TABLE noted (number integer)")
            app.enqueue("mail")  # its commit takes the table to the disk, too
            for number in range(20):
                plain.execute("INSERT INTO noted VALUES (%s)", (number,))
            server.stop("immediate")
            fault_counts.count("database crashes")
    server.start()
    with Tenure(url) as app, psycopg.connect(url) as plain:
        assert {app.get(id).id for id in (*alone, *batch)} == {*alone, *batch}
        ((kept,),) = plain.execute("SELECT count(*) FROM noted").fetchall()
        assert kept < 20
        assert app.verify() == []
