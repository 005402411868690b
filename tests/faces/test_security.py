"""What Tenure never does, whoever asks: load code from data, call out, tell or hand on secrets."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

import tenure
from tenure import InvalidInput, Tenure, failpoints, settings
from tenure.store.postgres.connection import address_of
from tenure.store.sqlite.connection import path_of
from tenure.telemetry.logs import JsonLines, TextLines
from tenure.values import durations, ids
from tenure.values import payload as payloads
from tenure.values.names import check_key
from tenure.wire import reports
from tests.support.http import ServerProcess, api_client, assert_problem
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed

PACKAGE = Path(tenure.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LOADERS = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle", "jsonpickle", "runpy"}
CALLERS = {"httpx2", "urllib.request", "http.client", "requests", "smtplib", "ftplib"}
IMPORTERS = {
    "__init__.py",  # the public names, from a table
    "cli/running.py",  # what `--app` names
    "worker/child.py",  # in a child process, the module of a registered handler
    "store/postgres/doctor.py",  # psycopg's own names
    "testing/__init__.py",  # the public names, from a table
    "contrib/django/__init__.py",  # likewise
    "contrib/django/web.py",  # the sessions that the settings of the site name
}
READERS = {"contrib/django/tasks.py", "contrib/django/databases.py"}
"""What asks on a connection of Django's, which is not the store's to use."""
CANARY = "canary-7c1f"


class Used(NamedTuple):
    """What a source imports, and the names that it calls: alone, and as a part of something."""

    imports: set[str]
    alone: set[str]
    parts: set[str]


@cache
def used_by(path: Path) -> Used:
    used = Used(set(), set(), set())
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                used.imports.update(name.name for name in names)
            case ast.ImportFrom(module=str(name)):
                used.imports.add(name)
            case ast.Call(func=ast.Name(id=name)):
                used.alone.add(name)
            case ast.Call(func=ast.Attribute(attr=name)):
                used.parts.add(name)
    return used


# --- nothing stored is code -----------------------------------------------------------------------


@pytest.mark.requirement("C1")
def test_nothing_loads_code_from_data(subtests: pytest.Subtests) -> None:
    for source in SOURCES:
        used = used_by(source)
        with subtests.test(source.name):
            assert not used.imports & LOADERS
            assert not used.alone & {"eval", "exec", "compile", "__import__"}
            if "import_module" in used.alone | used.parts:
                assert str(source.relative_to(PACKAGE)) in IMPORTERS


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("type", ["os.system", "builtins.exec", "subprocess.run"])
def test_a_type_nobody_registered_is_not_imported(app: Tenure, type: str) -> None:
    @app.job
    def known() -> int:
        return 1

    job = app.enqueue(type, {"command": "true"})
    with running_worker(app):
        assert wait_until_completed(app, known.enqueue()).result_json == "1"
    assert app.get(job.id).status == "pending"


@pytest.mark.requirement("C1")
def test_what_somebody_wrote_into_the_database_is_only_data(app: Tenure, tmp_path: Path) -> None:
    import pickle

    from tests.support.raw_sql import RawSql

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    @app.job(max_retries=1)
    def known(text: str) -> str:
        return text

    raw = RawSql(app.database)
    raw.drop_checks()  # which refuse what is no JSON object
    made = [known.enqueue(text="a").id]
    for payload in (pickle.dumps(Bomb(), 0).decode("latin-1"), "not JSON", '{"text": 1}', "[1]"):
        id = ids.new_ids(1)[0]
        made.append(id)
        raw.run(
            "INSERT INTO tenure_job (id, type, max_retries, run_at, created_at, payload)"
            " VALUES (?, 'known', 1, 1, 1, ?)",
            id,
            payload,
        )
    raw.close()
    with running_worker(app):
        wait_until_completed(app, made[0])
        for id in made[1:]:
            wait_until_failed(app, id)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.requirement("C8")
def test_only_the_client_calls_out() -> None:
    assert [path.name for path in SOURCES if used_by(path).imports & CALLERS] == ["transport.py"]


@pytest.mark.requirement("C11")
def test_statements_are_built_in_the_store_only() -> None:
    """Everywhere else nothing executes SQL. The simulator has a store in memory."""
    executing = {
        path.relative_to(PACKAGE)
        for path in SOURCES
        for used in [used_by(path)]
        if (used.alone | used.parts) & {"execute", "executemany"}
    }
    others = {path for path in executing if path.parts[0] not in ("store", "simulator")}
    assert {str(path) for path in others} == READERS


# --- secrets and what is told ---------------------------------------------------------------------


@pytest.mark.requirement("C12", "C17")
def test_a_payload_is_in_no_log_and_no_metric(
    app: Tenure, api: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    leases: list[str] = []

    @app.job(max_retries=1)
    def fail(secret: str) -> None:
        local = secret + "-local"
        leases.extend(row[0] for row in _leases(app))
        raise ValueError(len(local))

    with caplog.at_level(logging.DEBUG), running_worker(app):
        api.headers["Authorization"] = f"Bearer {CANARY}"
        made = api.post("/jobs", json={"type": "fail", "payload": {"secret": CANARY}}).json()
        error = wait_until_failed(app, made["id"])
        history = api.get(f"/jobs/{made['id']}/history").text
        told = [api.get(path).text for path in ("/metrics", "/stats", "/queues", "/workers")]
    told += [caplog.text, error, history, api.get(f"/jobs/{made['id']}/explain").text]
    assert leases
    for text in told:
        assert CANARY not in text
        assert not any(lease in text for lease in leases)


def _leases(app: Tenure) -> list[tuple[str]]:
    import sqlite3

    with sqlite3.connect(path_of(app.database)) as connection:
        found = connection.execute("SELECT lease_id FROM tenure_job WHERE lease_id IS NOT NULL")
        rows: list[tuple[str]] = found.fetchall()
    connection.close()
    return rows


@pytest.mark.requirement("C13")
@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nERROR tenure: forged", "\x1b[2J", "%s %d", "{}", "\u202e", "\x85", "\0"]
)
def test_a_log_line_is_one_line_whatever_it_tells(text: str) -> None:
    record = logging.LogRecord("tenure", logging.INFO, "", 0, "job %s", (text,), None)
    line = TextLines().format(record)
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert len(JsonLines().format(record).encode().split(b"\n")) == 1


@pytest.mark.requirement("C16")
@pytest.mark.parametrize(
    "field",
    [
        *("id", "status", "attempts", "token", "result", "last_error", "lease_id", "worker"),
        *("lease_expires_at", "created_at", "started_at", "finished_at", "actor", "event"),
    ],
)
def test_no_body_sets_what_is_tenures_to_set(app: Tenure, api: TestClient, field: str) -> None:
    assert_problem(api.post("/jobs", json={"type": "a", field: 1}), 400, "invalid_input")
    assert_problem(api.post("/jobs/batch", json=[{"type": "a", field: 1}]), 400, "invalid_input")
    assert app.find() == []


@pytest.mark.requirement("C20")
def test_forwarded_headers_change_nothing(api: TestClient) -> None:
    forged = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "for=127.0.0.1;host=evil.example",
        "X-Original-URL": "/queues",
    }
    made = api.post("/jobs", json={"type": "a"}, headers=forged)
    assert made.headers["location"] == f"/jobs/{made.json()['id']}"
    forged["X-Forwarded-Host"] = "localhost"
    response = api.get("/jobs", headers={**forged, "Host": "evil.example"})
    assert_problem(response, 421, "host_not_allowed")


# --- files and processes --------------------------------------------------------------------------


@pytest.mark.requirement("C19")
def test_a_new_database_is_its_owners_only_whatever_the_umask(sqlite_url: str) -> None:
    before = os.umask(0)
    try:
        with Tenure(sqlite_url) as app:
            app.enqueue("a")
            folder = path_of(sqlite_url).parent
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    finally:
        os.umask(before)
    assert "jobs.db" in modes
    assert {name: mode & 0o077 for name, mode in modes.items() if mode & 0o077} == {}


@pytest.mark.requirement("C3")
def test_a_token_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("abc\n")
    file.chmod(0o600)
    assert settings.load({"token_file": str(file)}, {}).tokens == ("abc",)
    file.chmod(0o602)
    with pytest.raises(InvalidInput, match="chmod 600"):
        settings.load({"token_file": str(file)}, {})


@pytest.mark.requirement("C3")
@pytest.mark.parametrize(("mode", "told"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_token_file_that_others_may_read_is_told_of(
    sqlite_url: str, tmp_path: Path, mode: int, told: bool
) -> None:
    file = tmp_path / "tokens"
    file.write_text("the-canary-token\n")
    file.chmod(mode)
    with ServerProcess(sqlite_url, "--token-file", str(file)) as server:
        code, log = server.stop()
    assert code == 0
    assert (f"can read {file}: chmod 600" in log) == told
    assert "canary" not in log


@pytest.mark.requirement("C21")
@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "tools/uv.txt"])
def test_every_dependency_is_pinned_with_its_hash(name: str) -> None:
    text = (Path(__file__).parents[2] / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []


# --- every parser, fed with anything --------------------------------------------------------------

ANY = st.one_of(st.text(max_size=60), st.text(alphabet="0123456789.-wdhms PT:_e+", max_size=30))


@pytest.mark.requirement("C10")
@given(ANY)
def test_durations_are_read_or_refused(text: str) -> None:
    try:
        seconds = durations.seconds(text, path="$")
    except InvalidInput:
        return
    assert durations.seconds(seconds, path="$") == seconds
    assert 0 <= seconds <= durations.MAX_SECONDS


@pytest.mark.requirement("C10")
@given(st.one_of(ANY, st.from_regex("[0-9a-f-]{36}\\.[0-9a-f]{32}", fullmatch=True)))
def test_a_lease_is_read_or_nobodys(text: str) -> None:
    job_id, lease_id = reports.split_lease(text)
    assert reports.join_lease(job_id, lease_id) == text or (job_id, lease_id) == reports.NO_LEASE


@pytest.mark.requirement("C10")
@given(st.one_of(ANY, st.text(max_size=40).map(lambda s: f"sqlite:///{s}")))
def test_a_database_is_read_or_refused(text: str) -> None:
    for read in (path_of, address_of):
        with contextlib.suppress(InvalidInput):
            read(text)


@pytest.mark.requirement("C10")
@given(st.sampled_from(sorted(settings._READERS)), st.one_of(ANY, st.integers(), st.none()))
def test_a_setting_is_read_or_refused(name: str, value: object) -> None:
    with contextlib.suppress(InvalidInput):
        settings._READERS[name](value, name)


@pytest.mark.requirement("C10")
@given(st.text(max_size=200))
def test_a_settings_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InvalidInput):
        settings.load({"config": str(file)}, {})


@pytest.mark.requirement("C10")
@given(st.binary(max_size=200))
def test_a_report_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        payloads.parse(data, lenient=True)


@pytest.mark.requirement("C10")
@given(
    st.one_of(
        st.text(max_size=300),
        st.integers(250, 260).map(lambda length: "x" * length),
        st.text(st.characters(min_codepoint=32, max_codepoint=130), min_size=1, max_size=256),
    )
)
def test_an_idempotency_key_is_refused_or_kept_as_it_is(api_once: TestClient, key: str) -> None:
    """In the body and in the header alike, and what is accepted can be kept by both databases."""
    try:
        known = check_key(key, "$") == key
    except InvalidInput:
        known = False
    assert known == (key.isascii() and key.isprintable() and " " not in key and 0 < len(key) < 256)
    body = json.dumps({"type": "a", "idempotency_key": key}).encode()
    sent = [
        api_once.post("/jobs", content=body, headers={"Content-Type": "application/json"}),
        api_once.post(
            "/jobs",
            json={"type": "a"},
            headers=[(b"Idempotency-Key", key.encode("utf-8", "surrogatepass"))],
        ),
    ]
    if known:
        assert {answered.json()["idempotency_key"] for answered in sent} == {key}
        assert len({answered.json()["id"] for answered in sent}) == 1
    else:
        assert sent[0].status_code == 400
        assert sent[1].status_code < 500


@pytest.mark.requirement("C10")
@given(st.text(max_size=60))
def test_failpoints_are_read_or_refused(text: str) -> None:
    try:
        armed = failpoints.read(text)
    except ValueError:
        return
    assert set(armed) <= set(failpoints.NAMES)


@pytest.mark.requirement("C10")
@given(st.binary(max_size=80))
def test_headers_and_cursors_of_any_kind_are_no_fault(api_once: TestClient, value: bytes) -> None:
    for name in (b"Authorization", b"Last-Event-ID", b"Host", b"Origin", b"Content-Type"):
        response = api_once.post("/jobs", headers=[(name, value)], content=b"{")
        assert response.status_code < 500, (name, value)
    for name in ("cursor", "limit", "status", "after"):
        response = api_once.get("/jobs", params={name: value.decode("latin-1")})
        assert response.status_code < 500, (name, value)
    response = api_once.get("/events", headers=[(b"Last-Event-ID", b"x" + value)])
    assert response.status_code == 400


@pytest.fixture(scope="module")
def api_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One server for many examples; they add jobs at the most."""
    folder = tmp_path_factory.mktemp("fuzz")
    with Tenure(f"sqlite:///{folder}/jobs.db") as app, api_client(app) as api:
        yield api
