"""Tokens kept in the database: each call by each scope, and how a token begins and ends."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, StoreUnavailable, Tenure
from tenure.client import Client
from tenure.errors import Forbidden, Unauthorized
from tenure.http import guard
from tenure.http.call import Route
from tenure.http.routes import ROUTES
from tenure.rules.tokens import Scope, tokens_with
from tenure.settings import Settings
from tenure.store.database import Reads
from tenure.store.tables import tokens as token_table
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.clock import Clock
from tests.support.http import (
    UNKNOWN_ID,
    ServerProcess,
    api_client,
    assert_problem,
    claim_jobs,
    report,
)
from tests.support.waiting import wait_until
from tests.support.workers import running_worker, wait_until_completed

OWNER = "the-token-of-the-settings"

NEEDED = {
    "health": "",
    **dict.fromkeys(["ready", "describe"], "enqueue work read"),
    **dict.fromkeys(["createJob", "createJobs"], "enqueue"),
    **dict.fromkeys(["listJobs", "showJob", "showHistory", "showSteps", "explainJob"], "read"),
    **dict.fromkeys(["listQueues", "listWorkers", "showStats", "showMetrics", "listRules"], "read"),
    **dict.fromkeys(["countJobs", "listBulks", "showBulk"], "read"),
    **dict.fromkeys(["startBulk", "stopBulk"], "admin"),
    "streamEvents": "read",
    **dict.fromkeys(["leaseJobs", "reportMany", "renewLeases", "declareType"], "work"),
    "listTypes": "read",
    **dict.fromkeys(
        ["recordProgress", "streamEnds", "loadSteps", "recordStep", "keepState"], "work"
    ),
    **dict.fromkeys(["cancelJob", "retryJob", "unblockJob", "amendJob", "runJobAgain"], "admin"),
    **dict.fromkeys(["listSchedules", "showSchedule", "listFires", "nextTicks"], "read"),
    "previewSchedule": "read",
    **dict.fromkeys(["putSchedule", "deleteSchedule", "pauseSchedule"], "admin"),
    **dict.fromkeys(["resumeSchedule", "triggerSchedule", "backfillSchedule"], "admin"),
    **dict.fromkeys(["pauseType", "resumeType"], "admin"),
    **dict.fromkeys(["pauseQueue", "resumeQueue", "limitQueue"], "admin"),
    **dict.fromkeys(["setPartition", "passOver", "keepType", "keepQueue"], "admin"),
    "listPartitions": "read",
    "sendSignal": "enqueue",
    **dict.fromkeys(["findSignal", "keepSignalToken"], "work"),
    "listSignals": "read",
    **dict.fromkeys(["createWorkflow", "addToWorkflow"], "enqueue"),
    **dict.fromkeys(["listWorkflows", "showWorkflow", "showGraph"], "read"),
    **dict.fromkeys(["listParents", "listFollowers"], "read"),
    **dict.fromkeys(["cancelWorkflow", "retryWorkflow"], "admin"),
    "showParents": "work",
    **dict.fromkeys(["useSignalToken", "showSignalToken"], ""),
}
"""The scopes, one of which a call needs beside `admin`: said again here, so that a change of the
routes is a change of two places, and a new route fails until somebody has thought about it."""


@pytest.fixture
def guarded(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server that looks at the tokens in the database for every request."""
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with api_client(app, Settings(tokens=(OWNER,))) as api:
        yield api


def call(api: TestClient, route: Route, token: str | None) -> tuple[int, str]:
    """Make a call that changes nothing and does not last; the status and the code of a refusal."""
    path = route.path.format(id=UNKNOWN_ID, lease="x", name="no queue", token="x", signal="x")
    path += "?after=nowhere" if route.name == "streamEvents" else ""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    response = api.request(route.method, path, headers=headers)
    code = response.json()["code"] if response.status_code >= 400 else ""
    return response.status_code, code


# --- which call takes which token -----------------------------------------------------------------


@pytest.mark.requirement("C3")
def test_every_route_says_which_scope_it_needs() -> None:
    assert {route.name: " ".join(s for s in Scope if s in route.scopes) for route in ROUTES} == {
        name: " ".join(s for s in Scope if s in needed.split() or needed.count(" ") == 2)
        for name, needed in NEEDED.items()
    }


def test_a_route_without_a_scope_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="scopes"):
        Route("GET", "/new", endpoint=print)  # type: ignore[call-arg]


@pytest.mark.requirement("C3")
def test_each_call_by_each_token(
    app: Tenure, guarded: TestClient, subtests: pytest.Subtests
) -> None:
    clock = Clock(app.database)
    tokens = {scope: app.tokens.create(scope, [scope])[0] for scope in Scope}
    bad = {"wrong": "tenure_" + "x" * 43, "": ""}
    bad["revoked"] = app.tokens.create("revoked", Scope)[0]
    app.tokens.revoke("revoked")
    bad["expired"] = app.tokens.create("expired", Scope, expires="1h")[0]
    for route in ROUTES:
        with subtests.test(route.name):
            assert call(guarded, route, bad["expired"])[1] not in ("unauthorized", "forbidden")
    clock.advance(3600)
    bad["digest"] = app.tokens.list()[0].digest
    bad["prefix"] = tokens[Scope.ADMIN][:11]

    for route in ROUTES:
        with subtests.test(route.name):
            for why, token in {**bad, "none": None}.items():
                status = call(guarded, route, token)
                assert (status == (401, "unauthorized")) is (NEEDED[route.name] != ""), why
            for scope, token in tokens.items():
                refused = call(guarded, route, token) == (403, "forbidden")
                needed = NEEDED[route.name].split()
                assert refused is (bool(needed) and scope != "admin" and scope not in needed), scope
            assert call(guarded, route, OWNER)[1] not in ("unauthorized", "forbidden")
    clock.close()


def test_several_scopes_are_as_good_as_several_tokens(app: Tenure, guarded: TestClient) -> None:
    token, made = app.tokens.create("shop", ["read", "enqueue", "read"])
    assert made.scopes == (Scope.ENQUEUE, Scope.READ)
    guarded.headers["Authorization"] = f"Bearer {token}"
    job = guarded.post("/jobs", json={"type": "a"}).json()
    assert guarded.get(f"/jobs/{job['id']}").json()["status"] == "pending"
    assert_problem(guarded.post(f"/jobs/{job['id']}/cancel"), 403, "forbidden")
    assert app.get(job["id"]).status == "pending"


def test_the_description_names_the_scopes(guarded: TestClient) -> None:
    guarded.headers["Authorization"] = f"Bearer {OWNER}"
    paths = guarded.get("/openapi.json").json()["paths"]
    for route in ROUTES:
        told = paths[route.path][route.method.lower()]["security"]
        assert [name for one in told for name in one["token"]] == [
            scope for scope in Scope if scope in route.scopes
        ]


@pytest.mark.requirement("C23")
def test_the_ledger_names_the_token(app: Tenure, guarded: TestClient) -> None:
    """Who did it: whoever enqueued, and whoever stopped it."""
    shop, _ = app.tokens.create("shop", ["enqueue"])
    boss, _ = app.tokens.create("boss", ["admin"])
    guarded.headers["Authorization"] = f"Bearer {shop}"
    job = guarded.post("/jobs", json={"type": "a"}).json()
    (other,) = guarded.post("/jobs/batch", json=[{"type": "a"}]).json()
    guarded.headers["Authorization"] = f"Bearer {boss}"
    guarded.post(f"/jobs/{job['id']}/cancel")
    guarded.headers["Authorization"] = f"Bearer {OWNER}"
    guarded.post(f"/jobs/{other['id']}/cancel")
    assert [transition.actor for transition in app.history(job["id"])] == [
        "token:shop",
        "token:boss",
    ]
    assert [transition.actor for transition in app.history(other["id"])] == ["token:shop", "http"]


# --- how it begins and ends -----------------------------------------------------------------------


@pytest.mark.requirement("C3", "C12")
@pytest.mark.parametrize("name", ["token:boss", "cli:root@prod", "dashboard", "x/token:boss"])
def test_a_worker_cannot_name_itself_in_the_ledger(
    app: Tenure, guarded: TestClient, name: str
) -> None:
    worker, other = (app.tokens.create(each, ["work"])[0] for each in ("w", "other"))
    app.tokens.create("boss", ["admin"])
    for outcome in ("completed", "failed", "released"):
        job = app.enqueue("pay", max_retries=1)
        guarded.headers["Authorization"] = f"Bearer {worker}"
        (lease,) = claim_jobs(guarded, worker=name)
        guarded.headers["Authorization"] = f"Bearer {other}"
        assert claim_jobs(guarded, worker=name) == []  # and overwrites nothing of the first
        error = {"error": "by order of the boss"} if outcome == "failed" else {}
        assert report(guarded, lease, outcome, **error) == "recorded"
        assert {entry.actor for entry in app.history(job.id)[1:]} == {f"token:w/{name}"}
        if outcome == "released":
            app.cancel(job.id)
    assert {one.id for one in app.workers.list()} == {f"token:w/{name}", f"token:other/{name}"}


def test_only_the_digest_is_kept(database_url: str) -> None:
    with Tenure(database_url) as app:
        secret, made = app.tokens.create("shop", ["enqueue"], expires="90d", actor="me")
        assert re.fullmatch("tenure_[A-Za-z0-9_-]{43}", secret)
        assert secret.startswith(made.prefix)
        assert len(made.prefix) < 15
        (kept,) = app.tokens.list()
        assert kept == made
        assert kept.valid
        assert kept.expires_at is not None
        lasts = (kept.expires_at - kept.created_at).total_seconds()
        assert lasts == pytest.approx(90 * 86_400, abs=1)
        assert (kept.created_by, kept.revoked_at, kept.used_at) == ("me", None, None)
        assert secret not in repr(kept)
        assert kept.digest not in repr(kept)
        again = app.tokens.create("other", ["read"])[0]
        assert again != secret


def test_a_name_is_given_once_and_a_revocation_stays(database_url: str) -> None:
    with Tenure(database_url) as app:
        app.tokens.create("shop", ["enqueue"])
        with pytest.raises(InvalidInput, match="another name"):
            app.tokens.create("shop", ["enqueue"])
        revoked = app.tokens.revoke("shop", actor="first")
        assert not revoked.valid
        assert app.tokens.revoke("shop", actor="second") == revoked
        with pytest.raises(InvalidInput, match="another name"):
            app.tokens.create("shop", ["enqueue"])
        with pytest.raises(InvalidInput, match="no token"):
            app.tokens.revoke("nobody")


@pytest.mark.parametrize(
    ("name", "scopes", "expires"),
    [
        ("", ["read"], None),
        ("a b", ["read"], None),
        ("x" * 129, ["read"], None),
        ("a\n", ["read"], None),
        ("a", [], None),
        ("a", ["everything"], None),
        ("a", ["read", "root"], None),
        ("a", ["read"], "soon"),
        ("a", ["read"], 0),
        ("a", ["read"], -5),
    ],
)
def test_what_makes_no_token(
    app: Tenure, name: str, scopes: list[str], expires: str | int | None
) -> None:
    with pytest.raises(InvalidInput):
        app.tokens.create(name, scopes, expires=expires)
    assert app.tokens.list() == []


def test_a_token_for_no_queue_is_not_one_for_every_queue(app: Tenure) -> None:
    """A list of a tenant's queues that was empty made one."""
    with pytest.raises(InvalidInput, match=r"^\$\.queues: name at least one queue, or give None"):
        app.tokens.create("tenant", ["read"], queues=[])
    assert app.tokens.list() == []


def test_an_open_server_asks_for_tokens_once_there_was_one(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on asking when the last is revoked: nobody is let in by taking a token away."""
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with api_client(app) as api:
        assert api.get("/jobs").status_code == 200
        token, _ = app.tokens.create("one", ["read"])
        assert_problem(api.get("/jobs"), 401, "unauthorized")
        app.tokens.revoke("one")
        with_it = {"Authorization": f"Bearer {token}"}  # which makes the server look again
        assert_problem(api.get("/jobs", headers=with_it), 401, "unauthorized")
        assert_problem(api.get("/jobs"), 401, "unauthorized")
        assert api.get("/health").status_code == 200


def test_beyond_loopback_no_token_means_nobody(app: Tenure) -> None:
    with api_client(app, Settings(host="192.0.2.1")) as api:
        assert_problem(api.get("/jobs"), 401, "unauthorized")


def test_without_the_database_no_stored_token_opens(
    app: Tenure, guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been revoked meanwhile. Those of the settings go on."""
    token, _ = app.tokens.create("shop", ["read"])
    guarded.headers["Authorization"] = f"Bearer {token}"
    assert guarded.get("/stats").status_code == 200

    def away(_: Reads) -> None:
        raise StoreUnavailable("at secret.host")

    monkeypatch.setattr(token_table, "every", away)
    response = guarded.get("/stats")
    assert_problem(response, 503, "store_unavailable")
    assert "secret" not in response.text
    guarded.headers["Authorization"] = f"Bearer {OWNER}"
    assert guarded.get("/stats").status_code == 200


@pytest.mark.requirement("C9")
def test_guessing_reads_the_database_ten_times_a_second_at_most(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    found = token_table.every
    monkeypatch.setattr(token_table, "every", lambda db: reads.append(1) or found(db))
    tokens = guard.TokenCache(app, (OWNER,), closed=True)

    async def guess() -> float:
        began = asyncio.get_running_loop().time()
        for number in range(5):
            guesses = [tokens.caller(f"guess{number}.{n}".encode()) for n in range(20)]
            assert set(await asyncio.gather(*guesses)) == {None}
        return asyncio.get_running_loop().time() - began

    took = asyncio.run(guess())
    assert len(reads) <= 2 + took / guard.PAUSE_SECONDS


@pytest.mark.requirement("C9")
def test_who_sends_no_token_or_one_of_the_settings_causes_no_read(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_table, "every", None)
    with api_client(app, Settings(tokens=(OWNER,))) as api:
        assert api.get("/jobs", headers={"Authorization": f"Bearer {OWNER}"}).json() == []
        assert api.get("/jobs").status_code == 401


IMPATIENT = (
    sys.executable,
    "-c",
    "from tenure import cli; from tenure.http import guard as cache\n"
    "cache.FRESH_SECONDS, cache.STALE_SECONDS = 0.1, 0.5\n"
    "cli.main()",
)
"""A server that looks at the tokens ten times as often as others do."""


@pytest.mark.requirement("C3")
def test_who_sent_a_token_is_not_told_to_send_one(app: Tenure) -> None:
    """The log of a worker whose token was revoked said only that it has to send a token."""
    app.tokens.create("shop", ["read"])
    with api_client(app) as api:
        wrong = api.get("/jobs", headers={"Authorization": "Bearer wrong"})
        assert (
            "wrong, was revoked or has expired"
            in assert_problem(wrong, 401, "unauthorized")["detail"]
        )
        none = assert_problem(api.get("/jobs"), 401, "unauthorized")
        assert "send a token" in none["detail"]


def test_revoked_on_a_running_server(database_url: str) -> None:
    """As users do it: a server beyond loopback with tokens of the database alone, a worker with
    the scope `work`, a producer with `enqueue`; then one is taken away."""
    output_of("tokens", "create", "first", "--scope", "admin", "--database", database_url)
    with (
        Tenure(database_url) as app,
        ServerProcess(database_url, "--host", "0.0.0.0", program=IMPATIENT) as server,  # noqa: S104
    ):

        @app.job
        def double(number: int) -> int:
            return 2 * number

        url = f"http://127.0.0.1:{server.address[1]}"
        work = output_of(
            "tokens", "create", "worker", "--scope", "work", "--database", database_url
        )
        add = output_of(
            "tokens", "create", "shop", "--scope", "enqueue", "--database", database_url
        )
        with Client(url, work) as worker, Client(url, add) as shop, running_worker(app, worker):
            made = shop.enqueue("double", {"number": 21})
            assert wait_until_completed(app, made).result_json == "42"
            with pytest.raises(Forbidden, match="scope read"):
                shop.get(made.id)
            with pytest.raises(Forbidden):
                shop.cancel(made.id)
            wait_until(lambda: all(t.used_at for t in app.tokens.list()[:2]), "their use on record")
            assert run_cli("tokens", "revoke", "shop", "--database", database_url).exit_code == 0

            def refused() -> bool:
                try:
                    shop.enqueue("double", {"number": 1})
                except Unauthorized:
                    return True
                return False

            wait_until(refused, "the revoked token to be refused", 10)
            app.enqueue("double", {"number": 1})
        code, log = server.stop()
        assert app.verify() == []
    assert code == 0
    assert add not in log
    assert work not in log


# --- the command line -----------------------------------------------------------------------------


def test_commands(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    secret = output_of("tokens", "create", "shop", "--scope", "enqueue", "--scope", "read")
    assert run_cli("tokens", "create", "shop", "--scope", "read").exit_code == 2
    assert run_cli("tokens", "create", "b", "--scope", "root").exit_code == 2
    assert run_cli("tokens", "create", "b").exit_code == 2
    listed = output_of("tokens", "list")
    assert "shop" in listed
    assert "enqueue read" in listed
    assert secret not in listed
    (shown,) = cli_json("tokens", "list")
    assert shown["name"] == "shop"
    assert shown["valid"] is True
    assert "digest" not in shown
    assert cli_json("tokens", "create", "c", "--scope", "work", "--expires", "1h")["expires_at"]
    assert output_of("tokens", "revoke", "shop", "c").splitlines()[-1] == "token c is revoked"
    result = run_cli("tokens", "revoke", "nobody", "shop")
    assert (result.exit_code, result.stdout) == (2, "token shop is revoked\n")  # it ended there
    assert "Error: nobody: " in result.stderr
    assert [token["valid"] for token in cli_json("tokens", "list")] == [False, False]


def test_a_worker_scope_sees_only_what_it_leases(app: Tenure, guarded: TestClient) -> None:
    token, _ = app.tokens.create("worker", ["work"])
    job = app.enqueue("a", {"n": 1})
    guarded.headers["Authorization"] = f"Bearer {token}"
    assert_problem(guarded.get(f"/jobs/{job.id}"), 403, "forbidden")
    (lease,) = claim_jobs(guarded)
    assert lease["payload"] == {"n": 1}
    assert report(guarded, lease, "completed") == "recorded"


def test_what_a_refused_token_lacks_is_named_once() -> None:
    assert tokens_with([Scope.ADMIN]) == "a token with the scope admin"
    assert tokens_with([Scope.READ]) == "a token with the scope read, or admin"
    assert tokens_with([Scope.WORK, Scope.READ]) == "a token with the scope read or work, or admin"
