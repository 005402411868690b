"""The application that Tenure is mounted in says who calls, and with which scopes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import pytest
from starlette.testclient import TestClient
from starlette.types import Scope

from tenure import InvalidInput, Tenure
from tenure.http import waiting
from tenure.server import build
from tenure.settings import Settings
from tests.support.http import Exchange, assert_problem

USERS: dict[bytes, tuple[str, Iterable[str]]] = {
    b"ann": ("ann", ["read"]),
    b"boss": ("boss", ["admin"]),
    b"wrong": ("wrong", ["root"]),
    b"blank": (" ", ["read"]),
}


async def by_header(scope: Scope) -> tuple[str, Iterable[str]] | None:
    """What a middleware of the application would know from its own cookie."""
    return USERS.get(dict(scope["headers"]).get(b"x-user", b""))


@pytest.fixture
def web(app: Tenure) -> Iterator[TestClient]:
    with TestClient(build(app, authorize=by_header), base_url="https://shop.example") as web:
        yield web


def user(name: str) -> dict[str, str]:
    return {"X-User": name}


@pytest.mark.requirement("C3")
def test_the_application_says_who_calls(app: Tenure, web: TestClient) -> None:
    job = app.enqueue("a")
    assert web.get(f"/jobs/{job.id}", headers=user("ann")).status_code == 200
    path = f"/jobs/{job.id}/cancel"
    assert_problem(web.post(path, headers=user("ann")), 403, "forbidden")
    assert web.post(path, headers=user("boss")).status_code == 200
    assert app.history(job.id)[-1].actor == "user:boss"
    page = web.get("/", headers=user("ann"))
    assert page.status_code == 200
    assert "Sign out" not in page.text


def test_b7_tokens_made_later_do_not_lock_users_out(app: Tenure, web: TestClient) -> None:
    """A token for a worker led the administrators to a sign-in page, also after it was revoked."""
    assert web.get("/", headers=user("boss")).status_code == 200
    app.tokens.create("goworker", ["work"])
    assert web.get("/", headers=user("boss"), follow_redirects=False).status_code == 200
    app.tokens.revoke("goworker")
    assert web.get("/jobs", headers=user("boss")).status_code == 200


@pytest.mark.requirement("C2", "C3")
def test_for_a_stranger_a_token_counts(
    app: Tenure, web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert caplog.messages == []
    for local in (build(app, authorize=by_header), build(app, Settings(), authorize=by_header)):
        here = TestClient(local, base_url="http://localhost", client=("127.0.0.1", 1))
        assert_problem(here.get("/jobs"), 401, "unauthorized")
    assert_problem(web.get("/jobs", headers=user("nobody")), 401, "unauthorized")
    assert web.get("/", follow_redirects=False).status_code == 303
    token, _ = app.tokens.create("worker", ["read"])
    assert web.get("/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_named_hosts_are_the_only_ones_then_too(app: Tenure) -> None:
    built = build(app, Settings(allowed_hosts=("shop.example",)), authorize=by_header)
    other = TestClient(built, base_url="http://evil.example")
    assert_problem(other.get("/jobs", headers=user("boss")), 421, "host_not_allowed")


@pytest.mark.parametrize("name", ["wrong", "blank"])
def test_a_user_who_cannot_be_is_a_fault_of_the_application(web: TestClient, name: str) -> None:
    with pytest.raises(InvalidInput, match="authorize"):
        web.get("/jobs", headers=user(name))


@pytest.mark.requirement("C3")
@pytest.mark.parametrize(
    ("name", "actor"),
    [
        ("ann@example.com", "user:ann@example.com"),
        ("Émile Ångström", "user:Émile Ångström"),
        ("..j..doe", "user:..j..doe"),
        ("token:boss/w", "user:token:boss_w"),
    ],
)
def test_a_user_has_any_name(app: Tenure, name: str, actor: str) -> None:
    """Those with a space or an @ in their names were answered 500. A slash begins a worker's id."""

    async def known(_: Scope) -> tuple[str, Iterable[str]]:
        return name, ["enqueue"]

    with TestClient(build(app, authorize=known), base_url="https://shop.example") as web:
        job = web.post("/jobs", json={"type": "a"}).json()
    assert app.history(job["id"])[0].actor == actor


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("scopes", [[], (), frozenset[str]()])
def test_a_user_without_scopes_may_do_nothing(app: Tenure, scopes: Iterable[str]) -> None:
    """Who is known and has no rights was answered 500."""

    async def known(_: Scope) -> tuple[str, Iterable[str]]:
        return "ann", scopes

    with TestClient(build(app, authorize=known), base_url="https://shop.example") as web:
        assert_problem(web.get("/jobs"), 403, "forbidden")
        assert_problem(web.post("/jobs", json={"type": "a"}), 403, "forbidden")
        assert web.get("/").status_code == 403


@pytest.mark.requirement("C3")
def test_a_stream_ends_when_the_application_refuses_its_user(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RECHECK_SECONDS", 0.01)
    known = True

    async def while_known(_: Scope) -> tuple[str, Iterable[str]] | None:
        return ("ann", ["read"]) if known else None

    async def watch() -> None:
        nonlocal known
        async with Exchange(build(app, authorize=while_known), "GET", "/events") as stream:
            await stream.wait_for(b"retry: ")
            assert not stream.task.done()
            known = False
            async with asyncio.timeout(10):
                await stream.task

    asyncio.run(watch())
