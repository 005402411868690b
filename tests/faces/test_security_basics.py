"""Who may call the API: tokens, hosts, foreign pages, and what an answer may give away."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.errors import InvalidInput, SchemaMismatch, StoreUnavailable
from tenure.http.guard import check_binding
from tenure.http.routes import ROUTES
from tenure.settings import Settings, is_loopback
from tests.support.http import HERE, UNKNOWN_ID, ServerProcess, api_client, assert_problem

TOKEN = "0123456789abcdef-canary"
OTHER = "fedcba9876543210-second"

CALLS = [
    (
        route.method,
        route.path.format(id=UNKNOWN_ID, lease_id="x", name="q", signal="s", token="t", lease="x"),
        not route.scopes,
    )
    for route in ROUTES
]
"""Every call of the API, from its own list: a new one is tested without being named here."""


@pytest.fixture
def guarded(app: Tenure) -> Iterator[TestClient]:
    with api_client(app, Settings(tokens=(TOKEN, OTHER))) as api:
        yield api


@pytest.fixture
def open_api(app: Tenure) -> Iterator[TestClient]:
    with api_client(app) as api:
        yield api


# --- tokens ---------------------------------------------------------------------------------------

WRONG = [
    [],
    [b""],
    [b"Bearer"],
    [b"Bearer "],
    [b"Bearer wrong"],
    [b"Bearer " + TOKEN[:-1].encode()],
    [b"Bearer " + TOKEN.encode() + b"x"],
    [b"Bearer \xff\xfe\x00"],
    [b"Bearer \xc3\xa9\xc3\xa9"],
    [b"Basic " + TOKEN.encode()],
    [TOKEN.encode()],
    [b"Bearer " + b"a" * 1_000_000],
    [b"Bearer " + TOKEN.encode(), b"Bearer " + TOKEN.encode()],
    [b"Bearer wrong", b"Bearer " + TOKEN.encode()],
    [f"Bearer {TOKEN},{OTHER}".encode()],
]


@pytest.mark.requirement("C4")
@pytest.mark.parametrize("values", WRONG, ids=range(len(WRONG)))
def test_a_wrong_token_is_refused(guarded: TestClient, values: list[bytes]) -> None:
    headers = [(b"Authorization", value) for value in values]
    response = guarded.get("/jobs", headers=headers)
    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.requirement("C3")
def test_every_call_but_health_needs_the_token(
    guarded: TestClient, subtests: pytest.Subtests
) -> None:
    for method, path, is_open in CALLS:
        with subtests.test(f"{method} {path}"):
            response = guarded.request(method, path)
            assert (response.status_code == 401) is not is_open
            assert is_open == (path in ("/health", "/signals/t"))  # a link is its own token


def test_unknown_paths_need_it_too(guarded: TestClient) -> None:
    for path in ("/nothing", "/health/", "/health//", "/HEALTH"):
        assert_problem(guarded.get(path), 401, "unauthorized")


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {OTHER}"])
def test_each_token_opens(guarded: TestClient, given: str) -> None:
    assert guarded.get("/jobs", headers={"Authorization": given}).json() == []


@pytest.mark.requirement("C3")
def test_a_token_is_not_taken_from_anywhere_else(guarded: TestClient) -> None:
    assert_problem(guarded.get("/jobs", params={"token": TOKEN}), 401, "unauthorized")
    assert_problem(guarded.get("/jobs", headers={"Cookie": f"token={TOKEN}"}), 401, "unauthorized")
    assert_problem(guarded.get("/jobs", headers={"X-Token": TOKEN}), 401, "unauthorized")


# --- hosts ----------------------------------------------------------------------------------------

GOOD_HOSTS = ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "LocalHost"]
BAD_HOSTS = [
    "evil.example",
    "localhost.evil.example",
    "evil.example:8080",
    "127.0.0.1.evil.example",
    "localhost.",
    "localhost:",
    "localhost:80:80",
    "localhost@evil.example",
    "localhost evil",
    "localhost,evil.example",
    "[::1",
    "::1",
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "0177.0.0.1",
    "2130706433",
    "",
    "\xff",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_loopback_names_are_served(open_api: TestClient, host: str) -> None:
    assert open_api.get("/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.requirement("C6")
@pytest.mark.parametrize("host", BAD_HOSTS)
def test_another_host_is_not_served(open_api: TestClient, host: str) -> None:
    response = open_api.get("/jobs", headers=[(b"Host", host.encode("latin-1"))])
    assert_problem(response, 421, "host_not_allowed")


@pytest.mark.requirement("C6")
def test_no_call_serves_a_foreign_name(open_api: TestClient, subtests: pytest.Subtests) -> None:
    """Against DNS rebinding: a page that points its own name to this machine reads nothing."""
    for method, path, _ in CALLS:
        with subtests.test(f"{method} {path}"):
            response = open_api.request(method, path, headers={"Host": "evil.example"})
            assert_problem(response, 421, "host_not_allowed")


@pytest.mark.requirement("C6")
def test_two_hosts_are_none(open_api: TestClient) -> None:
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert_problem(open_api.get("/jobs", headers=headers), 421, "host_not_allowed")


def test_names_can_be_allowed(app: Tenure) -> None:
    with api_client(app, Settings(allowed_hosts=("queue.example",), tokens=(TOKEN,))) as api:
        api.headers["Authorization"] = f"Bearer {TOKEN}"
        assert api.get("/jobs", headers={"Host": "queue.example:443"}).status_code == 200
        assert api.get("/jobs", headers={"Host": "localhost"}).status_code == 200
        assert_problem(api.get("/jobs", headers={"Host": "example"}), 421, "host_not_allowed")
    with api_client(app, Settings(host="0.0.0.0", tokens=(TOKEN,))) as api:  # noqa: S104
        headers = {"Host": "any.example", "Authorization": f"Bearer {TOKEN}"}
        assert api.get("/jobs", headers=headers).status_code == 200


# --- foreign pages --------------------------------------------------------------------------------

FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example/localhost"},
    {"Origin": "http://localhost:81"},
    {"Origin": "file://localhost"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
]


@pytest.mark.requirement("C5")
@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_changes_nothing(open_api: TestClient, headers: dict[str, str]) -> None:
    job = open_api.post("/jobs", json={"type": "a"}).json()
    for method, path, body in (
        ("POST", "/jobs", {"type": "b"}),
        ("POST", f"/jobs/{job['id']}/cancel", None),
        ("POST", "/queues/default/pause", None),
        ("PUT", "/queues/default/limit", {"max_pending": 0}),
        ("POST", "/leases", {"worker": "w"}),
    ):
        response = open_api.request(method, path, json=body, headers=headers)
        assert_problem(response, 403, "cross_site")
    assert [one["id"] for one in open_api.get("/jobs").json()] == [job["id"]]
    assert open_api.get(f"/jobs/{job['id']}").json()["status"] == "pending"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_its_own_pages_and_programs_may(open_api: TestClient, headers: dict[str, str]) -> None:
    job = open_api.post("/jobs", json={"type": "a"}, headers=headers).json()
    assert open_api.post(f"/jobs/{job['id']}/cancel", headers=headers).status_code == 200


@pytest.mark.requirement("C5")
def test_no_other_site_may_read(open_api: TestClient) -> None:
    """No answer allows another origin anything, and a preflight is not answered."""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (
        open_api.get("/jobs", headers=headers),
        open_api.options("/jobs", headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert open_api.options("/jobs", headers=headers).status_code == 405


@pytest.mark.requirement("C5")
@pytest.mark.parametrize("path", ["/jobs?text=guess", "/health", "/events", "/metrics"])
@pytest.mark.parametrize("dest", ["empty", "image", "document"])
def test_another_site_may_not_make_us_search(open_api: TestClient, path: str, dest: str) -> None:
    """It cannot see the answer, but it could see how long that took."""
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": dest}
    response = open_api.get(path, headers=headers)
    assert_problem(response, 403, "cross_site")
    assert response.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.requirement("C5")
def test_a_method_cannot_be_overridden(open_api: TestClient) -> None:
    job = open_api.post("/jobs", json={"type": "a"}).json()
    headers = {"X-HTTP-Method-Override": "POST"}
    open_api.get(f"/jobs/{job['id']}/cancel", headers=headers)
    assert open_api.get(f"/jobs/{job['id']}").json()["status"] == "pending"


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.requirement("C7")
def test_every_answer_has_the_security_headers(guarded: TestClient) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    for response in (
        guarded.get("/health"),
        guarded.get("/jobs"),  # 401
        guarded.get("/jobs", headers=token),
        guarded.get("/nothing", headers=token),
        guarded.get("/health", headers={"Host": "evil.example"}),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.requirement("C14")
@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("SELECT secret FROM /var/lib/secret.db"),
        sqlite3.OperationalError("no such table: secret"),
        ValueError("postgresql://user:secret@host/db"),
        KeyError("secret"),
    ],
)
@pytest.mark.parametrize("path", ["/stats", "/metrics", "/queues", f"/jobs/{UNKNOWN_ID}"])
def test_an_unexpected_error_tells_nothing(
    app: Tenure, monkeypatch: Any, caplog: Any, path: str, raised: Exception
) -> None:
    def fail(*_: object) -> None:
        raise raised

    for place, name in ((app.stats, "counts"), (app.queues, "list"), (app, "get")):
        monkeypatch.setattr(place, name, fail)
    with api_client(app) as api, caplog.at_level(logging.ERROR):
        response = api.get(path)
        body = assert_problem(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert body["instance"] == path
    assert "Traceback" in caplog.text, "the log has it"


@pytest.mark.requirement("C14", "C12")
def test_a_database_that_is_away_tells_no_address(tmp_path: Any) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/secret/jobs.db")
    from tenure.server import build

    client = TestClient(build(app), base_url="http://localhost", client=HERE)
    for response in (
        client.post("/jobs", json={"type": "a"}),
        client.get("/jobs"),
        client.post("/leases", json={"worker": "w"}),
    ):
        assert response.status_code == 503
        assert "secret" not in response.text


@pytest.mark.requirement("C14")
def test_a_refused_request_is_called_as_it_calls_itself(guarded: TestClient) -> None:
    for path, status, code in (
        ("/jobs", 401, "unauthorized"),
        ("/health", 421, "host_not_allowed"),
    ):
        host = {"Host": "evil.example"} if status == 421 else {}
        answered = guarded.get(path, headers={"X-Request-Id": "shop-7.a_B", **host})
        assert assert_problem(answered, status, code)["request_id"] == "shop-7.a_B"


@pytest.mark.requirement("C14", "C13")
@pytest.mark.parametrize(
    "id", [b"", b"a b", b"a\x1b[31m", b"x" * 65, b"\xff", b"%s", b'"}', b"a\n"]
)
def test_a_request_id_that_is_not_plain_is_replaced(app: Tenure, id: bytes) -> None:
    with api_client(app) as api:
        seen = {
            assert_problem(api.get("/nothing", headers=headers), 404, "not_found")["request_id"]
            for headers in ([(b"X-Request-Id", id)], [(b"X-Request-Id", b"a")] * 2, [])
        }
    assert len(seen) == 3, "each gets its own"
    assert all(re.fullmatch("[0-9a-f]{16}", made) for made in seen)


@pytest.mark.requirement("C14")
@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (RuntimeError("broken"), 500, "internal_error"),
        (StoreUnavailable("away"), 503, "store_unavailable"),
        (SchemaMismatch("too old"), 503, "schema_mismatch"),
    ],
)
def test_the_log_names_the_request_that_failed(
    app: Tenure, monkeypatch: Any, caplog: Any, raised: Exception, status: int, code: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(app.stats, "counts", fail)
    with api_client(app) as api, caplog.at_level(logging.WARNING):
        for headers in ({"X-Request-Id": "mine"}, {}):
            named = assert_problem(api.get("/stats", headers=headers), status, code)["request_id"]
            (line,) = caplog.messages
            assert line.startswith(f"GET /stats, request {named}")
            caplog.clear()


@pytest.mark.requirement("C14")
def test_what_succeeds_has_no_request_id(app: Tenure) -> None:
    with api_client(app) as api:
        answered = api.get("/jobs", headers={"X-Request-Id": "mine"})
    assert answered.status_code == 200
    assert "x-request-id" not in answered.headers


# --- listening ------------------------------------------------------------------------------------


@pytest.mark.requirement("C2")
@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.168.1.2", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_only_loopback_is_open_without_a_token(app: Tenure, host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    check_binding(Settings(host=host, tokens=(TOKEN,)), app)
    if loopback:
        check_binding(Settings(host=host), app)
        return
    with pytest.raises(InvalidInput, match="TENURE_TOKEN"):
        check_binding(Settings(host=host), app)
    app.tokens.create("one", ["read"])
    check_binding(Settings(host=host), app)
    app.tokens.revoke("one")
    with pytest.raises(InvalidInput, match="TENURE_TOKEN"):
        check_binding(Settings(host=host), app)


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_the_program_refuses_to_listen_to_all_without_a_token(sqlite_url: str, host: str) -> None:
    with pytest.raises(AssertionError, match="no token is set"):
        ServerProcess(sqlite_url, "--host", host)


@pytest.mark.requirement("C3", "C12")
def test_the_program_takes_its_token_from_the_environment(sqlite_url: str) -> None:
    import httpx2

    with ServerProcess(sqlite_url, "--host", "0.0.0.0", TENURE_TOKEN=TOKEN) as server:  # noqa: S104
        url = f"http://127.0.0.1:{server.address[1]}"
        assert httpx2.get(f"{url}/jobs").status_code == 401
        assert httpx2.get(f"{url}/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).json() == []
        code, log = server.stop()
    assert code == 0
    assert TOKEN not in log
    assert not re.search("Traceback", log)
