"""The door for SQL: `tenure.enqueue` on PostgreSQL, the view `tenure_enqueue` on SQLite."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from tenure import KeyConflict, Tenure, TenureError
from tenure.rules.jobs import Options, TypeOptions
from tests.support.http import JSON, api_client
from tests.support.sql_door import SqlDoor, code_of

SOON = datetime(2090, 1, 2, 3, 4, 5, 678_000, UTC)
LONG_AGO = datetime(999, 12, 31, tzinfo=UTC)


@pytest.fixture
def app(app_on_each_engine: Tenure) -> Iterator[Tenure]:
    yield app_on_each_engine
    assert app_on_each_engine.verify() == []


@pytest.fixture
def door(app: Tenure) -> Iterator[SqlDoor]:
    door = SqlDoor(app.database)
    yield door
    door.close()


def refusal(act: Any, *values: Any, **options: Any) -> str:
    with pytest.raises((TenureError, sqlite3.Error, psycopg.Error)) as caught:
        act(*values, **options)
    error = caught.value
    return error.code if isinstance(error, TenureError) else code_of(error)


TIMES = ("run_at", "start_by")
REFUSED_OPTIONS = [
    *({"type": name} for name in ("", "a b", "a..b", ".a", "é", "x" * 129, "tenure.webhook")),
    *({"queue": name} for name in ("", "a/b", "x" * 129, "tenure.webhooks")),
    *({"priority": number} for number in (-101, 101, -(2**31))),
    *({"max_retries": number} for number in (-1, 1001)),
    *({"timeout": seconds} for seconds in (0, -1, 315_360_001)),
    *({"delay": seconds} for seconds in (-1, 315_360_001)),
    {"delay": 1, "run_at": SOON},
    {"run_at": LONG_AGO},
    {"start_by": LONG_AGO},
    {"run_at": SOON, "start_by": SOON},
    *({"tags": tags} for tags in ([""], ["a b"], ["é"], ["x" * 129], [f"t{n}" for n in range(21)])),
    *({"partition": text} for text in ("", "a\n", "\x7f", "\x85", "é" * 129)),
    *({"idempotency_key": key} for key in ("", "a b", "é", "x" * 256)),
    *({"backoff": policy} for policy in ({"base": -1}, {"factor": 0.5}, {"no": 1}, "text")),
    *({"backoff": delays} for delays in ([], [1, -1], ["soon"], [1] * 21, {"delays": [-1]})),
    {"payload": "{}", "queue": "full"},
    {"payload": '{"n": 2}', "idempotency_key": "used"},
]


def test_options_are_refused_by_sql_as_by_python_and_http(
    app: Tenure, door: SqlDoor, subtests: pytest.Subtests
) -> None:
    app.queues.limit("full", max_pending=0)
    app.enqueue("mail", {"n": 1}, idempotency_key="used")
    with api_client(app) as api:
        for options in REFUSED_OPTIONS:
            with subtests.test(f"{options!a:.60}"):
                given = {"type": "mail", "payload": "{}", **options}
                type, text = given.pop("type"), given.pop("payload")
                body = {"type": type, "payload": {"n": 2} if "2" in text else {}, **given}
                key = body.pop("idempotency_key", None)
                headers = {**JSON, **({} if key is None else {"idempotency-key": key})}
                asked = {k: v.isoformat() if k in TIMES else v for k, v in body.items()}
                code = refusal(app.enqueue, type, body["payload"], **given)
                assert refusal(door.enqueue, type, text, **given) == code
                if key is None or key.isascii():
                    assert api.post("/jobs", json=asked, headers=headers).json()["code"] == code
                assert app.count().jobs == 1


@pytest.mark.parametrize(
    "backoff",
    [{"base": 1.0, "factor": 2.0, "cap": 9.0}, [10, 0.5], {"delays": [10, 0.5]}, 7],
    ids=str,
)
def test_a_job_of_sql_is_like_one_of_python(app: Tenure, door: SqlDoor, backoff: Any) -> None:
    options: dict[str, Any] = {
        "queue": "slow",
        "priority": -3,
        "max_retries": 7,
        "timeout": 1.25,
        "backoff": backoff,
        "run_at": SOON,
        "tags": ["customer:17", "e", "b", "b"],
        "partition": " Ärger: 😀\\",
    }
    door.enqueue("mail", '{"text": "é 😀", "list": [1, 2.5, null]}', **options)
    (job,) = app.find()
    again = app.enqueue("mail", job.payload, **options)
    ours, theirs = ({**_fields(each), "id": 0, "created_at": 0} for each in (job, again))
    for fields in (ours, theirs):
        fields["payload_json"] = json.loads(fields["payload_json"])
    assert {name for name, value in ours.items() if value != theirs[name]} == {"actor"}
    who = "sql" if door.engine == "sqlite" else "sql:postgres"
    assert (job.actor, app.history(job.id)[0].actor) == (who, who)
    door.enqueue("mail", "{}", delay=60)
    delayed = app.find()[0]
    assert (delayed.run_at - delayed.created_at).total_seconds() == 60


def _fields(job: Any) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


def test_sql_takes_the_options_of_the_type(app: Tenure, door: SqlDoor) -> None:
    @app.job(queue="slow", max_retries=2, timeout=30, backoff=["7s", "1m"])
    def mail() -> None: ...

    app.core.declare(app.core.handlers.options())
    door.enqueue("mail", "{}")
    door.enqueue("mail", "{}", queue="fast", max_retries=1)
    given, usual = app.find()
    assert (usual.queue, usual.max_retries, usual.timeout) == ("slow", 2, 30)
    assert usual.backoff.delays == (7, 60)
    assert (given.queue, given.max_retries, given.timeout) == ("fast", 1, 30)


def test_sql_takes_the_options_of_a_type_in_the_queues_they_are_for(
    app: Tenure, door: SqlDoor
) -> None:
    own = app.core.limited_to(("a_b", "post.*", "x"))
    own.declare({"parcel": TypeOptions(queue="post.a", max_retries=2)})
    door.enqueue("parcel", "{}")
    theirs, others = ("a_b", "post.z", "x"), ("acb", "post", "b", "a_b.x")
    for queue in (*theirs, *others):
        door.enqueue("parcel", "{}", queue=queue)
    found = {job.queue: job.max_retries for job in app.find()}
    assert found == dict.fromkeys(["post.a", *theirs], 2) | dict.fromkeys(others, 10)


def test_a_key_means_the_same_to_sql_and_python(app: Tenure, door: SqlDoor) -> None:
    """The same request has the same type, queue and payload, whatever the order of its keys."""
    door.enqueue("mail", '{"b": 1, "a": [2]}', idempotency_key="theirs")
    (job,) = app.find()
    assert app.enqueue("mail", {"a": [2], "b": 1}, idempotency_key="theirs") == job
    app.enqueue("mail", {"b": 1, "a": [2.0]}, idempotency_key="ours")
    for key, text in (("ours", '{"a": [2], "b": 1}'), ("theirs", '{"a": [2], "b": 1.0}')):
        door.enqueue("mail", text, idempotency_key=key)
    others = ({}, {"b": 1}, {"b": True, "a": [2]}, {"b": 1, "a": [2], "c": None})
    for other in (*others, {"b": 1, "a": [2, 3]}, {"b": 1, "a": {"0": 2}}, {"b": "1", "a": [2]}):
        with pytest.raises(KeyConflict):
            app.enqueue("mail", other, idempotency_key="theirs")
        for key in ("ours", "theirs"):
            text = json.dumps(other)
            assert refusal(door.enqueue, "mail", text, idempotency_key=key) == KeyConflict.code
    assert app.count().jobs == 2


def test_a_check_takes_no_longer_than_the_payload_is(door: SqlDoor) -> None:
    """That of the depth took 47 seconds for these 12 KB, in SQLite's one write transaction."""
    began = time.monotonic()
    door.enqueue("mail", json.dumps({"k" * 210: [{} for _ in range(3_000)]}))
    assert time.monotonic() - began < 10


def test_triggers_of_users_add_jobs_with_their_rows(app: Tenure, door: SqlDoor) -> None:
    run = door.connection.execute
    run("CREATE TABLE orders (number INTEGER)")
    if door.engine == "sqlite":
        run(
            "CREATE TRIGGER ordered AFTER INSERT ON orders BEGIN INSERT INTO tenure_enqueue"
            " (type, payload) VALUES ('ship', json_object('number', NEW.number)); END"
        )
    else:
        run(
            "CREATE FUNCTION ordered() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM tenure.enqueue('ship', jsonb_build_object('number', NEW.number));"
            " RETURN NULL; END $$"
        )
        run("CREATE TRIGGER ordered AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ordered()")
    run("BEGIN")
    run("INSERT INTO orders VALUES (1)")
    run("ROLLBACK")
    run("INSERT INTO orders VALUES (2), (3)")
    assert sorted(job.payload["number"] for job in app.find(type="ship")) == [2, 3]


@pytest.mark.postgres
def test_a_role_with_execute_alone_adds_jobs_and_does_nothing_else(postgres_url: str) -> None:
    role = f"producer_{uuid.uuid4().hex}"
    with Tenure(postgres_url) as app, psycopg.connect(postgres_url, autocommit=True) as owner:
        try:
            owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'guest'".encode())
        except psycopg.errors.InsufficientPrivilege as error:
            pytest.skip(f"the server of TENURE_TEST_DATABASE_URL: {error}")
        owner.execute(f"GRANT USAGE ON SCHEMA tenure TO {role}".encode())
        url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}user={role}&password=guest"
        door = SqlDoor(url)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            door.enqueue("mail", "{}")
        owner.execute(f"GRANT EXECUTE ON FUNCTION tenure.enqueue TO {role}".encode())
        id = door.enqueue("mail", "{}", idempotency_key="k")
        assert door.enqueue("mail", "{}", idempotency_key="k") == id
        assert app.get(str(id)).actor == f"sql:{role}"
        assert refusal(door.enqueue, "a b", "{}") == "invalid_input"
        for statement in (
            "SELECT * FROM tenure.job",
            "DELETE FROM tenure.job",
            "INSERT INTO tenure.job (id, type, run_at, created_at)"
            " VALUES (tenure.new_id(), 'mail', now(), now())",
            "SELECT tenure.add('{\"jobs\": []}')",
            "SELECT * FROM tenure.claim('default', 0, now(), tenure.new_id(), now(), now(),"
            " 'me', NULL, 1, 1)",
            "CREATE TABLE tenure.mine ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                door.connection.execute(statement)
        # What the caller puts into its own schemas is not called with the owner's rights.
        door.connection.execute(
            "CREATE FUNCTION pg_temp.add(text) RETURNS text AS 'SELECT $1' LANGUAGE sql"
        )
        door.enqueue("mail", "{}")
        door.close()
        assert app.count().jobs == 2
        owner.execute(f"DROP OWNED BY {role}".encode())
        owner.execute(f"DROP ROLE {role}".encode())


def test_sql_takes_every_option_of_python(door: SqlDoor) -> None:
    """But `actor`: nobody can sign as another there. And `unique`: SQL has no such hash.

    Nor dependencies, so far.
    """
    named = {"type", "payload", *Options.__annotations__} - {
        "actor",
        "unique",
        "depends_on",
        "needs",
    }
    if door.engine == "sqlite":
        columns = door.connection.execute("SELECT name FROM pragma_table_info('tenure_enqueue')")
        assert {name for (name,) in columns} == named
    else:
        names = "SELECT proargnames FROM pg_proc WHERE oid = 'tenure.enqueue'::regproc"
        ((found,),) = door.connection.execute(names).fetchall()
        assert set(found) == named | {"notify"}
