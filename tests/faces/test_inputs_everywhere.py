"""Hostile input through Python, HTTP and the command line, on both databases: one answer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, Tenure
from tenure.values.payload import MAX_PAYLOAD_BYTES
from tests.support.cli import run_cli
from tests.support.http import JSON, api_client, claim_jobs
from tests.support.sql_door import SqlDoor, code_of

S = pytest.mark.scenario


@pytest.fixture(
    params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.full])]
)
def database_url(request: pytest.FixtureRequest) -> str:
    """On PostgreSQL all cases run in `make chaos` only, and some in one test at the end."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


REFUSED = [
    pytest.param('{"a": "x\\u0000y"}', marks=S(87), id="nul"),
    pytest.param('{"a\\u0000": 1}', marks=S(87), id="nul in a key"),
    pytest.param('{"a": "\\ud800"}', marks=S(88), id="half a surrogate pair"),
    pytest.param('{"\\udc00": 1}', marks=S(88), id="and in a key"),
    pytest.param('{"a": NaN}', marks=S(89), id="nan"),
    pytest.param('{"a": Infinity}', marks=S(89), id="infinity"),
    pytest.param('{"a": [1e999]}', marks=S(89), id="1e999"),
    pytest.param('{"a": 9223372036854775808}', marks=S(90), id="2^63"),
    pytest.param('{"a": ' + "9" * 5000 + "}", marks=S(90), id="5000 digits"),
    pytest.param('{"a": 1e400}', marks=S(90), id="1e400"),
    pytest.param('{"a": ' + "[" * 100 + "]" * 100 + "}", marks=S(91), id="101 deep"),
    pytest.param('{"a": ' + "[" * 90_000, marks=S(91), id="depth bomb"),
    pytest.param('{"a": 1, "a": 1}', marks=S(92), id="a key twice"),
    pytest.param('{"a": {"b": 1, "b": 2}}', marks=S(92), id="and deeper"),
    pytest.param('{"a": "' + "é" * (MAX_PAYLOAD_BYTES // 2) + '"}', marks=S(94), id="a byte more"),
    pytest.param("[]", marks=S(96), id="no object"),
    pytest.param('"text"', marks=S(96), id="a text"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_is_refused_everywhere(app: Tenure, api: TestClient, text: str) -> None:
    is_refused_everywhere(app, api, text)


def is_refused_everywhere(app: Tenure, api: TestClient, text: str) -> None:
    body = f'{{"type": "a", "payload": {text}}}'.encode()
    response = api.post("/jobs", content=body, headers=JSON)
    assert response.status_code in (400, 413), response.text
    told = run_cli("enqueue", "a", "-", "--database", app.database, stdin=text)
    assert told.exit_code == 2, told.output
    try:
        payload = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        pass  # Python itself cannot say it
    else:
        if not _has_doubles(payload):
            with pytest.raises(InvalidInput):
                app.enqueue("a", payload)
        elif app.database.startswith("postgres"):
            return  # its JSON keeps the last of two equal keys
    wrong = (sqlite3.Error, psycopg.Error)
    with closing(SqlDoor(app.database)) as door, pytest.raises(wrong) as refused:
        door.enqueue("a", text)
    if not isinstance(refused.value, psycopg.DataError):  # which says that this is no jsonb
        assert code_of(refused.value) == response.json()["code"]
    assert app.find() == []
    assert app.verify() == []


class _Pairs(dict[str, Any]):
    """What `json.loads` makes of an object; plain again once it is known to have no key twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.doubled = len(self) < len(pairs)


def _has_doubles(value: Any) -> bool:
    if isinstance(value, _Pairs):
        return value.doubled or any(map(_has_doubles, value.values()))
    return isinstance(value, list) and any(map(_has_doubles, value))


KEPT = [
    pytest.param('{"a":"\\u0001\\u2028\\u202e\\ufeff"}', marks=S(87), id="other control codes"),
    pytest.param('{"a":"😀"}', marks=S(88), id="a whole surrogate pair"),
    pytest.param('{"a":[9007199254740993,-9223372036854775808,1.5]}', marks=S(90), id="64 bits"),
    pytest.param('{"a":-0.0}', marks=S(90), id="minus zero"),
    pytest.param('{"a":' + "[" * 99 + "]" * 99 + "}", marks=S(91), id="100 deep"),
    pytest.param('{"b":1,"a":2,"é":3,"e\\u0301":4,"__proto__":5}', marks=S(92), id="order, forms"),
    pytest.param(
        '{"a":"' + "é" * (MAX_PAYLOAD_BYTES // 2 - 4) + '"}', marks=S(94), id="the largest"
    ),
    pytest.param('{"a":"\'; DROP TABLE tenure_job; --%s{}"}', marks=S(95), id="SQL"),
    pytest.param('{"a":[null,true,{},[],"",0]}', marks=S(96), id="every kind"),
]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_accepted_comes_back_the_same_everywhere(
    app: Tenure, api: TestClient, text: str
) -> None:
    comes_back_the_same_everywhere(app, api, text)


def comes_back_the_same_everywhere(app: Tenure, api: TestClient, text: str) -> None:
    sent = json.loads(text)
    body = f'{{"type": "a", "payload": {text}}}'.encode()
    ids = [
        app.enqueue("a", sent).id,
        api.post("/jobs", content=body, headers=JSON).json()["id"],
        run_cli("enqueue", "a", "-", "--database", app.database, stdin=text).stdout.strip(),
    ]
    leased = claim_jobs(api, limit=3)
    assert {lease["id"] for lease in leased} == set(ids)
    for payload in (
        *(app.get(id).payload for id in ids),
        *(lease["payload"] for lease in leased),
        *(job["payload"] for job in api.get("/jobs", params={"limit": 3}).json()),
    ):
        assert json.dumps(payload) == json.dumps(sent)  # order and types, too
    if app.database.startswith("sqlite"):  # PostgreSQL writes JSON in its own order
        with closing(SqlDoor(app.database)) as door:
            door.enqueue("a", text)
        assert json.dumps(app.find(limit=1)[0].payload) == json.dumps(sent)


HOSTILE_NAMES = [
    *("", " ", "a b", "a\nb", "a\0", "\x1b[31m", "\u202etxt", "../etc", "a/b", "a..b", ".a"),
    *("x" * 10_000, "<script>", "'; DROP TABLE job; --", "é", "a?b", "a#b", "a\ud800"),
]


@pytest.mark.scenario(95)
@pytest.mark.requirement("C11")
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_names_are_as_strict_everywhere(app: Tenure, api: TestClient, name: str) -> None:
    is_no_name_anywhere(app, api, name)


def is_no_name_anywhere(app: Tenure, api: TestClient, name: str) -> None:
    for field in ("type", "queue", "idempotency_key"):
        if field == "idempotency_key" and name.isascii() and name.isprintable() and name.strip():
            continue  # a key may be any visible text
        kind, options = (name, {}) if field == "type" else ("a", {field: name})
        with pytest.raises(InvalidInput):
            app.enqueue(kind, {}, **options)  # type: ignore[arg-type]
        body = json.dumps({"type": "a", field: name}).encode()
        assert api.post("/jobs", content=body, headers=JSON).status_code == 400
    if "\0" not in name and name.isprintable():
        assert run_cli("enqueue", "a", "--queue", name, "--database", app.database).exit_code == 2
    assert app.find() == []


@pytest.mark.scenario(87, 88, 90, 95)
def test_some_of_all_that_on_postgres(postgres_url: str) -> None:
    with Tenure(postgres_url) as app, api_client(app) as api:
        for name in ("a\0", "'; DROP TABLE job; --", "a\ud800"):
            is_no_name_anywhere(app, api, name)
        for case in REFUSED[:5] + REFUSED[7:8] + REFUSED[10:11] + REFUSED[14:16]:
            is_refused_everywhere(app, api, *case.values)
        for case in KEPT[:4] + KEPT[5:6] + KEPT[7:]:
            comes_back_the_same_everywhere(app, api, *case.values)
        assert app.verify() == []
