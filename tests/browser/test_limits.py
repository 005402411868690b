"""The pages of limits in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tenure import PerPartition, Tenure
from tests.browser.conftest import PATIENCE, WINDOWS, Window, flaws_of
from tests.support.waiting import wait_until

expect.set_options(timeout=PATIENCE)
HOSTILE = '<script>window.owned = 1</script><img src=x onerror="window.owned=1">\u202edetrevni'
NAMES = ("acme", "initech", "umbrella corporation", HOSTILE, None)


@pytest.fixture(scope="module", autouse=True)
def queues(app: Tenure) -> None:
    """One queue with everything that there can be, whose jobs no worker takes: it has the limit 0.

    The other one has a partition that is halted.
    """
    app.queues.limit("tenants", rate="900/1m", max_pending=5000, per_partition=PerPartition(2))
    app.queues.limit("tenants", max_running=0)
    for times, name in enumerate(NAMES, 1):
        for _ in range(times):
            app.enqueue("email", queue="tenants", partition=name)
    app.queues.limit_partition("tenants", "umbrella corporation", weight=4, max_running=10)
    app.queues.pause_partition("tenants", "initech", reason="unpaid since March")
    app.queues.pause_partition("tenants", HOSTILE, reason=HOSTILE)
    app.queues.limit("ledger", ordered="halt")
    for _ in range(2):
        app.enqueue("fake.fail", queue="ledger", partition="acme", max_retries=1)
    wait_until(lambda: app.queues.partitions("ledger")[0].halted_by, "the first one to fail")
    app.queues.limit("ledger", max_running=0)


@WINDOWS
def test_pages_are_for_everybody(window: Window, width: int, scheme: str, share: int) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    page = window(viewport={"width": width, "height": 800}, **options)
    assert flaws_of(page, ("/ui/queues", "/ui/queues/tenants", "/ui/queues/ledger"), share) == []


@pytest.mark.parametrize("scripts", [True, False])
def test_forms(window: Window, app: Tenure, scripts: bool) -> None:
    page = window(java_script_enabled=scripts)
    page.goto("/ui/queues/tenants")
    page.get_by_label("Max pending").fill("6000" if scripts else "7000")
    page.get_by_role("button", name="Set limits").click()
    expect(page.locator("main")).to_contain_text("of at most 6,000" if scripts else "7,000")
    page.locator("tr", has_text="acme").locator("summary").click()
    page.get_by_label("Reason to pause partition acme").fill("broken")
    page.get_by_role("button", name="Pause partition acme").click()
    expect(page.locator("main")).to_contain_text("by dashboard: broken")
    page.get_by_role("button", name="Resume partition acme").click()
    expect(page.locator("main")).not_to_contain_text("broken")


def test_what_a_person_types_stays_with_its_partition(window: Window, app: Tenure) -> None:
    """The rows change their places while somebody types."""
    page = window()
    page.goto("/ui/queues/tenants")
    row = page.locator("tr", has_text="acme")
    row.locator("summary").click()
    row.get_by_label("Weight").fill("7")
    for _ in range(9):
        app.enqueue("email", queue="tenants", partition="acme")
    expect(page.locator("tbody tr").first).to_contain_text("acme")
    row.get_by_role("button", name="Set").click()
    expect(row.locator("[data-label=Weight]")).to_have_text("7")
    (found,) = [one for one in app.queues.partitions("tenants") if one.weight == 7]
    assert found.partition == "acme"


def test_a_halted_partition_goes_on(window: Window, app: Tenure) -> None:
    page = window()
    page.goto("/ui/queues/ledger")
    page.get_by_role("button", name="Pass over partition acme").click()
    expect(page.locator("#message")).to_contain_text("Partition acme continues.")
    expect(page.locator("tbody")).not_to_contain_text("halted")


def test_a_partition_leads_to_its_jobs(window: Window) -> None:
    """Who holds the slots of a queue, and who waits for them."""
    page = window()
    page.goto("/ui/queues/tenants")
    row = page.locator("tr", has_text="umbrella")
    row.locator("[data-label=Pending] a").click()
    expect(page.locator("tr[id^=job-]")).to_have_count(3)
    page.go_back()
    row.locator("[data-label=Running] a").click()
    expect(page.locator("main")).to_contain_text("No job matches.")
    page.goto("/ui/queues/tenants")
    without = page.locator("tr", has=page.get_by_text("none", exact=True))
    expect(without.locator("[data-label=Pending]")).to_have_text("5")
    expect(without.get_by_role("link")).to_have_count(0)


def test_a_queue_is_paused_with_a_reason_from_the_list(window: Window, app: Tenure) -> None:
    page = window()
    page.goto("/ui/queues")
    page.get_by_label("Reason to pause queue tenants").fill("provider is down")
    page.get_by_role("button", name="Pause queue tenants").click()
    expect(page.locator("#message")).to_contain_text("Queue tenants is paused.")
    (queue,) = [one for one in app.queues.list() if one.name == "tenants"]
    assert queue.pause_reason == "provider is down"
    app.queues.resume("tenants")
