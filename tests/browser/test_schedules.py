"""The pages of schedules in a real browser."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from tenure import NewJob, Tenure
from tests.browser.conftest import PATIENCE, WINDOWS, Window, flaws_of

expect.set_options(timeout=PATIENCE)
HOSTILE = '<script>window.owned = 1</script><img src=x onerror="window.owned=1">\u202edetrevni'
PATHS = ("/ui/schedules", "/ui/schedules/odd", "/ui/schedules/new")


@pytest.fixture(scope="module", autouse=True)
def schedules(app: Tenure) -> None:
    """One with a record, a note and a pause, and one without."""
    hostile = NewJob("email", {HOSTILE: HOSTILE}, {"queue": "mail"})
    when: Any = {"cron": "*/30 2 * * *", "zone": "Europe/Berlin"}
    app.schedules.create("odd", hostile, **when, note=HOSTILE)
    now = datetime.now(UTC)
    app.schedules.backfill("odd", now - timedelta(days=9), now, overlap="skip")
    app.schedules.pause("odd", reason=HOSTILE)
    app.schedules.create("new", hostile, **when)


@WINDOWS
def test_pages_are_for_everybody(window: Window, width: int, scheme: str, share: int) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    page = window(viewport={"width": width, "height": 800}, **options)
    assert flaws_of(page, PATHS, share) == []


@pytest.mark.parametrize(
    ("path", "width"),
    [
        ("/ui/schedules/new", 1024),
        ("/ui/schedules", 700),
        ("/ui/schedules", 768),
        ("/ui/queues", 768),
    ],
)
def test_a_table_fits_its_card(window: Window, app: Tenure, path: str, width: int) -> None:
    """The ticks ran under the next card, and the buttons were right of what a tablet shows."""
    app.enqueue("email", queue="email-notifications", delay="1d")
    page = window(viewport={"width": width, "height": 800})
    page.goto(path)
    card = "card => [card.scrollWidth, card.clientWidth]"
    for needed, given in page.locator(".card:has(> table)").evaluate_all(f"all => all.map({card})"):
        assert needed <= given


def test_ticks_are_shown_in_the_time_of_who_looks(window: Window) -> None:
    page = window(timezone_id="Asia/Tokyo", locale="en-GB")
    page.goto("/ui/schedules/new")
    expect(page.locator("time[data-local]").first).to_contain_text("0:00")  # 2:00 is 10:00 there
    tick = page.locator("td[data-label=Tick] time").first
    expect(tick).to_contain_text(re.compile("02:[03]0:00 CE"))  # the next one, by the hour of now


@pytest.mark.parametrize("scripts", [True, False])
def test_buttons(window: Window, app: Tenure, scripts: bool) -> None:
    page = window(java_script_enabled=scripts)
    page.goto("/ui/schedules")
    page.get_by_role("button", name="Trigger schedule new").click()
    expect(page.locator("#message")).to_contain_text("Schedule new has added a job")
    expect(page.locator("td[data-label=How]").first).to_contain_text("trigger dashboard")
    page.get_by_label("Reason to pause schedule new").fill("broken")
    page.get_by_role("button", name="Pause schedule new").click()
    expect(page.locator("main")).to_contain_text("by dashboard: broken")
    page.get_by_role("button", name="Resume schedule new").click()
    expect(page.locator("main")).not_to_contain_text("broken")
