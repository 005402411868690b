"""Who was refused is counted, and logged without filling the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.http import guard
from tenure.settings import Settings
from tests.support.http import api_client

OWNER = "the-token-of-the-settings"
BEARER = {"Authorization": f"Bearer {OWNER}"}


@pytest.fixture
def web(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server that logs every refusal, and looks at the tokens for every request."""
    monkeypatch.setattr(guard, "LOG_SECONDS", 0.0)
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with api_client(app, Settings(tokens=(OWNER,))) as web:
        yield web


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(web: TestClient) -> dict[str, int]:
    counts = web.get("/metrics", headers={**BEARER, "Accept": "application/json"}).json()["refused"]
    return {reason: count for reason, count in counts.items() if count}


def post(web: TestClient, path: str, **fields: str) -> int:
    found = re.search(r'name="form" value="([0-9a-f]{32})"', web.get("/ui/sign-in").text)
    assert found
    return web.post(path, data={"form": found[1], **fields}, follow_redirects=False).status_code


@pytest.mark.requirement("C13")
def test_each_refusal_is_counted_and_logged_once(
    app: Tenure, web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    reader, _ = app.tokens.create("reader", ["read"])
    evil = {"Origin": "https://evil.example"}
    assert web.get("/jobs").status_code == 401
    assert web.get("/jobs", headers=bearer("guess-of-a-token")).status_code == 401
    assert (
        web.get("/", headers=bearer("guess-of-a-token"), follow_redirects=False).status_code == 303
    )
    assert web.post("/queues/q/pause", headers=bearer(reader)).status_code == 403
    assert web.post("/ui/queues/q/pause", headers={**BEARER, **evil}).status_code == 403
    assert web.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert post(web, "/ui/sign-in", token="guess-of-a-token") == 403
    assert refused(web) == {
        "unauthorized": 3,
        "forbidden": 1,
        "cross_site": 1,
        "host_not_allowed": 1,
        "sign_in_failed": 1,
    }
    assert caplog.messages == [
        "refused GET /jobs from 127.0.0.1: no valid token",
        "refused GET /jobs from 127.0.0.1: no valid token",
        "refused GET / from 127.0.0.1: no valid token",
        "refused POST /queues/q/pause from 127.0.0.1: its token lacks the scope",
        "refused POST /ui/queues/q/pause from 127.0.0.1: sent by a page of another site",
        "refused GET /health from 127.0.0.1: its Host is not served here",
        "refused POST /ui/sign-in from 127.0.0.1: signing in needs a valid token",
    ]
    text = web.get("/metrics", headers=BEARER).text
    assert 'tenure_refused_requests_total{reason="unauthorized"} 3.0' in text


def test_what_is_not_refused_because_of_its_caller_is_not_counted(
    web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a person who opens the dashboard and is shown where to sign in."""
    assert web.get("/nothing", headers=BEARER).status_code == 404
    assert web.post("/jobs", headers=BEARER, json={}).status_code == 400
    assert web.get("/", follow_redirects=False).status_code == 303
    assert web.get("/ui/nothing", headers=BEARER).status_code == 404
    assert refused(web) == {}
    assert caplog.messages == []


@pytest.mark.requirement("C12")
def test_the_name_of_an_ended_token_is_logged(
    app: Tenure, web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = app.tokens.create("shop", ["admin"])
    assert post(web, "/ui/sign-in", token=token) == 303
    app.tokens.revoke("shop")
    assert web.get("/jobs", headers=bearer(token)).status_code == 401
    assert web.get("/", follow_redirects=False).status_code == 303
    assert post(web, "/ui/sign-in", token=token) == 403
    assert len(caplog.messages) == 3
    assert all("; its token shop is revoked or has expired" in line for line in caplog.messages)
    assert token not in caplog.text


@pytest.mark.requirement("C13")
def test_no_path_is_logged_with_what_only_its_caller_knows(
    web: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a-lease-or-a-one-use-token"
    assert web.get(f"/signals/{secret}", headers={"Host": "evil.example"}).status_code == 421
    assert web.get(f"/mistaken/signals/{secret}").status_code == 401
    assert web.get(f"/leases/{secret}/steps").status_code == 401
    assert secret not in caplog.text
    assert "refused GET /leases/.../steps from " in caplog.text


@pytest.mark.requirement("C9")
def test_a_flood_is_one_line_a_second_and_counted_whole(
    web: TestClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LOG_SECONDS", 3600.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            web.get("/" + "x" * 10_000)
        assert len(caplog.messages) == 1
        assert len(caplog.messages[0]) < 300
        monkeypatch.setattr(guard, "LOG_SECONDS", 0.0)
        web.get("/jobs")
    assert caplog.messages[1].endswith("no valid token; 49 more since the last line")
    assert refused(web) == {"unauthorized": 51}
