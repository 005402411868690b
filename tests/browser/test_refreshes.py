"""A page that changes by itself: what it asks for, and what it drops."""

from __future__ import annotations

from playwright.sync_api import Request, Route, expect

from tenure import Tenure
from tests.browser.conftest import PATIENCE, Window

expect.set_options(timeout=PATIENCE)


def is_refresh(request: Request) -> bool:
    return request.headers.get("tenure-refresh") == "1"


def test_an_action_drops_the_refresh_that_is_under_way(window: Window, app: Tenure) -> None:
    """Its answer is older than the action: it showed the job as it was before."""
    job = app.enqueue("email", delay="1h")
    page = window()
    page.goto(f"/ui/jobs/{job.id}")
    expect(page.locator("#live")).to_have_text("live")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if is_refresh(route.request) and not held:
            held.append(route)
        else:
            route.continue_()

    with page.expect_request(is_refresh):
        page.route(f"**/ui/jobs/{job.id}", hold)
    with page.expect_event("requestfailed", is_refresh):
        page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("h1")).to_contain_text("cancelled")
    assert len(held) == 1
