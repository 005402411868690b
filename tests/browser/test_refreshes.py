"""A page that changes by itself or by an action: what it asks for, and what it drops."""

from __future__ import annotations

from playwright.sync_api import Page, Request, Route, expect

from tenure import Tenure
from tests.browser.conftest import PATIENCE, Window

expect.set_options(timeout=PATIENCE)


def is_refresh(request: Request) -> bool:
    return request.headers.get("tenure-refresh") == "1"


def held_requests(page: Page, pattern: str) -> list[Route]:
    """Those that wait until the test continues them."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route(pattern, hold)
    return held


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


def test_an_action_drops_the_refresh_that_another_began(window: Window, app: Tenure) -> None:
    """It was asked between the two, and showed the queue as it was before the second."""
    app.enqueue("email", queue="two", delay="1h")
    page = window()
    page.goto("/ui/queues/two")
    expect(page.locator("#live")).to_have_text("live")
    pauses = held_requests(page, "**/pause")
    with page.expect_request("**/pause"):
        page.get_by_role("button", name="Pause queue two").click()
    refreshes: list[Route] = []
    page.route(
        "**/ui/queues/two",
        lambda route: refreshes.append(route) if is_refresh(route.request) else route.continue_(),
    )
    with page.expect_request(is_refresh):
        page.get_by_role("button", name="Set limits").click()
    with page.expect_event("requestfailed", is_refresh):
        pauses[0].continue_()
    expect(page.get_by_role("button", name="Resume queue two")).to_be_visible()


def test_a_button_that_is_pressed_twice_acts_once(window: Window, app: Tenure) -> None:
    """The second click of a double click cancelled the new job: that button took the place."""
    app.enqueue("email", queue="twice", delay="1h")
    page = window()
    posts: list[str] = []
    page.on("request", lambda one: one.method == "POST" and posts.append(one.url.split("/")[-1]))
    page.goto("/ui/queues/twice")
    held = held_requests(page, "**/pause")
    page.get_by_role("button", name="Pause queue twice").focus()
    with page.expect_request("**/pause"):
        page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    held[0].continue_()
    page.get_by_role("button", name="Resume queue twice").hover()
    page.mouse.down(click_count=2)
    page.mouse.up(click_count=2)
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("#message")).to_contain_text("The limits of queue twice are")
    assert posts == ["pause", "limit"]
