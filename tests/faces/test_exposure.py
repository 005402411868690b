"""Without a token only this machine is answered, and a server that is for others too is closed."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tenure import InvalidInput, Tenure
from tenure.server import build
from tenure.settings import Settings
from tests.support.http import HERE, ServerProcess, api_client, assert_problem

PROXIED = Settings(allowed_hosts=("jobs.example.com",))
ELSEWHERE = Settings(host="192.0.2.1")


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("settings", [PROXIED, ELSEWHERE], ids=["allowed host", "address"])
def test_a_server_for_other_machines_is_closed_until_there_is_a_token(
    app: Tenure, caplog: pytest.LogCaptureFixture, settings: Settings
) -> None:
    with api_client(app, settings) as api:
        for host in ("localhost", "jobs.example.com"):
            assert_problem(api.get("/jobs", headers={"Host": host}), 401, "unauthorized")
            assert_problem(api.post("/queues/q/pause", headers={"Host": host}), 401, "unauthorized")
        assert api.get("/health").status_code == 200
        token, _ = app.tokens.create("first", ["read"])
        assert api.get("/jobs", headers={"Authorization": f"Bearer {token}"}).json() == []
    said = [text for text in caplog.messages if "every request but /health is refused" in text]
    assert len(said) == 1
    caplog.clear()
    with api_client(app, settings):
        assert caplog.messages == []


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("peer", [("192.0.2.7", 1), ("jobs.example.com", 1), ("", 0), None])
def test_without_a_token_other_machines_are_refused_whatever_host_they_name(
    app: Tenure, peer: tuple[str, int] | None
) -> None:
    """As for a build that another server serves on an address of its choice."""
    built = build(app)
    there = TestClient(built, base_url="http://localhost", client=peer)  # type: ignore[arg-type]
    assert_problem(there.get("/jobs"), 401, "unauthorized")
    assert there.get("/", follow_redirects=False).status_code == 303
    here = TestClient(built, base_url="http://localhost", client=HERE)
    assert here.get("/jobs").json() == []


@pytest.mark.requirement("C2")
def test_the_program_warns_of_names_of_others_without_a_token(sqlite_url: str) -> None:
    with ServerProcess(sqlite_url, TENURE_ALLOWED_HOSTS="jobs.example.com,localhost") as server:
        code, log = server.stop()
    assert code == 0
    assert "is refused, because jobs.example.com can be reached from other machines" in log
    assert "tenure tokens create" in log


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("settings", [PROXIED, ELSEWHERE], ids=["allowed host", "address"])
def test_a_token_that_others_could_guess_is_refused(app: Tenure, settings: Settings) -> None:
    import dataclasses

    def given(*tokens: str) -> Settings:
        return dataclasses.replace(settings, tokens=tokens)

    build(app, given("t" * 20))
    with pytest.raises(InvalidInput, match="a token of 19 characters") as refused:
        build(app, given("t" * 20, "secret" + "t" * 13))
    assert "secret" not in str(refused.value)
    build(app, Settings(tokens=("a",)))


@pytest.mark.requirement("C3")
def test_the_program_refuses_a_token_that_others_could_guess(sqlite_url: str) -> None:
    with pytest.raises(AssertionError, match="1 characters can be guessed"):
        ServerProcess(sqlite_url, "--host", "0.0.0.0", TENURE_TOKEN="a")  # noqa: S104
