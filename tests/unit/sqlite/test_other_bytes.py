"""A text of SQLite may be any bytes. A row with such a text stops no list and no other job."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from tenure import Job, Tenure
from tests.support.http import api_client, claim_jobs
from tests.support.raw_sql import RawSql
from tests.support.waiting import wait_until
from tests.support.workers import running_sweeper, running_worker, wait_until_settled

ID = "01a2136a-f5a6-72ea-a3c2-bbf630af6601"
OTHER_ID = b"01a2136a-f5a6-72ea-a3c2-bbf630af6602"
PAYLOADS = {
    "small": b'{"text": "\xff"}',
    "large": b'{"text": "' + b"x" * 9_000 + b'\x80"}',
    "more": b'{"text": "a"}\0{',
}


@pytest.fixture
def raw(app: Tenure) -> Iterator[RawSql]:
    connection = RawSql(app.database)
    yield connection
    connection.close()


def insert(raw: RawSql, id: bytes = ID.encode(), **texts: bytes) -> None:
    values = {"id": id, "type": b"mail", **texts}
    raw.run(
        f"INSERT INTO {{job}} (priority, run_at, created_at, {', '.join(values)})"
        f" VALUES (-5, {{now}}, {{now}}, {', '.join(['CAST(? AS TEXT)'] * len(values))})",
        *values.values(),
    )


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_such_a_payload_fails_alone(app: Tenure, raw: RawSql, payload: bytes) -> None:
    @app.job(name="mail")
    def mail(text: str = "") -> str:
        return text

    insert(raw, payload=payload)
    good = [app.enqueue("mail", {"text": "good"}).id for _ in range(5)]
    with running_worker(app, concurrency=8):
        ends = [wait_until_settled(app, id) for id in (*good, ID)]
    assert [job.status for job in ends] == [*["completed"] * 5, "failed"]
    assert "JSON is malformed" in str(ends[-1].last_error)
    assert ends[-1].attempts == 1


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_such_a_payload_fails_alone_over_http(app: Tenure, raw: RawSql, payload: bytes) -> None:
    insert(raw, payload=payload)
    good = app.enqueue("mail").id
    with api_client(app) as api:
        assert [lease["id"] for lease in claim_jobs(api, 10)] == [good]
        assert {job["id"] for job in api.get("/jobs").json()} == {ID, good}
    assert app.get(ID).status == "failed"


@pytest.mark.parametrize(
    ("column", "value"),
    [("actor", "web"), ("payload", "{}"), ("tags", '["a"]'), ("backoff", '{"base":1}')],
)
def test_a_nul_hides_nothing_from_verify(app: Tenure, raw: RawSql, column: str, value: str) -> None:
    """Functions of SQLite read a text up to its first NUL, so the guards do not see the rest."""
    insert(raw, **{column: value.encode()})
    assert app.verify() == []
    insert(raw, OTHER_ID, **{column: f"{value}\0{{".encode()})
    (violation,) = app.verify()
    assert violation.job_id == OTHER_ID.decode()
    assert violation.found == "refused by texts_have_no_nul"


def test_every_list_shows_such_rows(app: Tenure, raw: RawSql) -> None:
    odd = b"\xe2\x82 \xff"
    insert(raw, payload=PAYLOADS["small"], actor=odd, fingerprint=odd, event=odd)
    raw.run("INSERT INTO {queue} (name, paused_at) VALUES (CAST(? AS TEXT), 1)", odd)
    others = [app.enqueue("mail").id for _ in range(3)]
    shown = "\\\\xe2\\\\x82 \\\\xff"

    def jobs() -> dict[str, Job]:
        return {job.id: job for job in app.find()}

    assert set(jobs()) == {ID, *others}
    assert app.get(ID).actor == jobs()[ID].actor == shown
    assert [entry.actor for entry in app.history(ID)] == [shown]
    assert len(app.events.read("0").events) == 4
    assert shown in [queue.name for queue in app.queues.list()]
    assert app.stats.counts()
    raw.run(
        "UPDATE {job} SET status = 'processing', attempts = 1, token = 1, event = 'claimed',"
        " lease_id = {new_lease}, lease_expires_at = {now}, started_at = {now},"
        " worker = CAST(? AS TEXT) WHERE id = ?",
        *(odd, ID),
    )
    with running_sweeper(app):
        wait_until(lambda: app.get(ID).status == "pending", "the sweep to end its lease")
    assert app.verify() == []


@pytest.mark.parametrize(
    "id",
    [
        b"zza2136a-f5a6-72ea-a3c2-bbf630af6601",
        b"01A2136A-F5A6-72EA-A3C2-BBF630AF6601",
        b"01a2136a-f5a6-72ea-a3c2-bbf630af660\xff",
        b"01a2136a-f5a6-72ea-a3c2-bbf630af66\xc3\x28a",
    ],
    ids=ascii,
)
def test_an_id_consists_of_hexadecimal_digits(app: Tenure, raw: RawSql, id: bytes) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="id_is_a_uuid_7"):
        insert(raw, id)
    assert app.find() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("type", "a\0 é"),
        ("queue", "default\0"),
        ("tags", '["a\\u0000 b"]'),
        ("partition", b"a"),
        ("idempotency_key", "k\0é"),
        ("idempotency_key", b"k"),
        ("backoff", b"{}"),
    ],
)
def test_the_view_refuses_bytes_and_what_a_nul_hides(
    app: Tenure, raw: RawSql, column: str, value: str | bytes
) -> None:
    given = {"type": "mail", column: value}
    marks = ", ".join("?" * len(given))
    with pytest.raises(sqlite3.IntegrityError, match=rf"^tenure: invalid_input: \$\.{column}: "):
        raw.run(
            f"INSERT INTO tenure_enqueue ({', '.join(given)}) VALUES ({marks})", *given.values()
        )
    assert app.find() == []
