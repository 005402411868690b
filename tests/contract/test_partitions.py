"""The partition of a job: what divides its queue, given in the call or by the type."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tenure import InvalidInput, JobType, KeyConflict, NewJob, Tenure
from tenure.errors import IllegalTransition
from tenure.handlers.arguments import partitioner
from tenure.rules.search import Filter
from tenure.store import search
from tests.support.cli import run_cli
from tests.support.http import JSON, api_client
from tests.support.raw_sql import Refused
from tests.support.store import StoreHarness

HOSTILE = ["", "a\0b", "a\nb", "\x1f", "\x7f", "\x9f", "é" * 129, "a\ud800", 17, ["a"], True]


@pytest.mark.parametrize("text", ["a", "é" * 128, " acme: \u202e\\'%s{}", "😀\ufeff\u2028"])
def test_a_partition_is_the_same_everywhere(harness: StoreHarness, app: Tenure, text: str) -> None:
    job = app.enqueue("a", partition=text)
    assert (job.partition, app.get(job.id)) == (text, job)
    with api_client(app) as api:
        posted = api.post("/jobs", json={"type": "a", "partition": text}).json()
        (listed,) = api.get("/jobs", params={"partition": text, "limit": 1}).json()
        assert posted == listed
        assert posted["partition"] == text
        assert api.get("/jobs/count", params={"partition": text}).json()["jobs"] == 2
    given = ("--partition", text, "--database", app.database)
    id = run_cli("enqueue", "a", *given).stdout.strip()
    again = app.run_again(id)
    assert [one.id for one in app.find(partition=text)] == [again.id, id, posted["id"], job.id]
    assert app.count(partition=text).jobs == 4
    assert app.find(partition=f"{text}x"[-128:]) == []


def test_what_is_no_partition_is_refused_everywhere(app: Tenure, subtests: pytest.Subtests) -> None:
    @app.job(partition_by="one")
    def mail(one: Any) -> None: ...

    with api_client(app) as api:
        for text in HOSTILE:
            with subtests.test(ascii(text)[:60]):
                _is_no_partition(app, api, mail, text)
    assert app.count().jobs == 0


def _is_no_partition(app: Tenure, api: TestClient, mail: JobType[..., None], text: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        app.enqueue("a", partition=text)
    assert refused.value.path == "$.partition"
    if type(text) is str:
        for act in (lambda: mail.enqueue(text), lambda: app.find(partition=text)):
            with pytest.raises(InvalidInput):
                act()
        if "\0" not in text and text.isprintable():
            given = ("--partition", text, "--database", app.database)
            assert run_cli("enqueue", "a", *given).exit_code == 2
    body = NewJob("a", {}, {"partition": text}).options
    with suppress(UnicodeEncodeError):  # no client can send it
        answer = api.post("/jobs", json={"type": "a", **body}, headers=JSON)
        assert answer.status_code == 400, answer.text


def test_sql_cannot_write_another_partition(
    harness: StoreHarness, subtests: pytest.Subtests
) -> None:
    job = harness.add()
    statement = (
        "INSERT INTO {job} (id, type, run_at, created_at, partition)"
        " SELECT '018f0000-0000-7000-8000-00000000000%s', 'work', run_at, created_at, ?"
        " FROM {job} LIMIT 1"
    )
    for text in ("", "a\n", "\x7f", "\x85", "é" * 129):
        with subtests.test(ascii(text)), pytest.raises(Refused):
            harness.sql.run(statement % 1, text)
    harness.sql.run(statement % 2, "é" * 128)
    with pytest.raises(Refused):
        harness.sql.run("UPDATE {job} SET partition = 'b' WHERE id = ?", job.id)


def test_a_partition_is_part_of_what_a_key_stands_for_if_given(app: Tenure) -> None:
    @app.job(partition_by="tenant")
    def sync(tenant: str) -> None: ...

    first = sync.options(idempotency_key="k").enqueue("a")
    assert app.enqueue("sync", {"tenant": "a"}, idempotency_key="k") == first
    with pytest.raises(KeyConflict):
        sync.options(idempotency_key="k", partition="a").enqueue("a")


def test_every_road_takes_the_partition_of_the_payload(app: Tenure) -> None:
    @app.job(partition_by="tenant")
    def sync(tenant: str, full: bool = False) -> None: ...

    sync.enqueue("a")
    sync.options(partition="given").enqueue("a")
    app.enqueue("sync", {"tenant": "b"})
    app.enqueue_many([sync.new_job("c"), NewJob("sync", {"tenant": "d"}, {})])
    with api_client(app) as api:
        api.post("/jobs", json={"type": "sync", "payload": {"tenant": "e"}}, headers=JSON)
        refused = api.post("/jobs", json={"type": "sync", "payload": {}}, headers=JSON)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_input")
    app.schedules.create("s", sync.new_job("f"), every="1h")
    app.schedules.trigger("s")
    app.schedules.create("t", sync.options(partition="given").new_job("f"), every="1h")
    app.schedules.trigger("t")
    open_one = psycopg.connect if app.database.startswith("postgres") else sqlite3.connect
    with closing(open_one(app.database.removeprefix("sqlite:///"))) as connection:
        sync.within(connection).enqueue("g")
        sync.options(partition="given").within(connection).enqueue("g")
        connection.commit()
    found = [job.partition for job in reversed(app.find())]
    assert found == ["a", "given", "b", "c", "d", "e", "f", "given", "g", "given"]


def test_values_are_written_as_text(app: Tenure) -> None:
    @app.job(partition_by="value")
    def one(value: Any = "usual") -> None: ...

    @app.job(partition_by=("left", "right"))
    def two(left: Any, right: Any) -> None: ...

    @app.job(partition_by=lambda payload: payload.get("key"))
    def called(**_: Any) -> None: ...

    id = UUID("018f0000-0000-7000-8000-000000000001")
    assert one.enqueue().partition == "usual"
    values = ["x:y\\", 7, True, 1.5, None, id]
    assert [one.enqueue(value).partition for value in values] == [
        *("x:y\\", "7", "true", "1.5", None, str(id))
    ]
    assert two.enqueue("a:b", "c\\").partition == r"a\:b:c" + "\\\\"
    assert two.enqueue("a", None).partition is None
    assert [called.enqueue(key="k").partition, called.enqueue().partition] == ["k", None]
    for wrong in ([1], {"a": 1}):
        with pytest.raises(InvalidInput, match="a text or a number"):
            one.enqueue(wrong)


def test_a_function_that_raises_refuses_the_job(app: Tenure) -> None:
    @app.job(partition_by=lambda payload: payload["missing"])
    def called(n: int) -> None: ...

    with pytest.raises(InvalidInput, match="partition_by of called failed: KeyError"):
        called.enqueue(1)


def test_a_parameter_that_is_not_there_is_refused_at_once(
    app: Tenure, subtests: pytest.Subtests
) -> None:
    def wrong(n: int) -> None: ...

    others: list[Any] = ["other", ("n", "other"), (), 7, ["n"]]
    for by in others:
        with subtests.test(str(by)):
            with pytest.raises(InvalidInput) as refused:
                app.job(partition_by=by)(wrong)
            assert refused.value.path == "$.partition_by"


PART = st.lists(st.sampled_from(["\\", ":", "a", "b:"]), max_size=3).map("".join)


@given(PART, PART, PART)
def test_two_names_never_give_one_partition_for_two_pairs(a: str, b: str, c: str) -> None:
    """oban#1363: ("ab", "c") and ("a", "bc") were one."""
    found = partitioner("f", ("a", "b"), None, {})
    pairs = [(f"{a}:{b}", c), (a, f"{b}:{c}"), (f"{a}\\", f"{b}:{c}"), (f"{a}:{b}\\", c)]
    texts = {found(dict(zip("ab", pair, strict=True))) for pair in pairs}
    assert len(texts) == len(set(pairs))


def test_a_search_by_partition_is_bounded(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_ROWS", 3)
    app.enqueue("a", partition="a")
    for _ in range(5):
        app.enqueue("a", partition="b")
    page = app.core.page(Filter(partition="a"), 5, None)
    assert (page.jobs, page.searched_all) == ([], False)
    assert len(app.find(partition="a")) == 1


def test_it_never_changes(app: Tenure) -> None:
    job = app.enqueue("a", partition="a", delay=60)
    with pytest.raises((InvalidInput, IllegalTransition)):
        app.amend(job.id, partition="b")  # type: ignore[call-arg]
