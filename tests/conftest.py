"""Fixtures for every test: real databases, fresh for each test and removed after it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import random
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest

from tenure import Tenure
from tenure.store import migrate_store
from tests.support.clock import STOPPED, Clock
from tests.support.effort import EVERYTHING, take_turns
from tests.support.kept_databases import Keeper
from tests.support.postgres import PostgresServer, PostgresUnavailable, data_parent, own_folder

# A busy machine is no failure: no deadline per example. CI draws the same examples every time.
hypothesis.settings.register_profile(
    "tenure", deadline=None, derandomize=os.environ.get("CI") == "true", print_blob=True
)
hypothesis.settings.load_profile("tenure")

# A shell starts what runs in its background deaf to Ctrl-C, and so would be all processes of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Containers often forbid to keep bytecode. Then each of some thousand processes that tests start
# would compile the package again, which takes it longer than all else.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

LONGEST = ("test_cluster.py", "test_soak.py", "test_django_page.py", "test_versions.py")
"""They begin first, so that no process of pytest has to wait for them at the end."""

LAST_COMPILED = Path(__file__).with_name("worker") / "__pycache__"
"""What Python makes of the tests that are collected last."""

UNTIL = "TENURE_CHAOS_UNTIL"
"""Unix time after which `make chaos` begins no further test."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let tests write into memory where there is enough of it.

    What a commit of SQLite costs to reach a disk is half of the time of a test.
    """
    if config.option.basetemp is None:
        folders = contextlib.ExitStack()
        folder = folders.enter_context(own_folder(data_parent(durable=False)))
        config.option.basetemp = folder / "tests"

        def remove() -> None:
            with contextlib.suppress(OSError):  # a process still writes: the next run removes it
                folders.close()

        config.add_cleanup(remove)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what asks for PostgreSQL, so that `-m "not postgres"` leaves nothing behind.

    Name the faults that a test shows (`-k scenario_022`) and the requirements (`-k
    requirement_c06`), and keep those that take their time for `make chaos`, but for those that
    are asked for by their whole name.
    """
    take_turns(items)
    items.sort(key=lambda item: item.path.name not in LONGEST)
    named = config.args
    full = {item for item in items if item.get_closest_marker("full") and item.nodeid not in named}
    if full and not EVERYTHING:
        config.hook.pytest_deselected(items=[*full])
        items[:] = [item for item in items if item not in full]
    if UNTIL in os.environ:  # another part of them is reached in time at each seed
        random.Random(os.environ.get("TENURE_CHAOS_SEED")).shuffle(items)
    for item in items:
        for mark in item.iter_markers("scenario"):
            item.extra_keyword_matches.update(f"scenario_{number:03}" for number in mark.args)
        for mark in item.iter_markers("requirement"):
            item.extra_keyword_matches.update(
                f"requirement_c{int(name.removeprefix('C')):02}" for name in mark.args
            )
        if {"postgres_server", "postgres_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("postgres")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Let the garbage collector pass over all that is imported and collected: it stays.

    Each process of pytest collects every test. To look for garbage took it a sixth of that time.
    In a fresh clone, one process compiles the tests, and the others wait for what it has made.
    """
    gc.disable()
    try:
        with Path(__file__).open() as this:
            fcntl.flock(this, fcntl.LOCK_EX)
            if any(LAST_COMPILED.glob(f"test_*.{sys.implementation.cache_tag}-pytest-*.pyc")):
                fcntl.flock(this, fcntl.LOCK_UN)
            return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what `make chaos` has no time left for."""
    if time.time() > float(os.environ.get(UNTIL, "inf")):
        pytest.skip("the time that `make chaos` was given is up: give it more --seconds")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test process. Where there is none, CI fails and other runs skip."""
    try:
        with PostgresServer() as server:
            yield server
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL: {error}")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a PostgreSQL database with the schema and no rows."""
    name = f"tenure_test_{uuid.uuid4().hex}"
    migrate_store(postgres_server.create_database(name))
    yield name
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and no rows."""
    path = tmp_path_factory.mktemp("template") / "jobs.db"
    migrate_store(f"sqlite:///{path}")
    return path


OPENING = {"api", "app", "app_for_kind", "app_on_each_engine", "both", "failed", "owner", "tenants"}
OPENING |= {"unaudited_harness", "url"}
"""Fixtures that open the database of a test at once, so that it may as well be a copy of one that
has the schema. To make the schema takes three quarters of the time of many tests."""
STOPPING = {"clock", "unaudited_harness"}
"""Fixtures that stop the clock of the store."""


@pytest.fixture(scope="session")
def kept_databases(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Keeper]:
    """Databases with the schema and no rows, for one test after the other."""
    with closing(Keeper(postgres_server, postgres_template)) as kept:
        yield kept


@pytest.fixture(scope="session")
def kept_with_clock(postgres_server: PostgresServer, postgres_template: str) -> Iterator[Keeper]:
    """Such databases whose clock stands still."""
    with closing(Keeper(postgres_server, postgres_template, stopped=True)) as kept:
        yield kept


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a PostgreSQL database: empty, or with the schema if a fixture opens it at once.

    It is new if a test is marked `own_database`, and wherever there is no schema yet.
    """
    names = set(request.fixturenames)
    opened, own = OPENING & names, request.node.get_closest_marker("own_database")
    if opened - {"owner"} and not own and postgres_server.external_url is None:
        kept = request.getfixturevalue("kept_with_clock" if STOPPING & names else "kept_databases")
        url = kept.lend()
        yield url
        kept.take_back(url)
        return
    name = f"tenure_test_{uuid.uuid4().hex}"
    template = request.getfixturevalue("postgres_template") if opened else None
    yield postgres_server.create_database(name, template)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def sqlite_with_clock(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """Such a file whose clock stands still."""
    path = tmp_path_factory.mktemp("template") / "jobs.db"
    shutil.copy(sqlite_template, path)
    Clock(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def sqlite_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an SQLite file, which does not exist yet unless a fixture opens it at once."""
    names = set(request.fixturenames)
    url = f"sqlite:///{tmp_path}/jobs.db"
    if OPENING & names:
        template = "sqlite_with_clock" if STOPPING & names else "sqlite_template"
        shutil.copy(request.getfixturevalue(template), tmp_path / "jobs.db")
        if STOPPING & names:
            STOPPED.add(url)
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, once of each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    """An application on a new SQLite file. What the engine cannot change is tested on one."""
    with Tenure(sqlite_url) as made:
        yield made


@pytest.fixture
def app_on_each_engine(database_url: str) -> Iterator[Tenure]:
    """An application on a new database, once of each engine."""
    with Tenure(database_url) as made:
        yield made


@pytest.fixture
def clock(app_on_each_engine: Tenure) -> Iterator[Clock]:
    """The store's clock, which stands still: no lease runs out but when the test says so."""
    clock = Clock(app_on_each_engine.database)
    yield clock
    clock.close()
