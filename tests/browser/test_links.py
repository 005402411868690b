"""The page of a one-use token of a signal: for anybody, without a script, and one click."""

from __future__ import annotations

from playwright.sync_api import expect

from tenure import Tenure
from tenure.rules.signals import new_token, token_digest
from tenure.store.database import Statements
from tests.browser.conftest import Window, flaws


def test_a_link_from_a_mail(window: Window, app: Tenure) -> None:
    """The browser sends the form as from nowhere (`Origin: null`), since the page has no referrer.

    Opened, and opened again, it changes nothing; the button counts once.
    """
    job = app.enqueue("order", delay="1h")
    token = new_token()

    def keep(db: Statements) -> None:
        d = db.dialect
        db.changed(
            f"INSERT INTO {d.table('signal_token')} (digest, job_id, name, payload, at)"
            f" VALUES ({d.value}, {d.id_value}, 'approve', {d.value}, {d.now})",
            (token_digest(token), job.id, '{"note": "<img src=x onerror=alert(1)>"}'),
        )

    app.core.store.write("signal", keep).result()
    page = window(errors_are_meant=True)  # a link that was used is a 404
    for scheme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"/signals/{token}")
        expect(page.get_by_role("heading")).to_have_text("approve")
        assert flaws(page) == []
    assert app.signals.list(job.id) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="approve").click()
    expect(page.get_by_role("heading")).to_have_text("approve: sent")
    assert [one.payload["note"] for one in app.signals.list(job.id)] == [
        "<img src=x onerror=alert(1)>"
    ]
    page.goto(f"/signals/{token}")
    expect(page.get_by_role("heading")).to_contain_text("does not work")
    app.cancel(job.id)
