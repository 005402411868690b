"""`manage.py tenure worker`: tasks run in real workers, on both databases."""

from __future__ import annotations

import json
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.django.project import SECONDS, SITE, Project
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


class Shop(Project):
    """The site with its order, whose rows are read and tasks added here: that is faster."""

    def enqueue(self, task: str, *arguments: object, queue: str = "default") -> str:
        """Add a task as the site would; return its id."""
        payload = {"args": list(arguments), "kwargs": {}}
        name = f"shop.tasks.{task}"
        return self.jobs.enqueue(name, payload, max_retries=3, queue=queue).id

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        raw = RawSql(self.jobs.database)
        try:
            return raw.run(statement)
        finally:
            raw.close()

    def shipped(self) -> object:
        """Return how often the order was shipped."""
        return self.rows("SELECT shipped FROM shop_order")[0][0]


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
)
def migrated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    if request.param == "sqlite":
        shop = Shop(f"sqlite:///{tmp_path_factory.mktemp('shop')}/shop.db")
        shop.manage("migrate")
        yield shop
        shop.jobs.close()
        return
    server = request.getfixturevalue("postgres_server")
    name = f"tenure_test_{uuid.uuid4().hex}"
    shop = Shop(server.create_database(name))
    shop.manage("migrate")
    yield shop
    shop.jobs.close()
    server.drop_database(name)


@pytest.fixture
def shop(migrated: Shop) -> Iterator[Shop]:
    """The site on a database that Django has migrated, with an order that was not shipped."""
    migrated.rows("DELETE FROM shop_order")
    migrated.rows("INSERT INTO shop_order (number, shipped) VALUES (1, 0)")
    yield migrated
    # What is left would ship the order of the next test, whichever that is.
    migrated.environment.pop("SITE_OPTIONS", None)
    for schedule in migrated.jobs.schedules.list():
        migrated.jobs.schedules.delete(schedule.name)
    for job in migrated.jobs.find(status="pending"):
        migrated.jobs.cancel(job.id)


def events(shop: Shop, id: str) -> list[str]:
    return [entry.event for entry in shop.jobs.history(id)]


def test_tasks_run_and_their_results_are_read(shop: Shop) -> None:
    """The command names neither the database nor the tasks."""
    ids = [shop.enqueue("ship", 1, 2), shop.enqueue("ship_async", 1), shop.enqueue("fail")]
    with shop.worker("--concurrency", "1") as worker:
        found = [shop.jobs.wait(id, timeout=SECONDS).status for id in ids]
        worker.terminate()
        log = worker.communicate(timeout=SECONDS)[0]
    assert found == ["completed", "completed", "failed"]
    assert shop.shipped() == 3
    assert "runs jobs of count_orders, shop.tasks.apart, shop.tasks.apart:slow, " in log
    assert "ValueError: no such order" in shop.manage("tenure", "jobs", "show", ids[2])


@pytest.mark.chaos
def test_the_task_of_a_killed_worker_runs_elsewhere(shop: Shop, tmp_path: Path) -> None:
    """Other backends leave it running for ever: django-tasks-db#5."""
    flag = tmp_path / "runs"
    id = shop.enqueue("wait:slow", str(flag), queue="slow")  # `wait.using(backend="slow", …)`
    with shop.worker("--lease", "1s") as first:
        wait_until(flag.exists, "the task runs")
        first.kill()
    flag.unlink()
    with shop.worker("--lease", "1s") as second:
        wait_until(flag.exists, "the task runs again")
        flag.unlink()
        assert shop.jobs.wait(id, timeout=SECONDS).status == "completed"
        second.terminate()
        log = second.communicate(timeout=SECONDS)[0]
    assert "still runs in no child process" not in log  # a child found it by its name and its type
    begin, end = ["enqueued", "claimed", "lease_expired"], ["retried", "claimed", "completed"]
    assert events(shop, id) == begin + end


def test_a_task_runs_in_a_child_process_that_keeps_nothing_open(shop: Shop) -> None:
    """Neither the death of the child nor its connections outlive the task."""
    ids = [shop.enqueue("apart", "dies"), *[shop.enqueue("apart") for _ in range(2)]]
    ids.append(shop.enqueue("ship_async:slow", 1, queue="slow"))
    with shop.worker("--concurrency", "1") as worker:
        dead, first, second, last = [shop.jobs.wait(id, timeout=SECONDS) for id in ids]
        (parent, child, session, closed), again = first.result, second.result
    assert (dead.status, dead.attempts) == ("failed", 3)
    assert "the child process died: killed by SIGKILL" in str(dead.last_error)
    assert parent == worker.pid
    assert child != parent
    assert again == [parent, child, again[2], closed + 1]  # the cache of the first is closed
    assert not session or again[2] != session
    assert (last.status, shop.shipped()) == ("completed", 1)


@pytest.mark.chaos
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_atomic_task_has_its_effect_once(shop: Shop, when: str, tmp_path: Path) -> None:
    """Its worker dies before or after the commit. The next attempt runs alone, in a child."""
    flag = tmp_path / when
    id = shop.enqueue("ship_once", 1, str(flag))
    with shop.worker("--lease", "1s") as first:
        first.wait(SECONDS)
    assert flag.exists()
    assert shop.shipped() == (0 if when == "before" else 1)
    with shop.worker("--lease", "1s") as second:
        assert shop.jobs.wait(id, timeout=SECONDS).status == "completed"
        second.terminate()
        log = second.communicate(timeout=SECONDS)[0]
    assert shop.shipped() == 1
    assert shop.jobs.get(id).attempts == (2 if when == "before" else 1)
    assert "still runs in no child process" not in log  # a child found it by its name
    assert shop.jobs.verify() == []


@pytest.fixture
def assumed(postgres_url: str) -> Iterator[str]:
    """A role that owns the database and cannot log in; one of the same name, and `-login`, can."""
    name = f"Owner \\'{uuid.uuid4().hex}"
    role, login = sql.Identifier(name), sql.Identifier(f"{name}-login")
    database = sql.Identifier(conninfo_to_dict(postgres_url)["dbname"])
    with psycopg.connect(postgres_url, autocommit=True) as server:
        try:
            server.execute(sql.SQL("CREATE ROLE {}").format(role))
        except psycopg.errors.InsufficientPrivilege as error:
            pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
        server.execute(sql.SQL("CREATE ROLE {} LOGIN NOINHERIT IN ROLE {}").format(login, role))
        server.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
        yield name
        server.execute(sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(role))
        server.execute(sql.SQL("DROP ROLE {}, {}").format(login, role))


@pytest.mark.postgres
def test_all_connections_act_as_the_role_that_django_assumes(
    assumed: str, postgres_url: str
) -> None:
    """The login has no rights, so it would see neither the tables nor the jobs."""
    site = Project(postgres_url)
    mark, given = "&" if "?" in postgres_url else "?", {"user": f"{assumed}-login"}
    site.environment["SITE_DATABASE"] += mark + urlencode({**given, "assume_role": assumed})
    site.manage("migrate")
    adds = "with transaction.atomic(): Order.objects.create(number=1); print(ship.enqueue(1).id)"
    of = "from django.db import transaction; from shop.models import Order"
    id = site.manage("shell", "-v0", "-c", f"{of}; from shop.tasks import ship\n{adds}").strip()
    with site.jobs as jobs, site.worker():
        assert jobs.wait(id, timeout=SECONDS).status == "completed"
        raw = RawSql(jobs.database)
        tables = (
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname IN ('tenure', 'public')"
        )
        assert raw.run(tables) == [(assumed,)]
        raw.close()


def test_schedules_and_limits_of_the_settings_count(shop: Shop) -> None:
    schedule = {"task": "shop.tasks.ship", "every": "1s", "payload": {"args": [1]}}
    shop.options(schedules={"often": schedule}, limits={"slow": {"max_running": 1}})
    with shop.worker():
        wait_until(shop.shipped, "a tick")
    assert [each.name for each in shop.jobs.schedules.list()] == ["often"]
    (slow,) = [queue for queue in shop.jobs.queues.list() if queue.name == "slow"]
    assert slow.limits
    assert slow.limits.max_running == 1


def test_a_worker_serves_the_schedules_and_limits_of_every_backend(shop: Shop) -> None:
    """They were ignored, and with another `redact`, so were the tasks. No message said so."""
    schedule = {"task": "shop.tasks.ship", "every": "1s", "payload": {"args": [1]}}
    slow = {"schedules": {"slowly": schedule}, "limits": {"slow": {"max_running": 1}}}
    shop.environment["SITE_SLOW_OPTIONS"] = json.dumps(slow)
    shop.options(schedules={"often": schedule | {"every": "1h"}}, redact=["number"])
    with shop.worker():
        wait_until(shop.shipped, "a tick")
    found = {each.name: each.template.type for each in shop.jobs.schedules.list()}
    assert found == {"often": "shop.tasks.ship", "slowly": "shop.tasks.ship:slow"}
    assert [queue.name for queue in shop.jobs.queues.list() if queue.limits] == ["slow"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "shop.tasks.no_task", "every": "1h"}, 'does not define a "no_task"'),
        ({"task": "shop.tasks.count_orders", "every": "1h"}, "task is not the path of a task"),
        ({"task": "shop.tasks.ship", "crontab": "0 3 * * *"}, "no such option: crontab"),
        ({"task": "shop.tasks.ship", "every": "1h"}, "missing a required argument: 'number'"),
    ],
)
def test_a_wrong_schedule_is_named(shop: Shop, given: dict[str, object], said: str) -> None:
    shop.options(schedules={"often": given})
    done = shop.run("manage.py", "tenure", "worker")
    (last,) = done.stderr.splitlines()[-1:]
    assert "ImproperlyConfigured: OPTIONS['schedules']['often'] of TASKS['default']: " in last
    assert said in last


def test_a_worker_begins_again_when_the_code_changes(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(SITE, site)
    project = Project(f"sqlite:///{tmp_path}/shop.db", site)
    project.manage("migrate")

    def workers() -> set[str]:
        return {worker.id for worker in project.jobs.workers.list()}

    with project.worker("--reload", "--lease", "2s"):
        known = wait_until(workers, "a worker")
        (site / "shop" / "more.py").write_text("NEW = True\n")
        wait_until(lambda: workers() - known, "another worker")


@pytest.mark.chaos
def test_ctrl_c_lets_a_task_end_and_a_second_one_does_not(shop: Shop, tmp_path: Path) -> None:
    """As django-tasks-db has it, where the task of the second one stays running for ever."""
    flag = tmp_path / "runs"
    id = shop.enqueue("wait", str(flag))
    with shop.worker() as worker:
        wait_until(flag.exists, "the task runs")
        worker.send_signal(signal.SIGINT)
        flag.unlink()
        assert worker.wait(SECONDS) == 0
    assert events(shop, id) == ["enqueued", "claimed", "completed"]

    id = shop.enqueue("wait", str(flag))
    with shop.worker("--lease", "1s") as worker:
        wait_until(flag.exists, "the task runs")

        def has_ended() -> bool:
            worker.send_signal(signal.SIGINT)
            return worker.poll() is not None

        wait_until(has_ended, "the worker ends although its task runs")
    flag.unlink()
    with shop.worker("--lease", "1s"):
        wait_until(flag.exists, "the task runs again")
        flag.unlink()
        assert shop.jobs.wait(id, timeout=SECONDS).status == "completed"


def test_two_workers_run_each_task_once(shop: Shop) -> None:
    """They pass over what is locked, and leave a task that they do not have."""
    gone = shop.enqueue("gone")
    locked, *ids = [shop.enqueue("ship", 1) for _ in range(20)]
    with ExitStack() as stack:
        if shop.jobs.database.startswith("postgresql:"):
            lock = stack.enter_context(psycopg.connect(shop.jobs.database))
            lock.execute("SELECT 1 FROM tenure.job WHERE id = %s FOR UPDATE", [locked])
        with shop.worker(), shop.worker():
            assert {shop.jobs.wait(id, timeout=SECONDS).status for id in ids} == {"completed"}
            if shop.jobs.database.startswith("postgresql:"):
                assert events(shop, locked) == ["enqueued"]
            stack.close()
            shop.jobs.wait(locked, timeout=SECONDS)
    assert {tuple(events(shop, id)) for id in (locked, *ids)} == {
        ("enqueued", "claimed", "completed")
    }
    assert shop.jobs.get(gone).status == "pending"
    shop.jobs.cancel(gone)
