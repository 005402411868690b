"""Sessions of the dashboard: secrets that open nothing else, and end on the server's word."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.http import guard
from tenure.rules.tokens import digest_of, hidden
from tenure.settings import Settings
from tenure.store.tables import tokens as tables_tokens
from tests.support.clock import Clock
from tests.support.http import api_client, assert_problem
from tests.support.raw_sql import RawSql

OWNER = "the-token-of-the-settings"
GUARDED = Settings(tokens=(OWNER,))


@pytest.fixture
def app(database_url: str) -> Iterator[Tenure]:
    with Tenure(database_url) as app:
        yield app


@pytest.fixture
def web(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server that looks at the tokens in the database for every request."""
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with api_client(app, GUARDED) as web:
        yield web


def post(web: TestClient, path: str, **fields: str) -> int:
    """Send a form as a browser does; the status of the answer."""
    found = re.search(r'name="form" value="([0-9a-f]{32})"', web.get("/ui/sign-in").text)
    assert found
    sent = {"form": found[1], **fields}
    return web.post(path, data=sent, follow_redirects=False).status_code


def sign_in(web: TestClient, token: str = OWNER) -> str:
    """Sign in; the secret of the session."""
    assert post(web, "/ui/sign-in", token=token) == 303
    return web.cookies["tenure_session"]


def opens(web: TestClient, secret: str) -> bool:
    """Whether a cookie opens the dashboard in another browser."""
    other = TestClient(web.app, base_url="http://localhost")
    other.cookies.set("tenure_session", secret)
    return other.get("/", follow_redirects=False).status_code == 200


@pytest.mark.requirement("C3")
def test_a_session_opens_the_dashboard_and_not_the_api(app: Tenure, web: TestClient) -> None:
    token, _ = app.tokens.create("boss", ["admin"])
    for given in (token, OWNER):
        secret = sign_in(web, given)
        assert given not in secret
        assert web.get("/", follow_redirects=False).status_code == 200
        assert_problem(web.get("/jobs"), 401, "unauthorized")
        bearer = {"Authorization": f"Bearer {secret}"}
        assert_problem(web.get("/jobs", headers=bearer), 401, "unauthorized")
        assert post(web, "/ui/sign-in", token=secret) == 403
    assert not opens(web, token), "a token is no session"


@pytest.mark.requirement("C3")
def test_a_session_has_ended_although_a_read_was_under_way(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two times of a loop's clock, which has milliseconds, do not say which came first."""
    end, every = app.core.end_session, app.core.sessions
    was_read, has_ended = threading.Event(), threading.Event()

    def end_meanwhile(digest: bytes) -> None:
        assert was_read.wait(30)
        end(digest)
        has_ended.set()

    def every_held() -> dict[bytes, bytes]:
        found = every()
        was_read.set()
        assert has_ended.wait(30)
        return found

    async def sign_out() -> None:
        tokens = guard.TokenCache(app, (OWNER,), closed=True)
        secret = (await tokens.begin_session(OWNER.encode())).encode()
        assert await tokens.caller(None, secret) is guard.OWNER
        monkeypatch.setattr(app.core, "end_session", end_meanwhile)
        monkeypatch.setattr(app.core, "sessions", every_held)
        tokens._read()
        await tokens.end_session(secret)
        assert tokens._find(None, secret) is None

    asyncio.run(sign_out())


@pytest.mark.requirement("C3")
def test_a_session_is_known_to_another_server_at_once(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that had read the sessions within the last tenth of a second led to sign in again."""
    monkeypatch.setattr(guard, "PAUSE_SECONDS", 0.5)
    here, there = (guard.TokenCache(app, (OWNER,), closed=True) for _ in range(2))

    async def sign_in() -> None:
        assert await there.caller(b"a-token-that-causes-a-read") is None
        secret = await here.begin_session(OWNER.encode())
        assert await there.caller(None, secret.encode()) is guard.OWNER

    asyncio.run(sign_in())


@pytest.mark.requirement("C3")
def test_a_token_is_known_at_once_that_is_newer_than_a_read_under_way(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = app.core.sessions
    was_read, goes_on = threading.Event(), threading.Event()

    def every_held() -> dict[bytes, bytes]:
        found = every()
        was_read.set()
        assert goes_on.wait(30)
        return found

    async def use_it() -> None:
        tokens = guard.TokenCache(app, (), closed=True)
        tokens._read()
        await asyncio.to_thread(was_read.wait, 30)
        secret, made = await asyncio.to_thread(app.tokens.create, "new", ["read"])
        used = asyncio.create_task(tokens.caller(secret.encode()))
        await asyncio.sleep(0)
        goes_on.set()
        caller = await used
        assert caller is not None
        assert caller.name == f"token:{made.name}"

    monkeypatch.setattr(app.core, "sessions", every_held)
    asyncio.run(use_it())


@pytest.mark.requirement("C3")
def test_each_sign_in_begins_another_session_and_sign_out_ends_it(
    app: Tenure, web: TestClient
) -> None:
    other = sign_in(web)
    secret = sign_in(web)
    assert other != secret
    with api_client(app, GUARDED) as second:
        assert opens(second, secret), "every server of the database knows it"
        assert post(web, "/ui/sign-out") == 303
        for server in (web, second):
            assert not opens(server, secret)
            assert opens(server, other)
    with api_client(app, GUARDED) as later:
        assert not opens(later, secret), "a restart does not bring it back"


@pytest.mark.requirement("C3")
def test_a_session_ends_after_twelve_hours_by_the_clock_of_the_store(
    app: Tenure, web: TestClient
) -> None:
    clock = Clock(app.database)
    secret = sign_in(web)
    clock.advance(12 * 3600 - 60)
    assert opens(web, secret)
    clock.advance(120)
    assert not opens(web, secret)
    clock.close()


@pytest.mark.requirement("C3")
def test_a_session_ends_with_its_token(app: Tenure, web: TestClient) -> None:
    token, _ = app.tokens.create("boss", ["admin"])
    kept, secret = sign_in(web), sign_in(web, token)
    app.tokens.revoke("boss")
    assert not opens(web, secret)
    assert opens(web, kept)
    with api_client(app, Settings(tokens=("another-token-of-the-settings",))) as later:
        assert not opens(later, kept)


@pytest.mark.requirement("C12")
def test_the_database_holds_nothing_that_opens_a_session(app: Tenure, web: TestClient) -> None:
    token, made = app.tokens.create("boss", ["admin"])
    secret = sign_in(web, token)
    raw = RawSql(app.database)
    ((digest, of_token),) = raw.run("SELECT digest, token FROM {session}")
    raw.close()
    assert made.digest not in (digest, of_token)
    assert hidden(bytes.fromhex(of_token), secret.encode()).hex() == made.digest
    for read in (digest, of_token, made.digest, made.name):
        assert not opens(web, read)


def test_a_session_counts_at_once_where_it_began(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However lately the server read the tokens."""
    for name in ("FRESH_SECONDS", "STALE_SECONDS"):
        monkeypatch.setattr(guard, name, 3600)
    with api_client(app, GUARDED) as web:
        web.get("/jobs", headers={"Authorization": "Bearer unknown"})
        secret = sign_in(web)
        assert opens(web, secret)
        post(web, "/ui/sign-out")
        assert not opens(web, secret)


def test_an_open_server_begins_no_session(app: Tenure) -> None:
    with api_client(app) as web:
        assert post(web, "/ui/sign-in", token="whatever") == 303
        assert "tenure_session" not in web.cookies
    assert app.core.sessions() == {}


@pytest.mark.requirement("C9")
def test_sessions_are_bounded(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_tokens, "MAX_SESSIONS", 3)
    clock = Clock(app.database)
    digests = [digest_of(str(number).encode()) for number in range(5)]
    for digest in digests:
        app.core.begin_session(digest, digest)
        clock.advance(1)
    assert app.core.sessions().keys() == set(digests[2:])
    clock.advance(13 * 3600)
    app.core.begin_session(digests[0], digests[0])
    raw = RawSql(app.database)
    assert raw.value("SELECT count(*) FROM {session}") == 1
    raw.close()
    clock.close()
