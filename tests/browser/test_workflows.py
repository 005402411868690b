"""The pages of workflows in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tenure import Tenure
from tests.browser.conftest import PATIENCE

expect.set_options(timeout=PATIENCE)
HOSTILE = "<script>window.owned=1</script><img/src=x/onerror=window.owned=1>"


@pytest.fixture(scope="module", autouse=True)
def workflow(app: Tenure) -> str:
    """One that waits for an hour: an import with what follows it, and a chain of long names."""
    with app.workflow("import", key=HOSTILE, actor=HOSTILE) as flow:
        later = {"delay": "1h"}
        pages = [flow.add(app_job("fetch", **later)) for _ in range(50)]
        total = flow.add(app_job("sum"), depends_on=pages)
        flow.add(app_job("a" * 128), depends_on=[total.failed])
        flow.add(app_job("clean_up"), depends_on=[total.settled, *(p.settled for p in pages)])
    return flow.id


def app_job(type: str, **options: object) -> object:
    from tenure import NewJob

    return NewJob(type, {}, options)  # type: ignore[arg-type]
