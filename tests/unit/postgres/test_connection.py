"""How the PostgreSQL store reads its URL, and what it says where psycopg is missing."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from psycopg.conninfo import conninfo_to_dict

from tenure.errors import InvalidInput
from tenure.store.postgres.connection import address_of, array_of, connect, is_uuid, uuids

ID = "0190163d-8694-739b-aea5-966c26f8ad90"


@pytest.mark.parametrize(
    ("url", "schema"),
    [
        ("postgresql://localhost/app", "tenure"),
        ("postgres://localhost/app", "tenure"),
        ("postgresql://localhost/app?schema=jobs_2", "jobs_2"),
        ("postgresql://localhost/app?sslmode=require&schema=jobs", "jobs"),
        ("postgresql://localhost/app?schema=order&sslmode=require", "order"),
        (f"postgresql://localhost/app?schema={'x' * 63}", "x" * 63),
    ],
)
def test_the_schema_is_named_in_the_url(url: str, schema: str) -> None:
    place = address_of(url)
    assert place.schema == schema
    assert place.quoted == f'"{schema}"'
    assert "schema" not in conninfo_to_dict(place.conninfo)


def test_libpq_gets_all_the_rest() -> None:
    url = (
        "postgresql://ann:p%40ss%3Fw@db1:5433,db2/app"
        "?sslmode=require&schema=jobs&application_name=mine&connect_timeout=3"
    )
    given = conninfo_to_dict(address_of(url).conninfo)
    assert given["user"] == "ann"
    assert given["password"] == "p@ss?w"
    assert given["host"] == "db1,db2"
    assert given["port"] == "5433,"
    assert given["dbname"] == "app"
    assert given["sslmode"] == "require"
    assert given["application_name"] == "mine"
    assert str(given["connect_timeout"]) == "3"


@pytest.mark.scenario(41)
def test_a_connection_is_named_and_notices_a_dead_peer() -> None:
    given = conninfo_to_dict(address_of("postgresql://localhost/app").conninfo)
    assert given["application_name"] == "tenure"
    assert int(given["connect_timeout"] or 0) > 0
    assert int(given["keepalives_idle"] or 0) > 0
    assert int(given["tcp_user_timeout"] or 0) > 0


def test_of_several_hosts_the_one_that_can_be_written_to() -> None:
    several = conninfo_to_dict(address_of("postgresql://db1,db2/app").conninfo)
    assert several["target_session_attrs"] == "read-write"
    chosen = address_of("postgresql://db1,db2/app?target_session_attrs=primary")
    assert conninfo_to_dict(chosen.conninfo)["target_session_attrs"] == "primary"


@pytest.mark.parametrize(
    "schema",
    ["", "Jobs", "2jobs", "a-b", 'a"b', "a;b", "a b", "a%22", "pg_jobs", "x" * 64, "jobs&schema=x"],
)
def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    with pytest.raises(InvalidInput, match="schema"):
        address_of(f"postgresql://localhost/app?schema={schema}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret%zz@localhost/app",
        "postgresql://u:secret@localhost/app?nonsense=1",
        "postgresql://u:secret@localhost/app?sslmode",
        "postgresql://u:secret@[::1/app",
    ],
)
def test_a_malformed_url_is_refused_without_telling_its_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        address_of(url)
    assert "secret" not in str(caught.value)
    assert "percent-encoded" in str(caught.value)


def test_a_place_does_not_show_its_password() -> None:
    assert "secret" not in repr(address_of("postgresql://u:secret@localhost/app"))


def test_only_canonical_uuids_are_sent() -> None:
    assert is_uuid(ID)
    for other in ("", "x", ID.upper(), ID.replace("-", ""), f"{{{ID}}}", ID + "\n", ID[:-1] + "g"):
        assert not is_uuid(other)


@pytest.mark.parametrize("sent", [[], [ID], [ID, None], [None], [None, ID, ID]])
def test_uuids_arrive_as_an_array(url: str, sent: list[str | None]) -> None:
    with connect(address_of(url)) as connection:
        ((found,),) = connection.execute("SELECT %b::uuid[]::text[]", [uuids(sent)]).fetchall()
    assert found == sent


@pytest.mark.parametrize(
    ("item", "some"),
    [
        ("text", ["", "a", "Grüße 🎈", None]),
        ("integer", [0, -1, 2**31 - 1, -(2**31), None]),
        ("bigint", [0, -1, 2**63 - 1, -(2**63), None]),
        ("float8", [0.0, -2.5, 1e300, None]),
        (
            "timestamptz",
            [datetime(2026, 1, 2, 3, 4, 5, 6, UTC), datetime(1, 1, 1, tzinfo=UTC), None],
        ),
        ("uuid", [UUID(ID), UUID(int=0), None]),
    ],
)
def test_arrays_arrive_as_columns_as_they_are(url: str, item: str, some: list[Any]) -> None:
    statement = f"SELECT value FROM unnest(%b::bigint[], %b::{item}[]) AS row (n, value)".encode()
    with connect(address_of(url)) as connection:
        connection.execute("SET timezone = 'UTC'")
        for values in ([], some, *([value] * 1000 for value in some), [some[0]] * 999 + [some[1]]):
            sent = [v and str(v) for v in values] if item == "uuid" else values
            columns = [array_of("bigint", range(len(values))), array_of(item, sent)]
            assert [v for (v,) in connection.execute(statement, columns).fetchall()] == values


def test_without_psycopg_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from tenure.store import open_store\n"
        "from tenure.errors import InvalidInput\n"
        "try:\n    open_store('postgresql://localhost/app')\n"
        "except InvalidInput as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'tenure[postgres]'" in done.stdout


def test_psycopg_is_not_imported_for_sqlite() -> None:
    program = (
        "import sys, tempfile, tenure.store as store\n"
        "store.open_store(f'sqlite:///{tempfile.mkdtemp()}/jobs.db').close()\n"
        "print([m for m in sys.modules if m.startswith('psycopg')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


ENDING = """
import atexit, sys, threading
from tenure import Tenure

def show():
    print(*sorted(t.name for t in threading.enumerate() if t.name.startswith("tenure-read")))

atexit.register(show)
app = Tenure(sys.argv[1])
app.find()
show()
"""


def test_a_program_that_ends_without_close_ends_the_threads_of_the_pool(postgres_url: str) -> None:
    """From Python 3.13 on, the pool would wait for them for 10 s and say that it could not."""
    command = [sys.executable, "-c", ENDING, postgres_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "tenure-read-scheduler tenure-read-worker-0\n\n"
