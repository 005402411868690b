"""Signals over HTTP and on the command line, and the page of a one-use token."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from starlette.testclient import TestClient

from tenure import Tenure
from tenure.app.signals import of_token
from tenure.http import protocol
from tenure.http import signals as endpoints
from tenure.rules.reports import Lease, Outcome, Report, Wait
from tenure.rules.signals import new_token, token_digest
from tenure.rules.steps import KeepToken
from tenure.settings import Settings
from tenure.store.tables import signals
from tenure.wire.reports import join_lease
from tests.support.http import UNKNOWN_ID, api_client, assert_problem, post_form
from tests.support.store import claim_request, report_completed

OWNER = "the-token-of-the-settings"
HTML = {"Accept": "text/html,*/*;q=0.8"}
FROM_MAIL = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", **HTML}
FORM = {
    "Content-Type": "application/x-www-form-urlencoded",
    "Origin": "null",  # as browsers say on a page that has no referrer
    "Sec-Fetch-Site": "same-origin",
    **HTML,
}


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Tenure]:
    with Tenure(sqlite_url) as app:
        yield app
        assert app.verify() == []


@pytest.fixture
def api(app: Tenure) -> Iterator[TestClient]:
    with api_client(app, Settings(tokens=(OWNER,), redact=("card",))) as api:
        api.headers["Authorization"] = f"Bearer {OWNER}"
        yield api


def taken(app: Tenure, type: str = "order") -> Lease:
    app.enqueue(type)
    request = claim_request(limit=1)
    (lease,) = app.core.claim(request).leases
    return lease


def token_of(
    app: Tenure,
    lease: Lease,
    payload: str | None = None,
    name: str = "ok",
    label: str | None = None,
) -> str:
    token = new_token()
    digest = str(token_digest(token))
    app.core.store.write(
        "signal",
        lambda db: signals.keep_token(
            db, lease.id, lease.lease_id, KeepToken(digest, name, payload, label)
        ),
    ).result()
    return token


def test_send_and_list(app: Tenure, api: TestClient) -> None:
    job = app.enqueue("order")
    path = f"/jobs/{job.id}/signals"
    key = {"Idempotency-Key": "k"}
    sent = api.post(f"{path}/approved", json={"by": "ada", "card": 4711}, headers=key).json()
    assert sent == {
        "job_id": job.id,
        "name": "approved",
        "number": 1,
        "key": "k",
        "actor": "http",
        "payload": {"by": "ada", "card": "[redacted]"},
        "at": sent["at"],
    }
    same = api.post(f"{path}/approved", json={"by": "ada", "card": 4711}, headers=key)
    assert (same.status_code, same.json()) == (200, sent)
    assert_problem(api.post(f"{path}/approved", json=1, headers=key), 422, "idempotency_key_reused")
    assert api.post(f"{path}/approved").json()["payload"] is None
    for payload in ([1, [2]], "text", 1.5, False):
        assert api.post(f"{path}/b.c:d-e", json=payload).json()["payload"] == payload
    listed = api.get(path).json()  # those of one millisecond by name
    assert [one["number"] for one in listed] == [1, 2, 1, 2, 3, 4]
    stored = [one.payload for one in app.signals.list(job.id)]
    assert stored[:2] == [{"by": "ada", "card": 4711}, None]
    app.cancel(job.id)
    assert_problem(api.post(f"{path}/approved"), 409, "illegal_transition")


def test_what_is_refused(app: Tenure, api: TestClient) -> None:
    job = app.enqueue("order")
    path = f"/jobs/{job.id}/signals/approved"
    assert_problem(api.post(f"/jobs/{UNKNOWN_ID}/signals/approved"), 404, "job_not_found")
    assert_problem(api.post(f"/jobs/{job.id}/signals/a%20b"), 400, "invalid_input")
    assert_problem(api.post(path, json="x" * 65_536), 413, "payload_too_large")
    json = {"Content-Type": "application/json"}
    assert_problem(api.post(path, content=b"{", headers=json), 400, "invalid_input")
    assert_problem(api.post(path, content=b"a=1", headers=FORM), 403, "cross_site")
    plain = {"Content-Type": "application/x-www-form-urlencoded"}
    assert_problem(api.post(path, content=b"", headers=plain), 415, "unsupported_media_type")
    assert app.signals.list(job.id) == []


def test_a_link_from_a_mail(app: Tenure, api: TestClient) -> None:
    """No token, no script; a scanner that follows the link, however often, uses up nothing."""
    lease = taken(app)
    yes = token_of(app, lease, '{"ok":true,"card":"<4711>"}', "approve<d")
    api.headers.clear()
    for method in ("GET", "HEAD", "GET"):
        page = api.request(method, f"/signals/{yes}", headers=FROM_MAIL)
        assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "set-cookie" not in page.headers
    assert page.text.count("<button") == 1
    assert "approve&lt;d" in page.text
    assert "<script" not in page.text
    assert "4711" not in page.text
    assert "[redacted]" in page.text
    assert app.signals.list(lease.id) == []
    done = api.post(f"/signals/{yes}", content=b"", headers=FORM)
    assert (done.status_code, "sent" in done.text, "<button" in done.text) == (200, True, False)
    assert app.signals.list(lease.id)[0].payload == {"ok": True, "card": "<4711>"}
    again = api.post(f"/signals/{yes}", content=b"", headers=FORM)
    assert (again.status_code, "does not work" in again.text) == (404, True)
    assert api.get(f"/signals/{yes}", headers=FROM_MAIL).status_code == 404
    assert len(app.signals.list(lease.id)) == 1


def test_a_program_outside(app: Tenure, api: TestClient) -> None:
    """Its whole body is the payload, whatever site it comes from."""
    lease = taken(app)
    api.headers.clear()
    anywhere = {"Origin": "https://pay.example", "Sec-Fetch-Site": "cross-site"}
    token = token_of(app, lease)
    sent = api.post(f"/signals/{token}", json={"paid": 3}, headers=anywhere)
    assert (sent.status_code, sent.json()["actor"]) == (200, "signal link")
    assert [one.payload for one in app.signals.list(lease.id)] == [{"paid": 3}]
    for used in (token, new_token()):
        assert_problem(api.post(f"/signals/{used}"), 404, "signal_token_not_found")
        assert_problem(api.get(f"/signals/{used}"), 404, "signal_token_not_found")
    for wrong in ("x", "x" * 22 + "'", "%00" * 22):
        assert_problem(api.post(f"/signals/{wrong}"), 404, "signal_token_not_found")
    fixed = token_of(app, lease, "true")
    assert_problem(api.post(f"/signals/{fixed}", json=False), 400, "invalid_input")
    assert_problem(api.post(f"/signals/{fixed}", json="x" * 65_536), 413, "payload_too_large")
    app.core.report([report_completed(lease)])
    assert_problem(api.post(f"/signals/{fixed}"), 409, "illegal_transition")
    assert_problem(api.get(f"/signals/{fixed}"), 409, "illegal_transition")


def test_the_page_of_a_job_that_is_settled_has_no_button(app: Tenure, api: TestClient) -> None:
    """It offered the button, and then said that the link was used or wrong."""
    lease = taken(app)
    token = token_of(app, lease, "true", label="Approve")
    app.core.report([report_completed(lease)])
    for method, headers in (("GET", FROM_MAIL), ("POST", FORM)):
        page = api.request(method, f"/signals/{token}", headers=headers)
        assert page.status_code == 409
        assert "<h1>Nothing is left to answer</h1>" in page.text
        assert "Its job is completed." in page.text
        assert "<button" not in page.text
        assert lease.id not in page.text


def test_links_are_told_apart_by_their_labels(app: Tenure, api: TestClient) -> None:
    """Approve and refuse looked alike: both pages said the name of the signal."""
    lease = taken(app)
    given = {
        "Approve <17> & pay": "Approve &lt;17&gt; &amp; pay",
        "Refuse\N{RIGHT-TO-LEFT OVERRIDE}": "Refuse\\u202e",
        "   ": "ok",
        None: "ok",
    }
    for label, shown in given.items():
        token = token_of(app, lease, "true", label=label)
        page = api.get(f"/signals/{token}", headers=FROM_MAIL).text
        assert f"<title>{shown}</title>" in page
        assert f"<h1>{shown}</h1>" in page
        assert f"<button>{shown}</button>" in page
    first = token_of(app, lease, "true", label="Approve")
    done = api.post(f"/signals/{first}", content=b"", headers=FORM)
    assert "<h1>Approve: sent</h1>" in done.text
    app.core.report([report_completed(lease)])


def test_a_label_over_http_is_what_the_description_allows(app: Tenure, api: TestClient) -> None:
    """A label that the description allows is stored as it is, and another one is refused."""
    lease = taken(app)
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    described = schemas["TokenRequest"]["properties"]["label"]["anyOf"][0]
    path = f"/leases/{join_lease(lease.id, lease.lease_id)}/signal-tokens"
    most = described["maxLength"]
    texts = ["", " ", "\t", "a\n", "a\rb", "\0", "\x7f", "\x85", "\xa0", "\u2028", "\u200b", "é ✓"]
    for label in (*texts, "x" * most, "x" * (most + 1), "\N{PILE OF POO}" * most):
        allowed = described["minLength"] <= len(label) <= most and re.search(
            described["pattern"].replace("$", r"\Z"), label
        )
        token = new_token()
        body = {"digest": token_digest(token), "name": "ok", "label": label}
        answer = api.post(path, json=body)
        assert answer.status_code == (200 if allowed else 400), label
        if allowed:
            assert of_token(app.core, token)[1].label == label
        else:
            assert answer.json()["path"] == "$.label"
    app.core.report([report_completed(lease)])


def test_guesses_cost_little(app: Tenure, api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    most = endpoints.MAX_LOOKS_A_SECOND
    assert most * protocol.TURN_SECONDS >= 1, "one stranger could keep all others from their links"
    monkeypatch.setattr(endpoints, "MAX_LOOKS_A_SECOND", 3)
    monkeypatch.setattr(endpoints, "_pace", endpoints._Pace())
    codes = [api.get(f"/signals/{new_token()}").status_code for _ in range(5)]
    assert 429 in codes
    assert set(codes) <= {404, 429}


def test_a_link_is_not_called_used_if_the_server_could_not_look(
    app: Tenure, api: TestClient, caplog: pytest.LogCaptureFixture, sqlite_url: str
) -> None:
    """The log says why, without the token: its owner can still use it."""
    token = token_of(app, taken(app), "true")
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as raw:
        raw.execute("ALTER TABLE tenure_signal_token RENAME TO elsewhere")
        page = api.get(f"/signals/{token}", headers=FROM_MAIL)
        raw.execute("ALTER TABLE elsewhere RENAME TO tenure_signal_token")
    assert (page.status_code, "again in a moment" in page.text) == (503, True)
    assert "does not work" not in page.text
    assert "GET /signals/..., request " in caplog.text
    assert token not in caplog.text
    assert api.post(f"/signals/{token}", content=b"", headers=FORM).status_code == 200


def test_on_the_page_of_the_job(app: Tenure, api: TestClient) -> None:
    """What it waits for is filled in; what was sent is shown, escaped and redacted."""
    lease = taken(app)
    page = f"/ui/jobs/{lease.id}"
    assert "Signals" not in api.get(page).text
    wait = Wait("approved", 1)
    app.core.report([Report(lease.id, lease.lease_id, Outcome.SUSPENDED, wait=wait)])
    shown = api.get(page).text
    assert "It waits for the signal approved." in shown
    assert 'name="name" value="approved"' in shown
    fields = {"name": "approved", "payload": "{"}
    assert post_form(api, f"{page}/signal", fields).status_code == 400
    fields["payload"] = '{"note": "<b>", "card": "4711-4711"}'
    assert post_form(api, f"{page}/signal", fields).status_code == 303
    (sent,) = app.signals.list(lease.id)
    assert (sent.payload["card"], sent.actor) == ("4711-4711", "dashboard")
    assert app.get(lease.id).status == "pending"
    shown = api.get(page).text
    assert "&lt;b&gt;" in shown
    assert "4711" not in shown
    app.cancel(lease.id)
    assert "/signal" not in api.get(page).text
    assert post_form(api, f"{page}/signal", {"name": "approved"}).status_code == 303
    assert len(app.signals.list(lease.id)) == 1
